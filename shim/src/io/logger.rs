//! A program that takes a process's output: `binary://` URIs.
//!
//! It gets stdout and stderr as descriptors 3 and 4 straight from the process, so nothing is copied here, and says on
//! descriptor 5 that it is ready; `CONTAINER_ID` and `CONTAINER_NAMESPACE` are its whole environment. When the process
//! is deleted it has seen the end of its input, and is asked and then made to end. It is never started again: if it
//! dies, writing fails for the process, as with any pipe without a reader.

use std::fs;
use std::io::{ErrorKind, PipeReader, PipeWriter, pipe};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use godwit_runtime::descriptor::{Descriptor, hand_over};
use godwit_runtime::reaper::{Departure, Reaper};
use log::warn;
use nix::libc::{SIGKILL, SIGTERM};
use tokio::time::timeout;

use super::target::LoggerCommand;
use crate::error::{ShimError, failed};

/// A logger has to open files or connections before it is ready; on a busy machine that takes seconds.
const READY_DEADLINE: Duration = Duration::from_secs(20);

/// How long a logger may go on at the end of its input before it is asked to end: what it has read it must store.
const INPUT_DEADLINE: Duration = Duration::from_secs(10);

/// How long it has after SIGTERM; the stock shim allows the same.
const TERM_DEADLINE: Duration = Duration::from_secs(12);

/// After SIGKILL the kernel has only to tear it down.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// The kernel's flag for a process that is on its way out, in the ninth field of its stat file.
const PF_EXITING: u64 = 0x4;

/// A logger that runs. Dropping it kills it.
pub(super) struct Logger {
    program: String,
    reaper: Reaper,
    departure: Departure,
}

/// The ends that the process writes to.
pub(super) struct LoggerInputs {
    pub(super) stdout: PipeWriter,
    pub(super) stderr: PipeWriter,
}

impl Logger {
    /// Starts it for the process `id` and waits until it is ready.
    pub(super) async fn start(
        command: &LoggerCommand,
        id: &str,
        namespace: &str,
        reaper: &Reaper,
    ) -> Result<(Self, LoggerInputs), ShimError> {
        start_within(command, id, namespace, reaper, READY_DEADLINE).await
    }

    /// Waits until it has ended by itself at the end of its input, or ends it.
    pub(super) async fn end(mut self) {
        if timeout(INPUT_DEADLINE, self.departure.wait()).await.is_ok() {
            return;
        }
        self.signal(SIGTERM);
        if timeout(TERM_DEADLINE, self.departure.wait()).await.is_ok() {
            return;
        }
        warn!("logger {} does not end and is killed", self.program);
        self.signal(SIGKILL);
        // A process that is stuck in the kernel cannot be helped.
        let _ = timeout(KILL_DEADLINE, self.departure.wait()).await;
    }

    async fn wait_ready(&mut self, ready: PipeReader, command: &LoggerCommand) -> Result<(), ShimError> {
        let ready = Descriptor::new(ready).map_err(failed("wait for the logger"))?;
        let mut byte = [0];
        let n_read = loop {
            ready.readable().await.map_err(failed("wait for the logger"))?;
            match ready.try_read(&mut byte) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => break read.map_err(failed("wait for the logger"))?,
            }
        };
        if n_read > 0 {
            return Ok(());
        }
        let program = &self.program;
        if self.is_ending() {
            let exit = self.departure.wait().await;
            return Err(ShimError::Failed(format!(
                "logger {program} ended before it was ready ({:?}): see what it does with the arguments {:?}",
                exit.end, command.arguments
            )));
        }
        if command.must_say_ready {
            return Err(ShimError::Failed(format!(
                "logger {program} closed descriptor 5 without the byte that says it is ready"
            )));
        }
        Ok(())
    }

    /// True if it closed its descriptors by dying. The kernel marks a process before it closes them.
    fn is_ending(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.departure.pid())).unwrap_or_default();
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let flags = fields
            .split_whitespace()
            .nth(6)
            .and_then(|flags| flags.parse::<u64>().ok());
        flags.is_none_or(|flags| flags & PF_EXITING != 0)
    }

    fn signal(&self, signal: i32) {
        self.reaper.kill(self.departure.pid(), signal);
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        // Nothing happens if it has ended.
        self.signal(SIGKILL);
    }
}

async fn start_within(
    command: &LoggerCommand,
    id: &str,
    namespace: &str,
    reaper: &Reaper,
    deadline: Duration,
) -> Result<(Logger, LoggerInputs), ShimError> {
    let (from_stdout, stdout) = pipe().map_err(failed("make a pipe"))?;
    let (from_stderr, stderr) = pipe().map_err(failed("make a pipe"))?;
    let (ready, says_ready) = pipe().map_err(failed("make a pipe"))?;
    let program = command.program.display().to_string();
    let mut child = Command::new(&command.program);
    child
        .args(&command.arguments)
        .env_clear()
        .env("CONTAINER_ID", id)
        .env("CONTAINER_NAMESPACE", namespace)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let given = [from_stdout.as_fd(), from_stderr.as_fd(), says_ready.as_fd()];
    hand_over(&mut child, &given).map_err(failed("hand the streams to the logger"))?;
    let started = reaper.spawn(&mut child);
    // What this process holds of the child's ends must go, or the end of file would never come.
    drop((child, from_stdout, from_stderr, says_ready));
    let mut logger = Logger {
        departure: started
            .map_err(failed(format!("start logger {program}")))?
            .departure,
        program,
        reaper: reaper.clone(),
    };
    match timeout(deadline, logger.wait_ready(ready, command)).await {
        Ok(result) => result.map(|()| (logger, LoggerInputs { stdout, stderr })),
        Err(_) => Err(ShimError::Failed(format!(
            "logger {} did not say on descriptor 5 within {deadline:?} that it is ready, and was killed",
            logger.program
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::ffi::OsString;
    use std::io::Write;

    /// For the one logger that never says anything; the others are waited for however busy the machine is.
    const SHORT_DEADLINE: Duration = Duration::from_millis(300);

    fn shell(script: &str, must_say_ready: bool) -> LoggerCommand {
        LoggerCommand {
            program: "/bin/sh".into(),
            arguments: ["-c", script].map(OsString::from).to_vec(),
            must_say_ready,
        }
    }

    async fn refusal(command: &LoggerCommand, reaper: &Reaper, deadline: Duration) -> String {
        match start_within(command, "c1", "moby", reaper, deadline).await {
            Ok(_) => panic!("{command:?} is taken as ready"),
            Err(error) => error.to_string(),
        }
    }

    #[tokio::test]
    async fn a_logger_is_ready_or_an_error_says_why_not_and_it_gets_all_output() {
        let _alone = super::super::tests::ONE_REAPER.lock().await;
        let reaper = Reaper::start().unwrap();
        let missing = LoggerCommand {
            program: "/no/such/logger".into(),
            ..shell("", false)
        };
        for (command, deadline, why) in [
            (missing, READY_DEADLINE, "start logger /no/such/logger"),
            (shell("exit 3", false), READY_DEADLINE, "Exited(3)"),
            (
                shell("exec 5>&-; sleep 5", true),
                READY_DEADLINE,
                "without the byte",
            ),
            (shell("sleep 5", false), SHORT_DEADLINE, "did not say"),
        ] {
            let said = refusal(&command, &reaper, deadline).await;
            assert!(said.contains(why), "{said}");
        }

        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let script = format!(
            "exec >{}; echo + >&5; exec 5>&-; /bin/cat <&3; /bin/cat <&4; echo $CONTAINER_NAMESPACE/$CONTAINER_ID",
            log.display()
        );
        let started = Logger::start(&shell(&script, true), "c1", "moby", &reaper).await;
        let (logger, mut inputs) = started.unwrap_or_else(|error| panic!("{error}"));
        inputs.stdout.write_all(b"out\n").unwrap();
        inputs.stderr.write_all(b"err\n").unwrap();
        drop(inputs);
        logger.end().await;
        assert_eq!(fs::read_to_string(log).unwrap(), "out\nerr\nmoby/c1\n");
    }
}
