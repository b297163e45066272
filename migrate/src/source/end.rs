//! How a source's part ends once the container is the destination's: it tells so, serves memory until nobody needs it, lets go.
//!
//! Nothing here fails: what does not come about is left to recovery, with the journal, and told in the report.

use std::time::Instant;

use super::Source;
use crate::clock::{Outcome, Remains};
use crate::deadlines;
use crate::drain;
use crate::failure::Problem;
use crate::message::Message;
use crate::protocol::source::{Deed, Event};
use crate::protocol::{Memory, Word};
use crate::recovery;

impl Source {
    pub(super) async fn tell_commit(&mut self) {
        let memory = Memory::seen(self.offering.is_some());
        self.step_on(Event::Sought(memory));
        let told = async {
            self.link.send(Message::Commit).await?;
            match self.link.receive("running", deadlines::RUNNING).await? {
                Message::Running { steps } => Ok(steps),
                other => Err(self.link.out_of_turn(&other)),
            }
        };
        match told.await {
            Ok(steps) => {
                self.clock.resumed();
                self.clock.extend(steps);
                self.step_on(Event::Heard(Word::Running));
            }
            Err(problem) => self.unconfirmed(&problem),
        }
    }

    /// Keeps the pages until the destination has them all. The container runs there meanwhile.
    pub(super) async fn drain(&mut self) {
        if self.state.next() != Deed::AwaitDrained {
            return;
        }
        if let Some(offering) = &self.offering {
            offering.begin();
        }
        let since = Instant::now();
        match self.link.receive("drained", deadlines::DRAIN).await {
            Ok(Message::Drained { memory }) => {
                self.clock.step("drain", since);
                self.memory = Some(memory);
                self.step_on(Event::Heard(Word::Drained));
            }
            Ok(other) => return self.unconfirmed(&self.link.out_of_turn(&other)),
            Err(problem) => return self.unconfirmed(&problem),
        }
        self.offering = None;
        if let Err(error) = drain::note_drained(&self.host, &self.migration) {
            self.remarks.push(format!(
                "the tasks left here cannot be told that they are done with: {error}"
            ));
        }
        self.step_on(Event::Did(Deed::NoteDrained));
    }

    pub(super) async fn release(&mut self) {
        if self.state.next() != Deed::FinishDump {
            // The destination may still need pages: recovery serves them and asks.
            return;
        }
        let finish = recovery::finish_dump(&self.host, &self.container, self.shim.clone());
        if let Err(reason) = finish.await {
            self.remarks.push(reason);
        }
        self.step_on(Event::Did(Deed::FinishDump));
        if self.state.next() != Deed::AwaitSettled {
            return;
        }
        match self.link.receive("settled", deadlines::SETTLED).await {
            Ok(Message::Settled) => self.step_on(Event::Heard(Word::Settled)),
            Ok(other) => return self.unconfirmed(&self.link.out_of_turn(&other)),
            Err(problem) => return self.unconfirmed(&problem),
        }
        match recovery::leave_source(&self.host, &self.container, &self.options).await {
            Ok(()) if !self.options.keep_source => self.remains = Remains::Nothing,
            Ok(()) => {}
            Err(error) => {
                let name = &self.container.name;
                self.remarks.push(format!("{name} is left here: {error}"));
            }
        }
        self.step_on(Event::Did(Deed::RemoveContainer));
        if let Err(reason) = recovery::remove_places(&self.host, &self.migration).await {
            self.remarks.push(reason);
        }
        self.step_on(Event::Did(Deed::RemovePlaces));
    }

    /// After the commit: what is out of turn leaves the rest to recovery.
    fn step_on(&mut self, event: Event) {
        if let Err(error) = self.step(event) {
            self.remarks.push(error.to_string());
        }
    }

    fn unconfirmed(&mut self, problem: &Problem) {
        self.step_on(Event::Lost);
        self.outcome = Outcome::CommittedUnconfirmed {
            reason: problem.to_string(),
        };
    }
}
