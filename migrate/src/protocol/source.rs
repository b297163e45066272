//! The source's lifecycle in a move: from a container that runs here to one that is gone, or runs as before.
//!
//! Before the verdict every state leads back by [`Event::GaveUp`]; after it none does. Only [`State::Ready`] may try to
//! make `committed` the verdict, and whoever else comes to a verdict tries `aborted` and obeys what stands.

use godwit_runtime::verdict::Verdict;

use super::{Memory, OutOfTurn, Word};

/// How far the container was taken from its owner, and who that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Nothing of the move is written down.
    Unopened,
    /// There is a journal; the container was not touched.
    Opened,
    /// The journal says that its engine is told not to start it again.
    Disarming,
    /// Its engine does not start it again.
    Disarmed,
    /// The journal says that it is frozen.
    Freezing,
    /// Its shim was asked to dump it: it may stand still until there is a verdict.
    Dumping,
    /// The destination holds a restored copy, and waits.
    Ready,
    /// It is to run on here, unless it belongs to the destination by now.
    GivingUp,
    /// `aborted` stands: it runs on.
    Aborted,
    /// It runs here; its engine would not start it again.
    Resumed,
    /// It runs here as before.
    Undone,
    /// `committed` stands: the container is the destination's, what is left of it here must not run.
    Committed {
        /// Whether the destination needs memory of its tasks.
        memory: Memory,
        /// How the destination is spoken to.
        line: Line,
    },
    /// The destination has all memory, which whoever holds the tasks has not heard.
    Drained {
        /// How the destination is spoken to.
        line: Line,
        /// It has said that nothing is left to do there.
        is_settled: bool,
    },
    /// The tasks are dead here; the destination is not done yet.
    Finished {
        /// How the destination is spoken to.
        line: Line,
    },
    /// Nothing is left to do at the destination.
    Settled {
        /// The tasks are dead here.
        is_finished: bool,
    },
    /// The container is gone; only the journal is here.
    Removed,
    /// It is this host's again, without its memory; what is left of its tasks must not run.
    Returning(Memory),
    /// The same, and they are dead.
    Returned,
    /// The same, written down.
    Reclaimed,
    /// Nothing is left to do.
    Over,
}

/// How a source that has committed speaks to the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Line {
    /// By the link of the move, on which the commit was not told yet.
    Untold,
    /// By the link of the move; the container was said to run.
    Told,
    /// By connections of their own, since that link is gone.
    Lost,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Deed {
    /// Begin the journal.
    Open,
    /// Write `disarming` into it.
    NoteDisarming,
    /// Tell the engine not to start the container again.
    Disarm,
    /// Write `freezing` into the journal.
    NoteFreezing,
    /// Have the shim dump the container and hold it.
    Dump,
    /// Wait for the destination's word that it holds a copy.
    AwaitReady,
    /// Try to make this the verdict.
    Decide(Verdict),
    /// Wait until the container runs on.
    Resume,
    /// Let its engine start it again.
    Rearm,
    /// Look whether its tasks have memory that is not in the image.
    SeekMemory,
    /// Say `commit` and wait for the word that the container runs there.
    TellCommit,
    /// Keep the tasks' memory for the destination until it has it.
    AwaitDrained,
    /// Ask the destination on a connection of its own, telling it of the commit, until nothing is left to do there.
    TellAgain,
    /// Tell whoever holds the tasks that nobody needs their memory.
    NoteDrained,
    /// Wait until they are dead.
    FinishDump,
    /// Wait for the destination's word that nothing is left to do there.
    AwaitSettled,
    /// Remove the container.
    RemoveContainer,
    /// Write `reclaimed` into the journal.
    NoteReclaimed,
    /// Have the engine start the container from its files.
    StartAfresh,
    /// Remove what is written down of the move.
    RemovePlaces,
    /// Nothing.
    Rest,
}

/// What happens to a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// It did what was next. Up to the dump this is told before the deed, which may then be done by half.
    Did(Deed),
    /// The move is given up: something failed, the link was lost, or somebody asked for it.
    GaveUp,
    /// This verdict stands, whoever wrote it.
    Stands(Verdict),
    /// Whether memory is left in the tasks.
    Sought(Memory),
    /// The destination's word.
    Heard(Word),
    /// After the commit: the link is lost, or what it brought makes no sense.
    Lost,
}

/// What a source does that a destination asks what became of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Say this; there is nothing to decide about.
    Say(Verdict),
    /// Try to make this the verdict and say what stands.
    Decide(Verdict),
}

/// Answers a destination. A move that is not in the journals was undone; one that is and has no verdict gets it here and
/// now: having been asked, this host can no longer commit.
pub fn asked(is_known: bool) -> Answer {
    if is_known {
        Answer::Decide(Verdict::Aborted)
    } else {
        Answer::Say(Verdict::Aborted)
    }
}

/// What a journal says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Marks {
    /// The engine may not start the container again.
    pub disarming: bool,
    /// The container may stand still.
    pub freezing: bool,
    /// It was committed and is this host's again.
    pub reclaimed: bool,
}

impl State {
    /// Where a move stands of which only the journal is known.
    pub fn found(marks: Marks) -> Self {
        match marks {
            Marks { reclaimed: true, .. } => Self::Reclaimed,
            Marks { freezing: true, .. } => Self::GivingUp,
            Marks { disarming: true, .. } => Self::Resumed,
            _ => Self::Undone,
        }
    }

    /// Whether the container belongs to the destination.
    pub fn is_committed(self) -> bool {
        matches!(
            self,
            Self::Committed { .. }
                | Self::Drained { .. }
                | Self::Finished { .. }
                | Self::Settled { .. }
                | Self::Removed
                | Self::Returning(_)
                | Self::Returned
        )
    }

    /// What is to be done.
    pub fn next(self) -> Deed {
        match self {
            Self::Unopened => Deed::Open,
            Self::Opened => Deed::NoteDisarming,
            Self::Disarming => Deed::Disarm,
            Self::Disarmed => Deed::NoteFreezing,
            Self::Freezing => Deed::Dump,
            Self::Dumping => Deed::AwaitReady,
            Self::Ready => Deed::Decide(Verdict::Committed),
            Self::GivingUp => Deed::Decide(Verdict::Aborted),
            Self::Aborted => Deed::Resume,
            Self::Resumed => Deed::Rearm,
            Self::Undone | Self::Removed => Deed::RemovePlaces,
            Self::Committed { memory, line } => match (memory, line) {
                (Memory::Unknown, _) => Deed::SeekMemory,
                (Memory::Left | Memory::Gone, Line::Untold) => Deed::TellCommit,
                (Memory::Left, Line::Told) => Deed::AwaitDrained,
                (Memory::Left, Line::Lost) => Deed::TellAgain,
                (Memory::Gone, Line::Told | Line::Lost) => Deed::FinishDump,
            },
            Self::Drained { .. } => Deed::NoteDrained,
            Self::Finished { line: Line::Lost } => Deed::TellAgain,
            Self::Finished { .. } => Deed::AwaitSettled,
            Self::Settled { is_finished: false } => Deed::FinishDump,
            Self::Settled { is_finished: true } => Deed::RemoveContainer,
            Self::Returning(Memory::Left) => Deed::NoteDrained,
            Self::Returning(_) => Deed::FinishDump,
            Self::Returned => Deed::NoteReclaimed,
            Self::Reclaimed => Deed::StartAfresh,
            Self::Over => Deed::Rest,
        }
    }

    /// What follows.
    pub fn step(self, event: Event) -> Result<Self, OutOfTurn> {
        let followed = match event {
            Event::Did(deed) if deed == self.next() => self.after_deed(),
            Event::Did(_) => None,
            Event::GaveUp => self.given_up(),
            Event::Stands(verdict) => self.decided(verdict),
            Event::Sought(memory) => match self {
                Self::Committed {
                    memory: Memory::Unknown,
                    line,
                } if memory != Memory::Unknown => Some(Self::Committed { memory, line }),
                _ => None,
            },
            Event::Heard(word) => self.heard(word),
            Event::Lost => match self {
                Self::Committed { memory, .. } => Some(Self::Committed {
                    memory,
                    line: Line::Lost,
                }),
                Self::Finished { .. } => Some(Self::Finished { line: Line::Lost }),
                _ => None,
            },
        };
        followed.ok_or_else(|| OutOfTurn {
            state: format!("{self:?}"),
            event: format!("{event:?}"),
        })
    }

    /// Deeds whose outcome decides something have events of their own.
    fn after_deed(self) -> Option<Self> {
        Some(match self {
            Self::Unopened => Self::Opened,
            Self::Opened => Self::Disarming,
            Self::Disarming => Self::Disarmed,
            Self::Disarmed => Self::Freezing,
            Self::Freezing => Self::Dumping,
            Self::Aborted => Self::Resumed,
            Self::Resumed => Self::Undone,
            Self::Committed {
                memory: Memory::Gone,
                line,
            } => Self::Finished { line },
            Self::Drained { is_settled: true, .. } => Self::Settled { is_finished: false },
            Self::Drained { line, .. } => Self::Committed {
                memory: Memory::Gone,
                line,
            },
            Self::Settled { is_finished: false } => Self::Settled { is_finished: true },
            Self::Settled { is_finished: true } => Self::Removed,
            Self::Undone | Self::Removed => Self::Over,
            Self::Returning(Memory::Left) => Self::Returning(Memory::Gone),
            Self::Returning(_) => Self::Returned,
            Self::Returned => Self::Reclaimed,
            Self::Reclaimed => Self::Undone,
            _ => return None,
        })
    }

    fn given_up(self) -> Option<Self> {
        Some(match self {
            Self::Unopened => Self::Over,
            Self::Opened => Self::Undone,
            Self::Disarming | Self::Disarmed | Self::Freezing => Self::Resumed,
            Self::Dumping | Self::Ready => Self::GivingUp,
            undoing @ (Self::GivingUp | Self::Aborted | Self::Resumed | Self::Undone | Self::Over) => undoing,
            _ => return None,
        })
    }

    fn decided(self, verdict: Verdict) -> Option<Self> {
        let line = match self {
            Self::Ready => Line::Untold,
            Self::GivingUp => Line::Lost,
            _ => return None,
        };
        Some(match verdict {
            Verdict::Aborted => Self::Aborted,
            Verdict::Committed => Self::Committed {
                memory: Memory::Unknown,
                line,
            },
        })
    }

    fn heard(self, word: Word) -> Option<Self> {
        Some(match (self, word) {
            (Self::Dumping, Word::Ready) => Self::Ready,
            (
                Self::Committed {
                    memory,
                    line: Line::Untold,
                },
                Word::Running,
            ) => Self::Committed {
                memory,
                line: Line::Told,
            },
            (
                Self::Committed {
                    memory: Memory::Left,
                    line: line @ Line::Told,
                },
                Word::Drained,
            ) => Self::Drained {
                line,
                is_settled: false,
            },
            // Whoever is done with everything has all memory.
            (
                Self::Committed {
                    memory: Memory::Left,
                    line: line @ Line::Lost,
                },
                Word::Settled,
            ) => Self::Drained {
                line,
                is_settled: true,
            },
            (
                Self::Committed {
                    memory,
                    line: Line::Lost,
                },
                Word::GivenUp,
            ) => Self::Returning(memory),
            (Self::Finished { line: Line::Lost }, Word::GivenUp) => Self::Returned,
            (Self::Finished { .. }, Word::Settled) => Self::Settled { is_finished: true },
            _ => return None,
        })
    }
}
