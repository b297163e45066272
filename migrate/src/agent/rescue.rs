//! The local API's way to bring a move to an end that agents cannot bring there by themselves.
//!
//! A human decides and the agents see to it that the decision makes no second copy: a destination removes its own before the
//! source hears that it may start the container afresh, and a source takes it back unheard only from a destination that
//! does not answer and that somebody vouches is lost.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use godwit_runtime::verdict::{self, Verdict};
use serde::{Deserialize, Serialize};

use super::Agent;
use super::api::Refusal;
use crate::drain;
use crate::engine::Container;
use crate::journal::{Found, Journal, Mark};
use crate::phase::Role;
use crate::places::MigrationId;
use crate::recovery;

/// What a human may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// The container is started afresh here, from its files.
    RunHere,
    /// It is given up here, and started afresh on the other host.
    GiveUp,
}

/// `POST /v1/migrations/ID/recover`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RescueRequest {
    /// What is to be done.
    pub choice: Choice,
    /// At the source: the destination does not come back, or not with what is on its disk.
    #[serde(default)]
    pub destination_is_lost: bool,
}

/// One thing that can be done about a move, and what it costs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remedy {
    /// To choose it.
    pub choice: Choice,
    /// What is lost, and what happens.
    pub effect: String,
}

/// `GET /v1/migrations/ID/recover`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Advice {
    /// How this host sees it, in a sentence.
    pub here: String,
    /// Whether the other host's agent answers, in a sentence.
    pub there: String,
    /// What can be done; empty if the agents need nobody.
    pub remedies: Vec<Remedy>,
}

/// What has become of a container that a human may have to decide about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plight {
    /// Destination: it was committed and does not run.
    Broken,
    /// Destination: it runs and waits for memory.
    Fetching,
    /// Destination: it was given up already.
    GivenUp,
    /// Source: it was committed, and the destination has not confirmed that it runs.
    Unconfirmed,
    /// The agents bring it to its end.
    Minded,
}

/// What can be done about a move.
pub(super) async fn advise(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
) -> Result<Json<Advice>, Refusal> {
    let found = found(&agent, &id)?;
    let (name, peer) = (&found.opened.container.name, &found.opened.peer);
    let plight = plight(&agent, &found).await?;
    let there = match agent.host.peers.connect(peer).await {
        Ok(link) => {
            link.close().await;
            format!("the agent on {peer} answers")
        }
        Err(cause) => format!("the agent on {peer} does not answer: {cause}"),
    };
    let afresh = "its memory is lost, and what it has written to its files and copied volumes since it stood still for the move";
    let give_up = Remedy {
        choice: Choice::GiveUp,
        effect: format!(
            "{name} is removed here, then started afresh on {peer} from its files there: {afresh}"
        ),
    };
    let (here, remedies) = match plight {
        Plight::Broken => {
            let reason = found.broken().unwrap_or_default();
            let run_here = Remedy {
                choice: Choice::RunHere,
                effect: format!("{name} is started afresh here and removed on {peer}: its memory is lost"),
            };
            (
                format!("{name} was committed to this host and does not run: {reason}"),
                vec![run_here, give_up],
            )
        }
        Plight::Fetching => (
            format!("{name} runs here, and waits for memory that is still on {peer}"),
            vec![give_up],
        ),
        Plight::GivenUp => (
            format!("{name} was given up here; {peer} takes it back"),
            Vec::new(),
        ),
        Plight::Unconfirmed => {
            let effect = format!(
                "only if {peer} is lost with all that is on its disk: {name} is started afresh here from its files; its memory is \
                 lost. Where {peer} can be reached, the choice is to be made there"
            );
            let choice = Choice::RunHere;
            (
                format!(
                    "{name} was committed to {peer}, and is kept here, dead, until {peer} confirms that it runs"
                ),
                vec![Remedy { choice, effect }],
            )
        }
        Plight::Minded => ("the agents bring it to its end by themselves".into(), Vec::new()),
    };
    Ok(Json(Advice {
        here,
        there,
        remedies,
    }))
}

/// Does what a human has chosen, or begins it; the answer says which.
pub(super) async fn decide(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
    Json(request): Json<RescueRequest>,
) -> Result<Json<String>, Refusal> {
    let _alone = agent.rescues.lock().await;
    let found = found(&agent, &id)?;
    let migration = found.opened.migration.clone();
    let (container, peer) = (&found.opened.container, &found.opened.peer);
    let name = &container.name;
    let told = match (plight(&agent, &found).await?, request.choice) {
        (Plight::Broken, Choice::RunHere) => {
            let created = found
                .created()
                .ok_or_else(|| refused("the journal names no container"))?;
            let here = Container {
                id: created.id.clone(),
                ..container.clone()
            };
            recovery::start_afresh(&agent.host, &here).await.map_err(failed)?;
            recovery::remove_places(&agent.host, &migration)
                .await
                .map_err(failed)?;
            agent.finish_recovered(&found.opened, "started afresh here, as a human has chosen");
            format!("{name} runs here, started afresh; {peer} removes its own")
        }
        (Plight::Broken | Plight::Fetching, Choice::GiveUp) => {
            let is_at_rest = found.awaits_human();
            note(&agent, &migration, Mark::GivenUp).await?;
            if is_at_rest {
                agent.recover_rest(&migration);
            }
            format!("{name} is removed here; {peer} starts it afresh when its agent hears of it")
        }
        (Plight::Unconfirmed, Choice::RunHere) => {
            if let Ok(link) = agent.host.peers.connect(peer).await {
                link.close().await;
                return Err(refused(&format!(
                    "the agent on {peer} answers: choose there, by `godwit migrations recover {migration}`"
                )));
            }
            if !request.destination_is_lost {
                return Err(refused(&format!(
                    "{peer} may run {name}, or start it when it is back; if it is lost with all that is on its disk, say \
                     so: --destination-is-lost"
                )));
            }
            note(&agent, &migration, Mark::Reclaimed).await?;
            format!("{name} is started afresh here; see `godwit migrations show {migration}`")
        }
        (plight, choice) => {
            let told = format!(
                "{choice:?} does not help {name}, which is {plight:?}: see `godwit migrations recover {id}`"
            );
            return Err(refused(&told));
        }
    };
    log::warn!("migration {migration}: {told}, as a human has chosen");
    Ok(Json(told))
}

async fn plight(agent: &Agent, found: &Found) -> Result<Plight, Refusal> {
    let migration = &found.opened.migration;
    let standing =
        verdict::read(&agent.host.places.verdict(migration)).map_err(|error| failed(error.to_string()))?;
    let is_committed = standing == Some(Verdict::Committed);
    Ok(match found.opened.role {
        Role::Source
            if is_committed && !found.source_marks().reclaimed && !agent.registry.is_live(migration) =>
        {
            Plight::Unconfirmed
        }
        Role::Source => Plight::Minded,
        Role::Destination if found.destination_marks().given_up => Plight::GivenUp,
        Role::Destination if found.awaits_human() => Plight::Broken,
        Role::Destination => match found.created() {
            // What came before its container lies here; the source may have been told that it is done with.
            Some(_) if agent.host.places.kept(migration).exists() => Plight::Minded,
            Some(created) if is_committed && drain::is_fetching(&agent.host, created).await => {
                Plight::Fetching
            }
            _ => Plight::Minded,
        },
    })
}

async fn note(agent: &Agent, migration: &MigrationId, mark: Mark) -> Result<(), Refusal> {
    let journal = Journal::at(&agent.host.places, migration);
    journal
        .note(mark)
        .await
        .map_err(|error| failed(format!("the journal: {error}; is the move over?")))
}

fn found(agent: &Agent, id: &str) -> Result<Found, Refusal> {
    let unknown = || {
        Refusal(
            StatusCode::NOT_FOUND,
            format!("migration {id} is over, or none of this host's"),
        )
    };
    let migration = MigrationId::try_from(id.to_owned()).map_err(|_| unknown())?;
    Found::read(&agent.host.places.of(&migration))
        .map_err(|error| failed(format!("the journal: {error}")))?
        .ok_or_else(unknown)
}

fn refused(told: &str) -> Refusal {
    Refusal(StatusCode::CONFLICT, told.into())
}

fn failed(told: String) -> Refusal {
    Refusal(StatusCode::INTERNAL_SERVER_ERROR, told)
}
