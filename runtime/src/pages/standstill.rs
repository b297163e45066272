//! Has all threads of some processes stand still for a moment, so that their memory can be looked at as of one instant.
//!
//! They are traced, not frozen: whatever ends this process, the kernel lets them run on. For the same reason it happens on
//! a thread that ends with it. A thread that cannot stop, as a parent between vfork and exec, makes the attempt fail and
//! nothing else: all others are let go again. It is no way to dump a container.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::sys::trace::{self, Traced};

/// How long the threads may take to stop, all together: most need microseconds. The container stands still meanwhile.
const STOP_DEADLINE: Duration = Duration::from_millis(200);

/// How often it is looked whether they have.
const STOP_INTERVAL: Duration = Duration::from_micros(100);

/// Passes over all processes at most, as long as each finds threads that the one before has not seen.
const MAX_PASSES: usize = 100;

/// Threads that are traced, with the signal that each met on its way; they are let go when it is dropped.
#[derive(Default)]
struct Held(BTreeMap<i32, Option<i32>>);

/// Runs `work` while every thread of the processes that `processes` tells of stands still. It is asked again until it
/// tells of none that is new. Returns what `work` did and how long they stood.
pub fn during<T: Send>(
    processes: impl Fn() -> Vec<u32> + Send,
    work: impl FnOnce() -> T + Send,
) -> io::Result<(T, Duration)> {
    let held = move || {
        let since = Instant::now();
        let mut held = Held::default();
        held.stop(&processes, since + STOP_DEADLINE)?;
        let done = work();
        drop(held);
        Ok((done, since.elapsed()))
    };
    thread::scope(|scope| {
        let tracer = thread::Builder::new()
            .name("standstill".into())
            .spawn_scoped(scope, held)?;
        tracer
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that traces has failed")))
    })
}

impl Held {
    fn stop(&mut self, processes: &impl Fn() -> Vec<u32>, deadline: Instant) -> io::Result<()> {
        for _ in 0..MAX_PASSES {
            let mut is_complete = true;
            for pid in processes() {
                for thread in threads_of(pid) {
                    if !self.0.contains_key(&thread) && self.seize(pid, thread)? {
                        is_complete = false;
                    }
                }
            }
            if is_complete {
                return Ok(());
            }
            self.await_stops(deadline)?;
        }
        Err(io::Error::other("more and more threads appear"))
    }

    /// False for a thread that has ended.
    fn seize(&mut self, pid: u32, thread: i32) -> io::Result<bool> {
        let seized = trace::seize(thread).map(|()| {
            self.0.insert(thread, None);
        });
        match seized.and_then(|()| trace::interrupt(thread)) {
            Ok(()) => Ok(true),
            Err(_) if has_ended(pid, thread) => Ok(false),
            Err(error) => {
                let text = format!("thread {thread} of process {pid} cannot be stopped: {error}");
                Err(io::Error::new(error.kind(), text))
            }
        }
    }

    fn await_stops(&mut self, deadline: Instant) -> io::Result<()> {
        loop {
            let mut waits_for = None;
            let mut ended = Vec::new();
            for (thread, signal) in &mut self.0 {
                if signal.is_none() {
                    match trace::look(*thread)? {
                        Some(Traced::Stopped { signal: met }) => *signal = Some(met),
                        Some(Traced::Ended) => ended.push(*thread),
                        None => waits_for = Some(*thread),
                    }
                }
            }
            for thread in ended {
                self.0.remove(&thread);
            }
            let Some(thread) = waits_for else { return Ok(()) };
            if Instant::now() >= deadline {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("thread {thread} does not stop within {STOP_DEADLINE:?}"),
                ));
            }
            thread::sleep(STOP_INTERVAL);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for (thread, signal) in &self.0 {
            // One that was killed meanwhile, or that has not stopped, is let go by the end of this very thread.
            let _ = trace::detach(*thread, signal.unwrap_or(0));
        }
    }
}

fn threads_of(pid: u32) -> Vec<i32> {
    let Ok(found) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    found
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

fn has_ended(pid: u32, thread: i32) -> bool {
    let stat = Path::new("/proc")
        .join(pid.to_string())
        .join("task")
        .join(thread.to_string())
        .join("stat");
    match fs::read_to_string(stat) {
        Ok(stat) => stat
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])),
        Err(error) => {
            error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    /// A program that counts in a file as fast as it can, and ends by itself if its test does not end it.
    struct Counting {
        child: Child,
        directory: tempfile::TempDir,
    }

    impl Counting {
        fn begin() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let script = "i=0; while [ $i -lt 3000000 ]; do i=$((i+1)); echo $i >count; done";
            let child = Command::new("sh")
                .args(["-c", script])
                .current_dir(directory.path())
                .stdin(Stdio::null())
                .spawn()
                .unwrap();
            let counting = Self { child, directory };
            counting.goes_on();
            counting
        }

        fn count(&self) -> Option<u64> {
            let text = fs::read_to_string(self.directory.path().join("count")).ok()?;
            text.trim().parse().ok()
        }

        fn goes_on(&self) {
            let (before, until) = (self.count(), Instant::now() + Duration::from_secs(10));
            while self.count().is_none() || self.count() == before {
                assert!(Instant::now() < until, "it does not run");
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    impl Drop for Counting {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    #[test]
    fn they_stand_still_for_as_long_as_it_takes_and_no_longer() {
        let counting = Counting::begin();
        let pid = counting.child.id();
        let (counts, stood) = during(
            || vec![pid],
            || {
                let read = || fs::read(counting.directory.path().join("count")).unwrap();
                let before = read();
                thread::sleep(Duration::from_millis(50));
                (before, read())
            },
        )
        .unwrap();
        assert_eq!(counts.0, counts.1);
        assert!(stood >= Duration::from_millis(50));
        counting.goes_on();
    }

    #[test]
    fn what_has_ended_holds_nothing_up() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = child.id();
        let until = Instant::now() + Duration::from_secs(10);
        while !has_ended(pid, pid.cast_signed()) {
            assert!(Instant::now() < until, "it does not end");
            thread::sleep(Duration::from_millis(1));
        }
        assert!(during(|| vec![pid], || true).unwrap().0, "a zombie");
        child.wait().unwrap();
        assert!(during(|| vec![pid], || true).unwrap().0, "nothing at all");
    }
}
