//! The one exit dispatcher: every child of this process, and every orphan that falls to it as subreaper, is
//! reaped here and nowhere else.
//!
//! Two things must not happen: that an exit is seen before anyone asked for it and is lost, and that a pid is
//! signalled after it was reaped and given to another process. A child we start ourselves is registered under
//! the same lock that reaping takes. A child that runC starts for us (a container's init) is known by pid only
//! later; while a [`Nursery`] is open, exits of unknown pids are kept until it asks. Nothing here restarts,
//! interprets or logs what ended. There can be one [`Reaper`] in a process, and no other code may wait for children.

use std::collections::HashMap;
use std::io;
use std::process::{ChildStderr, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use nix::libc;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::sys;

/// Between SIGKILL and the exit of a child the kernel has only to tear it down; longer means it is stuck in the kernel.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It exited by itself with this code.
    Exited(i32),
    /// This signal killed it.
    Killed(i32),
}

/// The end of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its pid, free for reuse by now.
    pub pid: i32,
    /// How it ended.
    pub end: End,
    /// When it was reaped.
    pub at: SystemTime,
}

impl Exit {
    /// The exit status as shells and engines count: the code, or 128 and the signal.
    pub fn status(&self) -> u32 {
        match self.end {
            End::Exited(code) => code.unsigned_abs(),
            End::Killed(signal) => 128 + signal.unsigned_abs(),
        }
    }

    /// True if it exited with code 0.
    pub fn success(&self) -> bool {
        self.end == End::Exited(0)
    }
}

/// Why a command gave no output.
#[derive(Debug, Error)]
pub enum RunError {
    /// It did not start.
    #[error("{program} did not start: {source}")]
    Spawn {
        /// What was to run.
        program: String,
        /// Why it did not.
        source: io::Error,
    },
    /// It ran past its deadline and was killed.
    #[error("{program} did not end within {deadline:?} and was killed")]
    Deadline {
        /// What ran.
        program: String,
        /// What it was given.
        deadline: Duration,
    },
}

/// What a command may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Killed when it has not ended by then.
    pub deadline: Duration,
    /// Bytes kept of each of stdout and stderr; the rest is read and dropped.
    pub output_bytes: usize,
}

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub exit: Exit,
    /// The beginning of its stdout.
    pub stdout: Vec<u8>,
    /// The beginning of its stderr.
    pub stderr: Vec<u8>,
}

#[derive(Default)]
struct Table {
    waiting: HashMap<i32, oneshot::Sender<Exit>>,
    unclaimed: HashMap<i32, Exit>,
    open_nurseries: usize,
}

/// The exit dispatcher; clones are the same one.
#[derive(Clone)]
pub struct Reaper(Arc<Mutex<Table>>);

impl Reaper {
    /// Starts the dispatcher on the current tokio runtime.
    pub fn start() -> io::Result<Self> {
        let mut ended = signal(SignalKind::child())?;
        let reaper = Self(Arc::default());
        let dispatcher = reaper.clone();
        tokio::spawn(async move {
            loop {
                dispatcher.reap_all();
                if ended.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(reaper)
    }

    /// Starts a command. Pipes that it asks for are in the returned child.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        // Under the lock nothing is reaped, so the pid cannot have ended unseen and cannot be a reused one.
        let mut table = self.table();
        let mut child = command.spawn()?;
        let pid = child.id().cast_signed();
        table.unclaimed.remove(&pid);
        let (sender, exit) = oneshot::channel();
        table.waiting.insert(pid, sender);
        Ok(Child {
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            departure: Departure { pid, exit },
        })
    }

    /// Runs a command to its end and collects what it prints. Its stdin is what the command says, by default none.
    pub async fn run(&self, mut command: Command, limits: Limits) -> Result<Output, RunError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let spawn_error = |source| RunError::Spawn {
            program: program.clone(),
            source,
        };
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.spawn(&mut command).map_err(spawn_error)?;
        drop(command);
        let stdout = child
            .stdout
            .take()
            .map(|out| pipe::Receiver::from_owned_fd(out.into()));
        let stderr = child
            .stderr
            .take()
            .map(|err| pipe::Receiver::from_owned_fd(err.into()));
        let (stdout, stderr) = (stdout.transpose(), stderr.transpose());
        let (stdout, stderr) = (stdout.map_err(spawn_error)?, stderr.map_err(spawn_error)?);
        let mut departure = child.departure;
        let everything = async {
            tokio::join!(
                read_bounded(stdout, limits.output_bytes),
                read_bounded(stderr, limits.output_bytes),
                departure.wait()
            )
        };
        match timeout(limits.deadline, everything).await {
            Ok((stdout, stderr, exit)) => Ok(Output { exit, stdout, stderr }),
            Err(_) => {
                self.kill(departure.pid, Signal::SIGKILL as i32);
                let _ = timeout(KILL_DEADLINE, departure.wait()).await;
                Err(RunError::Deadline {
                    program,
                    deadline: limits.deadline,
                })
            }
        }
    }

    /// Opens a nursery: until it is dropped, no exit is lost, whoever's it is.
    pub fn nursery(&self) -> Nursery {
        self.table().open_nurseries += 1;
        Nursery(self.clone())
    }

    /// Signals a process that was spawned or adopted here and has not been reaped; false if there is none.
    pub fn kill(&self, pid: i32, signal: i32) -> bool {
        let table = self.table();
        if !table.waiting.contains_key(&pid) {
            return false;
        }
        // Raw, because nix knows no real-time signals.
        sys::kill(Pid::from_raw(pid), signal).is_ok()
    }

    fn adopt(&self, pid: i32) -> Departure {
        let (sender, exit) = oneshot::channel();
        let mut table = self.table();
        match table.unclaimed.remove(&pid) {
            // The receiver is right here.
            Some(ended) => drop(sender.send(ended)),
            None => drop(table.waiting.insert(pid, sender)),
        }
        Departure { pid, exit }
    }

    fn reap_all(&self) {
        let mut table = self.table();
        while let Some((pid, status)) = sys::reap_any() {
            let end = if libc::WIFSIGNALED(status) {
                End::Killed(libc::WTERMSIG(status))
            } else {
                End::Exited(libc::WEXITSTATUS(status))
            };
            let at = SystemTime::now();
            let exit = Exit { pid, end, at };
            match table.waiting.remove(&pid) {
                // Whoever dropped the receiver does not want to know.
                Some(waiting) => drop(waiting.send(exit)),
                None if table.open_nurseries > 0 => drop(table.unclaimed.insert(pid, exit)),
                None => {}
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it is open, exits of pids nobody has asked for yet are kept.
///
/// A kept exit is matched by pid alone. A wrong match needs the kernel to go once round all pids while the
/// nursery is open, that is, while one runC command runs.
pub struct Nursery(Reaper);

impl Nursery {
    /// Asks for the exit of a process that is this process's child, or will be as an orphan, even if it has
    /// ended since the nursery was opened.
    pub fn adopt(&self, pid: i32) -> Departure {
        self.0.adopt(pid)
    }
}

impl Drop for Nursery {
    fn drop(&mut self) {
        let mut table = self.0.table();
        table.open_nurseries -= 1;
        if table.open_nurseries == 0 {
            table.unclaimed.clear();
        }
    }
}

/// A child that was started here.
#[derive(Debug)]
pub struct Child {
    /// Its stdout, if the command asked for a pipe.
    pub stdout: Option<ChildStdout>,
    /// Its stderr, if the command asked for a pipe.
    pub stderr: Option<ChildStderr>,
    /// Its end.
    pub departure: Departure,
}

/// The end of a process that is still to come. Dropping it does not end the process.
#[derive(Debug)]
pub struct Departure {
    pid: i32,
    exit: oneshot::Receiver<Exit>,
}

impl Departure {
    /// The process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits for the end; the caller puts the deadline. Call it once only.
    pub async fn wait(&mut self) -> Exit {
        match (&mut self.exit).await {
            Ok(exit) => exit,
            // The dispatcher lives as long as the process does, so only a shutdown of the runtime comes here.
            Err(_) => std::future::pending().await,
        }
    }
}

async fn read_bounded(source: Option<impl AsyncRead + Unpin>, limit: usize) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut source) = source else { return kept };
    let mut buffer = [0; 4096];
    loop {
        match source.read(&mut buffer).await {
            Ok(0) | Err(_) => return kept,
            Ok(n_read) => {
                let room = limit.saturating_sub(kept.len()).min(n_read);
                kept.extend_from_slice(&buffer[..room]);
            }
        }
    }
}
