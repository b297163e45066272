//! Neighbours: the pages around one that a task waits for, which go along with it.
//!
//! Programs go down as well as up, and an allocator keeps what belongs together within some dozen pages: of a Redis of 1 GB
//! neighbours spare every second question. They travel behind the page, while the task runs on, and are in the way of its
//! next; so there are no more of them than the link carries in about the time of a question. What they are worth to a
//! program is not known here: those of one that writes here and there spare none.

use std::time::Duration;

use godwit_runtime::pages::wire::PAGE_BYTES;

use super::portion::{Backlog, LEAST_BYTES, LOOK_INTERVAL, PATIENCE};

/// On a fast link more are not worth reading.
const MOST_NEIGHBOURS: u32 = 24;

/// For how long they may hold the link up. On a gigabit 24 of them doubled what each page took of a program that they spared
/// nothing.
const NEIGHBOURS_TIME: Duration = Duration::from_micros(180);

/// How fast the link has lately taken portions.
#[derive(Debug, Default)]
pub(super) struct Rate {
    bytes: u64,
    time: Duration,
}

impl Rate {
    /// So many bytes took so long.
    pub(super) fn learn(&mut self, bytes: usize, took: Duration) {
        // Little tells of the clock, and what stood still of a receiver who did not read.
        if bytes < LEAST_BYTES || took >= PATIENCE {
            return;
        }
        // What was before counts less and less, and what the clock adds to each look not at all.
        self.bytes = self.bytes / 2 + bytes as u64;
        self.time = self.time / 2 + took.saturating_sub(LOOK_INTERVAL);
    }

    /// How many bytes it takes in so long a time; `None` if that is not known.
    fn bytes_in(&self, time: Duration) -> Option<u64> {
        let bytes = u128::from(self.bytes) * time.as_nanos() / self.time.as_nanos().max(1);
        (self.bytes > 0).then(|| u64::try_from(bytes).unwrap_or(u64::MAX))
    }
}

/// How many go along. If some are still on their way when the task asks again, they have been in the way.
#[derive(Debug)]
pub(super) struct Neighbours(u32);

impl Default for Neighbours {
    fn default() -> Self {
        Self(MOST_NEIGHBOURS)
    }
}

impl Neighbours {
    /// How many may go along with the next, which has just been asked for.
    pub(super) fn next(&mut self, connection: &impl Backlog, rate: &Rate) -> u32 {
        self.0 = match connection.unacknowledged() {
            0 => (self.0 + 1).min(MOST_NEIGHBOURS),
            _ => self.0 / 2,
        };
        match rate.bytes_in(NEIGHBOURS_TIME) {
            Some(bytes) => u32::try_from(bytes / PAGE_BYTES as u64).map_or(self.0, |most| self.0.min(most)),
            None => self.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::portion::MOST_BYTES;
    use super::*;

    struct Link(u64);

    impl Backlog for Link {
        fn unacknowledged(&self) -> u64 {
            self.0
        }
    }

    #[test]
    fn no_more_go_along_than_the_link_takes_before_the_next_question() {
        let (mut neighbours, unknown) = (Neighbours::default(), Rate::default());
        assert_eq!(neighbours.next(&Link(0), &unknown), MOST_NEIGHBOURS);
        assert_eq!(neighbours.next(&Link(9000), &unknown), MOST_NEIGHBOURS / 2);
        assert_eq!(neighbours.next(&Link(1), &unknown), MOST_NEIGHBOURS / 4);
        assert_eq!(neighbours.next(&Link(0), &unknown), MOST_NEIGHBOURS / 4 + 1);
        for _ in 0..9 {
            neighbours.next(&Link(1), &unknown);
        }
        assert_eq!(neighbours.next(&Link(1), &unknown), 0);
    }

    #[test]
    fn a_slow_link_carries_few_along() {
        let (mut neighbours, mut rate) = (Neighbours::default(), Rate::default());
        rate.learn(LEAST_BYTES, Duration::from_millis(40));
        assert_eq!(neighbours.next(&Link(0), &rate), 0);
        for _ in 0..9 {
            rate.learn(MOST_BYTES, Duration::from_millis(36));
        }
        assert_eq!(neighbours.next(&Link(0), &rate), 5, "a gigabit");
        for _ in 0..9 {
            rate.learn(MOST_BYTES, Duration::from_millis(4));
        }
        assert_eq!(neighbours.next(&Link(0), &rate), MOST_NEIGHBOURS);
    }

    #[test]
    fn what_stood_still_says_nothing_of_the_link() {
        let mut rate = Rate::default();
        rate.learn(MOST_BYTES, PATIENCE);
        rate.learn(24, Duration::from_millis(2));
        assert_eq!(rate.bytes_in(NEIGHBOURS_TIME), None);
        rate.learn(MOST_BYTES, LOOK_INTERVAL + NEIGHBOURS_TIME * 2);
        assert_eq!(rate.bytes_in(NEIGHBOURS_TIME), Some(MOST_BYTES as u64 / 2));
    }
}
