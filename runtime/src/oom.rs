//! Tells when the kernel kills in a container for want of memory, on cgroups of either version.
//!
//! The kernel's counter decides, and each kill is told once. Version 1 signals an eventfd: before the kill, for what
//! happens above the container as well, several times for one kill, and when the cgroup goes away. Version 2 changes
//! `memory.events` for other reasons too. Only reports: what to do is the engine's to know.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep};

use crate::cgroup::{Cgroup, Files};
use crate::sys;

/// Version 1 signals before it kills; choosing a victim takes milliseconds, on a machine without memory much longer.
const KILL_DEADLINE: Duration = Duration::from_secs(3);

/// How often the counter is looked at meanwhile.
const KILL_POLL: Duration = Duration::from_millis(20);

/// How deep a container may nest cgroups of its own before their kills are not counted any more.
const MAX_DEPTH: usize = 16;

/// A watch on one cgroup. It reports nothing that happened before it was made.
#[derive(Debug)]
pub struct OomWatch {
    kills: Arc<OomKills>,
    signal: Signal,
}

#[derive(Debug)]
enum Signal {
    /// Version 2.
    Changed(AsyncFd<FileEvents>),
    /// Version 1.
    Raised(AsyncFd<EventFd>),
}

/// nix's inotify does not name its descriptor the way tokio wants it.
#[derive(Debug)]
struct FileEvents(Inotify);

impl AsRawFd for FileEvents {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// How many kills there were in a cgroup and the cgroups in it, and how many of them have been told.
#[derive(Debug)]
pub struct OomKills {
    counter: Counter,
    n_told: AtomicU64,
}

#[derive(Debug)]
enum Counter {
    /// `memory.events`, which counts what is below as well.
    Events(PathBuf),
    /// The directory of version 1, where each cgroup counts its own.
    Control(PathBuf),
}

impl OomWatch {
    /// Watches a cgroup; `None` if the kernel limits no memory there.
    pub fn of(cgroup: &Cgroup) -> io::Result<Option<Self>> {
        if let Some(files) = cgroup.controller("memory") {
            return Self::of_v1(files).map(Some);
        }
        let file = cgroup.unified().map(|files| files.path().join("memory.events"));
        let Some(file) = file.filter(|file| file.exists()) else {
            return Ok(None);
        };
        let events = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        events.add_watch(&file, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_DELETE_SELF)?;
        Ok(Some(Self {
            kills: OomKills::since_now(Counter::Events(file)),
            signal: Signal::Changed(sys::watch_readable(FileEvents(events))?),
        }))
    }

    fn of_v1(files: Files<'_>) -> io::Result<Self> {
        let signal = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let watched = File::open(files.path().join("memory.oom_control"))?;
        let registration = format!("{} {}", signal.as_fd().as_raw_fd(), watched.as_raw_fd());
        fs::write(files.path().join("cgroup.event_control"), registration)?;
        Ok(Self {
            kills: OomKills::since_now(Counter::Control(files.path().to_owned())),
            signal: Signal::Raised(sys::watch_readable(signal)?),
        })
    }

    /// The counter, to look at it at other times as well.
    pub fn kills(&self) -> Arc<OomKills> {
        self.kills.clone()
    }

    /// Waits, as long as it takes, for the next kill that is not told yet; `None` when the cgroup is gone. A cgroup
    /// that is out of memory and may not kill is told as well.
    pub async fn next(&mut self) -> Option<()> {
        loop {
            match &self.signal {
                Signal::Changed(events) => {
                    let read = events.async_io(Interest::READABLE, |events| Ok(events.0.read_events()?));
                    read.await.ok()?;
                    self.kills.counter.n_kills()?;
                    if self.kills.take_untold() {
                        return Some(());
                    }
                }
                Signal::Raised(signal) => {
                    let read = signal.async_io(Interest::READABLE, |signal| Ok(signal.read()?));
                    read.await.ok()?;
                    if self.kills.settle().await? {
                        return Some(());
                    }
                }
            }
        }
    }
}

impl OomKills {
    fn since_now(counter: Counter) -> Arc<Self> {
        let n_told = AtomicU64::new(counter.n_kills().unwrap_or_default());
        Arc::new(Self { counter, n_told })
    }

    /// True if there were kills since somebody asked last, who is to tell them.
    pub fn take_untold(&self) -> bool {
        let n_now = self.counter.n_kills().unwrap_or_default();
        self.n_told.fetch_max(n_now, Ordering::Relaxed) < n_now
    }

    /// After a signal of version 1: true if there is something to tell, `None` if the cgroup is gone.
    async fn settle(&self) -> Option<bool> {
        let ends_at = Instant::now() + KILL_DEADLINE;
        loop {
            let state = self.counter.state()?;
            let set = |key: &str| state.get(key).is_some_and(|value| *value != 0);
            let is_stuck = set("under_oom");
            // Before 4.13 the kernel does not count: the signal is all there is.
            if self.take_untold() || !state.contains_key("oom_kill") || (is_stuck && set("oom_kill_disable"))
            {
                return Some(true);
            }
            if Instant::now() > ends_at {
                return Some(is_stuck);
            }
            sleep(KILL_POLL).await;
        }
    }
}

impl Counter {
    fn n_kills(&self) -> Option<u64> {
        match self {
            Self::Events(file) => n_in(file),
            Self::Control(directory) => n_below(directory, 0),
        }
    }

    /// What `memory.oom_control` says besides.
    fn state(&self) -> Option<HashMap<String, u64>> {
        match self {
            Self::Events(_) => None,
            Self::Control(directory) => Files::at(directory).table("memory.oom_control"),
        }
    }
}

fn n_in(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

fn n_below(directory: &Path, depth: usize) -> Option<u64> {
    let own = n_in(&directory.join("memory.oom_control"))?;
    let entries = fs::read_dir(directory).ok()?.flatten();
    let inner =
        entries.filter(|entry| depth < MAX_DEPTH && entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Some(
        own + inner
            .filter_map(|entry| n_below(&entry.path(), depth + 1))
            .sum::<u64>(),
    )
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    struct Fake {
        directory: tempfile::TempDir,
        file: &'static str,
        inner: &'static str,
    }

    impl Fake {
        fn v2() -> Self {
            Self::new("memory.events", "low 0\nhigh 0\nmax 3\noom 9\n")
        }

        fn v1() -> Self {
            Self::new("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n")
        }

        fn new(file: &'static str, inner: &'static str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let fake = Self {
                directory,
                file,
                inner,
            };
            fs::create_dir(fake.directory.path().join("inner")).unwrap();
            fake.kill("", 4);
            fake.kill("inner", 1);
            fake
        }

        /// The kernel has killed so often.
        fn kill(&self, below: &str, n_kills: u64) {
            let path = self.directory.path().join(below).join(self.file);
            // In one piece, as the kernel's file is: whoever looks sees the old number or the new one.
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(path);
            file.unwrap()
                .write_all(format!("{}oom_kill {n_kills}\n", self.inner).as_bytes())
                .unwrap();
        }

        fn watch(&self) -> OomWatch {
            let cgroup = match self.file {
                "memory.events" => Cgroup::unified_at(self.directory.path()),
                _ => Cgroup::controller_at("memory", self.directory.path()),
            };
            OomWatch::of(&cgroup).unwrap().unwrap()
        }
    }

    fn raise(watch: &OomWatch) {
        match &watch.signal {
            Signal::Raised(signal) => assert_eq!(8, signal.get_ref().write(1).unwrap()),
            Signal::Changed(_) => panic!("version 2 has no signal"),
        }
    }

    async fn told(watch: &mut OomWatch) -> Option<()> {
        tokio::time::timeout(SOON, watch.next())
            .await
            .expect("nothing was told")
    }

    /// Nothing more is told though there was a reason to look.
    async fn silent(watch: &mut OomWatch) {
        assert!(
            tokio::time::timeout(KILL_DEADLINE + Duration::from_secs(1), watch.next())
                .await
                .is_err()
        );
    }

    #[tokio::test]
    async fn on_version_2_a_kill_is_told_and_other_events_are_not() {
        let fake = Fake::v2();
        let mut watch = fake.watch();
        fake.kill("", 4); // written, and the same
        fake.kill("", 5);
        assert_eq!(told(&mut watch).await, Some(()));
        fake.kill("", 5);
        assert!(
            tokio::time::timeout(Duration::from_millis(300), watch.next())
                .await
                .is_err()
        );
        fs::remove_file(fake.directory.path().join("memory.events")).unwrap();
        assert_eq!(told(&mut watch).await, None);
    }

    #[tokio::test]
    async fn without_a_memory_controller_there_is_no_watch() {
        let directory = tempfile::tempdir().unwrap();
        assert!(
            OomWatch::of(&Cgroup::unified_at(directory.path()))
                .unwrap()
                .is_none()
        );
    }

    #[tokio::test]
    async fn on_version_1_signals_that_kill_nothing_are_not_told() {
        let fake = Fake::v1();
        let mut watch = fake.watch();
        raise(&watch);
        silent(&mut watch).await;
    }

    #[tokio::test]
    async fn on_version_1_a_kill_is_told_once_though_the_signal_comes_first_and_again() {
        let fake = Fake::v1();
        let mut watch = fake.watch();
        raise(&watch);
        let (news, ()) = tokio::join!(told(&mut watch), async {
            sleep(KILL_POLL * 3).await;
            fake.kill("inner", 2);
        });
        assert_eq!(news, Some(()));
        assert!(!watch.kills().take_untold());
        raise(&watch);
        silent(&mut watch).await;
        fake.kill("", 6);
        assert!(watch.kills().take_untold());
        fs::remove_file(fake.directory.path().join("memory.oom_control")).unwrap();
        raise(&watch);
        assert_eq!(told(&mut watch).await, None);
    }

    #[tokio::test]
    async fn a_cgroup_that_may_not_kill_is_told_when_it_is_out_of_memory() {
        let fake = Fake {
            inner: "oom_kill_disable 1\nunder_oom 1\n",
            ..Fake::v1()
        };
        fake.kill("", 4);
        let mut watch = fake.watch();
        raise(&watch);
        assert_eq!(told(&mut watch).await, Some(()));
    }
}
