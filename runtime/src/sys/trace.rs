//! Tracing threads (ptrace(2)), as far as it takes to stop them and let them go.
//!
//! Statuses and signals are raw numbers: nix names no real-time signal, and such a signal that is met on the way to a
//! stop would be lost.

use std::io;
use std::ptr;

use nix::libc;

/// The event of a thread that stops because its tracer asked it to, in the high bits of its status.
const EVENT_STOP: i32 = 128;

/// What a traced thread has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traced {
    /// It stands still; on its way there it met this signal, or none (0), which is to be given to it.
    Stopped { signal: i32 },
    /// It has ended.
    Ended,
}

/// Begins to trace a thread, which runs on.
pub(crate) fn seize(thread: i32) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, thread, 0)
}

/// Has a traced thread stop.
pub(crate) fn interrupt(thread: i32) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, thread, 0)
}

/// Lets a traced thread that stands still go, with a signal or none (0).
pub(crate) fn detach(thread: i32, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_DETACH, thread, signal)
}

fn request(what: libc::c_uint, thread: i32, data: i32) -> io::Result<()> {
    // SAFETY: none of the three requests writes to this process' memory; the kernel takes both pointers as numbers.
    let done = unsafe {
        libc::ptrace(
            what,
            thread,
            ptr::null_mut::<libc::c_void>(),
            ptr::without_provenance_mut::<libc::c_void>(data.unsigned_abs() as usize),
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// What a traced thread has done since the last look, without waiting for it.
pub(crate) fn look(thread: i32) -> io::Result<Option<Traced>> {
    let mut status = 0;
    // SAFETY: `status` outlives the call; WNOHANG makes it return at once.
    let pid = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL | libc::WNOHANG) };
    match pid {
        0 => Ok(None),
        1.. if libc::WIFSTOPPED(status) => {
            let is_asked = status >> 16 == EVENT_STOP;
            let signal = if is_asked { 0 } else { libc::WSTOPSIG(status) };
            Ok(Some(Traced::Stopped { signal }))
        }
        1.. => Ok(Some(Traced::Ended)),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ECHILD) => Ok(Some(Traced::Ended)),
            error if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            error => Err(error),
        },
    }
}
