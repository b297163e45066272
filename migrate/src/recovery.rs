//! What remains to be done of a move by the verdict alone: after an agent's death, a lost link, or in plain unwinding.
//!
//! Every function may be repeated, at any time, by an agent that knows nothing but journal and verdict. None guesses: a
//! source without a verdict aborts, because only its own verdict could have given the container away; a destination
//! that may have been given it asks the source until it has an answer.

mod destination;
mod source;

use std::io;
use std::sync::Arc;

use godwit_runtime::ticket;
use godwit_runtime::verdict::{self, Verdict};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::archive;
use crate::deadlines;
use crate::engine::{Container, Created, EngineError};
use crate::failure::{Failure, Problem};
use crate::host::Host;
use crate::journal::{Found, Journal, Mark};
use crate::link::Link;
use crate::message::{Intent, Message, VERSIONS, negotiate};
use crate::options::MoveOptions;
use crate::phase::{Phase, Role};
use crate::places::{MigrationId, remove_tree};
use crate::protocol;
use crate::protocol::Word;
use crate::protocol::destination::{Answer, told_committed};
use crate::shim::ShimClient;
use crate::volumes;

/// The states of a container without tasks, in the words of the shim.
const ENDED: [&str; 2] = ["stopped", "deleted"];

/// Finishes or undoes a move that was found in the journals; returns when nothing of it is left.
///
/// Waits for the other host for as long as that takes: the caller gives it a task of its own.
///
/// How it ended, unless somebody else has brought it there or a human must.
pub async fn recover(host: Arc<Host>, found: Found) -> Option<&'static str> {
    let migration = found.opened.migration.clone();
    log::info!(
        "recovering migration {migration} of {} ({})",
        found.opened.container.name,
        found.opened.role
    );
    loop {
        // Whoever else has brought it to its end has removed the journal; to ask about it then would be a wrong question.
        let found = match Found::read(&host.places.of(&migration)) {
            Ok(Some(found)) => found,
            Ok(None) => return None,
            Err(error) => {
                log::error!("migration {migration}: the journal: {error}");
                return None;
            }
        };
        if found.awaits_human() {
            log::error!("migration {migration} is broken: see `godwit migrations recover {migration}`");
            return None;
        }
        let outcome = match found.opened.role {
            _ if found.opened.archive => archive::recovery::recover(&host, &found).await,
            Role::Source => source::recover(&host, &found).await,
            Role::Destination => destination::recover(&host, &found).await,
        };
        match outcome {
            Ok(ended) => {
                log::info!("migration {migration}: {ended}");
                return Some(ended);
            }
            Err(reason) => log::warn!("migration {migration} is not recovered yet: {reason}"),
        }
        sleep(deadlines::ASK_AGAIN).await;
    }
}

/// Source, abort: waits until a container runs on that stood still. `Err` means that this is not certain.
pub async fn resume_source(shim: Option<Arc<dyn ShimClient>>) -> Result<(), String> {
    let Some(shim) = shim else { return Ok(()) };
    let finished = shim.finish_dump().await.map_err(|error| error.to_string())?;
    if finished.running {
        Ok(())
    } else {
        Err("the container does not run after the abort: see the shim's log".into())
    }
}

/// Source: waits until a decided dump is over. A shim that is gone has nothing to finish.
pub async fn finish_dump(
    host: &Host,
    container: &Container,
    shim: Option<Arc<dyn ShimClient>>,
) -> Result<(), String> {
    let shim = match shim {
        Some(shim) => Some(shim),
        None => host
            .shims
            .find(Role::Source, &container.namespace, &container.id)
            .await
            .unwrap_or(None),
    };
    match shim {
        // A shim whose container has ended may leave before it answers.
        Some(shim) => match shim.finish_dump().await {
            Ok(_) => Ok(()),
            Err(error) => match host
                .shims
                .find(Role::Source, &container.namespace, &container.id)
                .await
            {
                Ok(Some(_)) => Err(error.to_string()),
                Ok(None) | Err(_) => Ok(()),
            },
        },
        None => Ok(()),
    }
}

/// Destination, commit: waits until the restore is over and the container runs.
pub async fn finish_restore(
    host: &Host,
    created: &Created,
    shim: Option<Arc<dyn ShimClient>>,
) -> Result<Vec<crate::clock::Step>, String> {
    let shim = match shim {
        Some(shim) => Some(shim),
        None => host
            .shims
            .find(Role::Destination, &created.namespace, &created.id)
            .await
            .map_err(|error| error.to_string())?,
    };
    let shim = shim.ok_or("the shim of the restored container is gone")?;
    let finished = shim.finish_restore().await.map_err(|error| error.to_string())?;
    if finished.running {
        Ok(finished.steps)
    } else {
        Err("the restored container does not run".into())
    }
}

/// Destination, abort: nothing of the container stays.
pub async fn undo_destination(
    host: &Host,
    migration: &MigrationId,
    engine: &str,
    created: &Created,
) -> Result<(), String> {
    // First of all, because a shim that still awaits its image comes to no other end.
    ticket::withdraw(&host.places.tickets(), &created.namespace, &created.id)
        .map_err(|error| error.to_string())?;
    let shim = host
        .shims
        .find(Role::Destination, &created.namespace, &created.id)
        .await;
    if let Ok(Some(shim)) = shim {
        // What it says does not matter: the engine's removal ends whatever is left.
        if let Err(error) = shim.finish_restore().await {
            log::debug!("migration {migration}: {error}");
        }
    }
    unmake(host, migration, engine, created).await
}

/// Destination: removes a container that was made for a move, and the volumes that were made for it.
pub async fn unmake(
    host: &Host,
    migration: &MigrationId,
    engine: &str,
    created: &Created,
) -> Result<(), String> {
    let unmake = async {
        let engine = host.engines.of(engine)?;
        engine.unmake(&created.namespace, &created.id).await
    };
    unmake.await.map_err(|error| error.to_string())?;
    volumes::arrive::undo(host, migration).await
}

/// Source, commit: removes the container that was given away, and those of its volumes that go with it; or leaves it stopped,
/// with all of them, where that was asked for.
pub async fn leave_source(host: &Host, container: &Container, options: &MoveOptions) -> Result<(), String> {
    if options.keep_source {
        let retire = async { host.engines.of(&container.engine)?.retire(container).await };
        return retire.await.map_err(|error| error.to_string());
    }
    let remove = async {
        let engine = host.engines.of(&container.engine)?;
        engine.remove(&container.namespace, &container.id).await
    };
    remove.await.map_err(|error| error.to_string())?;
    volumes::depart::release(host, container, &options.volumes).await
}

/// Has the engine start a container from its files; it may run already.
pub async fn start_afresh(host: &Host, container: &Container) -> Result<(), String> {
    let itself = Created {
        id: container.id.clone(),
        namespace: container.namespace.clone(),
    };
    let asked_for = match container.engine.as_str() {
        "containerd" => format!("{}/{}", itself.namespace, itself.id),
        _ => itself.id.clone(),
    };
    let start = async {
        let engine = host.engines.of(&container.engine)?;
        // An engine hears of an end after we do: what it takes for running it would not start.
        if !(engine.inspect(&asked_for).await?.running && has_tasks(host, &itself).await) {
            engine.retire(container).await?;
            engine.start(&itself, container).await?;
        }
        engine.rearm_restart(container).await
    };
    match start.await {
        // Somebody has removed it meanwhile: there is nothing to start.
        Err(EngineError::NoSuchContainer(name)) => {
            log::warn!("{name} is not started afresh: it was removed");
            Ok(())
        }
        Err(error) => Err(format!("starting it afresh: {error}")),
        Ok(()) => Ok(()),
    }
}

/// Whether a shim has tasks of the container, by its own word.
async fn has_tasks(host: &Host, created: &Created) -> bool {
    let shim = host
        .shims
        .find(Role::Source, &created.namespace, &created.id)
        .await;
    match shim {
        Ok(Some(shim)) => shim
            .inspect()
            .await
            .is_ok_and(|view| !ENDED.contains(&view.state.as_str())),
        Ok(None) | Err(_) => false,
    }
}

/// Lets the engine start a container again as it was described.
pub async fn rearm_restart(host: &Host, container: &Container) -> Result<(), String> {
    let rearm = async { host.engines.of(&container.engine)?.rearm_restart(container).await };
    rearm.await.map_err(|error| error.to_string())
}

/// Destination: an agent died between asking the engine for volumes and a container and writing down the container's id.
pub async fn remove_unfinished(
    host: &Host,
    migration: &MigrationId,
    offered: &Container,
) -> Result<(), String> {
    let remove = async {
        let engine = host.engines.of(&offered.engine)?;
        match engine.inspect(&offered.name).await {
            // The plan had found the name free. A container of another image under it is somebody else's, and so is one
            // whose id only begins like this name.
            Ok(found)
                if !found.running && found.image_id == offered.image_id && found.name == offered.name =>
            {
                engine.unmake(&found.namespace, &found.id).await
            }
            Ok(_) | Err(EngineError::NoSuchContainer(_)) => Ok(()),
            Err(error) => Err(error),
        }
    };
    remove.await.map_err(|error| error.to_string())?;
    volumes::arrive::undo(host, migration).await
}

/// Destination: what became of a move this host was ready for. Asks until somebody knows.
pub async fn learn_verdict(host: &Host, migration: &MigrationId, source: &str) -> Verdict {
    let path = host.places.verdict(migration);
    loop {
        // The source may have told this agent on a connection of its own.
        if let Ok(Some(verdict)) = verdict::read(&path) {
            return verdict;
        }
        match ask_verdict(host, migration, source).await {
            Ok(verdict) => return verdict,
            Err(problem) => {
                log::warn!("migration {migration}: {source} does not tell the verdict: {problem}");
            }
        }
        sleep(deadlines::ASK_AGAIN).await;
    }
}

async fn ask_verdict(host: &Host, migration: &MigrationId, source: &str) -> Result<Verdict, Problem> {
    let intent = Intent::AskVerdict {
        migration: migration.clone(),
    };
    let mut link = greet(host, source, intent).await?;
    match link.receive("verdict", deadlines::PLAN).await? {
        Message::Verdict { verdict } => Ok(verdict),
        other => Err(link.out_of_turn(&other)),
    }
}

/// Source: tells a destination of the commit until it says that the container runs.
async fn tell_committed(host: &Host, migration: &MigrationId, destination: &str) -> Result<Word, String> {
    let intent = Intent::TellCommitted {
        migration: migration.clone(),
    };
    let told = async {
        let mut link = greet(host, destination, intent).await?;
        link.receive("settled", deadlines::SETTLED).await
    };
    match told.await {
        Ok(Message::Settled) => Ok(Word::Settled),
        Ok(Message::GivenUp) => Ok(Word::GivenUp),
        Ok(Message::Pending) => Err(format!("{destination} is still at it")),
        Ok(other) => Err(format!("{destination} said {}", other.name())),
        Err(problem) => Err(problem.to_string()),
    }
}

/// Connects to the agent of `peer` and says why.
pub async fn greet(host: &Host, peer: &str, intent: Intent) -> Result<Link, Problem> {
    let mut link = host.peers.connect(peer).await.map_err(Problem::Here)?;
    link.send(Message::Hello {
        versions: VERSIONS.to_vec(),
        intent,
    })
    .await?;
    match link.receive("welcome", deadlines::HELLO).await? {
        Message::Welcome { .. } => Ok(link),
        other => Err(link.out_of_turn(&other)),
    }
}

/// Answers a destination that asks what became of a move: a source that has not committed by now never will.
pub async fn answer_verdict(host: &Host, mut link: Link, versions: &[u32], migration: &MigrationId) {
    let answer = async {
        welcome(&mut link, versions).await?;
        let is_known = belongs(host, migration, Role::Source, link.peer())?;
        let verdict = match protocol::source::asked(is_known) {
            protocol::source::Answer::Say(verdict) => verdict,
            protocol::source::Answer::Decide(wanted) => decide(&host.places.verdict(migration), wanted)
                .await
                .map_err(|error| Problem::io("the verdict", &error))?,
        };
        link.send(Message::Verdict { verdict }).await
    };
    let outcome = answer.await;
    end_answer(host, link, Role::Source, outcome).await;
}

/// Answers a source that committed and was not heard: the commit stands here too, and when nothing is left to do, so
/// says the missing journal.
pub async fn answer_committed(host: &Host, mut link: Link, versions: &[u32], migration: &MigrationId) {
    let answer = async {
        welcome(&mut link, versions).await?;
        let is_known = belongs(host, migration, Role::Destination, link.peer())?;
        let found = if is_known {
            read_found(host, migration)?
        } else {
            None
        };
        let broken = found.as_ref().and_then(Found::broken);
        link.send(
            match told_committed(found.as_ref().map(Found::destination_marks)) {
                Answer::Settled => Message::Settled,
                Answer::DecideAndSayPending => {
                    decide(&host.places.verdict(migration), Verdict::Committed)
                        .await
                        .map_err(|error| Problem::io("the verdict", &error))?;
                    Message::Pending
                }
                Answer::GivenUp => Message::GivenUp,
                Answer::Broken => return Err(Problem::failed(broken.unwrap_or_default())),
            },
        )
        .await
    };
    let outcome = answer.await;
    end_answer(host, link, Role::Destination, outcome).await;
}

async fn end_answer(host: &Host, mut link: Link, role: Role, outcome: Result<(), Problem>) {
    if let Err(Problem::Here(cause)) = outcome {
        let failure = Failure::new(role, &host.name, Phase::Commit, cause);
        link.try_send(Message::Failed(failure));
    }
    link.close().await;
}

/// Answers a hello, or says that there is no common version.
pub async fn welcome(link: &mut Link, versions: &[u32]) -> Result<(), Problem> {
    let Some(version) = negotiate(versions, VERSIONS) else {
        return Err(Problem::protocol(format!(
            "{} speaks versions {versions:?} of the protocol and this agent {VERSIONS:?}",
            link.peer()
        )));
    };
    link.send(Message::Welcome { version }).await
}

/// Whether a move is in the journals with this role and peer. Another peer's question about it is refused.
pub fn belongs(host: &Host, migration: &MigrationId, role: Role, peer: &str) -> Result<bool, Problem> {
    match read_found(host, migration)? {
        None => Ok(false),
        Some(found) if found.opened.role == role && found.opened.peer == peer => Ok(true),
        Some(_) => Err(Problem::protocol(format!(
            "migration {migration} is none with {peer}"
        ))),
    }
}

fn read_found(host: &Host, migration: &MigrationId) -> Result<Option<Found>, Problem> {
    Found::read(&host.places.of(migration)).map_err(|error| Problem::io("the journal", &error))
}

/// Writes down that a committed container does not run here.
pub async fn note_broken(host: &Host, migration: &MigrationId, reason: &str) {
    log::error!("migration {migration} was committed and the container does not run: {reason}");
    let journal = Journal::at(&host.places, migration);
    if let Err(error) = journal.note(Mark::Broken(reason.into())).await {
        log::error!("migration {migration}: the journal: {error}");
    }
}

/// Makes `verdict` stand, unless another does; returns the one that stands.
pub async fn decide(path: &std::path::Path, verdict: Verdict) -> io::Result<Verdict> {
    let path = path.to_owned();
    spawn_blocking(move || match verdict::decide(&path, verdict) {
        Ok(standing) => Ok(standing),
        // The file may be there although its way to the disk failed; what is there decides.
        Err(error) => verdict::read(&path)?.ok_or(error),
    })
    .await
    .map_err(io::Error::other)?
}

/// Removes a move's directories: the image first, and the journal before the verdict, since a journal that is found
/// without its verdict would be decided anew.
pub async fn remove_places(host: &Host, migration: &MigrationId) -> Result<(), String> {
    let (memory, state) = (host.places.memory(migration), host.places.of(migration));
    spawn_blocking(move || {
        remove_tree(&memory)?;
        Journal::remove(&state)?;
        remove_tree(&state)
    })
    .await
    .map_err(|error| error.to_string())?
    .map_err(|error| format!("removing the directories of the migration: {error}"))
}
