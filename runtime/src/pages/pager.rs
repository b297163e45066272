//! The pager: the process that gives a lazily restored container its memory, page by page as its tasks ask for it and
//! all the rest as it comes.
//!
//! The shim's binary is it when called by the path `…/pager` in a container's control directory, with the socket that CRIU
//! connects to as descriptor 3 and the line to the shim (see [`super::keeper`]) as 4. It stands where CRIU would have
//! `criu lazy-pages`. It survives its agent and its shim: without it the container's tasks wait, and without its
//! descriptors their memory would be lost. It knows no move and decides nothing; it ends when nothing is missing any more.

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::setsid;
use serde::{Deserialize, Serialize};

use super::context::Content;
use super::intake::Intake;
use super::keeper::Keeper;
use super::layout;
use super::link::{Link, Way};
use super::tasks::Tasks;
use super::wire::Kind;
use crate::control::ControlDir;
use crate::sys;

/// The name the shim's binary is called by to be the pager.
pub const NAME: &str = "pager";

/// CRIU's name of the socket, in its work directory.
pub const SOCKET_NAME: &str = "lazy-pages.socket";

/// The record's name in the control directory, and the log's.
pub(crate) const RECORD_NAME: &str = "pager.json";
pub(crate) const LOG_NAME: &str = "pager.log";

/// How often it is looked whether tasks have ended: nobody tells the pager.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Children that have come and gone cost descriptors: they are looked for after so many forks, too.
const FORKS_PER_PROBE: u32 = 64;

/// While a task is changing its mappings, its faults are looked at again this often.
const HURRIED: Duration = Duration::from_millis(1);

/// Answers taken in before the tasks are looked at again.
const ANSWERS_AT_ONCE: usize = 4;

/// What the pager must know; written by the shim as `pager.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PagerRecord {
    /// The agent's socket.
    pub agent: PathBuf,
    /// The checkpoint image.
    pub image: PathBuf,
}

/// A pager at work.
pub(super) struct Pager {
    intake: Intake,
    tasks: Tasks,
    link: Link,
    next_probe: Instant,
    n_probed: u32,
}

/// Runs the pager to its end; an error means that memory is missing which nobody will bring.
pub fn main(called_as: &Path) -> io::Result<()> {
    // What ends the shim, or its terminal, must not end the container's memory. A leader of a group is let be.
    let _ = setsid();
    // A container may have more processes than a service has descriptors by default.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let control = ControlDir::at(called_as.parent().unwrap_or(Path::new("/")));
    let record: PagerRecord = serde_json::from_slice(&fs::read(control.join(RECORD_NAME))?)?;
    run(&record, sys::own(3), sys::own(4))
}

fn run(record: &PagerRecord, listener: OwnedFd, line: OwnedFd) -> io::Result<()> {
    let tasks = Tasks::new(layout::left_behind(&record.image)?, Keeper::new(line)?);
    Pager::new(Intake::new(listener)?, tasks, Link::new(&record.agent)).run()
}

/// Tells whoever reads the pager's log.
pub(super) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

impl Pager {
    pub(super) fn new(intake: Intake, tasks: Tasks, link: Link) -> Self {
        Self {
            intake,
            tasks,
            link,
            next_probe: Instant::now() + PROBE_INTERVAL,
            n_probed: 0,
        }
    }

    pub(super) fn run(mut self) -> io::Result<()> {
        loop {
            while let Some((pid, uffd)) = self.intake.next()? {
                self.tasks.adopt(pid, uffd);
            }
            if self.link.connect() {
                let requests = self.tasks.all_requests();
                self.link.ask(&requests);
            }
            self.serve()?;
            // When CRIU has finished, all is made and watched, whether or not there is a shim to say so.
            let may_fill = self.tasks.keeper.has_begun() || self.intake.is_finished();
            if self.tasks.keeper.is_gone() && self.intake.is_awaited() {
                return Err(io::Error::other(
                    "there is no shim and no CRIU: the restore was given up",
                ));
            }
            for _ in 0..ANSWERS_AT_ONCE {
                if !self.receive(Way::Asked)? {
                    break;
                }
            }
            if may_fill {
                self.receive(Way::Pushed)?;
            }
            self.probe();
            if self.intake.is_finished() && self.tasks.release_complete() {
                break;
            }
            if may_fill {
                while self.link.may_want()
                    && let Some(request) = self.tasks.next_wanted(self.link.wanted())
                {
                    self.link.want(request);
                }
            }
            self.link.flush();
            self.wait(may_fill)?;
        }
        self.tasks.keeper.drained();
        self.link.say_drained();
        Ok(())
    }

    /// Hears the tasks, and passes on what they wait for.
    fn serve(&mut self) -> io::Result<()> {
        self.tasks.serve()?;
        let requests = self.tasks.take_requests();
        self.link.ask(&requests);
        self.link.flush();
        Ok(())
    }

    /// Takes one record in; false if there is none. What is wrong with a connection is no error of the pager's.
    fn receive(&mut self, way: Way) -> io::Result<bool> {
        let (header, content) = match self.link.next(way) {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(false),
            Err(error) => {
                match way {
                    Way::Asked => self.link.lose(&error),
                    Way::Pushed => self.pull(),
                }
                return Ok(false);
            }
        };
        match header.kind {
            Kind::Raw => self.tasks.fill(&header, Content::Raw(content))?,
            Kind::Zero => self.tasks.fill(&header, Content::Zero)?,
            _all_sent => self.pull(),
        }
        Ok(true)
    }

    /// Nothing is pushed any more: asks for what threads wait for that was thought to be on its way.
    fn pull(&mut self) {
        self.link.pull();
        let requests = self.tasks.all_requests();
        self.link.ask(&requests);
    }

    fn probe(&mut self) {
        let n_forks = self.tasks.n_seen() - self.n_probed;
        if n_forks < FORKS_PER_PROBE && Instant::now() < self.next_probe {
            return;
        }
        self.n_probed = self.tasks.n_seen();
        self.next_probe = Instant::now() + PROBE_INTERVAL;
        self.tasks.probe();
    }

    /// Waits until there is something to do.
    fn wait(&self, may_fill: bool) -> io::Result<()> {
        let now = Instant::now();
        let mut until = self
            .next_probe
            .min(self.link.next_attempt().unwrap_or(self.next_probe));
        if self.tasks.is_hurried() {
            until = until.min(now + HURRIED);
        }
        let asked = if self.link.has_to_write() {
            PollFlags::POLLIN | PollFlags::POLLOUT
        } else {
            PollFlags::POLLIN
        };
        let pushed = self.link.descriptor(Way::Pushed).filter(|_| may_fill);
        let mut descriptors: Vec<PollFd<'_>> = self
            .tasks
            .descriptors()
            .chain(self.intake.descriptor())
            .chain(self.tasks.keeper.descriptor())
            .chain(pushed)
            .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
            .chain(
                self.link
                    .descriptor(Way::Asked)
                    .map(|descriptor| PollFd::new(descriptor, asked)),
            )
            .collect();
        let timeout = until.saturating_duration_since(now).as_millis().saturating_add(1);
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        match poll(&mut descriptors, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
