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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::{Child, Command};
    use std::thread;
    use std::time::{Duration, Instant};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    fn until<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(value) = done() {
                return value;
            }
            assert!(Instant::now() < deadline, "{what}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// A shell that says that it is ready, and what signal has come.
    fn shell(directory: &tempfile::TempDir) -> Child {
        let script = "trap 'echo came >said' USR1; echo ready >said; while :; do :; done";
        let child = Command::new("sh")
            .args(["-c", script])
            .current_dir(directory.path())
            .spawn()
            .unwrap();
        until("the shell", || (said(directory) == "ready").then_some(()));
        child
    }

    fn said(directory: &tempfile::TempDir) -> String {
        let text = fs::read_to_string(directory.path().join("said")).unwrap_or_default();
        text.trim().to_owned()
    }

    #[test]
    fn a_signal_that_a_thread_meets_on_the_way_to_its_stop_is_given_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut child = shell(&directory);
        let pid = child.id().cast_signed();
        seize(pid).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGUSR1).unwrap();
        let stopped = until("its stop", || look(pid).unwrap());
        let signal = Signal::SIGUSR1 as i32;
        assert_eq!(stopped, Traced::Stopped { signal });
        assert_eq!(said(&directory), "ready", "it has not been given it yet");
        detach(pid, signal).unwrap();
        until("the signal", || (said(&directory) == "came").then_some(()));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_thread_that_is_asked_to_stop_has_met_none_and_one_that_has_ended_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let mut child = shell(&directory);
        let pid = child.id().cast_signed();
        seize(pid).unwrap();
        assert_eq!(look(pid).unwrap(), None, "it runs");
        interrupt(pid).unwrap();
        assert_eq!(
            until("its stop", || look(pid).unwrap()),
            Traced::Stopped { signal: 0 }
        );
        child.kill().unwrap();
        assert_eq!(until("its end", || look(pid).unwrap()), Traced::Ended);
        assert_eq!(look(pid).unwrap(), Some(Traced::Ended), "there is no such thread");
        // Its end was taken by the look at it.
        assert!(child.wait().is_err());
    }
}
