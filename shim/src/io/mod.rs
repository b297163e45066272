//! A process's standard streams, between runC and what containerd asks for: fifos, files, programs.
//!
//! The same set-up serves create, exec and restore. The container gets pipes of ours or a terminal, never a
//! file of the host, because CRIU must be able to leave and find them again; so even a file is copied to. How URIs are
//! read stands in `target`, how output is copied in `output`, input in `input`, and programs in `logger`.

mod input;
mod logger;
mod output;
mod target;

use std::io::{PipeReader, PipeWriter, pipe};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use containerd_shim::asynchronous::io::Stdio;
use godwit_runtime::console::{self, ConsoleSocket};
use godwit_runtime::descriptor::Descriptor;
use godwit_runtime::reaper::Reaper;
use godwit_runtime::runc::Streams;
use log::warn;
use nix::unistd::{Gid, Uid, fchown};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{ShimError, failed};
use crate::task::boxed;
use input::InputHold;
use logger::{Logger, LoggerInputs};
use output::{Course, Hold, Sink};
use target::Target;

/// When a process is deleted, its output is given up if nobody has taken any of it for this long: a process it has left
/// behind may keep it open. The stock shim allows the same for an exec and less for an init.
const STALL_DEADLINE: Duration = Duration::from_secs(10);

/// A reader that does take it gets this long in all: what two pipes hold, and more than any reader at work needs.
const DRAIN_DEADLINE: Duration = Duration::from_secs(60);

/// Who owns a container's pipes: root of its user namespace.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct IoOwner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// For whom streams are made.
pub(crate) struct Setting<'a> {
    pub(crate) owner: IoOwner,
    /// Where the socket for the terminal shall be, if there is to be one.
    pub(crate) console: PathBuf,
    /// The container, or the exec.
    pub(crate) id: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) reaper: &'a Reaper,
}

/// The shim's side of a process's streams before runC has run. Dropping it ends its logger.
pub(crate) struct Pending {
    source: Box<Source>,
    stdin: Option<PathBuf>,
    /// Where a terminal's output goes is the first.
    sinks: Box<[Option<Destination>; 2]>,
    logger: Option<Logger>,
}

enum Source {
    Pipes {
        stdin: Option<PipeWriter>,
        outputs: [Option<PipeReader>; 2],
    },
    Terminal(ConsoleSocket),
}

/// Where an output goes, opened as far as it may be before the process is there.
enum Destination {
    /// A fifo is opened when runC has done its work: a process that never was has no output.
    Path(PathBuf),
    Ready(Sink),
}

/// What a process's outputs are connected to.
#[derive(Default)]
struct Outputs {
    destinations: [Option<Destination>; 2],
    /// The process itself writes to these.
    direct: Option<LoggerInputs>,
    logger: Option<Logger>,
}

/// Refuses streams the shim cannot serve, before anything is made.
pub(crate) fn check(stdio: &Stdio) -> Result<(), ShimError> {
    targets(stdio).map(drop)
}

/// Makes the streams a process shall get, and starts its logger if it has one.
pub(crate) async fn open(stdio: &Stdio, setting: Setting<'_>) -> Result<(Streams, Pending), ShimError> {
    let (stdin, outputs) = targets(stdio)?;
    let mut outputs = connect_outputs(outputs, stdio.terminal, &setting).await?;
    let (streams, source) = if stdio.terminal {
        let socket = ConsoleSocket::bind(setting.console);
        let socket = socket.map_err(failed("make the socket for the terminal"))?;
        (
            Streams::Console(socket.path().to_owned()),
            Source::Terminal(socket),
        )
    } else {
        let (stdin, our_stdin) = match &stdin {
            None => (process::Stdio::null(), None),
            Some(_) => {
                let (theirs, ours) = pipe().map_err(failed("make a pipe"))?;
                give(&theirs, setting.owner)?;
                (theirs.into(), Some(ours))
            }
        };
        let (stdout, stderr, ours) = match outputs.direct.take() {
            Some(LoggerInputs { stdout, stderr }) => {
                give(&stdout, setting.owner)?;
                give(&stderr, setting.owner)?;
                (stdout.into(), stderr.into(), [None, None])
            }
            None => {
                let [stdout, stderr] = &outputs.destinations;
                let (stdout, our_stdout) = output(stdout.is_some(), setting.owner)?;
                let (stderr, our_stderr) = output(stderr.is_some(), setting.owner)?;
                (stdout, stderr, [our_stdout, our_stderr])
            }
        };
        let streams = Streams::Inherited {
            stdin,
            stdout,
            stderr,
        };
        let source = Source::Pipes {
            stdin: our_stdin,
            outputs: ours,
        };
        (streams, source)
    };
    let pending = Pending {
        source: Box::new(source),
        stdin,
        sinks: Box::new(outputs.destinations),
        logger: outputs.logger,
    };
    Ok((streams, pending))
}

impl Pending {
    /// Starts the copies, once runC has done its work: what runC itself writes to the streams when it fails is no
    /// output of the container, and its log says the same.
    pub(crate) async fn connect(self, io: &ProcessIo) -> Result<(), ShimError> {
        if let Some(logger) = self.logger {
            *locked(&io.0.logger) = Some(logger);
        }
        match *self.source {
            Source::Pipes { stdin, outputs } => {
                if let (Some(ours), Some(path)) = (stdin, &self.stdin) {
                    let to = Descriptor::new(ours).map_err(failed("use stdin"))?;
                    io.copy_in(path, Arc::new(to))?;
                }
                for (ours, destination) in outputs.into_iter().zip(*self.sinks) {
                    if let (Some(ours), Some(destination)) = (ours, destination) {
                        let from = Descriptor::new(ours).map_err(failed("use an output"))?;
                        io.copy_out(Arc::new(from), destination)?;
                    }
                }
            }
            Source::Terminal(socket) => {
                let master = socket
                    .receive()
                    .await
                    .map_err(failed("receive the terminal from runc"))?;
                let terminal = Arc::new(Descriptor::new(master).map_err(failed("use the terminal"))?);
                if let Some(path) = &self.stdin {
                    io.copy_in(path, terminal.clone())?;
                }
                let [stdout, _] = *self.sinks;
                if let Some(destination) = stdout {
                    io.copy_out(terminal.clone(), destination)?;
                }
                // It is connected once.
                let _ = io.0.terminal.set(terminal);
            }
        }
        Ok(())
    }
}

/// The copies of one process's streams, its terminal and its logger.
/// Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct ProcessIo(Arc<Parts>);

#[derive(Default)]
struct Parts {
    outputs: TaskTracker,
    inputs: TaskTracker,
    cancel: CancellationToken,
    course: Course,
    holds: Mutex<Vec<Hold>>,
    stdin: InputHold,
    terminal: OnceLock<Arc<Descriptor>>,
    logger: Mutex<Option<Logger>>,
}

impl ProcessIo {
    /// Lets go of the shim's hold on stdin.
    pub(crate) fn close_input(&self) {
        self.0.stdin.release();
    }

    /// Sets the terminal's size; a process without one is left alone.
    pub(crate) fn resize(&self, columns: u32, rows: u32) -> Result<(), ShimError> {
        let Some(terminal) = self.0.terminal.get() else {
            return Ok(());
        };
        let narrow = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        console::resize(terminal, narrow(columns), narrow(rows)).map_err(failed("resize the terminal"))
    }

    /// Delivers what is buffered while somebody takes it, lets go of everything, and ends the logger.
    pub(crate) async fn shutdown(self) {
        // Where there is no reader but us, none will come.
        self.0.course.leaving.cancel();
        for hold in locked(&self.0.holds).drain(..) {
            hold.release();
        }
        self.0.outputs.close();
        let begin = Instant::now();
        let mut delivered = None;
        while timeout(STALL_DEADLINE, self.0.outputs.wait()).await.is_err() {
            let now = Some(self.0.course.delivered_bytes.load(Ordering::Relaxed));
            if delivered == now || begin.elapsed() >= DRAIN_DEADLINE {
                warn!("the output of a deleted process is cut: somebody holds it open, or nobody reads it");
                break;
            }
            delivered = now;
        }
        self.stop().await;
        let logger = locked(&self.0.logger).take();
        if let Some(logger) = logger {
            logger.end().await;
        }
    }

    /// Lets go at once, after a failed start, and gives fresh copies for another try.
    pub(crate) async fn abort(self) -> Self {
        self.stop().await;
        // Dropped, it is killed.
        locked(&self.0.logger).take();
        Self(Arc::new(Parts {
            stdin: self.0.stdin.renewed(),
            ..Parts::default()
        }))
    }

    async fn stop(&self) {
        self.0.cancel.cancel();
        self.0.outputs.close();
        self.0.inputs.close();
        tokio::join!(self.0.outputs.wait(), self.0.inputs.wait());
    }

    fn copy_in(&self, path: &Path, to: Arc<Descriptor>) -> Result<(), ShimError> {
        let from = input::open(path, &self.0.stdin)?;
        let cancelled = self.0.cancel.clone().cancelled_owned();
        self.0.inputs.spawn(boxed(async move {
            tokio::select! {
                () = cancelled => {}
                () = input::copy(&from, &to) => {}
            }
        }));
        Ok(())
    }

    fn copy_out(&self, from: Arc<Descriptor>, destination: Destination) -> Result<(), ShimError> {
        let sink = match destination {
            Destination::Path(path) => Sink::open(&path)?,
            Destination::Ready(sink) => sink,
        };
        if let Sink::Fifo { hold, .. } = &sink {
            locked(&self.0.holds).push(hold.clone());
        }
        let (cancelled, course) = (self.0.cancel.clone().cancelled_owned(), self.0.course.clone());
        self.0.outputs.spawn(boxed(async move {
            tokio::select! {
                () = cancelled => {}
                () = output::copy(&from, sink, course) => {}
            }
        }));
        Ok(())
    }
}

/// What the streams' names mean, stdin first. Both outputs go where stdout does if that is a file or a program.
fn targets(stdio: &Stdio) -> Result<(Option<PathBuf>, [Option<Target>; 2]), ShimError> {
    let stdin = match target::parse(&stdio.stdin)? {
        None => None,
        Some(Target::Path(path)) => Some(path),
        Some(_) => {
            return Err(ShimError::InvalidArgument(format!(
                "stdin {} is no fifo",
                stdio.stdin
            )));
        }
    };
    let stdout = target::parse(&stdio.stdout)?;
    let stderr = match (&stdout, target::parse(&stdio.stderr)?) {
        (Some(Target::Logger(_)), _) => stdout.clone(),
        (Some(Target::File(_)), Some(_)) => stdout.clone(),
        (_, Some(Target::Logger(_))) => {
            return Err(ShimError::InvalidArgument(format!(
                "the logger {} must be named as stdout; it takes stderr as well",
                stdio.stderr
            )));
        }
        (_, stderr) => stderr,
    };
    Ok((stdin, [stdout, stderr]))
}

async fn connect_outputs(
    [stdout, stderr]: [Option<Target>; 2],
    terminal: bool,
    setting: &Setting<'_>,
) -> Result<Outputs, ShimError> {
    let path_or = |target: Option<Target>, log: &Option<Sink>| match (target, log) {
        (Some(Target::Path(path)), _) => Ok(Some(Destination::Path(path))),
        (Some(Target::File(_)), Some(Sink::File(file))) => {
            Ok(Some(Destination::Ready(Sink::File(file.clone()))))
        }
        (Some(Target::File(path)), _) => Ok(Some(Destination::Ready(Sink::File(output::open_log(&path)?)))),
        (Some(Target::Logger(_)) | None, _) => Ok::<_, ShimError>(None),
    };
    match stdout {
        Some(Target::Logger(command)) => {
            let started = Logger::start(&command, setting.id, setting.namespace, setting.reaper).await;
            let (logger, inputs) = started?;
            let mut outputs = Outputs {
                logger: Some(logger),
                ..Outputs::default()
            };
            if terminal {
                // A terminal has one output; the logger sees the end of the other at once.
                let to = Descriptor::new(inputs.stdout).map_err(failed("use the pipe to the logger"))?;
                outputs.destinations[0] = Some(Destination::Ready(Sink::Pipe(to)));
            } else {
                outputs.direct = Some(inputs);
            }
            Ok(outputs)
        }
        Some(Target::File(path)) => {
            let log = Some(Sink::File(output::open_log(&path)?));
            let stderr = path_or(stderr, &log)?;
            Ok(Outputs {
                destinations: [log.map(Destination::Ready), stderr],
                ..Outputs::default()
            })
        }
        other => Ok(Outputs {
            destinations: [path_or(other, &None)?, path_or(stderr, &None)?],
            ..Outputs::default()
        }),
    }
}

fn output(wanted: bool, owner: IoOwner) -> Result<(process::Stdio, Option<PipeReader>), ShimError> {
    if !wanted {
        return Ok((process::Stdio::null(), None));
    }
    let (ours, theirs) = pipe().map_err(failed("make a pipe"))?;
    give(&theirs, owner)?;
    Ok((theirs.into(), Some(ours)))
}

fn give(end: &impl AsFd, owner: IoOwner) -> Result<(), ShimError> {
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    fchown(end, Some(uid), Some(gid)).map_err(failed("give a pipe to the container's root"))
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
