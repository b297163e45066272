//! Builds and runs runC's subcommands.
//!
//! Each call logs to a file of its own, so that a failure is told by runC's own words and two calls at a time do
//! not mix theirs; the file is removed when the call is over. What the calls mean for a container's state is
//! the shim's to know. Every child goes through the exit dispatcher.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::time::timeout;

use crate::reaper::{Child, Departure, Exit, Limits, Reaper, RunError};

/// Create, start and exec run hooks and wait for the kernel; engines themselves give up after two minutes.
const CONTAINER_DEADLINE: Duration = Duration::from_secs(120);

/// What only signals, reads or writes cgroup files; half a minute is a machine on its knees.
const QUICK_DEADLINE: Duration = Duration::from_secs(30);

/// `ps` and `state` of a container at the kernel's default limit of pids fit in here.
const OUTPUT_BYTES: usize = 1024 * 1024;

/// How much of a log is read when a call has failed; the cause stands at its end.
const LOG_BYTES: usize = 64 * 1024;

/// How runC is called for one container; kept in its bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuncSettings {
    /// The binary, by name or path.
    pub binary: PathBuf,
    /// `--root`: where runC keeps its state.
    pub root: PathBuf,
    /// `--systemd-cgroup`.
    pub systemd_cgroup: bool,
}

/// Why a call of runC failed.
#[derive(Debug, Error)]
pub enum RuncError {
    /// It could not be run to its end.
    #[error(transparent)]
    Run(#[from] RunError),
    /// It said no; the text is runC's own.
    #[error("{message}")]
    Failed {
        /// The subcommand.
        subcommand: String,
        /// The last error of its log.
        message: String,
    },
    /// It succeeded and what it left could not be read.
    #[error("runc {subcommand} left nothing to read: {source}")]
    Result {
        /// The subcommand.
        subcommand: String,
        /// What is wrong.
        source: io::Error,
    },
}

impl RuncError {
    /// True if runC says that the process or the container is gone already.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Failed { message, .. } => {
                message.contains("process already finished")
                    || message.contains("container not running")
                    || message.contains("does not exist")
                    || message.contains("no such process")
            }
            _ => false,
        }
    }
}

/// The standard streams of a container's process, as its parent runC has them.
#[derive(Debug)]
pub enum Streams {
    /// Passed on by inheritance.
    Inherited {
        /// Standard input.
        stdin: Stdio,
        /// Standard output.
        stdout: Stdio,
        /// Standard error.
        stderr: Stdio,
    },
    /// A terminal, whose master side runC sends to this socket.
    Console(PathBuf),
}

/// runC, for one container.
#[derive(Clone)]
pub struct Runc {
    settings: RuncSettings,
    log_dir: PathBuf,
    reaper: Reaper,
}

impl Runc {
    /// runC by `settings`; its logs lie in `log_dir` while a call runs.
    pub fn new(settings: RuncSettings, log_dir: impl Into<PathBuf>, reaper: Reaper) -> Self {
        let log_dir = log_dir.into();
        Self {
            settings,
            log_dir,
            reaper,
        }
    }

    /// How it is called.
    pub fn settings(&self) -> &RuncSettings {
        &self.settings
    }

    /// The dispatcher that sees runC's children.
    pub fn reaper(&self) -> &Reaper {
        &self.reaper
    }

    /// A call of `subcommand`, without its arguments.
    pub fn call(&self, subcommand: &str) -> Call {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let log = self
            .log_dir
            .join(format!("runc-{subcommand}-{}-{number}.log", std::process::id()));
        let mut command = Command::new(&self.settings.binary);
        // Where systemd runs containerd, the shim has inherited this. runC would offer the container a socket in its place, in the
        // directory of its state, and fail where that path is longer than the kernel lets a socket's be: Docker's ids are.
        command.env_remove("NOTIFY_SOCKET");
        command.arg("--root").arg(&self.settings.root);
        command.arg("--log").arg(&log).args(["--log-format", "json"]);
        if self.settings.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command.arg(subcommand).stdin(Stdio::null());
        Call {
            subcommand: subcommand.to_owned(),
            command,
            log,
            reaper: self.reaper.clone(),
        }
    }

    /// Makes a container up to the point where its process waits to be started.
    pub async fn create(
        &self,
        id: &str,
        options: &CreateOptions<'_>,
        streams: Streams,
    ) -> Result<(), RuncError> {
        self.call("create")
            .option("--bundle", options.bundle)
            .option("--pid-file", options.pid_file)
            .flag("--no-pivot", options.no_pivot)
            .flag("--no-new-keyring", options.no_new_keyring)
            .streams(streams)
            .arg(id)
            .attached(CONTAINER_DEADLINE)
            .await
    }

    /// Lets a created container's process run.
    pub async fn start(&self, id: &str) -> Result<(), RuncError> {
        self.call("start")
            .arg(id)
            .captured(CONTAINER_DEADLINE)
            .await
            .map(drop)
    }

    /// Starts a further process in a container, described by an OCI process file.
    pub async fn exec(
        &self,
        id: &str,
        process: &Path,
        pid_file: &Path,
        streams: Streams,
    ) -> Result<(), RuncError> {
        self.call("exec")
            .arg("--detach")
            .option("--process", process)
            .option("--pid-file", pid_file)
            .streams(streams)
            .arg(id)
            .attached(CONTAINER_DEADLINE)
            .await
    }

    /// Signals a container's init, or all its processes.
    pub async fn kill(&self, id: &str, signal: u32, all: bool) -> Result<(), RuncError> {
        let call = self
            .call("kill")
            .flag("--all", all)
            .arg(id)
            .arg(signal.to_string());
        call.captured(QUICK_DEADLINE).await.map(drop)
    }

    /// Removes a container; with `force` also one that still runs.
    pub async fn delete(&self, id: &str, force: bool) -> Result<(), RuncError> {
        let call = self.call("delete").flag("--force", force).arg(id);
        call.captured(QUICK_DEADLINE).await.map(drop)
    }

    /// Freezes a container.
    pub async fn pause(&self, id: &str) -> Result<(), RuncError> {
        self.call("pause")
            .arg(id)
            .captured(QUICK_DEADLINE)
            .await
            .map(drop)
    }

    /// Thaws a container.
    pub async fn resume(&self, id: &str) -> Result<(), RuncError> {
        self.call("resume")
            .arg(id)
            .captured(QUICK_DEADLINE)
            .await
            .map(drop)
    }

    /// The pids of a container's processes, in the host's pid namespace.
    pub async fn ps(&self, id: &str) -> Result<Vec<i32>, RuncError> {
        let call = self.call("ps").args(["--format", "json"]).arg(id);
        let stdout = call.captured(QUICK_DEADLINE).await?;
        serde_json::from_slice::<Option<Vec<i32>>>(&stdout)
            .map(Option::unwrap_or_default)
            .map_err(|error| unreadable("ps", error.into()))
    }

    /// Changes a container's resources to those in an OCI resources file.
    pub async fn update(&self, id: &str, resources: &Path) -> Result<(), RuncError> {
        let call = self.call("update").option("--resources", resources).arg(id);
        call.captured(QUICK_DEADLINE).await.map(drop)
    }

    /// What runC knows of a container.
    pub async fn state(&self, id: &str) -> Result<RuncState, RuncError> {
        let stdout = self.call("state").arg(id).captured(QUICK_DEADLINE).await?;
        serde_json::from_slice(&stdout).map_err(|error| unreadable("state", error.into()))
    }
}

/// What `create` needs besides the id.
#[derive(Clone, Copy, Debug)]
pub struct CreateOptions<'a> {
    /// The bundle directory.
    pub bundle: &'a Path,
    /// Where runC writes the init's pid.
    pub pid_file: &'a Path,
    /// `--no-pivot`.
    pub no_pivot: bool,
    /// `--no-new-keyring`.
    pub no_new_keyring: bool,
}

/// The part of `runc state` that is of use.
#[derive(Clone, Debug, Deserialize)]
pub struct RuncState {
    /// `created`, `running`, `paused` or `stopped`.
    pub status: String,
    /// The init, 0 if it is gone.
    pub pid: i32,
}

/// One call of runC, to be completed and run.
pub struct Call {
    subcommand: String,
    command: Command,
    log: PathBuf,
    reaper: Reaper,
}

impl Call {
    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Adds an option and its value.
    #[must_use]
    pub fn option(self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.arg(name).arg(value)
    }

    /// Adds a flag if it is set.
    #[must_use]
    pub fn flag(self, name: &str, set: bool) -> Self {
        if set { self.arg(name) } else { self }
    }

    /// Sets an environment variable, which runC passes on to CRIU.
    #[must_use]
    pub fn variable(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Gives runC the standard streams that the container's process shall have.
    #[must_use]
    pub fn streams(mut self, streams: Streams) -> Self {
        match streams {
            Streams::Inherited {
                stdin,
                stdout,
                stderr,
            } => {
                self.command.stdin(stdin).stdout(stdout).stderr(stderr);
                self
            }
            Streams::Console(socket) => {
                self.command.stdout(Stdio::null()).stderr(Stdio::null());
                self.option("--console-socket", socket)
            }
        }
    }

    /// Starts it and returns; the standard streams are those given by [`Call::streams`].
    pub fn spawn(mut self) -> Result<RunningCall, RuncError> {
        let spawned = self.reaper.spawn(&mut self.command);
        let Child { departure, .. } = spawned.map_err(|source| RunError::Spawn {
            program: self.command.get_program().to_string_lossy().into_owned(),
            source,
        })?;
        Ok(RunningCall {
            subcommand: self.subcommand,
            log: self.log,
            departure,
            reaper: self.reaper,
        })
    }

    /// Runs it to its end; the standard streams are those given by [`Call::streams`].
    pub async fn attached(self, deadline: Duration) -> Result<(), RuncError> {
        self.spawn()?.wait(deadline).await
    }

    /// Runs it to its end and returns what it printed.
    pub async fn captured(self, deadline: Duration) -> Result<Vec<u8>, RuncError> {
        let limits = Limits {
            deadline,
            output_bytes: OUTPUT_BYTES,
        };
        let run = self.reaper.run(self.command, limits).await;
        let output = run.inspect_err(|_| remove_log(&self.log))?;
        judge(&self.subcommand, &self.log, output.exit, &output.stderr)?;
        Ok(output.stdout)
    }
}

/// A call of runC that runs.
pub struct RunningCall {
    subcommand: String,
    log: PathBuf,
    departure: Departure,
    reaper: Reaper,
}

impl RunningCall {
    /// runC's own pid.
    pub fn pid(&self) -> i32 {
        self.departure.pid()
    }

    /// Kills runC itself.
    pub fn kill(&self) {
        self.reaper.kill(self.departure.pid(), nix::libc::SIGKILL);
    }

    /// Waits for its end, and kills it when the deadline has passed.
    pub async fn wait(mut self, deadline: Duration) -> Result<(), RuncError> {
        match timeout(deadline, self.departure.wait()).await {
            Ok(exit) => judge(&self.subcommand, &self.log, exit, b""),
            Err(_) => {
                self.kill();
                remove_log(&self.log);
                Err(RuncError::Run(RunError::Deadline {
                    program: format!("runc {}", self.subcommand),
                    deadline,
                }))
            }
        }
    }
}

fn judge(subcommand: &str, log: &Path, exit: Exit, stderr: &[u8]) -> Result<(), RuncError> {
    let content = fs::read(log).unwrap_or_default();
    remove_log(log);
    if exit.success() {
        return Ok(());
    }
    let tail = &content[content.len().saturating_sub(LOG_BYTES)..];
    let message = last_error(&String::from_utf8_lossy(tail))
        .or_else(|| Some(String::from_utf8_lossy(stderr).trim().to_owned()).filter(|text| !text.is_empty()))
        .unwrap_or_else(|| {
            format!(
                "runc {subcommand} ended with status {} and said nothing",
                exit.status()
            )
        });
    Err(RuncError::Failed {
        subcommand: subcommand.to_owned(),
        message,
    })
}

fn last_error(log: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    log.lines()
        .filter_map(|line| serde_json::from_str::<Line>(line).ok())
        .filter(|line| matches!(line.level.as_str(), "error" | "fatal" | "panic"))
        .map(|line| line.msg.trim().to_owned())
        .next_back()
}

fn remove_log(log: &Path) {
    // Absent if runC did not get that far; the bundle takes it along in any case.
    let _ = fs::remove_file(log);
}

fn unreadable(subcommand: &str, source: io::Error) -> RuncError {
    RuncError::Result {
        subcommand: subcommand.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_the_log_is_quoted() {
        let log = r#"{"level":"warning","msg":"odd","time":"x"}
{"level":"error","msg":"first","time":"x"}
{"level":"error","msg":"exec: \"no\": executable file not found in $PATH","time":"x"}
{"level":"info","msg":"bye","time":"x"}
half a li"#;
        assert_eq!(
            last_error(log).as_deref(),
            Some("exec: \"no\": executable file not found in $PATH")
        );
        assert_eq!(last_error(""), None);
    }

    #[test]
    fn a_finished_process_is_told_from_other_failures() {
        let failed = |message: &str| RuncError::Failed {
            subcommand: "kill".into(),
            message: message.into(),
        };
        assert!(failed("container not running").is_gone());
        assert!(!failed("permission denied").is_gone());
    }
}
