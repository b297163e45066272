//! CRIU's connection to what it takes for `criu lazy-pages`: the restored tasks' descriptors, and the end of the restore.
//!
//! CRIU (`criu/uffd.c`) connects once, before it makes any task. For each task it sends the pid in the image, a native
//! `i32`, and then one byte with the userfaultfd; a zombie's pid is negative, and nothing follows. Last, when every task
//! is restored, comes a `u32` that no pid can be.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::sys::socket::MsgFlags;

use crate::handover;

/// CRIU's `LAZY_PAGES_RESTORE_FINISHED`.
const FINISHED: i32 = 0x5253_5446;

/// How far CRIU has come.
#[derive(Debug)]
pub(super) enum Intake {
    /// It has not connected.
    Awaited(UnixListener),
    /// A task's pid comes next, or the end.
    Pid(UnixStream),
    /// The descriptor of this task comes next.
    Descriptor(UnixStream, u32),
    /// Every task is restored.
    Finished,
}

impl Intake {
    pub(super) fn new(listener: OwnedFd) -> io::Result<Self> {
        let listener = UnixListener::from(listener);
        listener.set_nonblocking(true)?;
        Ok(Self::Awaited(listener))
    }

    pub(super) fn is_awaited(&self) -> bool {
        matches!(self, Self::Awaited(_))
    }

    pub(super) fn is_finished(&self) -> bool {
        matches!(self, Self::Finished)
    }

    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Awaited(listener) => Some(listener.as_fd()),
            Self::Pid(stream) | Self::Descriptor(stream, _) => Some(stream.as_fd()),
            Self::Finished => None,
        }
    }

    /// The next task that is here whole; `None` if none is yet. An end before the end is an error.
    pub(super) fn next(&mut self) -> io::Result<Option<(u32, OwnedFd)>> {
        loop {
            match self.step() {
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
            if self.is_finished() {
                return Ok(None);
            }
        }
    }

    fn step(&mut self) -> io::Result<Option<(u32, OwnedFd)>> {
        match self {
            Self::Awaited(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                *self = Self::Pid(stream);
                Ok(None)
            }
            Self::Pid(stream) => {
                let mut bytes = [0; 4];
                match stream.read(&mut bytes)? {
                    4 => {}
                    0 => return Err(given_up()),
                    _ => return Err(garbled()),
                }
                match i32::from_ne_bytes(bytes) {
                    FINISHED => *self = Self::Finished,
                    pid @ 1.. => *self = Self::Descriptor(stream.try_clone()?, pid.unsigned_abs()),
                    _zombie => {}
                }
                Ok(None)
            }
            Self::Descriptor(stream, pid) => {
                let pid = *pid;
                let mut byte = [0];
                let (n_bytes, uffd) = handover::receive(&*stream, &mut byte, MsgFlags::empty())?;
                if n_bytes == 0 {
                    return Err(given_up());
                }
                let uffd = uffd.ok_or_else(garbled)?;
                *self = Self::Pid(stream.try_clone()?);
                Ok(Some((pid, uffd)))
            }
            Self::Finished => Ok(None),
        }
    }
}

fn given_up() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "CRIU has given the restore up")
}

fn garbled() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "CRIU does not speak as CRIU 4 does")
}
