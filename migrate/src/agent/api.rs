//! The local API: HTTP and JSON on a unix socket. What the command line does goes through it, and so can others.
//!
//! `POST /v1/migrations` begins a move and answers with its events, one JSON object a line; the last is the report or
//! the error. A client that goes away does not end the move: `DELETE /v1/migrations/ID` does, up to the commit, and
//! `POST /v1/migrations/ID/force-complete` has it freeze the container now. What there is to know of moves, `migrations` answers.
//! `POST /v1/plan` answers what such a move would find, `GET /v1/doctor` how this host is and `POST /v1/inspect` what there is in a
//! container, all without touching anything. `POST /v1/restore` restores a stopped container in place.
//! Containers go into archives and come out of them by `archives`.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post, put};
use axum::{Json, Router};
use hyper::body::Frame;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};

use crate::agent::handover::{Handed, Taking};
use crate::agent::peers::unknown_host;
use crate::agent::{Agent, archives, containers, inspections, migrations, registry, rescue, restores};
use crate::clock::Report;
use crate::doctor::{self, Diagnosis};
use crate::engine::set::Choice;
use crate::engine::{Container, EngineError};
use crate::failure::Failure;
use crate::finding::{self, Code, Finding};
use crate::history::{Ending, Record};
use crate::options::MoveOptions;
use crate::phase::{Phase, Role};
use crate::places::MigrationId;
use crate::plan::{self, Plan};
use crate::progress::{Event, Observer};
use crate::source;

/// How often a viewer hears of the bytes moved.
const TRANSFER_INTERVAL: Duration = Duration::from_millis(200);

/// Lines queued for a viewer that reads slowly; the viewer's task waits, the move does not.
pub(super) const LINES_BOUND: usize = 16;

/// `POST /v1/migrations` and `POST /v1/plan`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// Name, id or unique prefix of the id.
    pub container: String,
    /// The host to move it to, as the agent's configuration names it.
    pub destination: String,
    /// How.
    #[serde(default)]
    pub options: MoveOptions,
    /// `docker`, `containerd` or `auto`: whose container it is.
    #[serde(default)]
    pub engine: Choice,
    /// containerd's namespace, if not `default`; means containerd.
    #[serde(default)]
    pub namespace: Option<String>,
}

/// `GET /v1/version`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VersionView {
    /// This release.
    pub version: String,
    /// Versions of the protocol between agents.
    pub protocol: Vec<u32>,
    /// This host's name.
    pub host: String,
    /// Hosts it may move containers to.
    pub peers: Vec<String>,
}

/// The body of every answer that is not 2xx.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorView {
    /// In one sentence.
    pub error: String,
}

/// Serves the API until the agent stops.
pub async fn serve(agent: Arc<Agent>, listener: UnixListener) {
    let routes = ROUTES.iter().fold(Router::new(), |router, (_, path, handler)| {
        router.route(path, handler())
    });
    let service = routes.with_state(agent);
    let service = service.into_make_service_with_connect_info::<Handed>();
    if let Err(error) = axum::serve(Taking(listener), service).await {
        log::error!("the local API: {error}");
    }
}

/// Serves the metrics alone, to whoever asks.
pub async fn serve_metrics(agent: Arc<Agent>, listener: TcpListener) {
    let routes = Router::new()
        .route("/metrics", get(migrations::metrics))
        .with_state(agent);
    if let Err(error) = axum::serve(listener, routes).await {
        log::error!("the metrics: {error}");
    }
}

/// A route: its method, its path, and what answers.
type Route = (&'static str, &'static str, fn() -> MethodRouter<Arc<Agent>>);

/// All there are; `docs/openapi.json` describes each.
const ROUTES: &[Route] = &[
    ("get", "/v1/version", || get(version)),
    ("get", "/v1/containers", || get(containers::list)),
    ("get", "/v1/containers/{name}", || get(containers::show)),
    ("get", "/v1/migrations", || get(migrations::list)),
    ("post", "/v1/migrations", || post(migrate)),
    ("get", "/v1/migrations/{id}", || get(migrations::show)),
    ("delete", "/v1/migrations/{id}", || delete(migrations::abort)),
    ("post", "/v1/migrations/{id}/force-complete", || {
        post(force_complete)
    }),
    ("get", "/v1/migrations/{id}/timeline.svg", || {
        get(migrations::picture)
    }),
    ("get", "/v1/migrations/{id}/recover", || get(rescue::advise)),
    ("post", "/v1/migrations/{id}/recover", || post(rescue::decide)),
    ("post", "/v1/exports", || post(archives::export)),
    ("get", "/v1/exports/{id}/archive", || get(archives::archive)),
    ("post", "/v1/exports/{id}/stored", || post(archives::stored)),
    ("post", "/v1/imports", || post(archives::import)),
    ("put", "/v1/imports/{id}/archive", || put(archives::bring)),
    ("post", "/v1/plan", || post(plan)),
    ("post", "/v1/inspect", || post(inspections::inspect)),
    ("post", "/v1/restore", || post(restores::restore)),
    ("get", "/v1/doctor", || get(doctor)),
    ("get", "/v1/doctor/{peer}", || get(doctor_with_peer)),
    ("get", "/metrics", || get(migrations::metrics)),
];

async fn version(State(agent): State<Arc<Agent>>) -> Json<VersionView> {
    Json(VersionView {
        version: env!("CARGO_PKG_VERSION").into(),
        protocol: crate::message::VERSIONS.to_vec(),
        host: agent.host.name.clone(),
        peers: agent.host.peers.names(),
    })
}

async fn force_complete(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let migration = MigrationId::try_from(id).map_err(|error| Refusal(StatusCode::NOT_FOUND, error))?;
    if agent.registry.hurry(&migration) {
        Ok(StatusCode::ACCEPTED)
    } else {
        Err(Refusal(
            StatusCode::NOT_FOUND,
            format!("no migration {migration} from this host is under way"),
        ))
    }
}

/// What a move would find, without a move.
async fn plan(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<MigrateRequest>,
) -> Result<Json<Plan>, Refusal> {
    let container = subject(&agent, &request).await?;
    let is_busy = agent.registry.is_claimed(&container.namespace, &container.id);
    let mut plan = plan::run(&agent.host, container, &request.destination, &request.options)
        .await
        .map_err(|failure| Refusal(StatusCode::BAD_GATEWAY, failure.to_string()))?;
    if is_busy {
        let told = Finding::of_sentence(Code::Busy, &registry::Busy.to_string());
        plan.object(finding::on(&agent.host.name, [told]));
    }
    Ok(Json(plan))
}

async fn doctor(State(agent): State<Arc<Agent>>) -> Json<Diagnosis> {
    Json(doctor::diagnose(&agent.host, &agent.tls, None).await)
}

async fn doctor_with_peer(
    State(agent): State<Arc<Agent>>,
    Path(peer): Path<String>,
) -> Result<Json<Diagnosis>, Refusal> {
    known_peer(&agent, &peer)?;
    Ok(Json(doctor::diagnose(&agent.host, &agent.tls, Some(&peer)).await))
}

fn known_peer(agent: &Agent, peer: &str) -> Result<(), Refusal> {
    let known = agent.host.peers.names();
    if known.iter().any(|name| name == peer) {
        return Ok(());
    }
    Err(Refusal(StatusCode::NOT_FOUND, unknown_host(peer, &known)))
}

/// The container that is asked for, if it can be asked for at all.
async fn subject(agent: &Agent, request: &MigrateRequest) -> Result<Container, Refusal> {
    if request.destination == agent.host.name {
        let already = format!(
            "this is host {}: name the host to move {} to",
            agent.host.name, request.container
        );
        return Err(Refusal(StatusCode::CONFLICT, already));
    }
    known_peer(agent, &request.destination)?;
    if agent.stop.is_cancelled() {
        return Err(Refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            "the agent is stopping".into(),
        ));
    }
    let engines = &agent.host.engines;
    Ok(engines
        .find(request.engine, request.namespace.as_deref(), &request.container)
        .await?)
}

async fn migrate(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<MigrateRequest>,
) -> Result<Response, Refusal> {
    let container = subject(&agent, &request).await?;
    let busy =
        |error: registry::Busy| Refusal(StatusCode::CONFLICT, format!("{}: {error}", request.container));
    let migration = MigrationId::random()
        .map_err(|error| Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let claim = agent
        .registry
        .claim(&migration, &container.namespace, &container.id)
        .map_err(busy)?;
    let (observer, events) = Observer::new(agent.stop.child_token());
    let listing = agent
        .registry
        .list(
            &migration,
            Role::Source,
            &container.name,
            &request.destination,
            &observer,
        )
        .map_err(busy)?;
    let started = Event::Started {
        migration: migration.to_string(),
        container: container.name.clone(),
        destination: request.destination.clone(),
    };
    let (tell_end, end) = oneshot::channel();
    let watched = observer.clone();
    let mover = Arc::clone(&agent);
    // A task of the agent's own, which outlives the client's connection.
    agent.tasks.spawn(async move {
        let name = container.name.clone();
        let outcome = move_away(&mover, observer.clone(), &migration, container, &request).await;
        let (host, role) = (&mover.host.name, Role::Source);
        let mut record = Record::new(
            &migration,
            role,
            host,
            &request.destination,
            &name,
            Ending::Failed,
        );
        record.phases = observer.spans();
        record.total_micros = observer.elapsed_micros();
        mover.finish(&match outcome.clone() {
            Ok(report) => record.with_report(report),
            Err(failure) => record.with_failure(failure),
        });
        drop((claim, listing, observer));
        mover.recover_rest(&migration);
        let _ = tell_end.send(outcome.map(|report| Event::Report {
            report: Box::new(report),
        }));
    });
    let (lines, body) = mpsc::channel(LINES_BOUND);
    tokio::spawn(view(started, watched, events, end, lines));
    Ok(streamed(body))
}

async fn move_away(
    agent: &Agent,
    observer: Observer,
    migration: &MigrationId,
    container: Container,
    request: &MigrateRequest,
) -> Result<Report, Failure> {
    let destination = &request.destination;
    let host = Arc::clone(&agent.host);
    log::info!("migration {migration}: {} goes to {destination}", container.name);
    let link = host
        .peers
        .connect(destination)
        .await
        .map_err(|cause| Failure::new(Role::Source, &host.name, Phase::Hello, cause))?;
    let outcome = source::run(
        host,
        link,
        observer,
        migration.clone(),
        container,
        request.options.clone(),
    )
    .await;
    match &outcome {
        Ok(report) => log::info!(
            "migration {migration}: {:?}, downtime {:?} us, {} us in all, {:?}",
            report.outcome,
            report.downtime_micros,
            report.total_micros,
            report.bytes
        ),
        Err(failure) => log::error!("migration {migration}: {failure}"),
    }
    outcome
}

/// Writes a move's events as lines for one viewer, until the move or the viewer ends.
pub(super) async fn view(
    started: Event,
    observer: Observer,
    mut events: mpsc::Receiver<Event>,
    mut end: oneshot::Receiver<Result<Event, Failure>>,
    lines: mpsc::Sender<Bytes>,
) {
    let mut ticks = interval(TRANSFER_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let transfer = observer.transfer();
    drop(observer);
    let mut shown = (0, 0);
    let mut next = Some(started);
    loop {
        if let Some(event) = next.take()
            && lines.send(line(&event)).await.is_err()
        {
            return;
        }
        tokio::select! {
            // Events first, so that none follows the end.
            biased;
            Some(event) = events.recv() => next = Some(event),
            outcome = &mut end => {
                while let Ok(event) = events.try_recv() {
                    let _ = lines.send(line(&event)).await;
                }
                let _ = lines.send(line(&last(outcome))).await;
                return;
            }
            _ = ticks.tick() => {
                let now = transfer.read();
                if now != shown {
                    shown = now;
                    next = Some(Event::Transfer { transferred: now.0, expected: now.1 });
                }
            }
        }
    }
}

fn last(outcome: Result<Result<Event, Failure>, oneshot::error::RecvError>) -> Event {
    match outcome {
        Ok(Ok(event)) => event,
        Ok(Err(error)) => Event::Error {
            message: error.to_string(),
            error,
        },
        Err(_) => {
            let cause =
                crate::failure::Cause::Failed("the migration's task ended: see the agent's log".into());
            let error = Failure::new(Role::Source, "this host", Phase::Release, cause);
            Event::Error {
                message: error.to_string(),
                error,
            }
        }
    }
}

fn line(event: &Event) -> Bytes {
    // Events are plain data of ours; none can fail to become JSON.
    let mut json = serde_json::to_vec(event).unwrap_or_default();
    json.push(b'\n');
    json.into()
}

/// An answer of lines as they come.
pub(super) fn streamed(lines: mpsc::Receiver<Bytes>) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson")];
    (headers, Body::new(Lines(lines))).into_response()
}

/// A body whose pieces come from a queue.
pub(super) struct Lines(pub(super) mpsc::Receiver<Bytes>);

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(context)
            .map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// A status and a sentence.
pub(super) struct Refusal(pub(super) StatusCode, pub(super) String);

impl From<EngineError> for Refusal {
    fn from(error: EngineError) -> Self {
        let status = match error {
            EngineError::NoSuchContainer(_) | EngineError::Unknown(_) => StatusCode::NOT_FOUND,
            EngineError::Unreachable { .. } | EngineError::Refused { .. } | EngineError::Broken { .. } => {
                StatusCode::BAD_GATEWAY
            }
        };
        Self(status, error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(ErrorView { error: self.1 })).into_response()
    }
}
#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_route_is_described_and_nothing_else_is() {
        let described: serde_json::Value =
            serde_json::from_str(include_str!("../../../docs/openapi.json")).unwrap();
        let paths = described["paths"].as_object().unwrap();
        let described: BTreeSet<(&str, &str)> = paths
            .iter()
            .flat_map(|(path, methods)| {
                let methods = methods.as_object().unwrap();
                methods.keys().map(move |method| (method.as_str(), path.as_str()))
            })
            .collect();
        let served: BTreeSet<(&str, &str)> =
            ROUTES.iter().map(|(method, path, _)| (*method, *path)).collect();
        assert_eq!(described, served);
    }
}
