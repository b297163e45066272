//! A userfaultfd's messages and calls (ioctl_userfaultfd(2)), as the kernel's `linux/userfaultfd.h` lays them out.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

/// The size of `struct uffd_msg`.
const MESSAGE_BYTES: usize = 32;

/// Messages taken by one read.
const MESSAGES: usize = 16;

/// What the kernel tells of a task's memory.
#[derive(Debug)]
pub(crate) enum Message {
    /// A thread waits for the page of this address.
    Fault(u64),
    /// The task has forked; its child's memory is heard of by this descriptor.
    Fork(OwnedFd),
    /// Memory was moved.
    Remap {
        /// Where it was.
        from: u64,
        /// Where it is.
        to: u64,
        /// How much.
        bytes: u64,
    },
    /// What the range held is no more, whether or not the range is.
    Lost {
        /// Its first byte.
        start: u64,
        /// The first byte behind it.
        end: u64,
    },
}

/// What became of a page, or of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// This many bytes are there now, from the first on; whoever waited for them runs.
    Bytes(u64),
    /// The first page was there before.
    Present,
    /// The task is changing its mappings: the messages that say how must be read first.
    Changing,
    /// No one mapping that is watched holds the whole range.
    Unmapped,
    /// The task has ended, or runs another program.
    Gone,
    /// The host or the container's cgroup has no memory now.
    NoMemory,
}

#[repr(C)]
struct Range {
    start: u64,
    bytes: u64,
}

#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    bytes: u64,
    mode: u64,
    done: i64,
}

#[repr(C)]
struct Zero {
    range: Range,
    mode: u64,
    done: i64,
}

nix::ioctl_read!(uffdio_wake, 0xaa, 0x02, Range);
nix::ioctl_readwrite!(uffdio_copy, 0xaa, 0x03, Copy);
nix::ioctl_readwrite!(uffdio_zeropage, 0xaa, 0x04, Zero);

/// The next messages, in their order; none if none waits. The descriptor must be one that never blocks.
pub(crate) fn messages(uffd: BorrowedFd<'_>) -> io::Result<Vec<Message>> {
    let mut bytes = [0; MESSAGE_BYTES * MESSAGES];
    let n_read = loop {
        match nix::unistd::read(uffd, &mut bytes) {
            Ok(n_read) => break n_read,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
    };
    bytes[..n_read].chunks_exact(MESSAGE_BYTES).map(message).collect()
}

fn message(bytes: &[u8]) -> io::Result<Message> {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_ne_bytes(word)
    };
    Ok(match bytes[0] {
        0x12 => Message::Fault(word(16)),
        0x13 => {
            let number = i32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
            Message::Fork(super::own(number))
        }
        0x14 => Message::Remap {
            from: word(8),
            to: word(16),
            bytes: word(24),
        },
        0x15 | 0x16 => Message::Lost {
            start: word(8),
            end: word(16),
        },
        kind => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("unknown userfaultfd message {kind:#x}"),
            ));
        }
    })
}

/// Puts pages at `address` of the watched task.
pub(crate) fn copy(uffd: BorrowedFd<'_>, address: u64, content: &[u8]) -> io::Result<Filled> {
    let mut call = Copy {
        to: address,
        from: content.as_ptr() as u64,
        bytes: content.len() as u64,
        mode: 0,
        done: 0,
    };
    // SAFETY: the kernel reads `content`, which outlives the call, and writes `done` only; what it fills belongs to
    // another process, or is a page that no reference of this one has seen.
    let result = unsafe { uffdio_copy(uffd.as_raw_fd(), &raw mut call) };
    filled(result, call.done, call.bytes)
}

/// Puts pages of zeros at `address` of the watched task.
pub(crate) fn zero(uffd: BorrowedFd<'_>, address: u64, bytes: u64) -> io::Result<Filled> {
    let mut call = Zero {
        range: Range {
            start: address,
            bytes,
        },
        mode: 0,
        done: 0,
    };
    // SAFETY: as for `copy`.
    let result = unsafe { uffdio_zeropage(uffd.as_raw_fd(), &raw mut call) };
    filled(result, call.done, bytes)
}

/// Has every thread that waits for a page in the range look again.
pub(crate) fn wake(uffd: BorrowedFd<'_>, start: u64, bytes: u64) -> io::Result<()> {
    let mut range = Range { start, bytes };
    // SAFETY: the kernel reads the one `Range`.
    unsafe { uffdio_wake(uffd.as_raw_fd(), &raw mut range) }?;
    Ok(())
}

/// A call that did a part is an error to the kernel; `done` is then the part, and else the error once more.
fn filled(result: nix::Result<i32>, done: i64, bytes: u64) -> io::Result<Filled> {
    if let Ok(part @ 1..) = u64::try_from(done) {
        return Ok(Filled::Bytes(part.min(bytes)));
    }
    match result {
        Ok(_) => Ok(Filled::Bytes(bytes)),
        Err(Errno::EAGAIN) => Ok(Filled::Changing),
        Err(Errno::EEXIST) => Ok(Filled::Present),
        Err(Errno::ENOENT) => Ok(Filled::Unmapped),
        Err(Errno::ESRCH | Errno::ENOSPC) => Ok(Filled::Gone),
        Err(Errno::ENOMEM) => Ok(Filled::NoMemory),
        Err(error) => Err(error.into()),
    }
}

/// What CRIU does and only tests must do themselves.
#[cfg(test)]
pub(crate) mod making {
    use super::*;
    use nix::libc;

    #[repr(C)]
    struct Api {
        api: u64,
        features: u64,
        ioctls: u64,
    }

    #[repr(C)]
    struct Register {
        range: Range,
        mode: u64,
        ioctls: u64,
    }

    nix::ioctl_readwrite!(uffdio_api, 0xaa, 0x3f, Api);
    nix::ioctl_readwrite!(uffdio_register, 0xaa, 0x00, Register);

    /// A userfaultfd of this process that tells what CRIU's tell: fork, remap, remove and unmap.
    pub(crate) fn uffd() -> io::Result<OwnedFd> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: userfaultfd takes no pointers.
        let number = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let uffd = super::super::own(i32::try_from(number).unwrap());
        let mut api = Api {
            api: 0xaa,
            features: 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6,
            ioctls: 0,
        };
        // SAFETY: the kernel reads and writes the one `Api`.
        unsafe { uffdio_api(uffd.as_raw_fd(), &raw mut api) }?;
        Ok(uffd)
    }

    /// Watches a range for pages that are missing.
    pub(crate) fn register(uffd: BorrowedFd<'_>, start: u64, bytes: u64) -> io::Result<()> {
        let mut register = Register {
            range: Range { start, bytes },
            mode: 1,
            ioctls: 0,
        };
        // SAFETY: the kernel reads and writes the one `Register`.
        unsafe { uffdio_register(uffd.as_raw_fd(), &raw mut register) }?;
        Ok(())
    }

    /// New private memory without a single page.
    pub(crate) fn map(bytes: u64) -> u64 {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let length = usize::try_from(bytes).unwrap();
        // SAFETY: new memory at a place of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        at as u64
    }

    /// `munmap`, `madvise(DONTNEED)`, `mremap` to a new place and `fork`, of memory that [`map`] gave.
    pub(crate) fn unmap(start: u64, bytes: u64) {
        // SAFETY: the tests hold no reference into memory of `map`.
        assert_eq!(unsafe { libc::munmap(start as *mut _, bytes as usize) }, 0);
    }

    /// See [`unmap`].
    pub(crate) fn discard(start: u64, bytes: u64) {
        // SAFETY: as for `unmap`.
        let result = unsafe { libc::madvise(start as *mut _, bytes as usize, libc::MADV_DONTNEED) };
        assert_eq!(result, 0);
    }

    /// See [`unmap`].
    pub(crate) fn remap(start: u64, bytes: u64, to: u64) {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let length = bytes as usize;
        // SAFETY: as for `unmap`.
        let at = unsafe { libc::mremap(start as *mut _, length, length, flags, to as *mut libc::c_void) };
        assert_eq!(at as u64, to);
    }

    /// Makes a mapping of its own out of a part of one, by protecting it.
    pub(crate) fn protect(start: u64, bytes: u64) {
        // SAFETY: as for `unmap`.
        let done = unsafe { libc::mprotect(start as *mut _, bytes as usize, libc::PROT_READ) };
        assert_eq!(done, 0);
    }

    /// Forks; the child ends with 0 if `check`, which must not allocate, holds in it.
    pub(crate) fn fork(check: impl FnOnce() -> bool) -> nix::unistd::Pid {
        // Not by the C library, which takes the locks of its allocator first: the pager, another thread of the same process
        // in these tests, needs them to read the kernel's message, without which the call does not return.
        // SAFETY: without CLONE_VM and with no stack this is a plain fork; the child calls what does not allocate, and ends
        // by _exit.
        let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        assert!(child >= 0, "{}", io::Error::last_os_error());
        if child == 0 {
            let status = i32::from(!check());
            // SAFETY: _exit takes no pointers.
            unsafe { libc::_exit(status) }
        }
        nix::unistd::Pid::from_raw(child as i32)
    }

    /// A byte of memory of [`map`], as a task would read it: waits until it is there.
    pub(crate) fn byte(address: u64) -> u8 {
        // SAFETY: the tests pass addresses of memory that is mapped.
        unsafe { std::ptr::read_volatile(address as *const u8) }
    }
}
