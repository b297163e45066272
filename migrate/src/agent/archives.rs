//! The local API's way to archives: exports and imports, and the bytes of each on a connection of its own.
//!
//! `POST /v1/exports` and `POST /v1/imports` answer with events as a move does; the first names the export or import. The archive
//! itself is then read from `GET /v1/exports/ID/archive`, or brought by `PUT /v1/imports/ID/archive`, as bytes or as an open file, by
//! the same client: one that drops the connection of events has gone away, and what it asked for is undone. `POST
//! /v1/exports/ID/stored` says that the archive is safe, upon which the container is let go of. One that goes into an image, or comes
//! from one, has no bytes for a client. `DELETE /v1/migrations/ID` gives either up.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::api::{LINES_BOUND, Lines, Refusal, streamed, view};
use super::handover::Handed;
use super::{Agent, registry};
use crate::archive::board::Brought;
use crate::archive::origin::Origin;
use crate::archive::pipe::pipe;
use crate::archive::target::Target;
use crate::archive::{ExportOptions, ImportOptions, PEER, export as exports, import as imports};
use crate::engine::set::Choice;
use crate::phase::Role;
use crate::places::MigrationId;
use crate::progress::{Event, Observer};

/// `POST /v1/exports`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportRequest {
    /// Name, id or unique prefix of the id.
    pub container: String,
    /// `docker`, `containerd` or `auto`: whose container it is.
    #[serde(default)]
    pub engine: Choice,
    /// containerd's namespace, if not `default`; means containerd.
    #[serde(default)]
    pub namespace: Option<String>,
    /// How.
    #[serde(default)]
    pub options: ExportOptions,
}

/// `POST /v1/imports`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportRequest {
    /// How.
    #[serde(default)]
    pub options: ImportOptions,
}

/// Begins an export.
pub(super) async fn export(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<ExportRequest>,
) -> Result<Response, Refusal> {
    let engines = &agent.host.engines;
    let container = engines
        .find(request.engine, request.namespace.as_deref(), &request.container)
        .await?;
    let busy =
        |error: registry::Busy| Refusal(StatusCode::CONFLICT, format!("{}: {error}", request.container));
    let migration = new_name(&agent)?;
    let claim = agent
        .registry
        .claim(&migration, &container.namespace, &container.id)
        .map_err(busy)?;
    let (observer, events) = Observer::new(agent.stop.child_token());
    let listing = agent
        .registry
        .list(&migration, Role::Source, &container.name, PEER, &observer)
        .map_err(busy)?;
    let started = started(&migration, &container.name);
    let target = match &request.options.image {
        Some(image) => Target::image(image.clone()),
        None => Target::Client(agent.archives.export(&migration)),
    };
    let (tell_end, end) = oneshot::channel();
    let (watched, worker) = (observer.clone(), Arc::clone(&agent));
    agent.tasks.spawn(async move {
        let host = Arc::clone(&worker.host);
        let (name, options) = (container.name.clone(), request.options);
        log::info!("export {migration}: {name}");
        let outcome = exports::run(host, observer, migration.clone(), container, options, target).await;
        match &outcome {
            Ok(summary) => log::info!(
                "export {migration}: {} bytes, {} us down",
                summary.bytes,
                summary.down_micros
            ),
            Err(failure) => log::error!("export {migration}: {failure}"),
        }
        drop((claim, listing));
        worker.recover_rest(&migration);
        let _ = tell_end.send(outcome.map(|archive| Event::Archive { archive }));
    });
    Ok(watch(started, watched, events, end))
}

/// Begins an import.
pub(super) async fn import(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<ImportRequest>,
) -> Result<Response, Refusal> {
    let migration = new_name(&agent)?;
    let (observer, events) = Observer::new(agent.stop.child_token());
    let listing = agent
        .registry
        .list(&migration, Role::Destination, "", PEER, &observer)
        .map_err(|error| Refusal(StatusCode::CONFLICT, error.to_string()))?;
    let started = started(&migration, "");
    let ImportOptions {
        image,
        engine,
        namespace,
        ..
    } = request.options.clone();
    let origin = match image {
        Some(name) => Origin::Image {
            name,
            engine,
            namespace,
        },
        None => Origin::Client(agent.archives.import(&migration)),
    };
    let (tell_end, end) = oneshot::channel();
    let (watched, worker) = (observer.clone(), Arc::clone(&agent));
    agent.tasks.spawn(async move {
        let host = Arc::clone(&worker.host);
        let outcome = imports::run(host, observer, migration.clone(), request.options, origin).await;
        match &outcome {
            Ok(summary) => log::info!("import {migration}: {} runs", summary.container),
            Err(failure) => log::error!("import {migration}: {failure}"),
        }
        drop(listing);
        worker.recover_rest(&migration);
        let _ = tell_end.send(outcome.map(|archive| Event::Archive { archive }));
    });
    Ok(watch(started, watched, events, end))
}

fn new_name(agent: &Agent) -> Result<MigrationId, Refusal> {
    if agent.stop.is_cancelled() {
        let told = "the agent is stopping".into();
        return Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, told));
    }
    MigrationId::random().map_err(|error| Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

fn started(migration: &MigrationId, container: &str) -> Event {
    Event::Started {
        migration: migration.to_string(),
        container: container.into(),
        destination: PEER.into(),
    }
}

/// Tells the client of it, and gives it up when the client has gone away.
fn watch(
    started: Event,
    observer: Observer,
    events: mpsc::Receiver<Event>,
    end: oneshot::Receiver<Result<Event, crate::failure::Failure>>,
) -> Response {
    let (lines, body) = mpsc::channel(LINES_BOUND);
    let abort = observer.abort.clone();
    tokio::spawn(async move {
        let gone = lines.clone();
        tokio::select! {
            () = view(started, observer, events, end, lines) => {}
            () = gone.closed() => {}
        }
        // Nobody heeds it when all is over.
        abort.cancel();
    });
    streamed(body)
}

/// The bytes of an archive that is being exported.
pub(super) async fn archive(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let bytes = agent.archives.read(&known(&id)?).ok_or_else(|| unknown(&id))?;
    let headers = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((headers, Body::new(Lines(bytes))).into_response())
}

/// The client has the archive safe.
pub(super) async fn stored(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    if agent.archives.store(&known(&id)?) {
        return Ok(StatusCode::ACCEPTED);
    }
    let told = format!("the archive of {id} was not written to its end");
    Err(Refusal(StatusCode::CONFLICT, told))
}

/// An archive that is to be imported: a file that the client hands over, or the bytes in the request's body.
pub(super) async fn bring(
    State(agent): State<Arc<Agent>>,
    ConnectInfo(handed): ConnectInfo<Handed>,
    Path(id): Path<String>,
    mut body: Body,
) -> Result<StatusCode, Refusal> {
    let file = handed.take();
    if let Some(file) = &file
        && !file.metadata().is_ok_and(|metadata| metadata.is_file())
    {
        // Whoever is at its other end could keep the thread that reads it waiting for ever.
        let told = "what was handed over is no regular file: send its bytes in the body".into();
        return Err(Refusal(StatusCode::BAD_REQUEST, told));
    }
    let brought = agent.archives.bring(&known(&id)?).ok_or_else(|| unknown(&id))?;
    if let Some(file) = file {
        // An import that has ended meanwhile has said why.
        let _ = brought.send(Brought::File(file));
        return Ok(StatusCode::ACCEPTED);
    }
    let (bytes, pieces) = pipe();
    let _ = brought.send(Brought::Pieces(pieces));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Refusal(StatusCode::BAD_REQUEST, error.to_string()))?;
        if let Ok(data) = frame.into_data()
            && bytes.send(data).await.is_err()
        {
            // It was refused on the way; the events say why.
            return Ok(StatusCode::ACCEPTED);
        }
    }
    Ok(StatusCode::ACCEPTED)
}

fn known(id: &str) -> Result<MigrationId, Refusal> {
    MigrationId::try_from(id.to_owned()).map_err(|_| unknown(id))
}

fn unknown(id: &str) -> Refusal {
    Refusal(StatusCode::NOT_FOUND, format!("no archive of {id} is awaited"))
}
