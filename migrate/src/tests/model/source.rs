//! The source in the model: each deed's effect on its host, and what it notices.

use crate::protocol::source::{Answer, Deed, Event, Marks, State};
use crate::protocol::{Memory, Word, destination};

use super::rules::Rules;
use super::world::{Agent, Message, SourceTasks, World};

impl Rules {
    /// Does what is next, whole. `None`: it cannot be done now, or changes nothing.
    pub(super) fn source_deed(&self, world: &World) -> Option<World> {
        let mut next = *world;
        let state = world.source.agent.state()?;
        let deed = (self.source_next)(state);
        let is_live = world.source.agent.is_live();
        let source = &mut next.source;
        let event = match deed {
            Deed::Open => {
                source.journal = Some(Marks::default());
                next.to_destination.push(Message::Prepare);
                Event::Did(deed)
            }
            Deed::NoteDisarming => {
                next.to_source.take(Message::Prepared)?;
                source.journal.as_mut()?.disarming = true;
                Event::Did(deed)
            }
            Deed::Disarm => {
                source.armed = false;
                Event::Did(deed)
            }
            Deed::NoteFreezing => {
                source.journal.as_mut()?.freezing = true;
                next.to_destination.push(Message::Freezing);
                Event::Did(deed)
            }
            Deed::Dump => {
                next.to_source.take(Message::Synced)?;
                source.tasks = SourceTasks::BeingFrozen;
                Event::Did(deed)
            }
            Deed::AwaitReady => {
                next.to_source.take(Message::Said(Word::Ready))?;
                Event::Heard(Word::Ready)
            }
            Deed::Decide(wanted) => {
                let standing = *source.verdict.get_or_insert(wanted);
                next.was_committed |= standing == godwit_runtime::verdict::Verdict::Committed;
                Event::Stands(standing)
            }
            Deed::Resume | Deed::FinishDump => {
                if matches!(source.tasks, SourceTasks::BeingFrozen | SourceTasks::Frozen) {
                    return None;
                }
                Event::Did(deed)
            }
            // An engine refuses what it does not have.
            Deed::Rearm if !source.container => return None,
            Deed::Rearm => {
                source.armed = true;
                Event::Did(deed)
            }
            Deed::SeekMemory => {
                if is_live {
                    next.to_destination.push(Message::Commit);
                }
                Event::Sought(Memory::seen(world.post && !world.source.drained))
            }
            Deed::TellCommit => {
                next.to_source.take(Message::Said(Word::Running))?;
                Event::Heard(Word::Running)
            }
            Deed::AwaitDrained => {
                next.to_source.take(Message::Said(Word::Drained))?;
                Event::Heard(Word::Drained)
            }
            Deed::AwaitSettled => {
                next.to_source.take(Message::Said(Word::Settled))?;
                Event::Heard(Word::Settled)
            }
            Deed::NoteDrained => {
                source.drained = true;
                Event::Did(deed)
            }
            Deed::TellAgain if is_live => {
                // The runner has no link any more: recovery takes over from what is written down.
                next.to_destination.ended = true;
                next.source.agent = self.source_recovery(world);
                return Some(next);
            }
            Deed::TellAgain => {
                let Some(word) = self.tell(&mut next)? else {
                    return changed(world, next);
                };
                Event::Heard(word)
            }
            Deed::NoteReclaimed => {
                source.journal.as_mut()?.reclaimed = true;
                Event::Did(deed)
            }
            Deed::StartAfresh => {
                source.tasks = SourceTasks::Running;
                source.armed = true;
                // A new life of the container, which was committed to nobody.
                next.was_committed = false;
                Event::Did(deed)
            }
            Deed::RemoveContainer => {
                source.container = false;
                source.tasks = SourceTasks::Dead;
                Event::Did(deed)
            }
            Deed::RemovePlaces if self.journal_goes_first && source.journal.is_some() => {
                source.journal = None;
                return Some(next);
            }
            Deed::RemovePlaces if !self.journal_goes_first && source.verdict.is_some() => {
                source.verdict = None;
                return Some(next);
            }
            Deed::RemovePlaces => {
                (source.journal, source.verdict, source.drained) = (None, None, false);
                Event::Did(deed)
            }
            Deed::Rest => {
                if is_live {
                    next.to_destination.ended = true;
                }
                next.source.agent = Agent::Idle;
                return Some(next);
            }
        };
        let followed = (self.source_step)(state, event).ok()?;
        next.source.agent = world.source.agent.with(followed);
        Some(next)
    }

    /// A deed that was begun when the move was given up; its effect did not come.
    pub(super) fn source_half_deed(&self, world: &World) -> Option<World> {
        let Agent::Live(state) = world.source.agent else {
            return None;
        };
        let deed = (self.source_next)(state);
        if !matches!(
            deed,
            Deed::Open | Deed::NoteDisarming | Deed::Disarm | Deed::NoteFreezing | Deed::Dump
        ) {
            return None;
        }
        let begun = (self.source_step)(state, Event::Did(deed)).ok()?;
        let given_up = (self.source_step)(begun, Event::GaveUp).ok()?;
        let mut next = *world;
        next.source.agent = Agent::Live(given_up);
        next.to_destination.push(Message::Failed);
        Some(next)
    }

    /// Something failed, or somebody asked for it.
    pub(super) fn source_gives_up(&self, world: &World) -> Option<World> {
        let Agent::Live(state) = world.source.agent else {
            return None;
        };
        let given_up = (self.source_step)(state, Event::GaveUp).ok()?;
        if given_up == state {
            return None;
        }
        let mut next = *world;
        next.source.agent = Agent::Live(given_up);
        next.to_destination.push(Message::Failed);
        Some(next)
    }

    /// The link is lost, or the destination has failed.
    pub(super) fn source_notices(&self, world: &World) -> Option<World> {
        let Agent::Live(state) = world.source.agent else {
            return None;
        };
        if !world.to_source.is_over() && world.to_source.head() != Some(Message::Failed) {
            return None;
        }
        let mut next = *world;
        if let Ok(given_up) = (self.source_step)(state, Event::GaveUp) {
            if given_up == state {
                return None;
            }
            next.to_destination.push(Message::Failed);
            next.source.agent = Agent::Live(given_up);
        } else {
            next.source.agent = Agent::Live((self.source_step)(state, Event::Lost).ok()?);
        }
        next.to_source.cut();
        next.to_destination.ended = true;
        changed(world, next)
    }

    pub(super) fn source_crashes(&self, world: &World) -> Option<World> {
        if !world.source.agent.is_up() || world.source.crashes_left == 0 {
            return None;
        }
        let mut next = *world;
        next.source.crashes_left -= 1;
        next.source.agent = Agent::Down;
        next.to_destination.ended = true;
        Some(next)
    }

    pub(super) fn source_starts(&self, world: &World) -> Option<World> {
        if world.source.agent.is_up() {
            return None;
        }
        let mut next = *world;
        next.source.agent = self.source_recovery(world);
        if world.source.journal.is_none() {
            // What `Found::sweep` does.
            (next.source.verdict, next.source.drained) = (None, false);
        }
        next.to_source.cut();
        Some(next)
    }

    fn source_recovery(&self, world: &World) -> Agent<State> {
        world
            .source
            .journal
            .map_or(Agent::Idle, |marks| Agent::Recovering((self.source_found)(marks)))
    }

    /// Answers a destination that asks for the verdict, and says what it says.
    pub(super) fn asked(&self, world: &mut World) -> Option<godwit_runtime::verdict::Verdict> {
        if !world.source.agent.is_up() {
            return None;
        }
        Some(match (self.source_asked)(world.source.journal.is_some()) {
            Answer::Say(verdict) => verdict,
            Answer::Decide(wanted) => *world.source.verdict.get_or_insert(wanted),
        })
    }

    /// Tells the destination of the commit; its word, if that ends the asking. `None`: it does not answer.
    fn tell(&self, world: &mut World) -> Option<Option<Word>> {
        if !world.destination.agent.is_up() {
            return None;
        }
        let answer = (self.destination_told)(world.destination.journal);
        Some(match answer {
            destination::Answer::Settled => Some(Word::Settled),
            destination::Answer::GivenUp => Some(Word::GivenUp),
            destination::Answer::Broken => None,
            destination::Answer::DecideAndSayPending => {
                world
                    .destination
                    .verdict
                    .get_or_insert(godwit_runtime::verdict::Verdict::Committed);
                None
            }
        })
    }

    /// The destination hears of the commit, and its answer is lost.
    pub(super) fn telling_goes_unanswered(&self, world: &World) -> Option<World> {
        let Agent::Recovering(state) = world.source.agent else {
            return None;
        };
        if (self.source_next)(state) != Deed::TellAgain {
            return None;
        }
        let mut next = *world;
        self.tell(&mut next)?;
        changed(world, next)
    }
}

/// A step that leads nowhere else is none.
pub(super) fn changed(before: &World, after: World) -> Option<World> {
    (*before != after).then_some(after)
}
