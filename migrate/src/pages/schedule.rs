//! Which pages of a container have been sent, and which go next.
//!
//! Every page goes unasked once: small ranges before great ones, each in ascending order. What programs keep their own
//! books in lies in small pieces, and every task touches it as soon as it runs; a great range is data, of which it touches
//! little. A page that a task waits for goes before its turn and is then left out. Pure bookkeeping: it neither reads memory nor
//! sends anything.

use std::collections::BTreeSet;

use godwit_runtime::pages::layout::{Range, Task};
use godwit_runtime::pages::wire::{MAX_PAGES, PAGE_BYTES};

const PAGE: u64 = PAGE_BYTES as u64;

/// A run of pages of one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Index of the task in the list the schedule was made from.
    pub task: usize,
    /// Address of the first page.
    pub address: u64,
    /// How many, 1 to [`MAX_PAGES`].
    pub pages: u32,
}

impl Run {
    /// How many bytes.
    pub fn bytes(&self) -> usize {
        self.pages as usize * PAGE_BYTES
    }

    /// What is below an address within it, and what is at it or above.
    pub fn split_at(&self, address: u64) -> (Option<Self>, Option<Self>) {
        let n_below = address.clamp(self.address, self.end()) - self.address;
        let below = Self {
            pages: (n_below / PAGE) as u32,
            ..*self
        };
        let above = Self {
            address: self.address + n_below,
            pages: self.pages - below.pages,
            ..*self
        };
        let some = |run: Self| (run.pages > 0).then_some(run);
        (some(below), some(above))
    }

    fn end(&self) -> u64 {
        self.address + u64::from(self.pages) * PAGE
    }
}

/// The order of the pages of a container, and how far it has come.
#[derive(Debug)]
pub struct Schedule {
    /// All ranges, in the order in which they go.
    turns: Vec<Turn>,
    /// For each task the places of its ranges in `turns`, by address.
    by_address: Vec<Vec<usize>>,
    /// Whose turn it is, and how far that range has gone.
    turn: usize,
    address: u64,
    /// Pages behind the present place that went before their turn.
    ahead: BTreeSet<(usize, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Turn {
    task: usize,
    range: Range,
}

impl Schedule {
    /// The order of all pages of `tasks`.
    pub fn new(tasks: &[Task]) -> Self {
        let mut turns: Vec<Turn> = tasks
            .iter()
            .enumerate()
            .flat_map(|(task, one)| one.ranges.iter().map(move |range| Turn { task, range: *range }))
            .collect();
        // Stable, so that ranges of one size stay in the order of their addresses.
        turns.sort_by_key(|turn| turn.range.bytes());
        let mut by_address = vec![Vec::new(); tasks.len()];
        for (place, turn) in turns.iter().enumerate() {
            by_address[turn.task].push(place);
        }
        for places in &mut by_address {
            places.sort_by_key(|place| turns[*place].range.start);
        }
        Self {
            turns,
            by_address,
            turn: 0,
            address: 0,
            ahead: BTreeSet::new(),
        }
    }

    /// The next pages that go unasked; `None` when all have gone.
    pub fn advance(&mut self) -> Option<Run> {
        loop {
            let Turn { task, range } = *self.turns.get(self.turn)?;
            let start = self.address.max(range.start);
            if start >= range.end {
                (self.turn, self.address) = (self.turn + 1, 0);
                continue;
            }
            if self.ahead.remove(&(task, start)) {
                self.address = start + PAGE;
                continue;
            }
            let limit = range.end.min(start + u64::from(MAX_PAGES) * PAGE);
            let border = self.ahead.range((task, start)..(task, limit)).next();
            let end = border.map_or(limit, |(_, address)| *address);
            self.address = end;
            return Some(Run {
                task,
                address: start,
                pages: ((end - start) / PAGE) as u32,
            });
        }
    }

    /// What there is of pages that a task waits for, and up to `most_before` right before them that have not gone; none of
    /// it will go unasked any more. What is waited for is sent even if it is on its way: it may be long behind much
    /// else, and its receiver may not be reading that yet.
    pub fn asked(&mut self, wanted: Run, most_before: u32) -> Option<Run> {
        let (place, present) = self.present(wanted)?;
        for page in 0..u64::from(present.pages) {
            let address = present.address + page * PAGE;
            if (place, address) >= (self.turn, self.address) {
                self.ahead.insert((present.task, address));
            }
        }
        let first = self.turns[place].range.start;
        let mut run = present;
        let most = (present.pages + most_before).min(MAX_PAGES);
        while run.address > first && run.pages < most {
            let page = run.address - PAGE;
            if (place, page) < (self.turn, self.address) || !self.ahead.insert((run.task, page)) {
                break;
            }
            run.address = page;
            run.pages += 1;
        }
        Some(run)
    }

    /// The pages of `wanted` that there are, and the place of their range.
    fn present(&self, wanted: Run) -> Option<(usize, Run)> {
        let places = self.by_address.get(wanted.task)?;
        let range = |place: &usize| self.turns[*place].range;
        let at = places.partition_point(|place| range(place).end <= wanted.address);
        let place = places
            .get(at)
            .filter(|place| range(place).start <= wanted.address)?;
        let end = wanted.end().min(range(place).end);
        let present = Run {
            pages: ((end - wanted.address) / PAGE) as u32,
            ..wanted
        };
        Some((*place, present))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn task(pid: u32, ranges: &[(u64, u64)]) -> Task {
        let ranges = ranges.iter().map(|(start, end)| Range {
            start: start * PAGE,
            end: end * PAGE,
        });
        Task {
            pid,
            ranges: ranges.collect(),
        }
    }

    fn run(task: usize, first: u64, pages: u32) -> Run {
        Run {
            task,
            address: first * PAGE,
            pages,
        }
    }

    #[test]
    fn all_pages_go_small_ranges_first_in_runs_that_fit_a_record() {
        let mut schedule = Schedule::new(&[task(1, &[(1, 3), (10, 310)]), task(7, &[]), task(9, &[(5, 6)])]);
        let all: Vec<Run> = std::iter::from_fn(|| schedule.advance()).collect();
        assert_eq!(
            all,
            [run(2, 5, 1), run(0, 1, 2), run(0, 10, 256), run(0, 266, 44)]
        );
    }

    #[test]
    fn what_is_before_a_page_goes_with_it_unless_it_has_gone() {
        let mut schedule = Schedule::new(&[task(1, &[(0, 2), (100, 700)])]);
        assert_eq!(schedule.asked(run(0, 110, 2), 4), Some(run(0, 106, 6)));
        assert_eq!(
            schedule.asked(run(0, 112, 1), 4),
            Some(run(0, 112, 1)),
            "the one before it has gone"
        );
        assert_eq!(
            schedule.asked(run(0, 103, 1), 9),
            Some(run(0, 100, 4)),
            "to the border"
        );
        assert_eq!(schedule.asked(run(0, 50, 1), 9), None, "there is no such page");
        assert_eq!(schedule.advance(), Some(run(0, 0, 2)));
        assert_eq!(schedule.advance(), Some(run(0, 104, 2)));
        assert_eq!(schedule.advance(), Some(run(0, 113, 256)));
        assert_eq!(
            schedule.asked(run(0, 300, 1), 9),
            Some(run(0, 300, 1)),
            "all before it has gone"
        );
        assert_eq!(schedule.asked(run(0, 371, 1), 9), Some(run(0, 369, 3)), "so far");
        let rest: Vec<Run> = std::iter::from_fn(|| schedule.advance()).collect();
        assert_eq!(rest, [run(0, 372, 256), run(0, 628, 72)]);
    }

    #[test]
    fn what_a_task_waits_for_goes_before_its_turn_and_not_again_unasked() {
        let mut schedule = Schedule::new(&[task(1, &[(0, 10)]), task(2, &[(0, 14)])]);
        assert_eq!(schedule.asked(run(0, 4, 1), 0), Some(run(0, 4, 1)));
        assert_eq!(schedule.advance(), Some(run(0, 0, 4)));
        assert_eq!(
            schedule.asked(run(0, 2, 1), 0),
            Some(run(0, 2, 1)),
            "it may be long on its way"
        );
        assert_eq!(schedule.advance(), Some(run(0, 5, 5)));
        assert_eq!(
            schedule.asked(run(1, 13, 9), 0),
            Some(run(1, 13, 1)),
            "no more than there is"
        );
        assert_eq!(schedule.advance(), Some(run(1, 0, 13)));
        assert_eq!(schedule.advance(), None);
        assert_eq!(
            schedule.asked(run(0, 2, 1), 0),
            Some(run(0, 2, 1)),
            "who asks now has lost it"
        );
    }

    #[test]
    fn a_run_is_split_where_what_is_waited_for_begins() {
        let all = run(1, 10, 5);
        assert_eq!(
            all.split_at(13 * PAGE),
            (Some(run(1, 10, 3)), Some(run(1, 13, 2)))
        );
        assert_eq!(all.split_at(10 * PAGE), (None, Some(all)));
        assert_eq!(all.split_at(9 * PAGE), (None, Some(all)));
        assert_eq!(all.split_at(15 * PAGE), (Some(all), None));
    }

    #[test]
    fn pages_that_are_not_there_are_not_sent() {
        let mut schedule = Schedule::new(&[task(1, &[(5, 6)])]);
        for nowhere in [run(0, 4, 1), run(0, 6, 1), run(1, 5, 1)] {
            assert_eq!(schedule.asked(nowhere, 1), None);
        }
    }

    proptest! {
        #[test]
        fn every_page_goes_unasked_unless_it_was_asked_for_before(
            gaps in prop::collection::vec((1..400u64, 1..600u64), 1..6),
            asked in prop::collection::vec((0..4000u64, 1..4u32, 0..20u32, any::<bool>()), 0..60),
        ) {
            let mut at = 0;
            let ranges: Vec<(u64, u64)> = gaps.iter().map(|(gap, length)| {
                let start = at + gap;
                at = start + length;
                (start, at)
            }).collect();
            let mut schedule = Schedule::new(&[task(1, &ranges)]);
            let pages = |run: Run| (run.address / PAGE)..(run.end() / PAGE);
            let (mut unasked, mut answered) = (Vec::new(), BTreeSet::new());
            for (first, count, most_before, step) in asked {
                let before: BTreeSet<u64> = unasked.iter().copied().collect();
                if let Some(run) = schedule.asked(run(0, first, count), most_before) {
                    answered.extend(pages(run).filter(|page| !before.contains(page)));
                }
                if step && let Some(run) = schedule.advance() {
                    unasked.extend(pages(run));
                }
            }
            while let Some(run) = schedule.advance() {
                unasked.extend(pages(run));
            }
            unasked.extend(&answered);
            unasked.sort_unstable();
            let all: Vec<u64> = ranges.iter().flat_map(|(start, end)| *start..*end).collect();
            prop_assert_eq!(unasked, all);
        }
    }
}
