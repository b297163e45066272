//! The local API's answers about moves: which there are and were, what is known of one, and how to give one up.
//!
//! Nothing is decided here: an abort is a wish that the runner heeds up to the commit.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use godwit_runtime::verdict::{self, Verdict};
use serde::{Deserialize, Serialize};

use super::Agent;
use super::api::Refusal;
use super::registry::MigrationView;
use crate::history::Record;
use crate::journal::{Found, Mark};
use crate::metrics;
use crate::phase::Phase;
use crate::places::MigrationId;
use crate::timeline;

/// `GET /v1/migrations/ID`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrationDetail {
    /// As in the list.
    pub migration: MigrationView,
    /// What is written down of a move that is not over.
    pub journal: Option<JournalView>,
    /// What is remembered of one whose runner has ended.
    pub record: Option<Record>,
}

/// What this host would go by if its agent died now.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JournalView {
    /// What was done, or about to be.
    pub marks: Vec<Mark>,
    /// To whom the container belongs, as far as this host knows.
    pub verdict: Option<Verdict>,
}

/// Moves under way, those that wait in recovery, and those that are over, the newest first.
pub(super) async fn list(State(agent): State<Arc<Agent>>) -> Json<Vec<MigrationView>> {
    Json(views(&agent))
}

fn views(agent: &Agent) -> Vec<MigrationView> {
    let mut views = under_way(agent);
    for record in agent.history.read_all() {
        if views
            .iter()
            .all(|view| view.migration != record.migration.as_str())
        {
            views.push(over(&record));
        }
    }
    views
}

fn under_way(agent: &Agent) -> Vec<MigrationView> {
    let mut views = agent.registry.views();
    for found in Found::read_all(&agent.host.places).into_iter().flatten() {
        let awaits_human = found.awaits_human();
        let opened = found.opened;
        match views
            .iter_mut()
            .find(|view| view.migration == opened.migration.as_str())
        {
            Some(view) => view.container = opened.container.name,
            None => views.push(MigrationView {
                migration: opened.migration.to_string(),
                role: opened.role,
                container: opened.container.name,
                peer: opened.peer,
                state: if awaits_human { "broken" } else { "recovering" }.into(),
                phase: None,
                transferred: 0,
                ended_unix_ms: None,
                downtime_micros: None,
            }),
        }
    }
    views
}

fn over(record: &Record) -> MigrationView {
    let report = record.report.as_ref();
    MigrationView {
        migration: record.migration.to_string(),
        role: record.role,
        container: record.container.clone(),
        peer: record.peer.clone(),
        state: record.ending.as_str().into(),
        phase: record.phases.last().map(|span| span.phase),
        transferred: record.phases.last().map_or(0, |span| span.bytes),
        ended_unix_ms: Some(record.ended_unix_ms),
        downtime_micros: report.and_then(|report| report.downtime_micros),
    }
}

/// All that is known of one move.
pub(super) async fn show(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
) -> Result<Json<MigrationDetail>, Refusal> {
    let (migration, view) = known(&agent, &id)?;
    let places = &agent.host.places;
    let found = Found::read(&places.of(&migration)).map_err(|error| failed("the journal", &error))?;
    let journal = match found {
        Some(found) => Some(JournalView {
            marks: found.marks,
            verdict: verdict::read(&places.verdict(&migration))
                .map_err(|error| failed("the verdict", &error))?,
        }),
        None => None,
    };
    Ok(Json(MigrationDetail {
        migration: view,
        journal,
        record: record(&agent, &migration)?,
    }))
}

/// One move's timeline as a picture, once its runner has ended.
pub(super) async fn picture(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let (migration, _) = known(&agent, &id)?;
    let Some(record) = record(&agent, &migration)? else {
        let told = format!("migration {migration} is not over: there is no report of it yet");
        return Err(Refusal(StatusCode::CONFLICT, told));
    };
    let headers = [(header::CONTENT_TYPE, "image/svg+xml")];
    Ok((headers, timeline::svg(&record)).into_response())
}

/// Asks a move to give up.
pub(super) async fn abort(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let (migration, view) = known(&agent, &id)?;
    let too_late = |told: String| Err(Refusal(StatusCode::CONFLICT, told));
    match (view.state.as_str(), view.phase) {
        ("running", Some(Phase::Commit | Phase::Drain | Phase::Release)) => too_late(format!(
            "too late: {} was committed, and this migration can only be finished",
            view.container
        )),
        ("running", _) if agent.registry.abort(&migration) => Ok(StatusCode::ACCEPTED),
        ("recovering", _) => too_late(format!(
            "there is nothing to abort: the agent is finishing or undoing migration {migration}, and needs {} for it",
            view.peer
        )),
        (state, _) => too_late(format!("migration {migration} is over: {state}")),
    }
}

/// What Prometheus asks for.
pub(super) async fn metrics(State(agent): State<Arc<Agent>>) -> Result<Response, Refusal> {
    let text = agent
        .metrics
        .text(under_way(&agent).len())
        .map_err(|error| Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

fn known(agent: &Agent, id: &str) -> Result<(MigrationId, MigrationView), Refusal> {
    let unknown = || {
        Refusal(
            StatusCode::NOT_FOUND,
            format!("no migration {id} is known on this host"),
        )
    };
    let migration = MigrationId::try_from(id.to_owned()).map_err(|_| unknown())?;
    let view = views(agent)
        .into_iter()
        .find(|view| view.migration == id)
        .ok_or_else(unknown)?;
    Ok((migration, view))
}

fn record(agent: &Agent, migration: &MigrationId) -> Result<Option<Record>, Refusal> {
    agent
        .history
        .read(migration)
        .map_err(|error| failed("the report", &error))
}

fn failed(what: &str, error: &std::io::Error) -> Refusal {
    Refusal(StatusCode::INTERNAL_SERVER_ERROR, format!("{what}: {error}"))
}
