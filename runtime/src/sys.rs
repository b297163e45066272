//! The calls into the C library that no safe wrapper covers. The only module of this crate with `unsafe`.
#![allow(unsafe_code)]

pub(crate) mod pagemap;
pub(crate) mod trace;
pub(crate) mod userfault;
pub(crate) mod writeback;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Waits for any child that has ended, without blocking: its pid and raw wait status.
///
/// nix's `waitpid` reaps a child killed by a real-time signal and then fails to name the signal, so that the
/// exit would be lost.
pub(crate) fn reap_any() -> Option<(i32, i32)> {
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call; WNOHANG makes it return at once.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        match pid {
            1.. => return Some((pid, status)),
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ => return None,
        }
    }
}

/// Takes ownership of a descriptor that the kernel has just made for this process.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the callers pass a descriptor out of SCM_RIGHTS, out of a userfaultfd's message or one that their parent
    // has given them by number, each once; nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Sets a terminal's size.
pub(crate) fn set_terminal_size(terminal: impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one `winsize` through the pointer, which is valid for the call.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Bytes written to a TCP socket that its other end has not acknowledged (`SIOCOUTQ`, tcp(7)).
pub fn unacknowledged(socket: impl AsFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the call writes one int through the pointer, which is valid for it.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(bytes.unsigned_abs())
}

/// Switches on the loopback device of the calling thread's network namespace (netdevice(7)).
pub(crate) fn loopback_up() -> io::Result<()> {
    set_device(b"lo", true)
}

/// Brings a device of the calling thread's network namespace up or down.
pub(crate) fn set_device(name: &[u8], up: bool) -> io::Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: `ifreq` is plain data, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    // SAFETY: SIOCGIFFLAGS reads the name and writes the flags of the one `ifreq`, which is valid for the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call before has written the flags, so that this member of the union is the one in use; IFF_UP is 1.
    unsafe {
        if up {
            request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        } else {
            request.ifr_ifru.ifru_flags &= !(libc::IFF_UP as libc::c_short);
        }
    };
    // SAFETY: SIOCSIFFLAGS reads the one `ifreq`.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sends a signal by number.
pub(crate) fn kill(pid: nix::unistd::Pid, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes no pointers.
    if unsafe { libc::kill(pid.as_raw(), signal) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Registers an event source with tokio, to be waited on until it is readable.
pub(crate) fn watch_readable<T: AsRawFd>(source: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: the callers pass an EventFd, an Inotify or an OwnedFd, which own their descriptor and keep it open, and
    // the same, until they are dropped with the registration.
    unsafe { AsyncFd::register_with_interest(source, Interest::READABLE) }.map_err(io::Error::from)
}

/// Registers a pipe, fifo or terminal with tokio, to be read and written.
pub(crate) fn watch_both(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a File owns its descriptor and keeps it open, and the same, until it is dropped with the registration;
    // nobody gets at it mutably.
    unsafe { AsyncFd::register(file) }.map_err(io::Error::from)
}

/// Bytes that wait in a pipe, seen from either end.
pub(crate) fn unread_bytes(pipe: impl AsFd) -> io::Result<usize> {
    let mut n_bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int through the pointer, which is valid for the call.
    if unsafe { libc::ioctl(pipe.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut n_bytes) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(n_bytes).unwrap_or_default())
}

/// Duplicates a descriptor to a number not below `floor`; a child does not inherit it.
pub(crate) fn duplicate_above(descriptor: BorrowedFd<'_>, floor: RawFd) -> io::Result<OwnedFd> {
    let duplicate = nix::fcntl::fcntl(descriptor, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(floor))?;
    // SAFETY: the kernel has just made it for this call, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(duplicate) })
}

/// Makes the child have `sources` as descriptors `first` and following; none may have one of these numbers. What
/// `kept` holds stays open until the command is dropped.
pub(crate) fn renumber_in_child(
    command: &mut Command,
    first: RawFd,
    sources: Vec<OwnedFd>,
    kept: Vec<OwnedFd>,
) {
    let renumber = move || {
        let _ = &kept;
        for (target, source) in (first..).zip(&sources) {
            // SAFETY: dup2 takes no pointers and is allowed between fork and exec. What it closes in the child is
            // nobody's there: the child only execs.
            if unsafe { libc::dup2(source.as_raw_fd(), target) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure calls dup2 only and allocates nothing.
    unsafe { command.pre_exec(renumber) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_of_a_new_network_namespace_comes_up() {
        // A thread of its own: the namespace is the thread's, and ends with it.
        let thread = std::thread::spawn(|| {
            if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
                eprintln!("skipped: no network namespace can be made here: {error}");
                return;
            }
            loopback_up().unwrap();
            // 127.0.0.1 answers only on a device that is up.
            let bound = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            bound.connect(bound.local_addr().unwrap()).unwrap();
            bound.send(b"x").unwrap();
        });
        thread.join().unwrap();
    }
}
