//! The destination in the model: each deed's effect on its host, and what it notices.

use crate::protocol::destination::{Deed, Event, Marks, State};
use crate::protocol::{Memory, Word};

use super::rules::Rules;
use super::source::changed;
use super::world::{Agent, DestinationTasks, Message, World};

impl Rules {
    /// Does what is next, whole. `None`: it cannot be done now, or changes nothing.
    pub(super) fn destination_deed(&self, world: &World) -> Option<World> {
        let mut next = *world;
        let state = world.destination.agent.state()?;
        let deed = (self.destination_next)(state);
        let is_live = world.destination.agent.is_live();
        let destination = &mut next.destination;
        let event = match deed {
            Deed::Open => {
                next.to_destination.take(Message::Prepare)?;
                destination.journal = Some(Marks::default());
                Event::Did(deed)
            }
            Deed::NoteCreating => {
                destination.journal.as_mut()?.creating = true;
                Event::Did(deed)
            }
            Deed::Create => {
                destination.container = true;
                Event::Did(deed)
            }
            Deed::NoteCreated => {
                destination.journal.as_mut()?.created = true;
                Event::Did(deed)
            }
            Deed::Start => {
                destination.tasks = DestinationTasks::AwaitingImage;
                next.to_source.push(Message::Prepared);
                Event::Did(deed)
            }
            Deed::NoteRestoring => {
                next.to_destination.take(Message::Freezing)?;
                destination.journal.as_mut()?.restoring = true;
                next.to_source.push(Message::Synced);
                Event::Did(deed)
            }
            Deed::Restore => {
                next.to_destination.take(Message::Image)?;
                destination.tasks = DestinationTasks::BeingRestored;
                Event::Did(deed)
            }
            Deed::Say(Word::Ready) if destination.tasks == DestinationTasks::BeingRestored => return None,
            Deed::Say(word) => {
                if is_live {
                    next.to_source.push(Message::Said(word));
                }
                Event::Did(deed)
            }
            Deed::AwaitWord => {
                next.to_destination.take(Message::Commit)?;
                Event::Commit
            }
            Deed::AskSource => Event::Told(match destination.verdict {
                Some(verdict) => verdict,
                None => self.asked(&mut next)?,
            }),
            Deed::Decide(wanted) => Event::Stands(*destination.verdict.get_or_insert(wanted)),
            Deed::Resume => match destination.tasks {
                DestinationTasks::Running => Event::Did(deed),
                DestinationTasks::BeingRestored | DestinationTasks::Held => return None,
                DestinationTasks::None | DestinationTasks::AwaitingImage | DestinationTasks::Dead => {
                    Event::Broke
                }
            },
            Deed::SeekMemory => Event::Sought(Memory::seen(if is_live {
                world.post
            } else {
                destination.fetching
            })),
            Deed::AwaitMemory | Deed::Confirm if destination.journal?.given_up => Event::GivenUp,
            Deed::AwaitMemory => {
                if destination.fetching {
                    return None;
                }
                Event::Did(deed)
            }
            Deed::Confirm => Event::Did(deed),
            Deed::RemoveContainer => {
                destination.container = false;
                destination.tasks = DestinationTasks::None;
                destination.fetching = false;
                Event::Did(deed)
            }
            Deed::NoteReturned => {
                destination.journal.as_mut()?.returned = true;
                Event::Did(deed)
            }
            Deed::AskReclaimed => Event::Told(self.asked(&mut next)?),
            Deed::NoteBroken => {
                destination.journal.as_mut()?.broken = true;
                Event::Did(deed)
            }
            Deed::Undo | Deed::RemoveUnfinished => {
                if matches!(
                    destination.tasks,
                    DestinationTasks::BeingRestored | DestinationTasks::Held
                ) {
                    return None;
                }
                destination.container = false;
                destination.tasks = DestinationTasks::None;
                Event::Did(deed)
            }
            Deed::RemovePlaces if self.journal_goes_first && destination.journal.is_some() => {
                destination.journal = None;
                return Some(next);
            }
            Deed::RemovePlaces if !self.journal_goes_first && destination.verdict.is_some() => {
                destination.verdict = None;
                return Some(next);
            }
            Deed::RemovePlaces => {
                (destination.journal, destination.verdict) = (None, None);
                Event::Did(deed)
            }
            Deed::Rest => {
                if is_live {
                    next.to_source.ended = true;
                }
                next.destination.agent = Agent::Idle;
                return Some(next);
            }
        };
        let followed = (self.destination_step)(state, event).ok()?;
        next.destination.agent = match followed {
            // A runner leaves the rest to recovery, and its link with it.
            State::GivingBack if is_live => {
                next.to_source.ended = true;
                Agent::Recovering(followed)
            }
            _ => world.destination.agent.with(followed),
        };
        changed(world, next)
    }

    /// A human gives up a container that does not run here, or whose memory does not come.
    pub(super) fn human_gives_up(&self, world: &World) -> Option<World> {
        let marks = world.destination.journal?;
        let may = world.is_broken() || world.destination.fetching;
        if !world.human_may_give_up
            || world.was_given_up
            || !world.destination.agent.is_up()
            || marks.given_up
            || !may
        {
            return None;
        }
        let mut next = *world;
        next.was_given_up = true;
        let marks = Marks {
            given_up: true,
            ..marks
        };
        next.destination.journal = Some(marks);
        // As the local API does: what is at rest is taken up anew.
        if matches!(
            world.destination.agent,
            Agent::Idle | Agent::Live(State::Broken) | Agent::Recovering(State::Broken)
        ) {
            if matches!(world.destination.agent, Agent::Live(_)) {
                next.to_source.ended = true;
            }
            let found = (self.destination_found)(marks, world.destination.verdict);
            next.destination.agent = Agent::Recovering(found);
        }
        Some(next)
    }

    /// A deed that was begun when the move was given up; its effect did not come.
    pub(super) fn destination_half_deed(&self, world: &World) -> Option<World> {
        let Agent::Live(state) = world.destination.agent else {
            return None;
        };
        let deed = (self.destination_next)(state);
        if !matches!(
            deed,
            Deed::Open
                | Deed::NoteCreating
                | Deed::Create
                | Deed::NoteCreated
                | Deed::Start
                | Deed::NoteRestoring
                | Deed::Restore
        ) {
            return None;
        }
        let begun = (self.destination_step)(state, Event::Did(deed)).ok()?;
        self.give_up(world, begun)
    }

    /// Something failed, or the agent is being stopped.
    pub(super) fn destination_gives_up(&self, world: &World) -> Option<World> {
        match world.destination.agent {
            Agent::Live(state) => self.give_up(world, state),
            _ => None,
        }
    }

    fn give_up(&self, world: &World, state: State) -> Option<World> {
        let given_up = (self.destination_step)(state, Event::GaveUp).ok()?;
        if given_up == state {
            return None;
        }
        let mut next = *world;
        next.destination.agent = Agent::Live(given_up);
        next.to_source.push(Message::Failed);
        Some(next)
    }

    /// The link is lost, or the source has failed.
    pub(super) fn destination_notices(&self, world: &World) -> Option<World> {
        let Agent::Live(state) = world.destination.agent else {
            return None;
        };
        let has_failed = world.to_destination.head() == Some(Message::Failed);
        if !world.to_destination.is_over() && !has_failed {
            return None;
        }
        let event = if has_failed {
            Event::SourceFailed
        } else {
            Event::Lost
        };
        let mut next = match (self.destination_step)(state, event) {
            Ok(followed) => {
                let mut next = *world;
                next.destination.agent = Agent::Live(followed);
                next
            }
            Err(_) => self.give_up(world, state)?,
        };
        next.to_destination.cut();
        next.to_source.ended = true;
        changed(world, next)
    }

    pub(super) fn destination_crashes(&self, world: &World) -> Option<World> {
        if !world.destination.agent.is_up() || world.destination.crashes_left == 0 {
            return None;
        }
        let mut next = *world;
        next.destination.crashes_left -= 1;
        next.destination.agent = Agent::Down;
        next.to_source.ended = true;
        Some(next)
    }

    pub(super) fn destination_starts(&self, world: &World) -> Option<World> {
        if world.destination.agent.is_up() {
            return None;
        }
        let mut next = *world;
        next.destination.agent = world.destination.journal.map_or(Agent::Idle, |marks| {
            Agent::Recovering((self.destination_found)(marks, world.destination.verdict))
        });
        if world.destination.journal.is_none() {
            // What `Found::sweep` does.
            next.destination.verdict = None;
        }
        next.to_destination.cut();
        Some(next)
    }

    /// The source hears the question, and its answer is lost.
    pub(super) fn question_goes_unanswered(&self, world: &World) -> Option<World> {
        let state = world.destination.agent.state()?;
        if (self.destination_next)(state) != Deed::AskSource || world.destination.verdict.is_some() {
            return None;
        }
        let mut next = *world;
        self.asked(&mut next)?;
        changed(world, next)
    }
}
