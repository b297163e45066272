//! The local API's answer of what there is in a running container. It reads `/proc` and asks the shim; nothing is touched.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::Agent;
use super::api::Refusal;
use crate::checks::facts::Facts;
use crate::checks::objects::{self, Conditions};
use crate::checks::proc::Proc;
use crate::checks::{connections, namespaces, system, tools};
use crate::engine::set::Choice;
use crate::engine::{Container, RUNTIME};
use crate::finding::{self, Code, Finding};
use crate::inspect::running;
use crate::inspect::view::{Inspection, Subject, SubjectKind};
use crate::phase::Role;
use crate::plan::of_shim;

/// For each gigabyte that a container has, the kernel walks its pages for some 30 ms: a terabyte takes half of this.
const LOOK_DEADLINE: Duration = Duration::from_secs(60);

/// `POST /v1/inspect`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InspectRequest {
    /// Name, id or unique prefix of the id.
    pub container: String,
    /// `docker`, `containerd` or `auto`: whose container it is.
    #[serde(default)]
    pub engine: Choice,
    /// containerd's namespace, if not `default`; means containerd.
    #[serde(default)]
    pub namespace: Option<String>,
}

/// Looks at a container.
pub(super) async fn inspect(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<InspectRequest>,
) -> Result<Json<Inspection>, Refusal> {
    let host = &agent.host;
    let container = host
        .engines
        .find(request.engine, request.namespace.as_deref(), &request.container)
        .await?;
    let failed = |reason: String| Refusal(StatusCode::BAD_GATEWAY, format!("{}: {reason}", container.name));
    let versions = tools::ask(&host.tools).await;
    let mut findings = tools::objections(&versions);
    let shim = host.shims.find(Role::Source, &container.namespace, &container.id);
    let (first, state) = match shim.await.map_err(|error| failed(error.to_string()))? {
        Some(shim) => {
            let view = shim.inspect().await.map_err(|error| failed(error.to_string()))?;
            findings.extend(of_shim(&container, &view));
            (view.pid, view.state)
        }
        None => {
            let text = format!(
                "{} runs under {}, not under Godwit",
                container.name, container.runtime
            );
            findings.push(Finding::problem(
                Code::Runtime,
                text,
                format!("start it with --runtime {RUNTIME}"),
            ));
            // Docker tells it of any container.
            let pid = container.description["State"]["Pid"].as_u64().unwrap_or(0);
            let state = container.description["State"]["Status"]
                .as_str()
                .unwrap_or_default();
            (u32::try_from(pid).unwrap_or(0), state.to_owned())
        }
    };
    if first == 0 {
        let text = format!(
            "{} has no processes that can be looked at: it does not run",
            container.name
        );
        return Err(Refusal(StatusCode::CONFLICT, text));
    }
    let cgroup_version = Facts::of_this_host(&versions).cgroup_version;
    let subject = subject(&container, state);
    let name = container.name.clone();
    let look = spawn_blocking(move || look(&container, subject, first, cgroup_version));
    let (mut inspection, found) = timeout(LOOK_DEADLINE, look)
        .await
        .map_err(|_| {
            Refusal(
                StatusCode::GATEWAY_TIMEOUT,
                format!("{name} could not be looked at in time"),
            )
        })?
        .map_err(|error| Refusal(StatusCode::INTERNAL_SERVER_ERROR, format!("{name}: {error}")))?
        .map_err(|error| Refusal(StatusCode::CONFLICT, format!("{name}: {error}")))?;
    findings.extend(found);
    inspection.find(finding::on(&host.name, findings));
    Ok(Json(inspection))
}

fn subject(container: &Container, state: String) -> Subject {
    Subject {
        kind: SubjectKind::Container,
        name: container.name.clone(),
        id: Some(container.id.clone()),
        engine: Some(container.engine.clone()),
        image: Some(container.image_name.clone()),
        state: Some(state),
        signed_by: None,
    }
}

fn look(
    container: &Container,
    subject: Subject,
    first: u32,
    cgroup_version: u8,
) -> std::io::Result<(Inspection, Vec<Finding>)> {
    let proc = Proc::default();
    let inspection = running::look(&proc, subject, first)?;
    let told = connections::told(container);
    let conditions = Conditions {
        finds_watches: told.as_ref().is_ok_and(|told| told.irmap_scan_path.is_some()),
        cgroup_version,
        is_limited: system::is_limited(),
    };
    let mut findings = objects::Look::new(&proc, first, conditions).objections();
    findings.extend(namespaces::nested(&proc, first));
    if let Err(reason) = told {
        let remedy = "see docs/checkpoint.md for what it can be";
        findings.push(Finding::problem(Code::Annotation, reason, remedy));
    }
    Ok((inspection, findings))
}
