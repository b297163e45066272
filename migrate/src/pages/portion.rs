//! Portions: how pages go that nobody waits for, beside those that somebody does.
//!
//! What was sent and has not been acknowledged stands in the link's queues, and a page that is waited for stands behind it.
//! So each portion goes when the one before it has arrived, and one that took long is followed by a rest, in which the link
//! belongs to the others. How much a portion is, the link says by itself: it grows for as long as twice as much would arrive
//! promptly. On a fast link that is several batches, for each look at the clock costs what could have gone meanwhile.

use std::time::{Duration, Instant};

use godwit_runtime::pages::unacknowledged;
use tokio::task::yield_now;
use tokio::time::sleep;

use super::neighbours::Rate;
use crate::tls;

/// A portion at least and at most: it costs a look at the clock, and a fast link carries four megabytes in some of them.
pub(super) const LEAST_BYTES: usize = 64 << 10;
pub(super) const MOST_BYTES: usize = 4 << 20;

/// The first: a millisecond of a gigabit's link.
const FIRST_BYTES: usize = 128 << 10;

/// What arrives within this holds nobody up; it is some ticks of the runtime's clock.
const PROMPT: Duration = Duration::from_millis(3);

/// How many times as long as a late portion took the rest behind it lasts.
const RESTS: u32 = 4;

/// And at most: who rests does not see that nobody asks any more.
const LONGEST_REST: Duration = Duration::from_millis(20);

/// Nothing is waited for longer: a link that is cut is noticed elsewhere.
pub(super) const PATIENCE: Duration = Duration::from_millis(50);

/// An open link carries a small portion in this: until then others have the processor between two looks, but the clock, whose
/// ticks are five times as long, is not waited for.
const AT_ONCE: Duration = Duration::from_micros(300);

/// How often it is looked after that.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// A connection that knows what of it is on its way.
pub trait Backlog {
    /// Bytes that were written and that the other end has not acknowledged.
    fn unacknowledged(&self) -> u64;
}

impl Backlog for tls::Stream {
    fn unacknowledged(&self) -> u64 {
        // A connection that cannot be asked is broken, which whoever uses it next will hear.
        unacknowledged(self.get_ref().0).map_or(0, u64::from)
    }
}

/// Waits until what has been written has arrived; returns how long that took.
pub(super) async fn arrival(connection: &impl Backlog) -> Duration {
    let began = Instant::now();
    while connection.unacknowledged() > 0 && began.elapsed() < PATIENCE {
        if began.elapsed() < AT_ONCE {
            yield_now().await;
        } else {
            sleep(LOOK_INTERVAL).await;
        }
    }
    began.elapsed()
}

/// What goes at a time on one stream, in as many pieces as it is written in.
#[derive(Debug)]
pub(super) struct Portion {
    size: usize,
    written: usize,
    /// How long it took to write that.
    writing: Duration,
}

impl Default for Portion {
    fn default() -> Self {
        Self {
            size: FIRST_BYTES,
            written: 0,
            writing: Duration::ZERO,
        }
    }
}

impl Portion {
    /// How many bytes may still go before it has to arrive.
    pub(super) fn left(&self) -> usize {
        self.size - self.written
    }

    /// So many of them have been written.
    pub(super) fn wrote(&mut self, bytes: usize, took: Duration) {
        self.written += bytes;
        self.writing += took;
    }

    /// It has arrived, so long after it was written: the next one begins. Returns the rest that is due before.
    pub(super) fn arrived(&mut self, took: Duration, rate: &mut Rate) -> Duration {
        rate.learn(self.written, self.writing + took);
        (self.written, self.writing) = (0, Duration::ZERO);
        if took <= PROMPT {
            // Only where twice as much would still be prompt.
            if took <= PROMPT / 2 {
                self.size = (self.size * 2).min(MOST_BYTES);
            }
            return Duration::ZERO;
        }
        self.size = (self.size / 2).max(LEAST_BYTES);
        (took * RESTS).min(LONGEST_REST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends portions for a second over a link of so many bytes in a millisecond; returns the bytes that went and the longest
    /// time in milliseconds that one stood in the way.
    fn send(bytes_a_milli: usize) -> (usize, u128) {
        let (mut portion, mut rate) = (Portion::default(), Rate::default());
        let (mut clock, mut sent, mut longest) = (Duration::ZERO, 0, 0);
        while clock < Duration::from_secs(1) {
            let bytes = portion.left();
            portion.wrote(bytes, Duration::ZERO);
            let took = Duration::from_micros((1000 * bytes / bytes_a_milli) as u64 + 100);
            sent += bytes;
            longest = longest.max(took.as_millis());
            clock += took;
            clock += portion.arrived(took, &mut rate);
        }
        (sent, longest)
    }

    #[test]
    fn links_are_used_and_nothing_stands_in_the_way_for_long() {
        let (fast, longest) = send(1 << 20);
        assert!(fast > 500 << 20, "{fast} bytes of a link of a GB a second");
        assert!(longest <= PROMPT.as_millis(), "{longest} ms");
        let (slow, longest) = send(118 << 10);
        assert!(slow > 60 << 20, "{slow} bytes of a gigabit");
        assert!(longest <= PROMPT.as_millis(), "{longest} ms");
    }

    #[test]
    fn a_link_that_is_late_with_the_least_is_left_to_those_who_wait() {
        let (slow, _) = send(8 << 10);
        assert!((1 << 20..4 << 20).contains(&slow), "{slow} bytes of 8 MB");
    }
}
