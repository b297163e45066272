//! How a destination's part ends: by the source's decision and a container that runs here, or by undoing all of it.
//!
//! What is done next is asked of [`protocol::destination`](crate::protocol::destination); nothing is decided here.

use std::time::Instant;

use godwit_runtime::verdict::Verdict;
use tokio::time::{sleep, timeout};

use super::Destination;
use crate::deadlines;
use crate::drain;
use crate::failure::{Cause, Failure, Problem};
use crate::message::Message;
use crate::phase::{Phase, Role};
use crate::protocol::destination::{Deed, Event};
use crate::protocol::{Memory, OutOfTurn, Word};
use crate::recovery;
use crate::volumes;

impl Destination {
    /// Nothing of the container stays, unless it was given to this host.
    pub(super) async fn undo(&mut self, event: Event) -> Result<Option<Event>, String> {
        self.step(event).map_err(|error| error.to_string())?;
        let deed = self.state.next();
        match deed {
            Deed::Decide(wanted) => {
                let path = self.host.places.verdict(&self.migration);
                let standing = recovery::decide(&path, wanted).await;
                return standing
                    .map(|verdict| Some(Event::Stands(verdict)))
                    .map_err(|error| format!("the verdict cannot be written: {error}"));
            }
            Deed::Undo => self.remove_all().await?,
            Deed::RemovePlaces => recovery::remove_places(&self.host, &self.migration).await?,
            Deed::Rest => return Ok(None),
            _ => return Err("the container was committed to this host".into()),
        }
        Ok(Some(Event::Did(deed)))
    }

    async fn remove_all(&mut self) -> Result<(), String> {
        let _ = self.volumes.finish_making().await;
        self.made.remove_all().await?;
        volumes::arrive::undo(&self.host, &self.migration).await
    }

    /// Waits for the source's word; if the link is lost, asks for it.
    pub(super) async fn learn_decision(&mut self) -> Result<(), Problem> {
        let (event, problem) = match self.link.receive("commit", self.host.hold).await {
            Ok(Message::Commit) => (Event::Commit, None),
            Err(Problem::There(failure)) => (Event::SourceFailed, Some(Problem::There(failure))),
            Ok(other) => (Event::Lost, Some(self.link.out_of_turn(&other))),
            Err(problem) => (Event::Lost, Some(problem)),
        };
        self.step(event)?;
        if self.state.next() == Deed::AskSource {
            if let Some(lost) = &problem {
                log::warn!(
                    "migration {}: {lost}; asking the source for the verdict",
                    self.migration
                );
            }
            let source = self.link.peer().to_owned();
            let told = recovery::learn_verdict(&self.host, &self.migration, &source).await;
            self.step(Event::Told(told))?;
        }
        match (self.state.next(), problem) {
            (Deed::Decide(Verdict::Committed), _) => self.commit().await,
            (_, Some(problem)) => Err(problem),
            (_, None) => Err(Problem::failed("the move was given up")),
        }
    }

    /// Lets the commit stand here too. It cannot fail for good: what cannot be written now is tried again.
    async fn commit(&mut self) -> Result<(), Problem> {
        let path = self.host.places.verdict(&self.migration);
        while let Deed::Decide(wanted) = self.state.next() {
            match recovery::decide(&path, wanted).await {
                Ok(standing) => self.step(Event::Stands(standing))?,
                Err(error) => {
                    log::error!(
                        "migration {}: the verdict cannot be written: {error}",
                        self.migration
                    );
                    sleep(deadlines::ASK_AGAIN).await;
                }
            }
        }
        Ok(())
    }

    /// Lets the container run.
    pub(super) async fn resume(&mut self) {
        if self.state.next() != Deed::Resume {
            let reason = "the restore was aborted here although the source has committed";
            return self.broken(reason.into()).await;
        }
        let since = Instant::now();
        let Some(created) = self.made.created.clone() else {
            return;
        };
        match recovery::finish_restore(&self.host, &created, self.made.shim.clone()).await {
            Ok(shim_steps) => {
                self.clock.extend_since(since, shim_steps);
                self.clock.step("resume", since);
                self.step_on(Event::Did(Deed::Resume));
                let steps = self.clock.take_steps();
                self.try_tell(Message::Running { steps }).await;
                self.step_on(Event::Did(Deed::Say(Word::Running)));
            }
            Err(reason) => self.broken(reason).await,
        }
    }

    /// Waits until every page of its memory is here. The container runs meanwhile.
    pub(super) async fn drain(&mut self) {
        if self.state.next() != Deed::SeekMemory {
            return;
        }
        // What is here already, and only to be put in its place, is no matter of the source's any more.
        let is_left = self.relay.is_some() && !self.is_complete();
        self.step_on(Event::Sought(Memory::seen(is_left)));
        if !is_left {
            return;
        }
        let (Some(relay), Some(created)) = (self.relay.take(), self.made.created.clone()) else {
            return;
        };
        drain::wait(&self.host, &created, &relay, &self.migration).await;
        if drain::is_given_up(&self.host, &self.migration) {
            return self.give_back().await;
        }
        self.step_on(Event::Did(Deed::AwaitMemory));
        let memory = relay.figures();
        self.try_tell(Message::Drained { memory }).await;
        self.step_on(Event::Did(Deed::Say(Word::Drained)));
    }

    pub(super) async fn settle(&mut self) {
        if self.state.next() != Deed::Confirm {
            return;
        }
        if let Some(starting) = self.made.starting.take() {
            match timeout(deadlines::SETTLED, starting).await {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(error))) => return self.broken(error.to_string()).await,
                Ok(Err(error)) => return self.broken(error.to_string()).await,
                Err(_) => {
                    return self
                        .broken("the engine does not come to an end of its start".into())
                        .await;
                }
            }
        }
        if drain::is_given_up(&self.host, &self.migration) {
            return self.give_back().await;
        }
        self.step_on(Event::Did(Deed::Confirm));
        self.made.lease = None;
        let here = self.relay.take().zip(self.made.created.clone());
        if let Some((relay, created)) = &here {
            self.try_tell(Message::Settled).await;
            drain::wait(&self.host, created, relay, &self.migration).await;
        }
        if let Err(reason) = recovery::remove_places(&self.host, &self.migration).await {
            log::warn!("migration {}: {reason}", self.migration);
        }
        self.step_on(Event::Did(Deed::RemovePlaces));
        if here.is_none() {
            self.try_tell(Message::Settled).await;
        }
        self.step_on(Event::Did(Deed::Say(Word::Settled)));
    }

    fn is_complete(&self) -> bool {
        self.store.as_ref().is_some_and(|store| store.is_complete())
    }

    /// A human has given the container up: recovery removes it, and tells the source when it is gone.
    async fn give_back(&mut self) {
        self.step_on(Event::GivenUp);
        let told = Cause::Failed("a human has given the container up here".into());
        let failure = Failure::new(Role::Destination, &self.host.name, Phase::Drain, told);
        self.try_tell(Message::Failed(failure)).await;
    }

    /// After the commit: the container is ours and does not run. Nothing is undone; a human must look.
    async fn broken(&mut self, reason: String) {
        self.step_on(Event::Broke);
        recovery::note_broken(&self.host, &self.migration, &reason).await;
        self.step_on(Event::Did(Deed::NoteBroken));
        let failure = Failure::new(
            Role::Destination,
            &self.host.name,
            Phase::Commit,
            Cause::Failed(reason),
        );
        self.try_tell(Message::Failed(failure)).await;
    }

    pub(super) fn step(&mut self, event: Event) -> Result<(), OutOfTurn> {
        self.state = self.state.step(event)?;
        Ok(())
    }

    /// After the commit: what is out of turn leaves the rest to recovery.
    fn step_on(&mut self, event: Event) {
        if let Err(error) = self.step(event) {
            log::error!("migration {}: {error}", self.migration);
        }
    }

    async fn try_tell(&mut self, message: Message) {
        if let Err(problem) = self.link.send(message).await {
            log::warn!("migration {}: the source was not told: {problem}", self.migration);
        }
    }
}
