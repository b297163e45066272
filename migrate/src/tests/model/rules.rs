//! The functions that the model drives: those of the agents and of the holder, or with one of them changed.

use godwit_runtime::hold::WITHOUT_WORD;
use godwit_runtime::verdict::{Fate, Verdict};

use crate::protocol::OutOfTurn;
use crate::protocol::{destination, source};

/// What decides in a move. The model has no decision of its own.
#[derive(Clone, Copy)]
pub(super) struct Rules {
    pub(super) source_found: fn(source::Marks) -> source::State,
    pub(super) source_next: fn(source::State) -> source::Deed,
    pub(super) source_step: fn(source::State, source::Event) -> Result<source::State, OutOfTurn>,
    pub(super) source_asked: fn(bool) -> source::Answer,
    pub(super) destination_found: fn(destination::Marks, Option<Verdict>) -> destination::State,
    pub(super) destination_next: fn(destination::State) -> destination::Deed,
    pub(super) destination_step:
        fn(destination::State, destination::Event) -> Result<destination::State, OutOfTurn>,
    pub(super) destination_told: fn(Option<destination::Marks>) -> destination::Answer,
    pub(super) fate: fn(Verdict, bool) -> Fate,
    pub(super) without_word: Verdict,
    /// The journal goes before the verdict file, as `recovery::remove_places` does it.
    pub(super) journal_goes_first: bool,
}

impl Rules {
    /// As they are.
    pub(super) const REAL: Self = Self {
        source_found: source::State::found,
        source_next: source::State::next,
        source_step: source::State::step,
        source_asked: source::asked,
        destination_found: destination::State::found,
        destination_next: destination::State::next,
        destination_step: destination::State::step,
        destination_told: destination::told_committed,
        fate: Verdict::fate,
        without_word: WITHOUT_WORD,
        journal_goes_first: true,
    };
}
