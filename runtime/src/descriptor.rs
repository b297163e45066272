//! Pipes, fifos and terminals that are read and written as they are ready, and descriptors that a child shall have.
//!
//! All of them are driven by the reactor: a copy that waits parks no thread, and dropping it lets go at once. What is
//! written here is neither buffered nor repeated.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::Command;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// The first number after the standard streams.
const FIRST_TARGET: i32 = 3;

/// Where the sources of descriptors for a child are put first, out of the way of the numbers they shall get.
const ABOVE_ALL_TARGETS: i32 = 64;

/// A pipe, fifo or terminal of which this process holds one end.
#[derive(Debug)]
pub struct Descriptor(AsyncFd<File>);

impl Descriptor {
    /// Takes an end over and makes it one that never blocks.
    pub fn new(end: impl Into<OwnedFd>) -> io::Result<Self> {
        let end = File::from(end.into());
        let flags = OFlag::from_bits_retain(fcntl(&end, FcntlArg::F_GETFL)?);
        fcntl(&end, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        sys::watch_both(end).map(Self)
    }

    /// Waits until there is something to read, an end of file and an error among it.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable().await.map(|mut ready| ready.retain_ready())
    }

    /// Reads what is there; `WouldBlock` if there is nothing.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self
            .0
            .try_io(tokio::io::Interest::READABLE, |mut file| file.read(buffer));
        again_if_interrupted(read)
    }

    /// Writes as much as fits; `WouldBlock` if nothing does.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let written = self
            .0
            .try_io(tokio::io::Interest::WRITABLE, |mut file| file.write(bytes));
        again_if_interrupted(written)
    }

    /// Writes all of it, waiting for room for as long as it takes.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.0.writable().await?.retain_ready();
            match self.try_write(bytes) {
                Ok(n_written) => bytes = &bytes[n_written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Bytes that were written into the pipe or fifo and that nobody has read.
    pub fn unread_bytes(&self) -> io::Result<usize> {
        sys::unread_bytes(self)
    }

    /// True if somebody has the other end of the pipe or fifo open for reading.
    pub fn has_reader(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO)?;
        Ok(!fds[0]
            .revents()
            .is_some_and(|events| events.contains(PollFlags::POLLERR)))
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

/// Gives the child that `command` starts these descriptors as number 3, 4 and so on.
pub fn hand_over(command: &mut Command, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let sources = descriptors
        .iter()
        .map(|descriptor| sys::duplicate_above(*descriptor, ABOVE_ALL_TARGETS))
        .collect::<io::Result<Vec<_>>>()?;
    // `spawn` makes a pipe by which the child reports that it could not exec. Were one of the numbers free, the pipe
    // could get it, and the failure would be overwritten with it.
    let null = File::open("/dev/null")?;
    let n_targets = i32::try_from(sources.len()).unwrap_or(i32::MAX);
    let mut fillers = Vec::new();
    loop {
        let filler = sys::duplicate_above(null.as_fd(), FIRST_TARGET)?;
        if filler.as_raw_fd() >= FIRST_TARGET + n_targets {
            break;
        }
        fillers.push(filler);
    }
    sys::renumber_in_child(command, FIRST_TARGET, sources, fillers);
    Ok(())
}

fn again_if_interrupted(result: io::Result<usize>) -> io::Result<usize> {
    result.map_err(|error| match error.kind() {
        // The caller waits and comes back; readiness was not cleared.
        ErrorKind::Interrupted => ErrorKind::WouldBlock.into(),
        _ => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::pipe;

    #[tokio::test]
    async fn a_pipe_without_a_reader_keeps_what_was_written_for_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let hold = File::options().read(true).write(true).open(&path).unwrap();
        let writer = Descriptor::new(File::options().write(true).open(&path).unwrap()).unwrap();
        assert!(writer.has_reader().unwrap());
        writer.write_all(b"late").await.unwrap();
        drop(hold);
        assert!(!writer.has_reader().unwrap());
        assert_eq!(writer.unread_bytes().unwrap(), 4);
        let mut reader = File::open(&path).unwrap();
        assert!(writer.has_reader().unwrap());
        drop(writer);
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert_eq!(read, "late");
    }

    #[test]
    fn a_child_gets_the_descriptors_from_3_on_even_where_their_numbers_cross() {
        let (mut from_child, to_parent) = pipe().unwrap();
        let (to_child, mut into_child) = pipe().unwrap();
        into_child.write_all(b"through").unwrap();
        drop(into_child);
        let mut command = Command::new("sh");
        command.args(["-c", "cat <&3 >&4; test ! -e /proc/self/fd/5 && echo -clean >&4"]);
        hand_over(&mut command, &[to_child.as_fd(), to_parent.as_fd()]).unwrap();
        let mut child = command.spawn().unwrap();
        drop((command, to_parent, to_child));
        let mut said = String::new();
        from_child.read_to_string(&mut said).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(said, "through-clean\n");
    }

    #[test]
    fn a_child_that_cannot_start_is_an_error_whatever_it_shall_get() {
        let null = File::open("/dev/null").unwrap();
        let mut command = Command::new("/no/such/program");
        hand_over(&mut command, &[null.as_fd(), null.as_fd(), null.as_fd()]).unwrap();
        assert_eq!(command.spawn().unwrap_err().kind(), ErrorKind::NotFound);
    }
}
