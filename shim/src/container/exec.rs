//! A further process in a container, made by `runc exec`.

use std::fs;

use containerd_shim::api::ExecProcessRequest;
use containerd_shim::asynchronous::io::Stdio;
use godwit_runtime::bundle::read_pid;
use godwit_runtime::reaper::Departure;
use serde_json::Value;

use super::identity::Identity;
use super::lifecycle::ExecLifecycle;
use super::process::Process;
use crate::error::{ShimError, failed};
use crate::io::{self, ProcessIo};

/// A process that was asked for.
pub(super) struct Exec {
    pub(super) process: Process,
    pub(super) lifecycle: ExecLifecycle,
    /// The OCI process, as JSON.
    pub(super) description: Value,
    /// Tells its files in the bundle from those of others: ids are not made for file names.
    pub(super) number: u64,
}

/// An exec that runs.
pub(super) struct Started {
    pub(super) pid: i32,
    pub(super) departure: Departure,
    pub(super) io: ProcessIo,
}

impl Exec {
    /// Takes in the request, and starts nothing.
    pub(super) fn describe(request: &ExecProcessRequest, number: u64) -> Result<Self, ShimError> {
        let stdio = Stdio::new(&request.stdin, &request.stdout, &request.stderr, request.terminal);
        io::check(&stdio)?;
        let bytes = request.spec.as_ref().map_or(&[] as &[u8], |spec| &spec.value);
        let bad = |why: String| {
            ShimError::InvalidArgument(format!("the process of exec {:?}: {why}", request.exec_id))
        };
        if request.exec_id.is_empty() {
            return Err(bad("it has no id".to_owned()));
        }
        let description = serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
        let Value::Object(mut description) = description else {
            return Err(bad("it is no JSON object".to_owned()));
        };
        description.insert("terminal".to_owned(), Value::Bool(request.terminal));
        Ok(Self {
            process: Process::new(stdio),
            lifecycle: ExecLifecycle::Added,
            description: Value::Object(description),
            number,
        })
    }
}

/// Starts the process. On failure gives back fresh streams for another try.
pub(super) async fn start(
    identity: Identity,
    exec_id: &str,
    stdio: Stdio,
    io: ProcessIo,
    description: Value,
    number: u64,
) -> Result<Started, (ShimError, ProcessIo)> {
    match try_start(&identity, exec_id, &stdio, &io, &description, number).await {
        Ok((pid, departure)) => Ok(Started { pid, departure, io }),
        Err(error) => Err((error, io.abort().await)),
    }
}

async fn try_start(
    identity: &Identity,
    exec_id: &str,
    stdio: &Stdio,
    io: &ProcessIo,
    description: &Value,
    number: u64,
) -> Result<(i32, Departure), ShimError> {
    let console = identity.control.join(&format!("exec-{number}.sock"));
    let (streams, pending) = io::open(stdio, identity.streams(exec_id, console)).await?;
    let process_file = identity.bundle.join(&format!("exec-{number}.json"));
    let pid_file = identity.bundle.join(&format!("exec-{number}.pid"));
    fs::write(&process_file, description.to_string()).map_err(failed("write to the bundle"))?;
    let runc = &identity.runc;
    let nursery = runc.reaper().nursery();
    let executed = runc.exec(&identity.id, &process_file, &pid_file, streams).await;
    let pid = executed
        .map_err(failed("OCI runtime exec failed"))
        .and_then(|()| read_pid(&pid_file).map_err(failed("read the pid that runc left")));
    // Only runC reads them; the bundle takes along what cannot be removed.
    let _ = fs::remove_file(process_file);
    let _ = fs::remove_file(pid_file);
    let pid = pid?;
    let departure = nursery.adopt(pid);
    if let Err(error) = pending.connect(io).await {
        runc.reaper().kill(pid, nix::libc::SIGKILL);
        return Err(error);
    }
    Ok((pid, departure))
}
