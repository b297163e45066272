//! Pre-copy's arithmetic: what has been copied and is still true, when another round pays, and what is left at the end.
//!
//! A page that was copied counts for as long as the task exists and has not written to it: every look takes away what is
//! no longer clean. So what could not be read, moved elsewhere or came to belong to another task is simply copied again.
//! Nothing here reads memory or sends anything.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use godwit_runtime::pages::extents::Extents;
use godwit_runtime::pages::layout::{Range, Task};
use godwit_runtime::pages::wire::PAGE_BYTES;
use serde::{Deserialize, Serialize};

use super::tracker::{Look, TaskId};

/// Rounds at most. Each that pays is at least a fifth smaller than the one before it, so after these there is a quarter
/// left at most; a container that writes so fast needs another way.
pub const MAX_ROUNDS: usize = 8;

/// A round of more than this share of the one before it, in percent, does not pay: it costs its time and the link's, and
/// the next would be as large.
const PAYING_PERCENT: u64 = 80;

/// How long a container may stand still if nobody says: about what users of live migration are used to from machines.
pub const DEFAULT_DOWNTIME: Duration = Duration::from_millis(300);

/// What a freeze takes without memory: CRIU's dump and restore of a small container, and runC's start.
const FREEZE: Duration = Duration::from_millis(150);

/// One round, as measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Round {
    /// 1 for the first.
    pub number: u32,
    /// Pages sent.
    pub pages: u64,
    /// Bytes of these pages.
    pub bytes: u64,
    /// Bytes that they had on the link.
    pub sent: u64,
    /// From its look at the memory to the destination's word that all is there, in microseconds.
    pub micros: u64,
    /// How long the container stood still for the look, in microseconds.
    pub stood_micros: u64,
    /// Bytes of pages that went in a second.
    pub bandwidth: u64,
    /// Bytes of pages that the container wrote to meanwhile: a page counts once.
    pub dirtied: u64,
    /// The same for a second.
    pub dirty_rate: u64,
}

/// Why there is no further round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// What is left fits into the downtime that was asked for.
    Fits,
    /// The last round did not leave less than the one before it.
    DoesNotShrink,
    /// There were [`MAX_ROUNDS`].
    Enough,
    /// Somebody has said that it is to stand still now.
    Hurried,
    /// The container's memory could not be looked at, for this reason.
    Unseen(String),
}

impl fmt::Display for Stop {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fits => write!(formatter, "what was left fitted into the downtime"),
            Self::DoesNotShrink => write!(
                formatter,
                "it writes to its memory about as fast as the link carries"
            ),
            Self::Enough => write!(formatter, "{MAX_ROUNDS} rounds were not enough"),
            Self::Hurried => write!(formatter, "there were to be no more of them"),
            Self::Unseen(reason) => write!(formatter, "its memory could not be watched: {reason}"),
        }
    }
}

/// Whether to stop, when `left` bytes of pages are to be sent next; `None`: another round pays.
pub fn judge(rounds: &[Round], left: u64, downtime: Duration) -> Option<Stop> {
    let last = rounds.last()?;
    if predict(rounds, left) <= downtime {
        return Some(Stop::Fits);
    }
    if rounds.len() >= MAX_ROUNDS {
        return Some(Stop::Enough);
    }
    let pays = left.saturating_mul(100) <= last.bytes.saturating_mul(PAYING_PERCENT);
    (!pays).then_some(Stop::DoesNotShrink)
}

/// How long the container would stand still if `left` bytes of pages went in the freeze, at the rounds' bandwidth.
pub fn predict(rounds: &[Round], left: u64) -> Duration {
    let (bytes, micros) = rounds.iter().fold((0_u64, 0_u64), |(bytes, micros), round| {
        (bytes + round.bytes, micros + round.micros)
    });
    match per_second(bytes, micros) {
        // Nothing was sent yet, so nothing is known of the link.
        0 => Duration::MAX,
        bandwidth => FREEZE + Duration::from_micros(left.saturating_mul(1_000_000) / bandwidth),
    }
}

/// A rate out of an amount and a time in microseconds.
pub fn per_second(amount: u64, micros: u64) -> u64 {
    amount.saturating_mul(1_000_000) / micros.max(1)
}

/// What was copied of a container's memory and is still as it was.
#[derive(Clone, Debug, Default)]
pub struct Copied(BTreeMap<TaskId, Extents>);

impl Copied {
    /// Takes a look in: forgets what is no longer true, and returns what is not copied.
    pub fn missing(&mut self, look: &Look) -> Vec<(TaskId, Extents)> {
        let mut before = std::mem::take(&mut self.0);
        let mut missing = Vec::new();
        for (task, seen) in &look.tasks {
            let still = before.remove(task).unwrap_or_default().both(&seen.clean);
            let rest = seen.present.without(&still);
            if !rest.is_empty() {
                missing.push((*task, rest));
            }
            self.0.insert(*task, still);
        }
        missing
    }

    /// These pages are at the destination now.
    pub fn add(&mut self, task: TaskId, pages: &Extents) {
        let copied = self.0.entry(task).or_default();
        *copied = copied.either(pages);
    }

    /// The tasks of the last look.
    pub fn tasks(&self) -> impl Iterator<Item = TaskId> {
        self.0.keys().copied()
    }

    /// Nothing is known any more.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Of the pages that a dump has left in its tasks, those that are not copied; the look is the one at the last.
    pub fn left(&mut self, look: &Look, behind: &[Task]) -> Vec<Task> {
        let _ = self.missing(look);
        let copied: BTreeMap<u32, &Extents> =
            self.0.iter().map(|(task, extents)| (task.pid, extents)).collect();
        let nothing = Extents::default();
        let rest = |task: &Task| {
            let all = Extents::of(task.ranges.iter().copied());
            let copied = copied.get(&task.pid).copied().unwrap_or(&nothing);
            Task {
                pid: task.pid,
                ranges: all.without(copied).within(&task.ranges),
            }
        };
        behind.iter().map(rest).collect()
    }
}

/// Bytes of all pages of some tasks.
pub fn bytes_of<'a>(ranges: impl IntoIterator<Item = &'a Range>) -> u64 {
    ranges.into_iter().map(Range::bytes).sum()
}

/// How many pages so many bytes are.
pub fn pages_in(bytes: u64) -> u64 {
    bytes / PAGE_BYTES as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_runtime::pages::soft_dirty::Seen;

    const MIB: u64 = 1 << 20;

    /// Rounds of so many MiB, each of which went at 100 MiB a second.
    fn rounds(sizes: &[u64]) -> Vec<Round> {
        let round = |(size, number): (&u64, u32)| Round {
            number,
            bytes: size * MIB,
            micros: size * 10_000,
            ..Round::default()
        };
        sizes.iter().zip(1..).map(round).collect()
    }

    #[test]
    fn another_round_is_made_where_it_pays() {
        let eight = [1000, 500, 400, 300, 240, 190, 150, 120];
        let cases: &[(&[u64], u64, Option<Stop>, &str)] = &[
            (&[], 1000, None, "the first goes whatever there is"),
            (&[], 0, None, "and tells how fast the link is"),
            (&[1000], 300, None, "it shrinks, and does not fit yet"),
            (&[1000], 800, None, "just so"),
            (&[1000], 801, Some(Stop::DoesNotShrink), "it writes too fast"),
            (&[1000], 2000, Some(Stop::DoesNotShrink), "it grows"),
            (&[1000], 15, Some(Stop::Fits), "150 ms are left for 15 MiB"),
            (&[1000], 16, None, "and not for 16"),
            (&[10], 12, Some(Stop::Fits), "it does not shrink, and fits"),
            (&[1000, 300], 250, Some(Stop::DoesNotShrink), "it does no longer"),
            (&eight[..7], 120, None, "the eighth"),
            (&eight, 90, Some(Stop::Enough), "no ninth"),
            (&eight, 15, Some(Stop::Fits), "which need not be"),
            (
                &[0],
                10,
                Some(Stop::DoesNotShrink),
                "no memory at first, so nothing is known of the link",
            ),
        ];
        for (sizes, left, wanted, why) in cases {
            let told = judge(&rounds(sizes), left * MIB, DEFAULT_DOWNTIME);
            assert_eq!(told, *wanted, "{why}: {sizes:?} then {left}");
        }
        assert_eq!(
            judge(&rounds(&[1000]), 15 * MIB, Duration::from_millis(200)),
            None,
            "a shorter downtime asks for more"
        );
        assert_eq!(
            judge(&rounds(&[1000]), 300 * MIB, Duration::from_secs(4)),
            Some(Stop::Fits)
        );
    }

    #[test]
    fn the_prediction_is_the_freeze_and_what_the_link_takes() {
        assert_eq!(
            predict(&rounds(&[100]), 50 * MIB),
            FREEZE + Duration::from_millis(500)
        );
        assert_eq!(predict(&[], 1), Duration::MAX);
    }

    fn task(pid: u32, began: u64) -> TaskId {
        TaskId {
            pid,
            here: 1000 + pid,
            began,
        }
    }

    fn pages(ranges: &[(u64, u64)]) -> Extents {
        Extents::of(ranges.iter().map(|(start, end)| Range {
            start: *start,
            end: *end,
        }))
    }

    type Spans<'a> = &'a [(u64, u64)];

    fn look(tasks: &[(TaskId, Spans<'_>, Spans<'_>)]) -> Look {
        let seen = |present: Spans<'_>, clean: Spans<'_>| Seen {
            present: pages(present),
            clean: pages(clean),
        };
        Look {
            tasks: tasks
                .iter()
                .map(|(id, present, clean)| (*id, seen(present, clean)))
                .collect(),
            stood: Duration::ZERO,
        }
    }

    #[test]
    fn what_was_copied_counts_until_it_is_written_to_or_gone() {
        let (one, mut copied) = (task(1, 5), Copied::default());
        // Clean or not: it was never copied.
        let first = copied.missing(&look(&[(one, &[(0, 100)], &[(0, 100)])]));
        assert_eq!(first, [(one, pages(&[(0, 100)]))]);
        copied.add(one, &pages(&[(0, 90)]));
        let second = copied.missing(&look(&[(one, &[(0, 100)], &[(0, 40), (50, 100)])]));
        assert_eq!(second, [(one, pages(&[(40, 50), (90, 100)]))]);
        copied.add(one, &pages(&[(40, 50), (90, 100)]));
        // It gives some back and gets it anew, which is not clean; the rest stays copied.
        let third = copied.missing(&look(&[(one, &[(0, 60)], &[(0, 60)])]));
        assert!(third.is_empty());
        let fourth = copied.missing(&look(&[(one, &[(0, 100)], &[(0, 60), (60, 100)])]));
        assert_eq!(fourth, [(one, pages(&[(60, 100)]))], "it was gone meanwhile");
    }

    #[test]
    fn another_task_of_the_same_pid_begins_anew() {
        let mut copied = Copied::default();
        let all: Spans<'_> = &[(0, 10)];
        copied.missing(&look(&[(task(1, 5), all, &[])]));
        copied.add(task(1, 5), &pages(all));
        let missing = copied.missing(&look(&[(task(1, 6), all, all)]));
        assert_eq!(missing, [(task(1, 6), pages(all))]);
        copied.add(task(1, 6), &pages(all));
        copied.clear();
        assert_eq!(copied.missing(&look(&[(task(1, 6), all, all)])).len(), 1);
    }

    #[test]
    fn left_is_what_the_dump_left_behind_and_nobody_copied() {
        let (one, mut copied) = (task(1, 5), Copied::default());
        copied.missing(&look(&[(one, &[(0, 100)], &[])]));
        copied.add(one, &pages(&[(0, 100)]));
        let range = |start, end| Range { start, end };
        let behind = [
            Task {
                pid: 1,
                ranges: vec![range(0, 30), range(30, 60)],
            },
            Task {
                pid: 7,
                ranges: vec![range(5, 6)],
            },
        ];
        let left = copied.left(&look(&[(one, &[(0, 100)], &[(0, 20), (50, 100)])]), &behind);
        assert_eq!(
            left[0].ranges,
            [range(20, 30), range(30, 50)],
            "cut where the mappings are"
        );
        assert_eq!(left[1].ranges, [range(5, 6)], "a task that was never seen");
    }
}
