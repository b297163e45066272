//! Recovery at the source: the deeds that [`protocol::source`](crate::protocol::source) asks for, without a link.

use tokio::time::sleep;

use super::{decide, finish_dump, leave_source, rearm_restart, remove_places, start_afresh, tell_committed};
use crate::deadlines;
use crate::drain;
use crate::host::Host;
use crate::journal::{Found, Journal, Mark};
use crate::pages::serve::Offering;
use crate::protocol::Memory;
use crate::protocol::Word;
use crate::protocol::source::{Deed, Event, State};

/// Goes on from what the journal says until nothing is left to do. `Err` means: not now.
pub(super) async fn recover(host: &Host, found: &Found) -> Result<&'static str, String> {
    let mut state = State::found(found.source_marks());
    let mut deeds = Deeds {
        host,
        found,
        offering: None,
    };
    let mut ended = match state {
        State::Reclaimed => "given back by the destination, started afresh here",
        _ => "undone, the container is here",
    };
    while state.next() != Deed::Rest {
        let event = deeds.perform(state.next()).await?;
        state = state.step(event).map_err(|error| error.to_string())?;
        if state == State::Reclaimed {
            ended = "given back by the destination, started afresh here";
        } else if state.is_committed() {
            ended = "committed, the container is at the destination";
        }
    }
    Ok(ended)
}

struct Deeds<'a> {
    host: &'a Host,
    found: &'a Found,
    offering: Option<Offering>,
}

impl Deeds<'_> {
    async fn perform(&mut self, deed: Deed) -> Result<Event, String> {
        let (host, opened) = (self.host, &self.found.opened);
        let (migration, container) = (&opened.migration, &opened.container);
        match deed {
            Deed::Decide(wanted) => {
                let standing = decide(&host.places.verdict(migration), wanted).await;
                return standing
                    .map(Event::Stands)
                    .map_err(|error| format!("the verdict: {error}"));
            }
            Deed::SeekMemory => {
                self.offering = drain::offer_again(host, migration, container, &opened.options).await?;
                return Ok(Event::Sought(Memory::seen(self.offering.is_some())));
            }
            Deed::TellAgain => {
                return self.tell_again().await.map(Event::Heard);
            }
            // Only what the destination confirms is removed: until then this host has the last copy of the files, and may
            // have pages of memory that are needed there.
            Deed::RemoveContainer => leave_source(host, container, &opened.options).await?,
            Deed::NoteReclaimed => Journal::at(&host.places, migration)
                .note(Mark::Reclaimed)
                .await
                .map_err(|error| format!("the journal: {error}"))?,
            Deed::StartAfresh => start_afresh(host, container).await?,
            Deed::Resume | Deed::FinishDump => finish_dump(host, container, None).await?,
            Deed::Rearm => rearm_restart(host, container).await?,
            Deed::NoteDrained => drain::note_drained(host, migration).map_err(|error| error.to_string())?,
            Deed::RemovePlaces => remove_places(host, migration).await?,
            Deed::Open
            | Deed::NoteDisarming
            | Deed::Disarm
            | Deed::NoteFreezing
            | Deed::Dump
            | Deed::AwaitReady
            | Deed::TellCommit
            | Deed::AwaitDrained
            | Deed::AwaitSettled
            | Deed::Rest => return Err(format!("{deed:?} is nothing that recovery can do")),
        }
        Ok(Event::Did(deed))
    }

    /// To give up the offering for a moment would end the streams of a destination that fetches its pages, so whoever has
    /// one tries again here.
    async fn tell_again(&self) -> Result<Word, String> {
        let opened = &self.found.opened;
        let directory = self.host.places.of(&opened.migration);
        loop {
            // A human has said meanwhile that the destination is lost.
            if let Ok(Some(found)) = Found::read(&directory)
                && found.source_marks().reclaimed
            {
                return Ok(Word::GivenUp);
            }
            let told = tell_committed(self.host, &opened.migration, &opened.peer).await;
            match told {
                Err(reason) if self.offering.is_some() => {
                    log::info!("migration {}: {reason}", opened.migration);
                }
                other => return other,
            }
            sleep(deadlines::ASK_AGAIN).await;
        }
    }
}
