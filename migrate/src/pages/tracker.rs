//! Sees which memory a running container has, and which of it was written to since the last look.
//!
//! A [`Tracker`] is asked again and again; what is made of its answers is not its business. The kernel's is
//! [`SoftDirty`]; tests have another, whose memory they write to themselves.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::time::Duration;

use godwit_runtime::pages::left_out::innermost_pid;
use godwit_runtime::pages::soft_dirty::{self, Seen};
use godwit_runtime::pages::standstill;
use godwit_runtime::pages::wire::PAGE_BYTES;
use nix::errno::Errno;

use super::memory::read_from;
use crate::checks::proc::Proc;

/// A task for as long as it lives: its pid alone may be another's later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId {
    /// Its pid in the container, as images name it.
    pub pid: u32,
    /// Its pid on this host.
    pub here: u32,
    /// When it began, in ticks since the machine's start.
    pub began: u64,
}

/// All of a container's private memory at one instant.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// The pages of each task.
    pub tasks: Vec<(TaskId, Seen)>,
    /// How long the container stood still for it.
    pub stood: Duration,
}

/// See the module.
pub trait Tracker: Send {
    /// Looks at a container that runs. What is clean at the next look was not written to since this one.
    ///
    /// After an error nothing is known of any page: the next look must be taken for the first.
    fn look(&mut self) -> io::Result<Look>;

    /// Looks at a container that stands still already, for the last time.
    fn look_at_last(&mut self) -> io::Result<Look>;

    /// Reads pages from `address` on into `buffer`, which has room for some; returns the bytes of whole pages that were
    /// read, 0 if the first is not there. A task that runs may write to them meanwhile.
    fn read(&mut self, task: TaskId, address: u64, buffer: &mut [u8]) -> usize;
}

/// The kernel's soft-dirty bits.
#[derive(Debug)]
pub struct SoftDirty {
    init: u32,
    /// The memory of tasks that were seen last, as files.
    memories: HashMap<TaskId, File>,
}

impl SoftDirty {
    /// Of the container whose first process is `init`, and of all below it.
    pub fn of(init: u32) -> Self {
        Self {
            init,
            memories: HashMap::new(),
        }
    }

    fn scan(&self) -> io::Result<Vec<(TaskId, Seen)>> {
        let mut tasks = Vec::new();
        for pid in Proc::default().processes(self.init) {
            match identify(pid).and_then(|id| Ok((id, soft_dirty::scan(pid)?))) {
                Ok(task) => tasks.push(task),
                Err(error) if is_gone(&error) => {}
                Err(error) => {
                    let text = format!("the pages of process {pid}: {error}");
                    return Err(io::Error::new(error.kind(), text));
                }
            }
        }
        Ok(tasks)
    }

    fn open_memories(&mut self, tasks: &[(TaskId, Seen)]) {
        // Opened anew each time: such a file stays with the memory that a task had before it executed another program.
        let open = |id: &TaskId| Some((*id, File::open(format!("/proc/{}/mem", id.here)).ok()?));
        self.memories = tasks.iter().filter_map(|(id, _)| open(id)).collect();
    }
}

impl Tracker for SoftDirty {
    fn look(&mut self) -> io::Result<Look> {
        let init = self.init;
        let processes = move || Proc::default().processes(init).into_iter().collect();
        let (scanned, stood) = standstill::during(processes, || {
            let tasks = self.scan()?;
            // After all are scanned: two that share their memory are told the same of it.
            for (id, _) in &tasks {
                match soft_dirty::forget(id.here) {
                    Err(error) if !is_gone(&error) => return Err(error),
                    _ => {}
                }
            }
            Ok(tasks)
        })?;
        let tasks = scanned?;
        self.open_memories(&tasks);
        Ok(Look { tasks, stood })
    }

    fn look_at_last(&mut self) -> io::Result<Look> {
        let tasks = self.scan()?;
        self.open_memories(&tasks);
        Ok(Look {
            tasks,
            stood: Duration::ZERO,
        })
    }

    fn read(&mut self, task: TaskId, address: u64, buffer: &mut [u8]) -> usize {
        let Some(memory) = self.memories.get(&task) else {
            return 0;
        };
        let n_read = read_from(task.here.cast_signed(), memory, address, buffer);
        n_read / PAGE_BYTES * PAGE_BYTES
    }
}

fn identify(pid: u32) -> io::Result<TaskId> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before it may hold anything; the start is the 22nd field, the 20th behind the name.
    let began = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.split(' ').nth(19)?.parse().ok());
    match (innermost_pid(&status), began) {
        (Some(inside), Some(began)) => Ok(TaskId {
            pid: inside,
            here: pid,
            began,
        }),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// A process that has ended is no error: it has no memory to be moved.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_known_by_its_pid_and_its_beginning() {
        let this = identify(std::process::id()).unwrap();
        assert_eq!(this.here, std::process::id());
        assert!(this.began > 0);
        assert!(is_gone(&identify(u32::MAX / 2).unwrap_err()));
    }

    #[test]
    fn the_memory_of_a_child_is_seen_and_read() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut tracker = SoftDirty::of(child.id());
        let until = std::time::Instant::now() + Duration::from_secs(10);
        // A program that has just been executed has no memory of its own yet.
        let look = loop {
            let look = tracker.look().unwrap();
            if !look.tasks[0].1.present.is_empty() {
                break look;
            }
            assert!(std::time::Instant::now() < until, "{look:?}");
        };
        let (id, seen) = &look.tasks[0];
        assert_eq!(id.here, child.id());
        let mut page = vec![0; PAGE_BYTES];
        let first = seen.present.ranges()[0].start;
        assert_eq!(tracker.read(*id, first, &mut page), PAGE_BYTES);
        assert_eq!(tracker.read(*id, 0, &mut page), 0, "nothing is there");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(tracker.look().unwrap().tasks.is_empty());
    }
}
