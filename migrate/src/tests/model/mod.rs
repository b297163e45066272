//! Every order of deeds, losses, crashes and deaths that a move can have, tried by a model checker.
//!
//! The model has two hosts, a link and the processes that hold the tasks. What each of them does next is asked of the same
//! functions that the agents and the holder ask ([`rules::Rules`]); all that the model adds is what a deed does to a host.
//! It knows nothing of time: a deadline may pass, and an answer be lost, whenever there is one.

mod check;
mod destination;
mod holders;
mod mutants;
mod rules;
mod source;
mod world;

use stateright::{Model, Property};

use rules::Rules;
use world::{DestinationTasks, SourceTasks, World};

/// Moves that go wrong in every way, under one set of rules.
struct Moves {
    rules: Rules,
    /// How often each agent may crash.
    crashes: u8,
    /// Whether a human may give the container up at the destination.
    human_may_give_up: bool,
    /// Whether CRIU may die in the restore.
    restore_may_die: bool,
}

/// One step of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    SourceDeed,
    SourceNotices,
    SourceStarts,
    DestinationDeed,
    DestinationNotices,
    DestinationStarts,
    TasksFreeze,
    DumpIsHeldNoLonger,
    DumpDeadline,
    RestoreIsHeld,
    RestoreIsHeldNoLonger,
    MemoryArrives,
    // What follows need never happen.
    SourceHalfDeed,
    SourceGivesUp,
    SourceCrashes,
    DestinationHalfDeed,
    DestinationGivesUp,
    DestinationCrashes,
    RestoreDies,
    HumanGivesUp,
    LinkToSourceCut,
    LinkToDestinationCut,
    QuestionUnanswered,
    TellingUnanswered,
}

/// What happens by itself, sooner or later.
const PROGRESS: [Action; 12] = [
    Action::SourceDeed,
    Action::SourceNotices,
    Action::SourceStarts,
    Action::DestinationDeed,
    Action::DestinationNotices,
    Action::DestinationStarts,
    Action::TasksFreeze,
    Action::DumpIsHeldNoLonger,
    Action::DumpDeadline,
    Action::RestoreIsHeld,
    Action::RestoreIsHeldNoLonger,
    Action::MemoryArrives,
];

/// What may happen besides, at any time.
const FAULTS: [Action; 12] = [
    Action::SourceHalfDeed,
    Action::SourceGivesUp,
    Action::SourceCrashes,
    Action::DestinationHalfDeed,
    Action::DestinationGivesUp,
    Action::DestinationCrashes,
    Action::RestoreDies,
    Action::HumanGivesUp,
    Action::LinkToSourceCut,
    Action::LinkToDestinationCut,
    Action::QuestionUnanswered,
    Action::TellingUnanswered,
];

impl Moves {
    fn step(&self, world: &World, action: Action) -> Option<World> {
        let rules = &self.rules;
        match action {
            Action::SourceDeed => rules.source_deed(world),
            Action::SourceNotices => rules.source_notices(world),
            Action::SourceStarts => rules.source_starts(world),
            Action::DestinationDeed => rules.destination_deed(world),
            Action::DestinationNotices => rules.destination_notices(world),
            Action::DestinationStarts => rules.destination_starts(world),
            Action::TasksFreeze => holders::tasks_freeze(world),
            Action::DumpIsHeldNoLonger => rules.dump_is_held_no_longer(world),
            Action::DumpDeadline => rules.dump_deadline(world),
            Action::RestoreIsHeld => holders::restore_is_held(world),
            Action::RestoreIsHeldNoLonger => holders::restore_is_held_no_longer(world),
            Action::MemoryArrives => holders::memory_arrives(world),
            Action::SourceHalfDeed => rules.source_half_deed(world),
            Action::SourceGivesUp => rules.source_gives_up(world),
            Action::SourceCrashes => rules.source_crashes(world),
            Action::DestinationHalfDeed => rules.destination_half_deed(world),
            Action::DestinationGivesUp => rules.destination_gives_up(world),
            Action::DestinationCrashes => rules.destination_crashes(world),
            Action::RestoreDies => holders::restore_dies(world),
            Action::HumanGivesUp => rules.human_gives_up(world),
            Action::LinkToSourceCut => cut(world, |next| next.to_source.cut()),
            Action::LinkToDestinationCut => cut(world, |next| next.to_destination.cut()),
            Action::QuestionUnanswered => rules.question_goes_unanswered(world),
            Action::TellingUnanswered => rules.telling_goes_unanswered(world),
        }
    }

    /// Whether nothing can happen here any more unless something goes wrong.
    fn is_at_rest(&self, world: &World) -> bool {
        PROGRESS.iter().all(|action| self.step(world, *action).is_none())
    }
}

fn cut(world: &World, cut: fn(&mut World)) -> Option<World> {
    let mut next = *world;
    cut(&mut next);
    // Only a runner has the link.
    (next != *world && (world.source.agent.is_live() || world.destination.agent.is_live())).then_some(next)
}

impl Model for Moves {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        [false, true]
            .map(|post| World::new(post, self.crashes, self.restore_may_die, self.human_may_give_up))
            .into()
    }

    fn actions(&self, _: &World, actions: &mut Vec<Action>) {
        actions.extend(PROGRESS);
        actions.extend(FAULTS);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        self.step(world, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("never two copies run", |_, world: &World| {
                !(world.runs_at_source() && world.runs_at_destination())
            }),
            Property::always(
                "it runs at the destination only after the commit",
                |_, world: &World| !world.runs_at_destination() || world.was_committed,
            ),
            Property::always(
                "it runs at the source only without a commit",
                |_, world: &World| !world.runs_at_source() || !world.was_committed,
            ),
            Property::always(
                "no engine would start a container that was given away",
                |_, world: &World| {
                    let source = &world.source;
                    !(source.armed && source.container && source.tasks == SourceTasks::Dead)
                },
            ),
            Property::always("memory that is needed is kept", |_, world: &World| {
                !world.destination.fetching || world.source.tasks != SourceTasks::Dead
            }),
            Property::always("never is the last copy destroyed", |_, world: &World| {
                world.source.tasks != SourceTasks::Dead
                    || matches!(
                        world.destination.tasks,
                        DestinationTasks::Held | DestinationTasks::Running
                    )
                    || world.restore_died
                    || world.was_given_up
            }),
            Property::always(
                "files stay at the source until the container runs elsewhere",
                |_, world: &World| world.source.container || world.runs_at_destination(),
            ),
            Property::always(
                "whoever rests has brought it to its end",
                |model: &Self, world| !model.is_at_rest(world) || world.is_clean() || world.is_broken(),
            ),
            Property::eventually(
                "exactly one copy runs and nothing is left behind",
                |_, world: &World| world.is_clean() || world.is_broken(),
            ),
        ]
    }
}
