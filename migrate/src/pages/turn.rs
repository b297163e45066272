//! Whose turn it is: pages that go unasked stand back for a while when a task waits for one.
//!
//! All streams of a move share the link and, at both ends, the processors. A task that has just begun to run there touches
//! one page after the other, and each of them would queue behind megabytes that nobody waits for yet. To stand back for
//! ever would leave the container without its memory for as long as it is busy, so there is only so much of it.

use std::time::{Duration, Instant};

/// A task that was answered asks for its next page within this, as a rule: it is some round trips and context switches.
const QUIET: Duration = Duration::from_millis(5);

/// For how long pages stand back altogether. A program has touched what it needs to answer its first requests by then.
const PATIENCE: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Turn {
    last_urgent: Option<Instant>,
    stood_back: Duration,
}

impl Turn {
    /// A page was asked for that a task waits for.
    pub(super) fn urgent(&mut self, now: Instant) {
        // Those that came while another was still fresh are one time of standing back.
        if let Some(last) = self.last_urgent {
            self.stood_back += now.saturating_duration_since(last).min(QUIET);
        }
        self.last_urgent = Some(now);
    }

    /// How long the next pages that go unasked must wait.
    pub(super) fn stand_back(&self, now: Instant) -> Option<Duration> {
        if self.stood_back >= PATIENCE {
            return None;
        }
        let quiet_at = self.last_urgent? + QUIET;
        Some(quiet_at.saturating_duration_since(now)).filter(|wait| !wait.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_stand_back_until_it_is_quiet() {
        let (mut turn, now) = (Turn::default(), Instant::now());
        assert_eq!(turn.stand_back(now), None);
        turn.urgent(now);
        assert_eq!(turn.stand_back(now), Some(QUIET));
        assert_eq!(turn.stand_back(now + QUIET / 2), Some(QUIET / 2));
        assert_eq!(turn.stand_back(now + QUIET), None);
    }

    #[test]
    fn tasks_that_never_stop_asking_do_not_hold_the_rest_up_for_ever() {
        let (mut turn, mut now) = (Turn::default(), Instant::now());
        let mut held = Duration::ZERO;
        while turn.stand_back(now).is_some() || held.is_zero() {
            turn.urgent(now);
            now += QUIET / 5;
            held += QUIET / 5;
            assert!(held <= PATIENCE + QUIET, "it stands back for {held:?}");
        }
        assert!(held >= PATIENCE);
        now += PATIENCE;
        turn.urgent(now);
        assert_eq!(turn.stand_back(now), None, "and not again");
    }

    #[test]
    fn seldom_questions_cost_a_little_each() {
        let (mut turn, mut now) = (Turn::default(), Instant::now());
        for _ in 0..50 {
            turn.urgent(now);
            assert!(turn.stand_back(now).is_some());
            now += PATIENCE;
        }
    }
}
