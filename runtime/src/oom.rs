//! Tells when the kernel kills in a container for want of memory, on cgroups of either version.
//!
//! Version 1 signals an eventfd, also when the cgroup goes away; version 2 changes `memory.events`, for other
//! reasons too, so its counter decides. Only reports: what to do is the engine's to know.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::PathBuf;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::cgroup::Cgroup;
use crate::sys;

/// A watch on one cgroup. It reports nothing that happened before it was made.
#[derive(Debug)]
pub struct OomWatch(Kind);

#[derive(Debug)]
enum Kind {
    Counted {
        events: AsyncFd<FileEvents>,
        file: PathBuf,
        n_seen: u64,
    },
    Signalled {
        signal: AsyncFd<EventFd>,
        control: PathBuf,
    },
}

/// nix's inotify does not name its descriptor the way tokio wants it.
#[derive(Debug)]
struct FileEvents(Inotify);

impl AsRawFd for FileEvents {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl OomWatch {
    /// Watches a cgroup; `None` if the kernel limits no memory there.
    pub fn of(cgroup: &Cgroup) -> io::Result<Option<Self>> {
        if let Some(files) = cgroup.controller("memory") {
            let control = files.path().join("memory.oom_control");
            let signal = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
            let watched = File::open(&control)?;
            let registration = format!("{} {}", signal.as_fd().as_raw_fd(), watched.as_raw_fd());
            fs::write(files.path().join("cgroup.event_control"), registration)?;
            let signal = sys::watch_readable(signal)?;
            return Ok(Some(Self(Kind::Signalled { signal, control })));
        }
        let Some(files) = cgroup.unified() else {
            return Ok(None);
        };
        let file = files.path().join("memory.events");
        let Some(n_seen) = n_kills(&file) else {
            return Ok(None);
        };
        let events = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        events.add_watch(&file, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_DELETE_SELF)?;
        let events = sys::watch_readable(FileEvents(events))?;
        Ok(Some(Self(Kind::Counted { events, file, n_seen })))
    }

    /// Waits, as long as it takes, for the next time; `None` when the cgroup is gone.
    pub async fn next(&mut self) -> Option<()> {
        match &mut self.0 {
            Kind::Signalled { signal, control } => {
                let read = signal
                    .async_io(Interest::READABLE, |signal| Ok(signal.read()?))
                    .await;
                read.ok().filter(|_| control.exists()).map(drop)
            }
            Kind::Counted { events, file, n_seen } => loop {
                let read = events.async_io(Interest::READABLE, |events| Ok(events.0.read_events()?));
                read.await.ok()?;
                let n_now = n_kills(file)?;
                if n_now > *n_seen {
                    *n_seen = n_now;
                    return Some(());
                }
            },
        }
    }
}

fn n_kills(file: &PathBuf) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}
