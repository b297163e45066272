//! A bound on what moves send: how it is written, and the bucket that keeps it.
//!
//! A bucket hands out the time at which bytes may go, in the order in which it is asked, so that all who share one are
//! served in turn and together stay below its rate. It delays and never refuses; who must not wait says afterwards what
//! went, and the others wait for it.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The lowest rate, in bits per second: a chunk of a stream (256 KiB) takes two seconds at it. Ten moves that share it
/// still send each a chunk within the deadline of one.
const MIN_BITS: u64 = 1_000_000;

/// What an idle bucket saves up, as time at its rate: enough for a stream that pauses between two writes.
const BURST: Duration = Duration::from_millis(50);

/// The units, largest first.
const UNITS: [(char, u64); 3] = [('G', 1_000_000_000), ('M', 1_000_000), ('K', 1_000)];

/// A rate in bits per second, written `100M`: with K, M or G for thousands, millions or thousands of millions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bandwidth(u64);

impl Bandwidth {
    fn bytes_per_second(self) -> f64 {
        self.0 as f64 / 8.0
    }
}

impl FromStr for Bandwidth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unit = UNITS.iter().find(|(letter, _)| text.ends_with(*letter));
        let (digits, factor) = match unit {
            Some((_, factor)) => (&text[..text.len() - 1], *factor),
            None => (text, 1),
        };
        let number = digits
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| digits.parse::<u64>());
        let Some(bits) = number
            .and_then(Result::ok)
            .and_then(|number| number.checked_mul(factor))
        else {
            return Err(format!(
                "{text:?} is no rate: write bits per second, such as 100M or 2G"
            ));
        };
        if bits < MIN_BITS {
            return Err(format!(
                "{text:?} is too low a rate: 1M, a million bits per second, is the lowest"
            ));
        }
        Ok(Self(bits))
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, factor)| self.0.is_multiple_of(*factor)) {
            Some((letter, factor)) => write!(formatter, "{}{letter}", self.0 / factor),
            None => write!(formatter, "{}", self.0),
        }
    }
}

impl TryFrom<String> for Bandwidth {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Bandwidth> for String {
    fn from(bandwidth: Bandwidth) -> Self {
        bandwidth.to_string()
    }
}

/// Keeps one rate for all who share it.
#[derive(Debug)]
pub struct Bucket {
    bytes_per_second: f64,
    /// When everything that was taken so far has had its time.
    paid_at: Mutex<Option<Instant>>,
}

impl Bucket {
    /// A bucket of this rate.
    pub fn new(bandwidth: Bandwidth) -> Self {
        Self {
            bytes_per_second: bandwidth.bytes_per_second(),
            paid_at: Mutex::default(),
        }
    }

    /// Takes `bytes` at `now`; returns how long to wait until they may go.
    fn take(&self, bytes: u64, now: Instant) -> Duration {
        // One number, which a panic elsewhere cannot leave half-done.
        let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        let saved = now.checked_sub(BURST).unwrap_or(now);
        let from = paid_at.map_or(saved, |paid_at| paid_at.max(saved));
        let until = from + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
        *paid_at = Some(until);
        until.saturating_duration_since(now)
    }
}

/// What one move is bound by: its own bucket and that of its agent, either of which there may be none.
#[derive(Clone, Debug, Default)]
pub struct Pacer(Vec<Arc<Bucket>>);

impl Pacer {
    /// Bound by all of these.
    pub fn new(buckets: impl IntoIterator<Item = Arc<Bucket>>) -> Self {
        Self(buckets.into_iter().collect())
    }

    /// Waits until so many bytes may go.
    pub async fn take(&self, bytes: u64) {
        let wait = self.reserve(bytes);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// The same on a thread.
    pub fn take_blocking(&self, bytes: u64) {
        std::thread::sleep(self.reserve(bytes));
    }

    /// Counts bytes that went without waiting: others wait for them.
    pub fn note(&self, bytes: u64) {
        self.reserve(bytes);
    }

    fn reserve(&self, bytes: u64) -> Duration {
        let now = Instant::now();
        let waits = self.0.iter().map(|bucket| bucket.take(bytes, now));
        waits.max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A million bytes a second.
    fn bucket() -> Bucket {
        Bucket::new("8M".parse().unwrap())
    }

    /// When the last of so many equal takes may go, each made when the one before went.
    fn last_of(bucket: &Bucket, takes: u32, bytes: u64, begin: Instant) -> Duration {
        let end = (0..takes).fold(begin, |now, _| now + bucket.take(bytes, now));
        end - begin
    }

    #[test]
    fn bytes_go_at_the_rate_whatever_their_pieces() {
        for (takes, bytes) in [(10, 1_000_000), (1000, 10_000), (1, 10_000_000)] {
            let took = last_of(&bucket(), takes, bytes, Instant::now());
            let expected = 10 * SECOND - BURST;
            assert!(
                took.abs_diff(expected) < Duration::from_millis(1),
                "{takes}: {took:?}"
            );
        }
    }

    #[test]
    fn all_who_share_a_bucket_are_served_in_turn() {
        let (bucket, now) = (bucket(), Instant::now());
        let waits: Vec<Duration> = (0..4).map(|_| bucket.take(500_000, now)).collect();
        for (n, wait) in (1..).zip(waits) {
            assert_eq!(wait, SECOND * n / 2 - BURST);
        }
    }

    #[test]
    fn an_idle_bucket_saves_up_a_burst_and_no_more() {
        let (bucket, now) = (bucket(), Instant::now());
        bucket.take(1_000_000, now);
        let much_later = now + 3600 * SECOND;
        assert_eq!(bucket.take(50_000, much_later), Duration::ZERO, "that is 50 ms");
        assert_eq!(bucket.take(1_000_000, much_later), SECOND);
    }

    #[test]
    fn what_did_not_wait_is_waited_for_and_the_slowest_bucket_decides() {
        let slow = Arc::new(bucket());
        let fast = Arc::new(Bucket::new("1G".parse().unwrap()));
        let pacer = Pacer::new([Arc::clone(&fast), Arc::clone(&slow)]);
        pacer.note(5_000_000);
        let now = Instant::now();
        let wait = slow.take(1, now);
        assert!(wait > 4 * SECOND && wait < 6 * SECOND, "{wait:?}");
        assert!(fast.take(1, now) < SECOND / 10);
        Pacer::default().take_blocking(u64::MAX);
    }

    #[test]
    fn rates_are_read_as_they_are_written() {
        for text in ["1M", "100M", "2G", "1500K", "1000001"] {
            assert_eq!(text.parse::<Bandwidth>().unwrap().to_string(), text);
        }
        assert_eq!("1000M".parse::<Bandwidth>().unwrap().to_string(), "1G");
        for wrong in [
            "",
            "M",
            "fast",
            "-1M",
            "+1M",
            "1.5G",
            "100m",
            "100MB",
            "99999999999G",
            "999K",
            "0",
        ] {
            assert!(wrong.parse::<Bandwidth>().is_err(), "{wrong}");
        }
        let json = serde_json::to_string(&"100M".parse::<Bandwidth>().unwrap()).unwrap();
        assert_eq!(json, "\"100M\"");
        assert!(serde_json::from_str::<Bandwidth>("\"0\"").is_err());
    }
}
