//! Whose turn it is: pages that go unasked stand back for a while when a task waits for one.
//!
//! All streams of a move share the link and, at both ends, the processors. A task that has just begun to run there touches
//! one page after the other, and each of them would queue behind megabytes that nobody waits for yet: at a gigabit a switch
//! holds some 20 ms of them. To stand back for ever would leave the container without its memory for as long as it is busy.
//! So at first they give way entirely, then they go in portions, and at last as fast as the link takes them. In portions
//! they also go before the tasks run, when nobody takes them: what fills the buffers then is in the way of the first page.

use std::time::{Duration, Instant};

/// A task that was answered asks for its next page within this, as a rule: it is some round trips and context switches.
const QUIET: Duration = Duration::from_millis(2);

/// Only after this do pages go as the link takes them. What the kernel and a switch then hold of a stream, 60 ms of a gigabit
/// and more, nothing overtakes; and a program that works in batches asks again at the next.
const LONG_QUIET: Duration = Duration::from_millis(100);

/// For how long pages give way entirely. A program has touched what it needs to answer its first requests by then.
const PATIENCE: Duration = Duration::from_millis(500);

/// For how long they go in portions after that. What a task asks for brings its neighbours along, so that a program which
/// goes on asking gets most of its memory by that, and one of a terabyte is not kept for hours.
const MODERATION: Duration = Duration::from_secs(10);

/// What pages that go unasked are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Wait so long, and ask again.
    StandBack(Duration),
    /// Go in portions ([`super::portion`]), with a rest behind one that was slow.
    Moderate,
    /// Go in portions.
    InPortions,
    /// Go.
    Go,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// Whether the tasks run at the destination.
    has_begun: bool,
    last_urgent: Option<Instant>,
    /// For how long tasks have been asking, altogether.
    busy: Duration,
}

impl Turn {
    /// The tasks run at the destination.
    pub(super) fn begin(&mut self) {
        self.has_begun = true;
    }

    /// A page was asked for that a task waits for.
    pub(super) fn urgent(&mut self, now: Instant) {
        // Those that came while another was still fresh are one time of asking.
        if let Some(last) = self.last_urgent {
            self.busy += now.saturating_duration_since(last).min(QUIET);
        }
        self.last_urgent = Some(now);
    }

    /// What the next pages that go unasked are to do.
    pub(super) fn order(&self, now: Instant) -> Order {
        let Some(last) = self.last_urgent else {
            return self.unhindered();
        };
        let quiet = now.saturating_duration_since(last);
        if quiet >= LONG_QUIET || self.busy >= PATIENCE + MODERATION {
            self.unhindered()
        } else if quiet >= QUIET {
            Order::InPortions
        } else if self.busy < PATIENCE {
            Order::StandBack(QUIET - quiet)
        } else {
            Order::Moderate
        }
    }

    /// What they are to do while nobody asks.
    fn unhindered(&self) -> Order {
        if self.has_begun {
            Order::Go
        } else {
            Order::InPortions
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_stand_back_until_it_is_quiet() {
        let (mut turn, now) = (Turn::default(), Instant::now());
        assert_eq!(turn.order(now), Order::InPortions, "nobody takes them");
        turn.begin();
        assert_eq!(turn.order(now), Order::Go);
        turn.urgent(now);
        assert_eq!(turn.order(now), Order::StandBack(QUIET));
        assert_eq!(turn.order(now + QUIET / 2), Order::StandBack(QUIET / 2));
        assert_eq!(turn.order(now + QUIET), Order::InPortions);
        assert_eq!(turn.order(now + LONG_QUIET), Order::Go);
    }

    #[test]
    fn tasks_that_never_stop_asking_do_not_hold_the_rest_up_for_ever() {
        let (mut turn, began) = (Turn::default(), Instant::now());
        turn.begin();
        let mut now = began;
        let mut changes = Vec::new();
        while now - began < PATIENCE + MODERATION + PATIENCE {
            turn.urgent(now);
            let order = match turn.order(now) {
                Order::StandBack(_) => Order::StandBack(QUIET),
                other => other,
            };
            if changes.last().is_none_or(|(_, last)| *last != order) {
                changes.push((now - began, order));
            }
            // Divides all that is compared.
            now += QUIET / 4;
        }
        let expected = [
            (Duration::ZERO, Order::StandBack(QUIET)),
            (PATIENCE, Order::Moderate),
            (PATIENCE + MODERATION, Order::Go),
        ];
        assert_eq!(changes, expected);
    }

    #[test]
    fn a_restore_that_asks_for_a_page_does_not_make_them_fill_buffers() {
        let (mut turn, now) = (Turn::default(), Instant::now());
        turn.urgent(now);
        assert_eq!(
            turn.order(now + LONG_QUIET),
            Order::InPortions,
            "the tasks do not run yet"
        );
        turn.begin();
        assert_eq!(turn.order(now + LONG_QUIET), Order::Go);
    }

    #[test]
    fn seldom_questions_cost_a_little_each() {
        let (mut turn, mut now) = (Turn::default(), Instant::now());
        for _ in 0..50 {
            turn.urgent(now);
            assert_eq!(turn.order(now), Order::StandBack(QUIET));
            now += PATIENCE;
        }
    }
}
