//! Recovery at the destination: the deeds that [`protocol::destination`](crate::protocol::destination) asks for, without
//! a link.

use std::sync::Arc;

use godwit_runtime::verdict::{self, Verdict};
use tokio::time::sleep;

use super::{
    ask_verdict, decide, finish_restore, learn_verdict, note_broken, rearm_restart, remove_places,
    remove_unfinished, undo_destination, unmake,
};
use crate::deadlines;
use crate::drain;
use crate::engine::{Container, Created};
use crate::host::Host;
use crate::journal::{Found, Journal, Mark};
use crate::pages::relay::Relay;
use crate::protocol::Memory;
use crate::protocol::destination::{Deed, Event, State};

/// Goes on from what journal and verdict file say until nothing is left to do. `Err` means: not now.
pub(super) async fn recover(host: &Arc<Host>, found: &Found) -> Result<&'static str, String> {
    let path = host.places.verdict(&found.opened.migration);
    let standing = verdict::read(&path).map_err(|error| format!("the verdict: {error}"))?;
    let mut state = State::found(found.destination_marks(), standing);
    let mut deeds = Deeds {
        host,
        found,
        broken: String::new(),
    };
    let mut ended = "undone, the container is at the source";
    while state.next() != Deed::Rest {
        let event = deeds.perform(state.next()).await?;
        state = state.step(event).map_err(|error| error.to_string())?;
        if state.is_committed() {
            ended = "committed, the container runs here";
        } else if state == State::Returned {
            ended = "given up here, the container is at the source again";
        }
    }
    if state == State::Broken {
        return Err(deeds.broken);
    }
    Ok(ended)
}

struct Deeds<'a> {
    host: &'a Arc<Host>,
    found: &'a Found,
    broken: String,
}

impl Deeds<'_> {
    async fn perform(&mut self, deed: Deed) -> Result<Event, String> {
        let (host, opened) = (self.host, &self.found.opened);
        let migration = &opened.migration;
        match deed {
            Deed::AskSource => {
                return Ok(Event::Told(learn_verdict(host, migration, &opened.peer).await));
            }
            Deed::Decide(wanted) => {
                let standing = decide(&host.places.verdict(migration), wanted).await;
                return standing
                    .map(Event::Stands)
                    .map_err(|error| format!("the verdict: {error}"));
            }
            Deed::Resume => {
                let created = self.created()?;
                if let Err(reason) = finish_restore(host, created, None).await {
                    self.broken = reason;
                    return Ok(Event::Broke);
                }
                // The start that died with its agent may not have come so far.
                let here = Container {
                    id: created.id.clone(),
                    ..opened.container.clone()
                };
                rearm_restart(host, &here).await?;
            }
            Deed::SeekMemory => {
                let is_left = drain::is_fetching(host, self.created()?).await;
                return Ok(Event::Sought(Memory::seen(is_left)));
            }
            Deed::AwaitMemory => {
                let relay =
                    Relay::resume(host, &opened.peer, migration).map_err(|error| error.to_string())?;
                drain::wait(host, self.created()?, &relay, migration).await;
                if drain::is_given_up(host, migration) {
                    return Ok(Event::GivenUp);
                }
            }
            Deed::Confirm if drain::is_given_up(host, migration) => return Ok(Event::GivenUp),
            Deed::RemoveContainer => {
                unmake(host, migration, &opened.container.engine, self.created()?).await?;
            }
            Deed::NoteReturned => Journal::at(&host.places, migration)
                .note(Mark::Returned)
                .await
                .map_err(|error| format!("the journal: {error}"))?,
            Deed::AskReclaimed => {
                let verdict = ask_verdict(host, migration, &opened.peer)
                    .await
                    .map_err(|problem| problem.to_string())?;
                if verdict == Verdict::Committed {
                    sleep(deadlines::ASK_AGAIN).await;
                }
                return Ok(Event::Told(verdict));
            }
            Deed::NoteBroken => note_broken(host, migration, &self.broken).await,
            Deed::Undo => {
                undo_destination(host, migration, &opened.container.engine, self.created()?).await?;
            }
            Deed::RemoveUnfinished => remove_unfinished(host, migration, &opened.container).await?,
            Deed::RemovePlaces => remove_places(host, migration).await?,
            // There is no link, and a source that asks hears it. The engine that was asked has long answered.
            Deed::Say(_) | Deed::Confirm => {}
            Deed::Open
            | Deed::NoteCreating
            | Deed::Create
            | Deed::NoteCreated
            | Deed::Start
            | Deed::NoteRestoring
            | Deed::Restore
            | Deed::AwaitWord
            | Deed::Rest => return Err(format!("{deed:?} is nothing that recovery can do")),
        }
        Ok(Event::Did(deed))
    }

    fn created(&self) -> Result<&Created, String> {
        self.found
            .created()
            .ok_or_else(|| "the journal names no container".into())
    }
}
