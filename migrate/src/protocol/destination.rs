//! The destination's lifecycle in a move: from nothing to a container that runs here, or back to nothing.
//!
//! From [`State::Ready`] on the decision is the source's, and an agent that finds `restoring` in its journal cannot know
//! whether it came so far: both only learn it. A copy that the source has given away is never removed, whatever fails here.

use godwit_runtime::verdict::Verdict;

use super::{Memory, OutOfTurn, Word};

/// How far the container came into being, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Nothing of the move is written down.
    Unopened,
    /// There is a journal.
    Opened,
    /// The journal says that the engine is asked for the container.
    Creating,
    /// The engine was asked for it; the journal does not name it yet.
    Made,
    /// The journal names it.
    Created,
    /// Its start was asked for, and waits for the image.
    Started,
    /// The journal says `restoring`: a restarted agent has to ask the source.
    Restoring,
    /// Its shim was asked to restore it: it may be held, a step before it runs.
    Held,
    /// The source was told so, and may commit.
    Ready,
    /// Whether the source has committed is not known.
    Asking,
    /// The source has committed; that is not written down here.
    Given,
    /// `committed` stands here: the container is to run.
    Committed,
    /// It runs; the source may not have heard it.
    Running,
    /// It runs, and the source was told so if it could be.
    Owned(Memory),
    /// All its memory is here; the source may not have heard it.
    Whole,
    /// It needs nothing more; its engine may still be at its start.
    Complete,
    /// Its engine is content.
    Confirmed,
    /// Nothing is written down any more; the source may not have heard it.
    Removed,
    /// It was committed and does not run.
    Failing,
    /// The same, written down. A human must look.
    Broken,
    /// A human has given it up: it is to go, and the source to have it back.
    GivingBack,
    /// It is gone, which is not written down.
    Emptied,
    /// It is gone; the source may not have heard it.
    Returned,
    /// The copy is to go, unless it was given to this host by now.
    GivingUp,
    /// Nothing of the container is to stay.
    Undoing,
    /// The engine may have made a container that the journal does not name.
    Unmaking,
    /// Only the journal is here.
    Undone,
    /// Nothing is left to do.
    Over,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Deed {
    /// Begin the journal.
    Open,
    /// Write `creating` into it.
    NoteCreating,
    /// Ask the engine for volumes that are missing, and for the container.
    Create,
    /// Write its id into the journal.
    NoteCreated,
    /// Leave a ticket and ask the engine for the start, which then waits for the image.
    Start,
    /// Write `restoring` into the journal.
    NoteRestoring,
    /// Have the shim restore the container and hold it.
    Restore,
    /// Tell the source.
    Say(Word),
    /// Wait for the source's word.
    AwaitWord,
    /// Ask the source for its verdict, until it answers.
    AskSource,
    /// Try to make this the verdict here.
    Decide(Verdict),
    /// Wait until the container runs.
    Resume,
    /// Look whether memory of it is still at the source.
    SeekMemory,
    /// Wait until all of it is here.
    AwaitMemory,
    /// Wait until the engine is content with its start.
    Confirm,
    /// Write `broken` into the journal.
    NoteBroken,
    /// Withdraw the ticket, end what is held, remove the container and the volumes that were made for it.
    Undo,
    /// Remove the container, whatever it does, and the volumes that were made for it.
    RemoveContainer,
    /// Write `returned` into the journal.
    NoteReturned,
    /// Ask the source whether it has the container back: it knows nothing of the move then.
    AskReclaimed,
    /// Remove a container, and volumes, that the engine made before the container's id was written down.
    RemoveUnfinished,
    /// Remove what is written down of the move.
    RemovePlaces,
    /// Nothing.
    Rest,
}

/// What happens to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// It did what was next. Up to the restore this is told before the deed, which may then be done by half.
    Did(Deed),
    /// Before the word `ready`: something failed, the link was lost, or somebody asked for it.
    GaveUp,
    /// After that word: the source says that it has committed.
    Commit,
    /// After it: the source says that it has failed, which it does not once it has committed.
    SourceFailed,
    /// After it: the link is lost, or what it brought makes no sense.
    Lost,
    /// The source's answer, or its word on a connection of its own.
    Told(Verdict),
    /// This verdict stands here, whoever wrote it.
    Stands(Verdict),
    /// Whether memory is still at the source.
    Sought(Memory),
    /// The container does not run although it was committed.
    Broke,
    /// A human has given it up, says the journal.
    GivenUp,
}

/// What a destination does that a source tells of its commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing is known of the move here, so nothing is left to do.
    Settled,
    /// Let `committed` stand, and say that it is at it.
    DecideAndSayPending,
    /// Say that the container does not run.
    Broken,
    /// Say that it was given up and is gone.
    GivenUp,
}

/// Answers a source. What is written down is not settled: the runner or recovery, which see the verdict, are at it.
pub fn told_committed(journal: Option<Marks>) -> Answer {
    match journal {
        None => Answer::Settled,
        Some(Marks { returned: true, .. }) => Answer::GivenUp,
        Some(Marks { broken: true, .. }) => Answer::Broken,
        Some(_) => Answer::DecideAndSayPending,
    }
}

/// What a journal says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Marks {
    /// The engine may have been asked for the container.
    pub creating: bool,
    /// It is known by its id.
    pub created: bool,
    /// The source may have committed.
    pub restoring: bool,
    /// It has, and the container does not run.
    pub broken: bool,
    /// A human has given the container up here.
    pub given_up: bool,
    /// It is gone.
    pub returned: bool,
}

impl State {
    /// Where a move stands of which only journal and verdict file are known.
    pub fn found(marks: Marks, verdict: Option<Verdict>) -> Self {
        match (marks, verdict) {
            (Marks { returned: true, .. }, _) => Self::Returned,
            (Marks { given_up: true, .. }, _) => Self::GivingBack,
            (Marks { broken: true, .. }, _) => Self::Broken,
            (Marks { created: false, .. }, _) if marks.creating => Self::Unmaking,
            (Marks { created: false, .. }, _) => Self::Undone,
            (Marks { restoring: false, .. }, _) => Self::GivingUp,
            (_, None) => Self::Asking,
            (_, Some(Verdict::Committed)) => Self::Given,
            (_, Some(Verdict::Aborted)) => Self::GivingUp,
        }
    }

    /// Whether the container is this host's.
    pub fn is_committed(self) -> bool {
        matches!(
            self,
            Self::Given
                | Self::Committed
                | Self::Running
                | Self::Owned(_)
                | Self::Whole
                | Self::Complete
                | Self::Confirmed
                | Self::Removed
                | Self::Failing
                | Self::Broken
        )
    }

    /// What is to be done.
    pub fn next(self) -> Deed {
        match self {
            Self::Unopened => Deed::Open,
            Self::Opened => Deed::NoteCreating,
            Self::Creating => Deed::Create,
            Self::Made => Deed::NoteCreated,
            Self::Created => Deed::Start,
            Self::Started => Deed::NoteRestoring,
            Self::Restoring => Deed::Restore,
            Self::Held => Deed::Say(Word::Ready),
            Self::Ready => Deed::AwaitWord,
            Self::Asking => Deed::AskSource,
            Self::Given => Deed::Decide(Verdict::Committed),
            Self::Committed => Deed::Resume,
            Self::Running => Deed::Say(Word::Running),
            Self::Owned(Memory::Unknown) => Deed::SeekMemory,
            Self::Owned(Memory::Left) => Deed::AwaitMemory,
            Self::Whole => Deed::Say(Word::Drained),
            Self::Owned(Memory::Gone) | Self::Complete => Deed::Confirm,
            Self::Confirmed | Self::Undone => Deed::RemovePlaces,
            Self::Removed => Deed::Say(Word::Settled),
            Self::Failing => Deed::NoteBroken,
            Self::GivingUp => Deed::Decide(Verdict::Aborted),
            Self::Undoing => Deed::Undo,
            Self::Unmaking => Deed::RemoveUnfinished,
            Self::GivingBack => Deed::RemoveContainer,
            Self::Emptied => Deed::NoteReturned,
            Self::Returned => Deed::AskReclaimed,
            Self::Broken | Self::Over => Deed::Rest,
        }
    }

    /// What follows.
    pub fn step(self, event: Event) -> Result<Self, OutOfTurn> {
        let followed = match (self, event) {
            (_, Event::Did(deed)) if deed == self.next() => self.after_deed(),
            (_, Event::GaveUp) => self.given_up(),
            (Self::Ready, Event::Commit) => Some(Self::Given),
            (Self::Ready, Event::SourceFailed) => Some(Self::GivingUp),
            (Self::Ready, Event::Lost) => Some(Self::Asking),
            (Self::Asking, Event::Told(Verdict::Committed)) => Some(Self::Given),
            (Self::Asking, Event::Told(Verdict::Aborted)) => Some(Self::GivingUp),
            (Self::Given | Self::GivingUp, Event::Stands(Verdict::Committed)) => Some(Self::Committed),
            (Self::GivingUp, Event::Stands(Verdict::Aborted)) => Some(Self::Undoing),
            // Nothing runs here any more, and the source must not hear that all is well.
            (Self::Given, Event::Stands(Verdict::Aborted)) => Some(Self::Failing),
            (Self::Owned(Memory::Unknown), Event::Sought(memory)) if memory != Memory::Unknown => {
                Some(Self::Owned(memory))
            }
            (Self::Committed | Self::Owned(_) | Self::Complete | Self::Failing, Event::Broke) => {
                Some(Self::Failing)
            }
            (Self::Owned(_) | Self::Complete, Event::GivenUp) => Some(Self::GivingBack),
            // It will ask again.
            (Self::Returned, Event::Told(Verdict::Committed)) => Some(Self::Returned),
            (Self::Returned, Event::Told(Verdict::Aborted)) => Some(Self::Undone),
            _ => None,
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
            Self::Opened => Self::Creating,
            Self::Creating => Self::Made,
            Self::Made => Self::Created,
            Self::Created => Self::Started,
            Self::Started => Self::Restoring,
            Self::Restoring => Self::Held,
            Self::Held => Self::Ready,
            Self::Committed => Self::Running,
            Self::Running => Self::Owned(Memory::Unknown),
            Self::Owned(Memory::Left) => Self::Whole,
            Self::Whole => Self::Complete,
            Self::Owned(Memory::Gone) | Self::Complete => Self::Confirmed,
            Self::Confirmed => Self::Removed,
            Self::Removed | Self::Undone => Self::Over,
            Self::Failing => Self::Broken,
            Self::GivingBack => Self::Emptied,
            Self::Emptied => Self::Returned,
            Self::Undoing | Self::Unmaking => Self::Undone,
            _ => return None,
        })
    }

    fn given_up(self) -> Option<Self> {
        Some(match self {
            Self::Unopened => Self::Over,
            Self::Opened | Self::Creating => Self::Undone,
            Self::Made | Self::Created | Self::Started | Self::Restoring => Self::Undoing,
            Self::Held => Self::GivingUp,
            undoing @ (Self::GivingUp | Self::Undoing | Self::Unmaking | Self::Undone | Self::Over) => {
                undoing
            }
            _ => return None,
        })
    }
}
