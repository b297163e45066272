//! The calls into the C library that no safe wrapper covers. The only module of this crate with `unsafe`.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;
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
    // SAFETY: the callers pass a descriptor out of SCM_RIGHTS, which nobody else owns.
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
    // SAFETY: the callers pass an EventFd or an Inotify, which own their descriptor and keep it open, and the
    // same, until they are dropped with the registration.
    unsafe { AsyncFd::register_with_interest(source, Interest::READABLE) }.map_err(io::Error::from)
}
