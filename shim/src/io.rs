//! A process's standard streams, between runC and the fifos of containerd.
//!
//! The same set-up serves create, exec and restore. The container gets pipes of ours or a terminal, never a
//! file of the host, because CRIU must be able to leave and find them again. Other than fifos (`binary://`, `file://`)
//! is refused with an error.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, pipe};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process;

use containerd_shim::asynchronous::io::{IoTasks, Pty, Stdio};
use godwit_runtime::console::{self, ConsoleSocket};
use godwit_runtime::runc::Streams;
use nix::unistd::{Gid, Uid, fchown};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::unix::pipe as async_pipe;

use crate::error::{ShimError, failed};

/// The copies of one process's streams, and its terminal.
#[derive(Clone, Default)]
pub(crate) struct ProcessIo {
    tasks: IoTasks,
    terminal: Option<Pty>,
}

/// Who owns a container's pipes: root of its user namespace.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct IoOwner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The shim's side of a process's streams before runC has run.
pub(crate) enum Pending {
    Pipes {
        stdin: Option<PipeWriter>,
        stdout: Option<PipeReader>,
        stderr: Option<PipeReader>,
    },
    Terminal(ConsoleSocket),
}

/// Makes the streams a process shall get. `console` is where the socket for its terminal shall be, if it is to have one.
pub(crate) fn open(stdio: &Stdio, owner: IoOwner, console: PathBuf) -> Result<(Streams, Pending), ShimError> {
    if stdio.terminal {
        let socket = ConsoleSocket::bind(console).map_err(failed("make the socket for the terminal"))?;
        return Ok((
            Streams::Console(socket.path().to_owned()),
            Pending::Terminal(socket),
        ));
    }
    let (stdin, our_stdin) = input(&stdio.stdin, owner)?;
    let (stdout, our_stdout) = output(&stdio.stdout, owner)?;
    let (stderr, our_stderr) = output(&stdio.stderr, owner)?;
    let pending = Pending::Pipes {
        stdin: our_stdin,
        stdout: our_stdout,
        stderr: our_stderr,
    };
    Ok((
        Streams::Inherited {
            stdin,
            stdout,
            stderr,
        },
        pending,
    ))
}

impl Pending {
    /// Starts the copies, once runC has done its work: what runC itself writes to the streams when it fails is no
    /// output of the container, and its log says the same.
    pub(crate) async fn connect(self, stdio: &Stdio, io: &mut ProcessIo) -> Result<(), ShimError> {
        match self {
            Self::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                if let Some(ours) = stdin {
                    let to = async_pipe::Sender::from_owned_fd(OwnedFd::from(ours))
                        .map_err(failed("use stdin"))?;
                    io.copy_in(&stdio.stdin, to)?;
                }
                for (ours, path) in [(stdout, &stdio.stdout), (stderr, &stdio.stderr)] {
                    if let Some(ours) = ours {
                        let from = async_pipe::Receiver::from_owned_fd(OwnedFd::from(ours));
                        io.copy_out(from.map_err(failed("use an output"))?, path)?;
                    }
                }
            }
            Self::Terminal(socket) => {
                let master = socket
                    .receive()
                    .await
                    .map_err(failed("receive the terminal from runc"))?;
                let terminal = Pty::new(File::from(master)).map_err(failed("use the terminal"))?;
                if !stdio.stdin.is_empty() {
                    io.copy_in(&stdio.stdin, terminal.clone())?;
                }
                if !stdio.stdout.is_empty() {
                    io.copy_out(terminal.clone(), &stdio.stdout)?;
                }
                io.terminal = Some(terminal);
            }
        }
        Ok(())
    }
}

impl ProcessIo {
    /// Lets go of the shim's hold on stdin.
    pub(crate) fn close_input(&self) {
        self.tasks.close_input();
    }

    /// Sets the terminal's size; a process without one is left alone.
    pub(crate) fn resize(&self, columns: u32, rows: u32) -> Result<(), ShimError> {
        let Some(terminal) = &self.terminal else {
            return Ok(());
        };
        let narrow = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        console::resize(terminal, narrow(columns), narrow(rows)).map_err(failed("resize the terminal"))
    }

    /// Delivers what is buffered, within the deadline of `IoTasks`, and lets go of all fifos.
    pub(crate) async fn shutdown(self) {
        self.tasks.shutdown().await;
    }

    /// Lets go at once, after a failed start, and gives fresh copies for another try.
    pub(crate) async fn abort(self) -> Self {
        let fresh = self.tasks.renew();
        self.tasks.abort().await;
        Self {
            tasks: fresh,
            terminal: None,
        }
    }

    fn copy_in(&self, path: &str, to: impl AsyncWrite + Send + Unpin + 'static) -> Result<(), ShimError> {
        self.tasks
            .copy_from_fifo(fifo(path)?, to)
            .map_err(failed("copy stdin"))
    }

    fn copy_out(&self, from: impl AsyncRead + Send + Unpin + 'static, path: &str) -> Result<(), ShimError> {
        self.tasks
            .copy_to_fifo(from, fifo(path)?)
            .map_err(failed("copy an output"))
    }
}

/// Refuses streams the shim cannot serve, before anything is made.
pub(crate) fn check(stdio: &Stdio) -> Result<(), ShimError> {
    [&stdio.stdin, &stdio.stdout, &stdio.stderr]
        .into_iter()
        .try_for_each(|path| fifo(path).map(drop))
}

fn fifo(path: &str) -> Result<&str, ShimError> {
    match path.split_once("://") {
        None => Ok(path),
        Some(("fifo", path)) => Ok(path),
        Some((scheme, _)) => Err(ShimError::Unimplemented(format!(
            "standard streams by {scheme}:// are not supported (asked for {path}): use fifos"
        ))),
    }
}

fn input(path: &str, owner: IoOwner) -> Result<(process::Stdio, Option<PipeWriter>), ShimError> {
    if path.is_empty() {
        return Ok((process::Stdio::null(), None));
    }
    let (theirs, ours) = pipe().map_err(failed("make a pipe"))?;
    give(&theirs, owner)?;
    Ok((theirs.into(), Some(ours)))
}

fn output(path: &str, owner: IoOwner) -> Result<(process::Stdio, Option<PipeReader>), ShimError> {
    if path.is_empty() {
        return Ok((process::Stdio::null(), None));
    }
    let (ours, theirs) = pipe().map_err(failed("make a pipe"))?;
    give(&theirs, owner)?;
    Ok((theirs.into(), Some(ours)))
}

fn give(end: &impl AsFd, owner: IoOwner) -> Result<(), ShimError> {
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    fchown(end, Some(uid), Some(gid)).map_err(failed("give a pipe to the container's root"))
}
