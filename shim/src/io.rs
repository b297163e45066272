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

/// What remains to be done once runC has run: a terminal arrives only then.
pub(crate) struct PendingTerminal(Option<ConsoleSocket>);

impl PendingTerminal {
    /// Receives the terminal and starts its copies; nothing to do without one.
    pub(crate) async fn connect(self, stdio: &Stdio, io: &mut ProcessIo) -> Result<(), ShimError> {
        let Some(socket) = self.0 else { return Ok(()) };
        let master = socket
            .receive()
            .await
            .map_err(failed("receive the terminal from runc"))?;
        let terminal = Pty::new(File::from(master)).map_err(failed("use the terminal"))?;
        if !stdio.stdin.is_empty() {
            io.tasks
                .copy_from_fifo(fifo(&stdio.stdin)?, terminal.clone())
                .map_err(failed("open stdin"))?;
        }
        if !stdio.stdout.is_empty() {
            io.tasks
                .copy_to_fifo(terminal.clone(), fifo(&stdio.stdout)?)
                .map_err(failed("open stdout"))?;
        }
        io.terminal = Some(terminal);
        Ok(())
    }
}

impl ProcessIo {
    /// Makes the streams a process shall get and starts the copies.
    ///
    /// `console` is where the socket for the terminal shall be, if there is to be one.
    pub(crate) fn open(
        &self,
        stdio: &Stdio,
        owner: IoOwner,
        console: PathBuf,
    ) -> Result<(Streams, PendingTerminal), ShimError> {
        if stdio.terminal {
            let socket = ConsoleSocket::bind(console).map_err(failed("make the socket for the terminal"))?;
            return Ok((
                Streams::Console(socket.path().to_owned()),
                PendingTerminal(Some(socket)),
            ));
        }
        let streams = Streams::Inherited {
            stdin: self.input(&stdio.stdin, owner)?,
            stdout: self.output(&stdio.stdout, owner)?,
            stderr: self.output(&stdio.stderr, owner)?,
        };
        Ok((streams, PendingTerminal(None)))
    }

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

    fn input(&self, path: &str, owner: IoOwner) -> Result<process::Stdio, ShimError> {
        if path.is_empty() {
            return Ok(process::Stdio::null());
        }
        let (theirs, ours) = new_pipe()?;
        give(&theirs, owner)?;
        let to = async_pipe::Sender::from_owned_fd(OwnedFd::from(ours)).map_err(failed("make a pipe"))?;
        self.tasks
            .copy_from_fifo(fifo(path)?, to)
            .map_err(failed("open stdin"))?;
        Ok(theirs.into())
    }

    fn output(&self, path: &str, owner: IoOwner) -> Result<process::Stdio, ShimError> {
        if path.is_empty() {
            return Ok(process::Stdio::null());
        }
        let (ours, theirs) = new_pipe()?;
        give(&theirs, owner)?;
        let from = async_pipe::Receiver::from_owned_fd(OwnedFd::from(ours)).map_err(failed("make a pipe"))?;
        self.tasks
            .copy_to_fifo(from, fifo(path)?)
            .map_err(failed("open output"))?;
        Ok(theirs.into())
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

fn new_pipe() -> Result<(PipeReader, PipeWriter), ShimError> {
    pipe().map_err(failed("make a pipe"))
}

fn give(end: &impl AsFd, owner: IoOwner) -> Result<(), ShimError> {
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    fchown(end, Some(uid), Some(gid)).map_err(failed("give a pipe to the container's root"))
}
