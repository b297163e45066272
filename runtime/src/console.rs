//! The socket by which runC hands over the master side of a container's terminal.
//!
//! It lives in a directory of mode 0700 and takes one connection with one descriptor.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::MsgFlags;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::{handover, sys};

/// runC has sent the terminal by the time it ends; what is left is one message on a local socket.
const RECEIVE_DEADLINE: Duration = Duration::from_secs(10);

/// runC sends the terminal's path along, which is not used.
const NAME_BYTES: usize = 4096;

/// A socket that waits for a terminal.
#[derive(Debug)]
pub struct ConsoleSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl ConsoleSocket {
    /// Listens at `path`.
    pub fn bind(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let listener = UnixListener::bind(&path)?;
        Ok(Self { path, listener })
    }

    /// What runC is given as `--console-socket`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Receives the master side of the terminal.
    pub async fn receive(self) -> io::Result<OwnedFd> {
        let receive = async {
            let (stream, _) = self.listener.accept().await?;
            loop {
                stream.readable().await?;
                match stream.try_io(Interest::READABLE, || receive_descriptor(&stream)) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return result,
                }
            }
        };
        timeout(RECEIVE_DEADLINE, receive)
            .await
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "runc sent no terminal")))
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Sets the size of the terminal whose master side is given.
pub fn resize(terminal: impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    sys::set_terminal_size(terminal, columns, rows)
}

fn receive_descriptor(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut name = [0; NAME_BYTES];
    let (_, terminal) = handover::receive(stream, &mut name, MsgFlags::empty())?;
    terminal.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "runc sent no terminal"))
}
