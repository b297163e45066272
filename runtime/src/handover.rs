//! An open file that goes from one process to another, along with some bytes on a unix socket (`unix(7)`, `SCM_RIGHTS`).
//!
//! One at a time: of more, the last is taken and the others are closed.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use crate::sys;

/// Sends bytes, and a descriptor with the first of them; how many bytes went.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    let number = descriptor.map(|one| [one.as_raw_fd()]);
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
            // The space is rounded up, so that two may come: each is owned at once, and all but the last are closed.
            for number in numbers {
                received = Some(sys::own(number));
            }
        }
    }
    Ok((message.bytes, received))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn of_two_descriptors_one_is_taken_and_the_other_is_closed() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut end, first) = io::pipe().unwrap();
        let (_end, second) = io::pipe().unwrap();
        let numbers = [first.as_raw_fd(), second.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&numbers)];
        let bytes = [IoSlice::new(b"two")];
        sendmsg::<()>(theirs.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None).unwrap();
        drop(first);
        let (n_bytes, received) = receive(&ours, &mut [0; 8], MsgFlags::empty()).unwrap();
        assert_eq!(n_bytes, 3);
        assert!(received.is_some());
        assert_eq!(end.read(&mut [0]).unwrap(), 0);
    }
}
