//! Two hosts as the model sees them: what is durable, what the container's tasks do, and what is on its way.
//!
//! Kept small, because all of it is remembered for each of some hundred thousand states.

use godwit_runtime::verdict::Verdict;

use crate::protocol::destination::{self, Marks};
use crate::protocol::{Word, source};

/// An agent, and what it does for the one move there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Agent<S> {
    /// Dead.
    Down,
    /// It has nothing to do.
    Idle,
    /// The runner, with its link.
    Live(S),
    /// What an agent does by journal and verdict file.
    Recovering(S),
}

impl<S: Copy> Agent<S> {
    pub(super) fn state(self) -> Option<S> {
        match self {
            Self::Live(state) | Self::Recovering(state) => Some(state),
            Self::Down | Self::Idle => None,
        }
    }

    pub(super) fn is_up(self) -> bool {
        !matches!(self, Self::Down)
    }

    pub(super) fn is_live(self) -> bool {
        matches!(self, Self::Live(_))
    }

    pub(super) fn with(self, state: S) -> Self {
        if self.is_live() {
            Self::Live(state)
        } else {
            Self::Recovering(state)
        }
    }
}

/// What the container's tasks do at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum SourceTasks {
    Running,
    /// A dump was asked for.
    BeingFrozen,
    /// They stand still, held.
    Frozen,
    Dead,
}

/// What they do at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum DestinationTasks {
    None,
    /// The engine's start waits for the image.
    AwaitingImage,
    /// A restore was asked for.
    BeingRestored,
    Held,
    Running,
    /// They were restored and are dead.
    Dead,
}

/// The host that the container is on at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SourceHost {
    pub(super) agent: Agent<source::State>,
    pub(super) journal: Option<source::Marks>,
    pub(super) verdict: Option<Verdict>,
    /// The file that tells the holder that no page is needed.
    pub(super) drained: bool,
    /// The engine would start the container if it were dead.
    pub(super) armed: bool,
    pub(super) container: bool,
    pub(super) tasks: SourceTasks,
    pub(super) crashes_left: u8,
}

/// The host that it goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct DestinationHost {
    pub(super) agent: Agent<destination::State>,
    pub(super) journal: Option<Marks>,
    pub(super) verdict: Option<Verdict>,
    pub(super) container: bool,
    pub(super) tasks: DestinationTasks,
    /// Memory of theirs is still at the source.
    pub(super) fetching: bool,
    pub(super) crashes_left: u8,
}

/// A message on the link of the move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Message {
    Prepare,
    Prepared,
    Freezing,
    Synced,
    Image,
    Commit,
    Said(Word),
    Failed,
}

/// Messages in flight one way: there are never more than this on their way.
const IN_FLIGHT: usize = 4;

/// One direction of the link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Pipe {
    messages: [Option<Message>; IN_FLIGHT],
    /// Nothing more comes.
    pub(super) ended: bool,
}

impl Pipe {
    pub(super) fn push(&mut self, message: Message) {
        if self.ended {
            return;
        }
        let free = self.messages.iter_mut().find(|place| place.is_none());
        *free.expect("more messages in flight than the protocol can have") = Some(message);
    }

    pub(super) fn head(&self) -> Option<Message> {
        self.messages[0]
    }

    /// Takes the first message if it is this one.
    pub(super) fn take(&mut self, wanted: Message) -> Option<()> {
        (self.head() == Some(wanted)).then(|| {
            self.messages.rotate_left(1);
            self.messages[IN_FLIGHT - 1] = None;
        })
    }

    pub(super) fn is_over(&self) -> bool {
        self.ended && self.head().is_none()
    }

    /// Loses what is in flight, and all that would come.
    pub(super) fn cut(&mut self) {
        *self = Self {
            ended: true,
            ..Self::default()
        };
    }
}

/// Everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    /// Memory follows after the container runs.
    pub(super) post: bool,
    pub(super) source: SourceHost,
    pub(super) destination: DestinationHost,
    pub(super) to_source: Pipe,
    pub(super) to_destination: Pipe,
    /// CRIU may die in the restore.
    pub(super) restore_may_die: bool,
    /// It has.
    pub(super) restore_died: bool,
    /// A human may give the container up at the destination.
    pub(super) human_may_give_up: bool,
    /// A human has.
    pub(super) was_given_up: bool,
    /// `committed` has stood at the source.
    pub(super) was_committed: bool,
}

impl World {
    pub(super) fn new(post: bool, crashes: u8, restore_may_die: bool, human_may_give_up: bool) -> Self {
        Self {
            post,
            source: SourceHost {
                agent: Agent::Live(source::State::Unopened),
                journal: None,
                verdict: None,
                drained: false,
                armed: true,
                container: true,
                tasks: SourceTasks::Running,
                crashes_left: crashes,
            },
            destination: DestinationHost {
                agent: Agent::Live(destination::State::Unopened),
                journal: None,
                verdict: None,
                container: false,
                tasks: DestinationTasks::None,
                fetching: false,
                crashes_left: crashes,
            },
            to_source: Pipe::default(),
            to_destination: Pipe::default(),
            restore_may_die,
            restore_died: false,
            human_may_give_up,
            was_given_up: false,
            was_committed: false,
        }
    }

    /// Whether the tasks' memory at the source can be had at the moment.
    pub(super) fn is_offered(&self) -> bool {
        let state = self.source.agent.state();
        self.source.tasks == SourceTasks::Frozen
            && matches!(
                state,
                Some(source::State::Committed {
                    memory: crate::protocol::Memory::Left,
                    ..
                })
            )
    }

    pub(super) fn runs_at_source(&self) -> bool {
        self.source.tasks == SourceTasks::Running
    }

    pub(super) fn runs_at_destination(&self) -> bool {
        self.destination.tasks == DestinationTasks::Running
    }

    /// A committed container that died, which its destination has written down for a human.
    pub(super) fn is_broken(&self) -> bool {
        self.destination.tasks == DestinationTasks::Dead
            && self
                .destination
                .journal
                .is_some_and(|marks| marks.broken && !marks.given_up)
    }

    /// Nothing of the move is left on either host.
    pub(super) fn is_clean(&self) -> bool {
        let idle = self.source.agent == Agent::Idle && self.destination.agent == Agent::Idle;
        let unwritten = self.source.journal.is_none()
            && self.source.verdict.is_none()
            && !self.source.drained
            && self.destination.journal.is_none()
            && self.destination.verdict.is_none();
        let at_source = self.source.container && self.source.armed && !self.destination.container;
        let at_destination =
            self.destination.container && !self.source.container && !self.destination.fetching;
        let one = if self.runs_at_source() {
            at_source
        } else {
            at_destination
        };
        idle && unwritten && one
    }
}
