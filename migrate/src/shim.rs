//! The way to the shim of a container: found by its control directory, asked over `godwit.v1.Container`.
//!
//! [`Shims`] and [`ShimClient`] are the seam at which tests put their own; nothing here starts or signals a process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use godwit_runtime::control::ControlDir;
use godwit_runtime::options::Tcp;
use godwit_shim::api::godwit::{
    DumpRequest, FinishRequest, FinishResponse, InspectRequest, RestoreRequest, Step as WireStep,
};
use godwit_shim::api::godwit_ttrpc::ContainerClient;
use ttrpc::context::with_duration;

use crate::clock::Step;
use crate::phase::Role;

/// The version of the shim's service that this release speaks.
pub const SHIM_PROTOCOL: u32 = 3;

/// `Inspect` never blocks on runC or CRIU; a shim that needs longer hangs.
const INSPECT_DEADLINE: Duration = Duration::from_secs(3);
/// A dump or a restore is bounded by memory: at 100 MB/s this is half a terabyte.
const CHECKPOINT_DEADLINE: Duration = Duration::from_secs(3600);
/// Once the verdict is there, CRIU kills or resumes some tasks and ends.
const FINISH_DEADLINE: Duration = Duration::from_secs(60);

/// A shim's refusal, or its silence.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the shim of {container}, {call}: {reason}")]
pub struct ShimError {
    /// The container's id.
    pub container: String,
    /// The call.
    pub call: &'static str,
    /// The shim's own words.
    pub reason: String,
}

/// What a shim knows of its container.
#[derive(Clone, Debug, Default)]
pub struct ShimView {
    /// Version of its service.
    pub protocol: u32,
    /// Lifecycle state in the shim's words.
    pub state: String,
    /// The container's first process.
    pub pid: u32,
    /// The container's root as mounted on this host.
    pub rootfs: PathBuf,
    /// The container's bundle.
    pub bundle: PathBuf,
    /// Processes exec'ed into it.
    pub execs: Vec<String>,
    /// Whether memory of it is still on another host.
    pub fetching_memory: bool,
}

/// A finished dump or restore.
#[derive(Clone, Debug, Default)]
pub struct Finished {
    /// Whether the container runs now.
    pub running: bool,
    /// What the shim measured.
    pub steps: Vec<Step>,
}

/// What is to be dumped where, and how.
#[derive(Clone, Copy, Debug)]
pub struct DumpOrder<'a> {
    /// An empty directory.
    pub image: &'a Path,
    /// Where the verdict will be.
    pub verdict: &'a Path,
    /// How long the dump waits for it.
    pub hold: Duration,
    /// If given, pages that can wait stay in the tasks, which stay frozen after `committed` until that file is there.
    pub drained: Option<&'a Path>,
    /// What becomes of connections, unless the image is made to say otherwise before the restore.
    pub tcp: Tcp,
}

/// The shim of one container. Semantics: `shim/proto/godwit.proto`.
#[async_trait]
pub trait ShimClient: Send + Sync {
    /// What the shim knows.
    async fn inspect(&self) -> Result<ShimView, ShimError>;
    /// Freezes and dumps, returns held. On error the container runs on.
    async fn dump(&self, order: DumpOrder<'_>) -> Result<Vec<Step>, ShimError>;
    /// Waits until a decided dump is over.
    async fn finish_dump(&self) -> Result<Finished, ShimError>;
    /// Hands over the image, returns held. On error nothing restored is left.
    ///
    /// `pages` is the socket of whoever fetches the pages that are not in the image.
    async fn restore(
        &self,
        image: &Path,
        verdict: &Path,
        pages: Option<&Path>,
    ) -> Result<Vec<Step>, ShimError>;
    /// Waits until a decided restore is over.
    async fn finish_restore(&self) -> Result<Finished, ShimError>;
}

/// Finds shims.
#[async_trait]
pub trait Shims: Send + Sync {
    /// The shim of a container; `None` if it runs under none of ours.
    async fn find(
        &self,
        role: Role,
        namespace: &str,
        id: &str,
    ) -> Result<Option<Arc<dyn ShimClient>>, ShimError>;
}

/// The shims of this host.
#[derive(Debug, Default)]
pub struct HostShims;

struct TtrpcShim {
    id: String,
    bundle: PathBuf,
    role: Role,
    client: ContainerClient,
}

#[async_trait]
impl Shims for HostShims {
    async fn find(
        &self,
        role: Role,
        namespace: &str,
        id: &str,
    ) -> Result<Option<Arc<dyn ShimClient>>, ShimError> {
        let fail = |reason: String| ShimError {
            container: id.into(),
            call: "connect",
            reason,
        };
        let directory = ControlDir::of(namespace, id);
        let Some(record) = directory.read_shim().map_err(|error| fail(error.to_string()))? else {
            return Ok(None);
        };
        let client = tokio::time::timeout(
            INSPECT_DEADLINE,
            ttrpc::asynchronous::Client::connect(&record.address),
        )
        .await
        .map_err(|_| fail(format!("no answer on {}", record.address)))?
        .map_err(|error| fail(format!("{}: {error}", record.address)))?;
        Ok(Some(Arc::new(TtrpcShim {
            id: id.into(),
            bundle: record.bundle,
            role,
            client: ContainerClient::new(client),
        })))
    }
}

impl TtrpcShim {
    fn failed(&self, call: &'static str) -> impl FnOnce(ttrpc::Error) -> ShimError {
        let container = self.id.clone();
        move |error| ShimError {
            container,
            call,
            reason: match error {
                ttrpc::Error::RpcStatus(status) => status.message,
                other => other.to_string(),
            },
        }
    }

    fn steps(&self, steps: Vec<WireStep>) -> Vec<Step> {
        steps
            .into_iter()
            .map(|step| Step {
                name: step.name,
                by: self.role,
                micros: step.micros,
                at_micros: None,
            })
            .collect()
    }

    fn finished(&self, response: FinishResponse) -> Finished {
        Finished {
            running: response.running,
            steps: self.steps(response.steps),
        }
    }

    fn finish_request(&self) -> FinishRequest {
        FinishRequest {
            id: self.id.clone(),
            ..Default::default()
        }
    }
}

#[async_trait]
impl ShimClient for TtrpcShim {
    async fn inspect(&self) -> Result<ShimView, ShimError> {
        let request = InspectRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let response = self
            .client
            .inspect(with_duration(INSPECT_DEADLINE), &request)
            .await
            .map_err(self.failed("inspect"))?;
        Ok(ShimView {
            protocol: response.protocol,
            state: response.state,
            pid: response.pid,
            rootfs: response.rootfs.into(),
            bundle: self.bundle.clone(),
            execs: response.execs,
            fetching_memory: response.fetching_memory,
        })
    }

    async fn dump(&self, order: DumpOrder<'_>) -> Result<Vec<Step>, ShimError> {
        let request = DumpRequest {
            id: self.id.clone(),
            image_dir: order.image.to_string_lossy().into_owned(),
            verdict_path: order.verdict.to_string_lossy().into_owned(),
            hold_ms: u64::try_from(order.hold.as_millis()).unwrap_or(u64::MAX),
            drained_path: text(order.drained),
            // `drain::open` lists them.
            leave_out: order.drained.is_some(),
            tcp: match order.tcp {
                Tcp::Established => "established".into(),
                Tcp::Close => "close".into(),
            },
            ..Default::default()
        };
        let response = self
            .client
            .dump(with_duration(CHECKPOINT_DEADLINE), &request)
            .await
            .map_err(self.failed("dump"))?;
        Ok(self.steps(response.steps))
    }

    async fn finish_dump(&self) -> Result<Finished, ShimError> {
        let response = self
            .client
            .finish_dump(with_duration(FINISH_DEADLINE), &self.finish_request())
            .await
            .map_err(self.failed("finish of the dump"))?;
        Ok(self.finished(response))
    }

    async fn restore(
        &self,
        image: &Path,
        verdict: &Path,
        pages: Option<&Path>,
    ) -> Result<Vec<Step>, ShimError> {
        let request = RestoreRequest {
            id: self.id.clone(),
            image_dir: image.to_string_lossy().into_owned(),
            verdict_path: verdict.to_string_lossy().into_owned(),
            pages_socket: text(pages),
            ..Default::default()
        };
        let response = self
            .client
            .restore(with_duration(CHECKPOINT_DEADLINE), &request)
            .await
            .map_err(self.failed("restore"))?;
        Ok(self.steps(response.steps))
    }

    async fn finish_restore(&self) -> Result<Finished, ShimError> {
        let response = self
            .client
            .finish_restore(with_duration(FINISH_DEADLINE), &self.finish_request())
            .await
            .map_err(self.failed("finish of the restore"))?;
        Ok(self.finished(response))
    }
}

/// A path as the shim's messages have it: empty if there is none.
fn text(path: Option<&Path>) -> String {
    path.map(|path| path.to_string_lossy().into_owned())
        .unwrap_or_default()
}
