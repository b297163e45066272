//! What the pager was given from the store and is known to have put in its place: its room can be given back.
//!
//! Nobody says so. But what is written to a socket must be read before much more can be written, and the pager puts each
//! record in its place before it reads the next. That holds for what it asks for in turn only: what a task waits for may
//! come before there is a place for it.

use std::collections::VecDeque;

use godwit_runtime::pages::layout::Range;
use godwit_runtime::pages::wire::{Header, Kind};

/// Bytes that the kernel may keep between us and the pager; it takes twice what it is told, and a few records' ends.
pub(super) const BUFFER_BYTES: usize = 1 << 20;

/// What was written so many bytes ago was read: four times what the kernel keeps.
const MARGIN_BYTES: u64 = 8 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Given {
    written: u64,
    /// By what was written when it had been given.
    queue: VecDeque<(u64, u32, Range)>,
}

impl Given {
    /// Notes that `request` was answered with the pages `found`, in so many bytes; returns what is in its place by now.
    pub(super) fn add(&mut self, request: &Header, found: Range, bytes: usize) -> Vec<(u32, Range)> {
        self.written += bytes as u64;
        if request.kind == Kind::Wanted {
            self.queue.push_back((self.written, request.task, found));
        }
        let is_read = |(written, _, _): &&(u64, u32, Range)| written + MARGIN_BYTES <= self.written;
        let n_read = self.queue.iter().take_while(is_read).count();
        let read = self.queue.drain(..n_read);
        read.map(|(_, task, range)| (task, range)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: usize = 1 << 20;

    #[test]
    fn only_what_was_asked_for_in_turn_is_given_back_and_only_when_it_must_be_in_its_place() {
        let mut given = Given::default();
        let mut add = |kind, number: u64| {
            let range = Range {
                start: number,
                end: number + 1,
            };
            given.add(&Header::bare(kind, 7, 0, 1), range, RECORD)
        };
        assert!(add(Kind::Wanted, 0).is_empty());
        assert!(add(Kind::Urgent, 1).is_empty());
        for number in 2..8 {
            assert!(add(Kind::Wanted, number).is_empty(), "{number}");
        }
        let numbers =
            |given: Vec<(u32, Range)>| -> Vec<u64> { given.iter().map(|(_, range)| range.start).collect() };
        assert_eq!(numbers(add(Kind::Wanted, 8)), [0]);
        assert!(add(Kind::Wanted, 9).is_empty(), "a task waited for the next");
        assert_eq!(numbers(add(Kind::Urgent, 10)), [2]);
    }
}
