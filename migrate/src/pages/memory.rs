//! The memory of a container whose tasks stand still after a lazy dump: where its pages are, and what is in them.
//!
//! It reads and never writes, and it trusts that the tasks do not run: whoever opens it holds them frozen.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::path::Path;

use godwit_runtime::pages::layout::{self, Task};
use godwit_runtime::pages::left_out::innermost_pid;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use super::schedule::Run;

/// Pages of frozen tasks.
#[derive(Debug)]
pub struct Memory {
    tasks: Vec<Task>,
    /// Each task's pid on this host and its memory as a file.
    here: Vec<(Pid, File)>,
    indices: HashMap<u32, usize>,
}

impl Memory {
    /// The pages that the lazy dump in `image` has left in the tasks of the container whose first process is `init`.
    pub fn open(image: &Path, init: u32) -> io::Result<Self> {
        let tasks: Vec<Task> = layout::left_behind(image)?
            .into_iter()
            .filter(|task| !task.ranges.is_empty())
            .collect();
        let pids = pids_in_namespace_of(init)?;
        let open = |task: &Task| {
            let pid = pids.get(&task.pid).copied().ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::NotFound,
                    format!("process {} of the container is gone", task.pid),
                )
            })?;
            Ok((Pid::from_raw(pid), File::open(format!("/proc/{pid}/mem"))?))
        };
        Ok(Self {
            here: tasks.iter().map(open).collect::<io::Result<_>>()?,
            indices: tasks.iter().map(|task| task.pid).zip(0..).collect(),
            tasks,
        })
    }

    /// All memory of these tasks, by their pids in images, of the container whose first process is `init`.
    pub fn of_tasks(tasks: &[u32], init: u32) -> io::Result<Self> {
        let there = pids_in_namespace_of(init)?;
        let (mut found, mut here) = (Vec::new(), Vec::new());
        for (task, pid) in tasks.iter().filter_map(|task| Some((*task, *there.get(task)?))) {
            match File::open(format!("/proc/{pid}/mem")) {
                Ok(memory) => here.push((Pid::from_raw(pid), memory)),
                // A zombie has no memory, and is no process to find either, once it was waited for.
                Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => continue,
                Err(error) => return Err(error),
            }
            found.push(Task {
                pid: task,
                ranges: Vec::new(),
            });
        }
        Ok(Self {
            here,
            indices: found.iter().map(|task| task.pid).zip(0..).collect(),
            tasks: found,
        })
    }

    /// Reads the memory at `address` of the task that images call `pid`.
    pub fn read_at(&self, pid: u32, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        let (here, memory) = self
            .index_of(pid)
            .map(|index| &self.here[index])
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("process {pid} is gone")))?;
        let n_read = read_from(here.as_raw(), memory, address, buffer);
        // What could not be read is tried once more, for the reason why.
        memory.read_exact_at(&mut buffer[n_read..], address + n_read as u64)
    }

    /// The tasks with their pages.
    pub fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// Only these pages of each task are to be sent; all can still be read.
    pub fn keep(&mut self, left: &[Task]) {
        for task in &mut self.tasks {
            let kept = left.iter().find(|one| one.pid == task.pid);
            task.ranges = kept.map(|one| one.ranges.clone()).unwrap_or_default();
        }
    }

    /// Bytes of all pages.
    pub fn bytes(&self) -> u64 {
        let ranges = self.tasks.iter().flat_map(|task| &task.ranges);
        ranges.map(layout::Range::bytes).sum()
    }

    /// Where in the list of tasks the one is that images call `pid`.
    pub fn index_of(&self, pid: u32) -> Option<usize> {
        self.indices.get(&pid).copied()
    }

    /// What images call the task at `index`.
    pub fn pid_of(&self, index: usize) -> u32 {
        self.tasks[index].pid
    }

    /// Reads pages into `buffer`, which has exactly their size.
    pub fn read(&self, run: Run, buffer: &mut [u8]) -> io::Result<()> {
        self.read_at(self.pid_of(run.task), run.address, buffer)
    }
}

/// Reads the memory of the process `pid`, which is `memory` as a file, until the buffer is full or nothing more can be read.
pub(super) fn read_from(pid: i32, memory: &File, address: u64, buffer: &mut [u8]) -> usize {
    let mut done = 0;
    while done < buffer.len() {
        let remote = RemoteIoVec {
            base: address as usize + done,
            len: buffer.len() - done,
        };
        let local = &mut [IoSliceMut::new(&mut buffer[done..])];
        match process_vm_readv(Pid::from_raw(pid), local, &[remote]) {
            Ok(read @ 1..) => done += read,
            // What the task itself may not read is read by the slower way, which does not ask.
            Ok(_) | Err(_) => match memory.read_at(&mut buffer[done..], address + done as u64) {
                Ok(read @ 1..) => done += read,
                Ok(_) | Err(_) => break,
            },
        }
    }
    done
}

/// The pid on this host of every process in the pid namespace of `init`, by its pid there.
fn pids_in_namespace_of(init: u32) -> io::Result<HashMap<u32, i32>> {
    let namespace = fs::read_link(format!("/proc/{init}/ns/pid"))?;
    let mut pids = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process that ends meanwhile is none of ours: those stand still.
        if fs::read_link(entry.path().join("ns/pid")).is_ok_and(|link| link == namespace)
            && let Some(there) =
                innermost_pid(&fs::read_to_string(entry.path().join("status")).unwrap_or_default())
        {
            pids.insert(there, pid);
        }
    }
    Ok(pids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_runtime::pages::layout::Range;
    use godwit_runtime::pages::wire::PAGE_BYTES;

    #[test]
    fn pages_are_read_from_another_process() {
        // Its own memory is another process' as well as any: the way through the kernel is the same.
        let content: Vec<u8> = (0..3 * PAGE_BYTES).map(|index| (index % 251) as u8).collect();
        let address = (content.as_ptr() as usize).next_multiple_of(PAGE_BYTES);
        let skipped = address - content.as_ptr() as usize;
        let pid = std::process::id();
        let memory = Memory {
            tasks: vec![Task {
                pid: 1,
                ranges: vec![Range {
                    start: address as u64,
                    end: (address + PAGE_BYTES) as u64,
                }],
            }],
            here: vec![(Pid::this(), File::open(format!("/proc/{pid}/mem")).unwrap())],
            indices: [(1, 0)].into(),
        };
        let run = Run {
            task: 0,
            address: address as u64,
            pages: 1,
        };
        let mut page = vec![0; PAGE_BYTES];
        memory.read(run, &mut page).unwrap();
        assert_eq!(page, content[skipped..skipped + PAGE_BYTES]);
        assert_eq!(memory.bytes(), PAGE_BYTES as u64);
        let nowhere = Run { address: 0, ..run };
        assert!(memory.read(nowhere, &mut page).is_err());
    }
}
