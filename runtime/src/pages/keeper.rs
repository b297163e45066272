//! The line between a pager and the shim, which keeps a duplicate of every descriptor that the pager answers by.
//!
//! When the last one of a userfaultfd is closed, the kernel makes zeros of every page that is still missing, and the tasks
//! run on with them. So the shim holds on to its own until the pager says that nothing is missing, or until it has killed
//! the tasks. A shim that is gone keeps nothing and cannot be helped; the pager goes on without it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, setsockopt, socketpair};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::handover;

/// How long a shim may take to make room in the socket: it does nothing else that takes long.
const SEND_TIMEOUT_SECONDS: i64 = 10;

/// The shim's word that all mappings of all tasks are made and watched.
const BEGIN: u8 = b'b';

/// What a pager tells its shim: one byte, and a number in the machine's order.
#[derive(Debug)]
pub(crate) enum Note {
    /// A duplicate, by its number.
    Keep(u32, OwnedFd),
    /// The duplicate of this number is needed no more.
    Release(u32),
    /// Nothing is missing any more.
    Drained,
}

/// The pager's end.
#[derive(Debug)]
pub(crate) struct Keeper {
    socket: Option<OwnedFd>,
    has_begun: bool,
}

impl Keeper {
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        setsockopt(&socket, SendTimeout, &TimeVal::seconds(SEND_TIMEOUT_SECONDS))?;
        Ok(Self {
            socket: Some(socket),
            has_begun: false,
        })
    }

    /// Hands a duplicate over.
    pub(crate) fn keep(&mut self, number: u32, uffd: BorrowedFd<'_>) {
        self.send(b'k', number, Some(uffd));
    }

    pub(super) fn release(&mut self, number: u32) {
        self.send(b'r', number, None);
    }

    pub(crate) fn drained(&mut self) {
        self.send(b'd', 0, None);
    }

    pub(super) fn is_gone(&self) -> bool {
        self.socket.is_none()
    }

    /// Whether the shim has said that pages may be filled in that nobody waits for.
    pub(super) fn has_begun(&mut self) -> bool {
        if let Some(socket) = &self.socket {
            let mut word = [0];
            match recv(socket.as_raw_fd(), &mut word, MsgFlags::MSG_DONTWAIT) {
                Ok(1) => self.has_begun |= word == [BEGIN],
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Ok(_) | Err(_) => self.socket = None,
            }
        }
        self.has_begun
    }

    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    fn send(&mut self, kind: u8, number: u32, descriptor: Option<BorrowedFd<'_>>) {
        let Some(socket) = &self.socket else { return };
        let mut bytes = [kind, 0, 0, 0, 0];
        bytes[1..].copy_from_slice(&number.to_ne_bytes());
        loop {
            match handover::send(socket, &bytes, descriptor) {
                Ok(_) => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    super::pager::say(&format!("the shim keeps no descriptors any more: {error}"));
                    self.socket = None;
                    return;
                }
            }
        }
    }
}

/// Makes the line: the shim's end, which never blocks, and the pager's.
pub(crate) fn line() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (shims, pagers) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    Ok((shims, pagers))
}

/// The shim's word to begin. A pager that is gone needs it no more.
pub(crate) fn begin(shims: BorrowedFd<'_>) {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let _ = nix::sys::socket::send(shims.as_raw_fd(), &[BEGIN], flags);
}

/// The pager's next note; `None` when the pager has closed its end, `WouldBlock` when there is none yet.
pub(crate) fn next(shims: BorrowedFd<'_>) -> io::Result<Option<Note>> {
    let mut bytes = [0; 5];
    let (n_bytes, descriptor) = handover::receive(shims, &mut bytes, MsgFlags::MSG_DONTWAIT)?;
    if n_bytes == 0 {
        return Ok(None);
    }
    let number = u32::from_ne_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
    match (bytes[0], descriptor) {
        (b'k', Some(descriptor)) => Ok(Some(Note::Keep(number, descriptor))),
        // The kernel drops a descriptor for which this process has no number left.
        (b'k', None) => Err(io::Error::other(
            "this shim has no descriptor left to keep a container's memory by",
        )),
        (b'r', _) => Ok(Some(Note::Release(number))),
        (b'd', _) => Ok(Some(Note::Drained)),
        (kind, _) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("unknown note of a pager: {kind}"),
        )),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A pager's end.
    pub(crate) fn pager(socket: OwnedFd) -> Keeper {
        Keeper::new(socket).unwrap()
    }
}
