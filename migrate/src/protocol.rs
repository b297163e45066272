//! Who does what next in a move, and to whom the container belongs: the rules alone, without a host to apply them on.
//!
//! Each side has one lifecycle, its `State`. `next` says what is to be done in it and `step` what follows from an event;
//! the runners, recovery and the answers to questions ask these two, and so does the model in `tests/model`, which tries
//! every order of deeds, losses and crashes. Nothing here does anything, waits or knows what travels.

use crate::failure::Problem;

pub mod destination;
pub mod source;

/// What the destination tells the source, of all that is said only what decides something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Word {
    /// The container is restored and held.
    Ready,
    /// It runs there.
    Running,
    /// All its memory is there.
    Drained,
    /// Nothing of the move is left to do there.
    Settled,
    /// A human has given the container up there, and it is gone.
    GivenUp,
}

/// What is known of memory that is not in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Memory {
    /// Not looked yet.
    Unknown,
    /// Some is still in the source's tasks, and needed at the destination.
    Left,
    /// None is needed any more.
    Gone,
}

impl Memory {
    /// What a look at it has shown.
    pub fn seen(is_left: bool) -> Self {
        if is_left { Self::Left } else { Self::Gone }
    }
}

/// An event that cannot follow here: nothing was done for it, and the state stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event} cannot follow while the move is {state}; report this as a bug of the agent")]
pub struct OutOfTurn {
    state: String,
    event: String,
}

impl From<OutOfTurn> for Problem {
    fn from(error: OutOfTurn) -> Self {
        Self::failed(error.to_string())
    }
}
