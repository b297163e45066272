//! An open file that goes from one process to another, along with some bytes on a unix socket (`unix(7)`, `SCM_RIGHTS`).
//!
//! One at a time: the kernel closes what there is no room for.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use crate::sys;

/// Sends bytes, and a descriptor with the first of them; how many bytes went.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptor: Option<impl AsFd>) -> io::Result<usize> {
    let number = descriptor.as_ref().map(|one| [one.as_fd().as_raw_fd()]);
    let rights = number.as_ref().map(|number| [ControlMessage::ScmRights(number)]);
    let rights = rights.as_ref().map_or(&[][..], |rights| &rights[..]);
    let bytes = [IoSlice::new(bytes)];
    Ok(sendmsg::<()>(
        socket.as_fd().as_raw_fd(),
        &bytes,
        rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?)
}

/// Receives bytes, and the descriptor that came with them, if one did; no bytes at the stream's end.
pub fn receive(socket: impl AsFd, bytes: &mut [u8], flags: MsgFlags) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = cmsg_space!([RawFd; 1]);
    let mut vectors = [IoSliceMut::new(bytes)];
    let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut vectors, Some(&mut space), flags)?;
    let mut received = None;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            // Every one is owned at once, so that none is left open.
            received = numbers.into_iter().map(sys::own).last();
        }
    }
    Ok((message.bytes, received))
}
