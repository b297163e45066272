//! Godwit's own service on the shim's socket: each request becomes one command to its container's owner.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim::TtrpcResult;
use containerd_shim::protos::ttrpc::r#async::{Service, TtrpcContext};
use godwit_runtime::checkpoint::Step;
use godwit_runtime::options::Tcp;
use godwit_shim::api::godwit;
use godwit_shim::api::godwit::{
    DumpRequest, DumpResponse, FinishRequest, FinishResponse, InspectRequest, InspectResponse,
    RestoreRequest, RestoreResponse,
};
use godwit_shim::api::godwit_ttrpc::{Container, create_container};

use crate::container::{Command, Delivery, DumpOrder, Finished, Reply, Shim};
use crate::error::ShimError;

/// The version of the service that this shim speaks.
const PROTOCOL: u32 = 3;

/// The longest hold: a dead agent must not keep a container frozen for longer.
const HOLD_MAX: Duration = Duration::from_secs(300);

struct ContainerService {
    shim: Arc<Shim>,
}

/// The service, to be registered.
pub(crate) fn services(shim: &Arc<Shim>) -> HashMap<String, Service> {
    create_container(Arc::new(ContainerService { shim: shim.clone() }))
}

impl ContainerService {
    async fn ask<T>(&self, id: &str, make: impl FnOnce(Reply<T>) -> Command) -> Result<T, ShimError> {
        self.shim.registry.get(id)?.ask(make).await
    }

    async fn finish(&self, request: FinishRequest) -> TtrpcResult<FinishResponse> {
        let Finished { running, pid, steps } =
            self.ask(&request.id, |reply| Command::Finish { reply }).await?;
        Ok(FinishResponse {
            running,
            pid,
            steps: on_the_wire(steps),
            ..Default::default()
        })
    }
}

#[async_trait]
impl Container for ContainerService {
    async fn inspect(&self, _: &TtrpcContext, request: InspectRequest) -> TtrpcResult<InspectResponse> {
        let summary = self.ask(&request.id, |reply| Command::Inspect { reply }).await?;
        Ok(InspectResponse {
            protocol: PROTOCOL,
            state: summary.state.to_owned(),
            pid: summary.pid,
            bundle: summary.bundle,
            rootfs: summary.rootfs,
            execs: summary.execs,
            fetching_memory: summary.fetching_memory,
            ..Default::default()
        })
    }

    async fn dump(&self, _: &TtrpcContext, request: DumpRequest) -> TtrpcResult<DumpResponse> {
        let order = DumpOrder {
            image_dir: absolute(&request.image_dir)?,
            verdict: absolute(&request.verdict_path)?,
            hold: Duration::from_millis(request.hold_ms).min(HOLD_MAX),
            drained: match request.drained_path.as_str() {
                "" => None,
                path => Some(absolute(path)?),
            },
            leave_out: request.leave_out,
            tcp: tcp_of(&request.tcp)?,
        };
        let held = self
            .ask(&request.id, |reply| Command::Dump { order, reply })
            .await?;
        Ok(DumpResponse {
            steps: on_the_wire(held.steps),
            image_bytes: held.image_bytes,
            ..Default::default()
        })
    }

    async fn finish_dump(&self, _: &TtrpcContext, request: FinishRequest) -> TtrpcResult<FinishResponse> {
        self.finish(request).await
    }

    async fn restore(&self, _: &TtrpcContext, request: RestoreRequest) -> TtrpcResult<RestoreResponse> {
        let (image_dir, verdict) = (absolute(&request.image_dir)?, absolute(&request.verdict_path)?);
        let pages = Some(request.pages_socket).filter(|path| !path.is_empty());
        let pages = pages.as_deref().map(absolute).transpose()?;
        let deliver = |reply| {
            Command::Deliver(Delivery {
                image_dir,
                verdict,
                pages,
                reply,
            })
        };
        let held = self.ask(&request.id, deliver).await?;
        Ok(RestoreResponse {
            pid: held.pid,
            steps: on_the_wire(held.steps),
            ..Default::default()
        })
    }

    async fn finish_restore(&self, _: &TtrpcContext, request: FinishRequest) -> TtrpcResult<FinishResponse> {
        self.finish(request).await
    }
}

fn tcp_of(word: &str) -> Result<Option<Tcp>, ShimError> {
    match word {
        "" => Ok(None),
        "established" => Ok(Some(Tcp::Established)),
        "close" => Ok(Some(Tcp::Close)),
        other => Err(ShimError::InvalidArgument(format!(
            "{other:?} is nothing that can become of connections"
        ))),
    }
}

fn absolute(path: &str) -> Result<PathBuf, ShimError> {
    let path = Path::new(path);
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    Err(ShimError::InvalidArgument(format!(
        "{} is no absolute path",
        path.display()
    )))
}

fn on_the_wire(steps: Vec<Step>) -> Vec<godwit::Step> {
    let step = |step: Step| godwit::Step {
        name: step.name.to_owned(),
        micros: step.took.as_micros().try_into().unwrap_or(u64::MAX),
        ..Default::default()
    };
    steps.into_iter().map(step).collect()
}
