//! Godwit's own service on the shim's socket.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim::TtrpcResult;
use containerd_shim::protos::ttrpc::r#async::{Service, TtrpcContext};
use godwit_shim::api::godwit::{InspectRequest, InspectResponse};
use godwit_shim::api::godwit_ttrpc::{Container, create_container};

use crate::container::{Command, Shim};

/// The version of the service that this shim speaks.
const PROTOCOL: u32 = 1;

struct ContainerService {
    shim: Arc<Shim>,
}

/// The service, to be registered.
pub(crate) fn services(shim: &Arc<Shim>) -> HashMap<String, Service> {
    create_container(Arc::new(ContainerService { shim: shim.clone() }))
}

#[async_trait]
impl Container for ContainerService {
    async fn inspect(&self, _: &TtrpcContext, request: InspectRequest) -> TtrpcResult<InspectResponse> {
        let container = self.shim.registry.get(&request.id)?;
        let summary = container.ask(|reply| Command::Inspect { reply }).await?;
        Ok(InspectResponse {
            protocol: PROTOCOL,
            state: summary.state.to_owned(),
            pid: summary.pid,
            bundle: summary.bundle,
            rootfs: summary.rootfs,
            execs: summary.execs,
            ..Default::default()
        })
    }
}
