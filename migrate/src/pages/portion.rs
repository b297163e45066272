//! Portions: how pages go that nobody waits for, beside those that somebody does.
//!
//! What was sent and has not been acknowledged stands in the link's queues, and a page that is waited for stands behind it.
//! So each portion goes when the one before it has arrived, and one that took long is followed by a rest, in which the link
//! belongs to the others. How much a portion is, the link says by itself: it grows for as long as it arrives promptly.

use std::time::{Duration, Instant};

use godwit_runtime::pages::unacknowledged;
use tokio::time::sleep;

use crate::tls;

/// A portion at least and at most: a small part of what it costs to send one, and more than a batch.
pub(super) const LEAST_BYTES: usize = 64 << 10;
pub(super) const MOST_BYTES: usize = 2 << 20;

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

/// How often it is looked whether a portion has arrived.
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
        sleep(LOOK_INTERVAL).await;
    }
    began.elapsed()
}

/// How much goes at a time on one stream.
#[derive(Debug)]
pub(super) struct Portion(usize);

impl Default for Portion {
    fn default() -> Self {
        Self(FIRST_BYTES)
    }
}

impl Portion {
    /// How much of what is left goes next; in equal parts, for each costs a wait of its own, a scrap as well.
    pub(super) fn of(&self, left: usize) -> usize {
        left.div_ceil(left.div_ceil(self.0).max(1))
    }

    /// Learns how long one took to arrive; returns the rest behind it.
    pub(super) fn arrived(&mut self, took: Duration) -> Duration {
        if took <= PROMPT {
            self.0 = (self.0 * 2).min(MOST_BYTES);
            return Duration::ZERO;
        }
        self.0 = (self.0 / 2).max(LEAST_BYTES);
        (took * RESTS).min(LONGEST_REST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends portions for a second over a link of so many bytes in a millisecond; returns the bytes that went and the longest
    /// time in milliseconds that one stood in the way.
    fn send(bytes_a_milli: usize) -> (usize, u128) {
        let (mut portion, mut clock, mut sent, mut longest) = (Portion::default(), Duration::ZERO, 0, 0);
        while clock < Duration::from_secs(1) {
            let took = Duration::from_micros((1000 * portion.of(MOST_BYTES) / bytes_a_milli) as u64 + 100);
            sent += portion.of(MOST_BYTES);
            longest = longest.max(took.as_millis());
            clock += took;
            clock += portion.arrived(took);
        }
        (sent, longest)
    }

    #[test]
    fn a_fast_link_is_used_and_a_slow_one_left_to_those_who_wait() {
        let (fast, _) = send(1 << 20);
        assert!(fast > 500 << 20, "{fast} bytes of a link of a GB a second");
        let (slow, longest) = send(118 << 10);
        assert!((10 << 20..60 << 20).contains(&slow), "{slow} bytes of a gigabit");
        assert!(longest <= 5, "{longest} ms");
        let (slower, _) = send(1 << 10);
        assert!(slower > 0);
    }
}
