//! Chooses how pages are packed, by trying: what brings more pages a second is kept.
//!
//! The rate of a link alone does not tell: a receiver that is busy makes a fast link look slow, and packing would give
//! it more to do. Pure arithmetic on what it is told; it packs and sends nothing.

use std::time::Instant;

use super::codec::Packing;

/// Bytes of pages between two looks: enough to fill the link's buffers several times.
const SAMPLE_BYTES: u64 = 32 << 20;

/// Where pages go slower than this, in bytes a second, zstd is tried: one processor packs about twice as much at level 1.
const ZSTD_BELOW: u64 = 150 << 20;

/// Where they go slower than this, LZ4 is, which packs about 600 MB/s. A faster link is faster without.
const LZ4_BELOW: u64 = 400 << 20;

/// What is tried must be better by this much, in percent: rates vary by some without a cause.
const BETTER_PERCENT: u64 = 10;

/// After so many bytes of pages all is tried anew: another may have left the link, or come to it.
const RETRY_BYTES: u64 = 1 << 30;

/// See the module. One for all streams of a move, which share the link and the processors.
#[derive(Debug)]
pub(crate) struct Chooser {
    packing: Packing,
    /// What was used before, and how many bytes a second went then, while something else is tried.
    before: Option<(Packing, u64)>,
    /// What was tried and did not pay.
    futile: Vec<Packing>,
    /// Since the last look.
    bytes: u64,
    since: Instant,
    /// Since all was tried.
    bytes_settled: u64,
    /// The first sample is none: it fills buffers, and waits for a receiver that is not ready.
    is_first: bool,
}

impl Chooser {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            packing: Packing::None,
            before: None,
            futile: Vec::new(),
            bytes: 0,
            since: now,
            bytes_settled: 0,
            is_first: true,
        }
    }

    /// What to pack with now.
    pub(crate) fn packing(&self) -> Packing {
        self.packing
    }

    /// The time until now says nothing of the link: nothing was to be sent.
    pub(crate) fn forget(&mut self, now: Instant) {
        (self.bytes, self.since) = (0, now);
    }

    /// Notes that `bytes` of pages have gone by `now`.
    pub(crate) fn note(&mut self, bytes: u64, now: Instant) {
        self.bytes += bytes;
        self.bytes_settled += bytes;
        if self.bytes < SAMPLE_BYTES {
            return;
        }
        let micros = now.saturating_duration_since(self.since).as_micros();
        let micros = u64::try_from(micros).unwrap_or(u64::MAX).max(1);
        let rate = self.bytes.saturating_mul(1_000_000) / micros;
        self.forget(now);
        if std::mem::take(&mut self.is_first) {
            return;
        }
        self.settle(rate);
        if let Some(next) = self.worth_a_try(rate) {
            self.before = Some((self.packing, rate));
            self.packing = next;
        }
    }

    /// Ends a trial: `rate` is what it came to.
    fn settle(&mut self, rate: u64) {
        let Some((before, rate_before)) = self.before.take() else {
            return;
        };
        self.bytes_settled = 0;
        if rate < rate_before + rate_before / 100 * BETTER_PERCENT {
            self.futile.push(self.packing);
            self.packing = before;
        } else {
            self.futile.push(before);
        }
    }

    /// What may be better than what brings `rate`.
    fn worth_a_try(&mut self, rate: u64) -> Option<Packing> {
        if self.bytes_settled >= RETRY_BYTES {
            self.futile.clear();
        }
        let next = match (self.packing, rate) {
            (Packing::Lz4 | Packing::Zstd, _) if self.futile.is_empty() => Packing::None,
            (Packing::None | Packing::Lz4, ..ZSTD_BELOW) => Packing::Zstd,
            (Packing::None, ZSTD_BELOW..LZ4_BELOW) => Packing::Lz4,
            _ => return None,
        };
        Some(next).filter(|next| !self.futile.contains(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Sends `mib` over a link that takes `link` MiB/s, between ends that pack and unpack as many as `ends` says.
    fn send(chooser: &mut Chooser, now: &mut Instant, mib: u64, link: u64, ends: fn(Packing) -> (u64, u64)) {
        for _ in 0..mib {
            let (rate, shrinks_to_percent) = ends(chooser.packing());
            let rate = rate.min(link * 100 / shrinks_to_percent);
            *now += Duration::from_micros(1_000_000 / rate);
            chooser.note(1 << 20, *now);
        }
    }

    fn usual(packing: Packing) -> (u64, u64) {
        match packing {
            Packing::None => (2000, 100),
            Packing::Lz4 => (500, 60),
            Packing::Zstd => (300, 40),
        }
    }

    fn random(packing: Packing) -> (u64, u64) {
        (usual(packing).0, 100)
    }

    /// The link is open and a receiver has its hands full.
    fn busy(packing: Packing) -> (u64, u64) {
        let (rate, percent) = usual(packing);
        (rate / 8, percent)
    }

    fn settled(link: u64, ends: fn(Packing) -> (u64, u64)) -> Packing {
        let mut now = Instant::now();
        let mut chooser = Chooser::new(now);
        send(&mut chooser, &mut now, 256, link, ends);
        chooser.packing()
    }

    #[test]
    fn a_slow_link_gets_fewer_bytes_and_a_fast_one_less_work() {
        assert_eq!(settled(12, usual), Packing::Zstd);
        assert_eq!(settled(118, usual), Packing::Zstd);
        assert_eq!(settled(250, usual), Packing::Lz4);
        assert_eq!(settled(1000, usual), Packing::None);
    }

    #[test]
    fn what_does_not_pay_is_not_kept() {
        assert_eq!(settled(118, random), Packing::None, "it does not shrink");
        assert_eq!(
            settled(5000, busy),
            Packing::None,
            "the receiver is slow, not the link"
        );
    }

    #[test]
    fn a_link_that_has_become_faster_is_found_out() {
        let mut now = Instant::now();
        let mut chooser = Chooser::new(now);
        send(&mut chooser, &mut now, 256, 118, usual);
        assert_eq!(chooser.packing(), Packing::Zstd);
        send(&mut chooser, &mut now, 1200, 1000, usual);
        assert_eq!(chooser.packing(), Packing::None);
    }

    #[test]
    fn a_time_in_which_nothing_was_to_be_sent_is_no_sample() {
        let mut now = Instant::now();
        let mut chooser = Chooser::new(now);
        for _ in 0..1000 {
            now += Duration::from_secs(1);
            chooser.forget(now);
            send(&mut chooser, &mut now, 1, 1000, usual);
        }
        assert_eq!(chooser.packing(), Packing::None);
    }
}
