//! What holds the tasks in the model, on either host: it needs no agent, and no agent can stop it.

use godwit_runtime::verdict::{Fate, Verdict};

use super::rules::Rules;
use super::source::changed;
use super::world::{Agent, DestinationTasks, Message, SourceTasks, World};
use crate::protocol::source::State;

/// A dump that was asked for comes to its hold. A runner that still wants it sends the image.
pub(super) fn tasks_freeze(world: &World) -> Option<World> {
    if world.source.tasks != SourceTasks::BeingFrozen {
        return None;
    }
    let mut next = *world;
    next.source.tasks = SourceTasks::Frozen;
    if world.source.agent == Agent::Live(State::Dumping) {
        next.to_destination.push(Message::Image);
    }
    Some(next)
}

pub(super) fn restore_is_held(world: &World) -> Option<World> {
    if world.destination.tasks != DestinationTasks::BeingRestored {
        return None;
    }
    let mut next = *world;
    next.destination.tasks = DestinationTasks::Held;
    Some(next)
}

pub(super) fn restore_is_held_no_longer(world: &World) -> Option<World> {
    if world.destination.tasks != DestinationTasks::Held {
        return None;
    }
    let mut next = *world;
    match world.destination.verdict? {
        Verdict::Committed => {
            next.destination.tasks = DestinationTasks::Running;
            next.destination.fetching = world.post;
        }
        Verdict::Aborted => next.destination.tasks = DestinationTasks::Dead,
    }
    Some(next)
}

/// CRIU is killed while it restores or holds.
pub(super) fn restore_dies(world: &World) -> Option<World> {
    let restoring = matches!(
        world.destination.tasks,
        DestinationTasks::BeingRestored | DestinationTasks::Held
    );
    if !restoring || !world.restore_may_die || world.restore_died {
        return None;
    }
    let mut next = *world;
    next.restore_died = true;
    next.destination.tasks = DestinationTasks::Dead;
    Some(next)
}

/// All that was left at the source comes over; in the end nobody can tell how many steps it took.
pub(super) fn memory_arrives(world: &World) -> Option<World> {
    if !world.destination.fetching || !world.is_offered() {
        return None;
    }
    let mut next = *world;
    next.destination.fetching = false;
    Some(next)
}

impl Rules {
    /// The holder, or whoever outlived it, sees a verdict.
    pub(super) fn dump_is_held_no_longer(&self, world: &World) -> Option<World> {
        if world.source.tasks != SourceTasks::Frozen {
            return None;
        }
        let pages_are_needed = world.post && !world.source.drained;
        let mut next = *world;
        next.source.tasks = match (self.fate)(world.source.verdict?, pages_are_needed) {
            Fate::GivenBack => SourceTasks::Running,
            Fate::Kept => SourceTasks::Frozen,
            Fate::Killed => SourceTasks::Dead,
        };
        changed(world, next)
    }

    /// The holder's deadline passes, or CRIU is killed in the hold.
    pub(super) fn dump_deadline(&self, world: &World) -> Option<World> {
        if world.source.tasks != SourceTasks::Frozen || world.source.verdict.is_some() {
            return None;
        }
        let mut next = *world;
        next.source.verdict = Some(self.without_word);
        Some(next)
    }
}
