//! A container's freezer, on cgroup v1 and v2, for the moment around a dump.
//!
//! CRIU freezes a cgroup in steps of 100 ms: it asks once, sleeps, and looks again, so the shortest freeze costs a
//! tenth of a second of downtime. A cgroup that is frozen already costs it nothing. This module freezes within a
//! millisecond where the tasks allow, and says how to thaw. It does not decide when: whoever calls [`Freezer::freeze`]
//! owes a [`Freezer::thaw`], but for a container that somebody else has paused.
//!
//! A frozen cgroup is not always one that CRIU can seize. A process that has called vfork waits, deaf to a tracer,
//! for its child to exec or exit; if the freeze came in between, CRIU stops the child first and then waits for the
//! parent until it gives up after ten seconds ("Unseizable non-zombie … state D"). Every shell that starts a program
//! is such a parent for some microseconds. So a freeze that hit one is undone for a moment and repeated.
//!
//! A process that a signal has stopped cannot be seized in a frozen cgroup of version 1 at all: the kernel lets the
//! tracer wait, deaf to its own alarm, until the stopped process runs, and CRIU thaws only after it has seized all. So
//! a freeze for a dump refuses it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;

/// How long tasks may take to freeze: a task in an uninterruptible wait holds it up. CRIU gives up after as long.
const FREEZE_DEADLINE: Duration = Duration::from_secs(10);

/// How long tasks run when a freeze came between a vfork and its exec; most need microseconds.
const FIRST_VFORK_GRACE: Duration = Duration::from_millis(1);

/// The grace doubles up to this: on a busy machine a task that thaws waits some milliseconds for a processor.
const LAST_VFORK_GRACE: Duration = Duration::from_millis(64);

/// Where a task waits that has called vfork, as `/proc/PID/wchan` has it: the wait itself is part of these functions.
const VFORK_WAITS: &[&str] = &["kernel_clone", "wait_for_vfork_done", "_do_fork"];

/// Where a task waits that a signal has stopped.
const STOP_WAIT: &str = "do_signal_stop";

/// A killed task ends at once, unless it waits for a device.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// How often it is looked whether all have.
const KILL_INTERVAL: Duration = Duration::from_millis(2);

/// A cgroup of version 1 that tasks are forked in while it freezes can stay half-frozen for ever; the kernel's manual
/// (freezer-subsystem) leaves it to who asked to thaw it and to ask again. Freezing takes a millisecond as a rule.
const STUCK_INTERVAL: Duration = Duration::from_millis(250);

/// How often the state is looked at while tasks freeze.
const POLL_INTERVAL: Duration = Duration::from_micros(200);

/// Where a container's tasks are frozen and thawed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freezer {
    directory: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Version {
    V1,
    V2,
}

impl Freezer {
    /// The freezer of the cgroup that `pid` is in.
    pub fn of(pid: i32) -> io::Result<Self> {
        let membership = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let cgroup = Cgroup::of_pid(pid)?;
        let (found, hierarchy, version) = match cgroup.controller("freezer") {
            Some(found) => (Some(found), "freezer", Version::V1),
            None => (cgroup.unified(), "", Version::V2),
        };
        let found =
            found.ok_or_else(|| io::Error::other(format!("process {pid} is in no freezer cgroup")))?;
        if cgroup_path(&membership, hierarchy) == Some("/") {
            // Freezing the root cgroup would freeze the host.
            return Err(io::Error::other(format!("process {pid} is in the root cgroup")));
        }
        Ok(Self {
            directory: found.path().to_owned(),
            version,
        })
    }

    /// A freezer of version 1 at a place of a test's choice.
    #[cfg(test)]
    pub(crate) fn v1_at(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            version: Version::V1,
        }
    }

    /// Whether every task is frozen.
    pub fn is_frozen(&self) -> io::Result<bool> {
        match self.version {
            Version::V1 => Ok(fs::read_to_string(self.directory.join("freezer.state"))?.trim() == "FROZEN"),
            Version::V2 => {
                let events = fs::read_to_string(self.directory.join("cgroup.events"))?;
                Ok(events.lines().any(|line| line == "frozen 1"))
            }
        }
    }

    /// Freezes every task for CRIU to seize, and returns when all are; on an error they are as they were: let go, or
    /// told to freeze.
    pub fn freeze(&self) -> io::Result<()> {
        let was_told = self.is_told_to_freeze()?;
        let result = self.freeze_until(Instant::now() + FREEZE_DEADLINE);
        if result.is_err() {
            if was_told { self.pause() } else { self.thaw() }?;
        }
        result
    }

    /// Tells every task to freeze and does not wait: what has been told freezes as soon as it can. A cgroup that is gone
    /// has nothing to pause.
    pub fn pause(&self) -> io::Result<()> {
        gone_is_fine(self.write("FROZEN", "1"))
    }

    /// Whether a freeze for CRIU will, or may, let the tasks go for a moment, because it came amid a vfork.
    pub fn must_let_go(&self) -> io::Result<bool> {
        Ok(!self.is_frozen()? || matches!(obstacle(&self.directory)?, Some(Obstacle::Vfork(_))))
    }

    /// Whether somebody has told this very cgroup to freeze, whether or not every task has yet.
    fn is_told_to_freeze(&self) -> io::Result<bool> {
        let file = match self.version {
            Version::V1 => "freezer.self_freezing",
            Version::V2 => "cgroup.freeze",
        };
        Ok(fs::read_to_string(self.directory.join(file))?.trim() == "1")
    }

    fn freeze_until(&self, deadline: Instant) -> io::Result<()> {
        let late = |parent: Option<i32>| {
            let what = match parent {
                Some(parent) => {
                    format!("process {parent} waits for a child that it made by vfork and that does not exec")
                }
                None => format!("tasks of {} do not freeze", self.directory.display()),
            };
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{what} within {FREEZE_DEADLINE:?}"),
            )
        };
        let mut waiting_parent = None;
        let mut grace = FIRST_VFORK_GRACE;
        loop {
            self.write("FROZEN", "1")?;
            let mut asked = Instant::now();
            while !self.is_frozen()? {
                if Instant::now() >= deadline {
                    return Err(late(waiting_parent));
                }
                if asked.elapsed() >= STUCK_INTERVAL {
                    self.thaw()?;
                    self.write("FROZEN", "1")?;
                    asked = Instant::now();
                }
                std::thread::sleep(POLL_INTERVAL);
            }
            match obstacle(&self.directory)? {
                None => return Ok(()),
                Some(Obstacle::Vfork(parent)) => waiting_parent = Some(parent),
                // The freezer of version 2 wakes what is stopped, as a tracer needs it.
                Some(Obstacle::Stopped(_)) if self.version == Version::V2 => return Ok(()),
                Some(Obstacle::Stopped(task)) => {
                    return Err(io::Error::new(
                        io::ErrorKind::ResourceBusy,
                        format!(
                            "process {task} is stopped by a signal, which hangs CRIU on cgroup v1: continue it \
                             first (kill -CONT {task})"
                        ),
                    ));
                }
            }
            if Instant::now() >= deadline {
                return Err(late(waiting_parent));
            }
            self.thaw()?;
            std::thread::sleep(grace);
            grace = (grace * 2).min(LAST_VFORK_GRACE);
        }
    }

    /// Lets every task run. A cgroup that is gone has nothing to thaw.
    pub fn thaw(&self) -> io::Result<()> {
        gone_is_fine(self.write("THAWED", "0"))
    }

    /// The pids of all processes in it and in the cgroups below.
    pub fn processes(&self) -> io::Result<Vec<i32>> {
        let mut found = Vec::new();
        list_below(&self.directory, &mut found)?;
        Ok(found)
    }

    /// Kills every task, frozen or not. A cgroup that is gone has none.
    pub fn kill(&self) -> io::Result<()> {
        kill_below(&self.directory)?;
        // A frozen task dies when it thaws, before it runs a single instruction of its own.
        self.thaw()
    }

    /// Kills every task, those in cgroups below and those that are forked meanwhile too, and returns when none is left.
    pub fn kill_all(&self) -> io::Result<()> {
        let deadline = Instant::now() + KILL_DEADLINE;
        loop {
            let n_killed = kill_below(&self.directory)?;
            self.thaw()?;
            if n_killed == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "{n_killed} tasks of {} have not ended within {KILL_DEADLINE:?}",
                        self.directory.display()
                    ),
                ));
            }
            std::thread::sleep(KILL_INTERVAL);
        }
    }

    fn write(&self, v1: &str, v2: &str) -> io::Result<()> {
        let (file, value) = match self.version {
            Version::V1 => ("freezer.state", v1),
            Version::V2 => ("cgroup.freeze", v2),
        };
        // Never create: on a cgroup file system that fails anyway, elsewhere it would hide a wrong path.
        let mut file = fs::OpenOptions::new()
            .write(true)
            .open(self.directory.join(file))?;
        io::Write::write_all(&mut file, value.as_bytes())
    }
}

fn gone_is_fine(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A frozen task that CRIU could not seize.
enum Obstacle {
    /// It waits for its vfork child.
    Vfork(i32),
    /// A signal has stopped it.
    Stopped(i32),
}

/// What stands in CRIU's way in a frozen cgroup and those below it. A vfork is told first: it passes.
fn obstacle(cgroup: &Path) -> io::Result<Option<Obstacle>> {
    let mut stopped = None;
    for list in ["tasks", "cgroup.threads"] {
        let tasks = match fs::read_to_string(cgroup.join(list)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        for task in tasks.lines() {
            // A task may have been killed meanwhile; then it is in nobody's way.
            let waits_in =
                fs::read_to_string(Path::new("/proc").join(task).join("wchan")).unwrap_or_default();
            let Ok(id) = task.parse() else { continue };
            if VFORK_WAITS.contains(&waits_in.as_str()) {
                return Ok(Some(Obstacle::Vfork(id)));
            }
            if waits_in == STOP_WAIT {
                stopped = stopped.or(Some(Obstacle::Stopped(id)));
            }
        }
    }
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        match obstacle(&entry.path())? {
            Some(Obstacle::Vfork(parent)) => return Ok(Some(Obstacle::Vfork(parent))),
            other => stopped = stopped.or(other),
        }
    }
    Ok(stopped)
}

fn list_below(cgroup: &Path, found: &mut Vec<i32>) -> io::Result<()> {
    match fs::read_to_string(cgroup.join("cgroup.procs")) {
        Ok(procs) => found.extend(procs.lines().filter_map(|pid| pid.parse::<i32>().ok())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // A threaded cgroup names its processes above.
        Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {}
        Err(error) => return Err(error),
    }
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list_below(&entry.path(), found)?;
        }
    }
    Ok(())
}

/// Kills the tasks of a cgroup and of those below; returns how many there were.
fn kill_below(cgroup: &Path) -> io::Result<usize> {
    let gone = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    };
    let mut n_killed = 0;
    match fs::read_to_string(cgroup.join("cgroup.procs")) {
        Ok(procs) => {
            for pid in procs.lines().filter_map(|pid| pid.parse().ok()) {
                match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                    Ok(()) => n_killed += 1,
                    Err(Errno::ESRCH) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        // A threaded cgroup names its processes above.
        Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {}
        Err(error) => gone(error)?,
    }
    match fs::read_dir(cgroup) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    n_killed += kill_below(&entry.path())?;
                }
            }
        }
        Err(error) => gone(error)?,
    }
    Ok(n_killed)
}

/// The path of `controller` in the text of `/proc/PID/cgroup`; the empty name is the unified hierarchy.
fn cgroup_path<'a>(membership: &'a str, controller: &str) -> Option<&'a str> {
    membership.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        let path = fields.next()?;
        controllers
            .split(',')
            .any(|name| name == controller)
            .then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_that_of_the_right_hierarchy() {
        let text = "9:name=systemd:/\n6:freezer:/ha/abc\n5:cpu,cpuacct:/x:y\n0::/unified\n";
        assert_eq!(cgroup_path(text, "freezer"), Some("/ha/abc"));
        assert_eq!(cgroup_path(text, "cpuacct"), Some("/x:y"));
        assert_eq!(cgroup_path(text, ""), Some("/unified"));
        assert_eq!(cgroup_path(text, "pids"), None);
    }

    #[test]
    fn a_vanished_cgroup_is_thawed() {
        let directory = tempfile::tempdir().unwrap();
        for version in [Version::V1, Version::V2] {
            let freezer = Freezer {
                directory: directory.path().join("gone"),
                version,
            };
            freezer.thaw().unwrap();
            freezer.pause().unwrap();
            assert!(freezer.freeze().is_err());
        }
    }
}
