//! The source's side of pre-copy: memory goes over while the container runs, in rounds, until what is left is small.
//!
//! Each round is a bulk stream of the move's own link, of page records, and is answered when the destination has all of
//! it: so what a round took is known, and a fault in one is a fault of the link like any other. Nothing is undone here:
//! the container never stopped, and what the destination keeps goes away with the move. When to stop is
//! [`crate::pages::rounds`]' to say, what is in the memory [`crate::pages::tracker`]'s.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use godwit_runtime::pages::extents::Extents;
use godwit_runtime::pages::layout::{Range, Task};
use godwit_runtime::pages::wire::{Header, Kind, MAX_PAGES, PAGE_BYTES};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use crate::clock::Clock;
use crate::deadlines;
use crate::failure::Problem;
use crate::link::{Link, joined};
use crate::message::{Message, Purpose};
use crate::pages::chooser::Chooser;
use crate::pages::codec;
use crate::pages::rounds::{Copied, Round, Stop, bytes_of, judge, pages_in, per_second, predict};
use crate::pages::tracker::{Look, TaskId, Tracker};
use crate::progress::{Event, Observer};

/// Looks at a container that fail in a row before it is given up to watch it: one may fall between a vfork and its exec.
const LOOKS: usize = 5;

/// Between two of them; most programs are exec'ed in a few milliseconds.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Bytes of records that go out in one write.
const BATCH_BYTES: usize = 256 << 10;

/// Bytes of one record's pages at most.
const RUN_BYTES: u64 = MAX_PAGES as u64 * PAGE_BYTES as u64;

/// What the report tells of a pre-copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreCopy {
    /// The downtime that was asked for, in milliseconds.
    pub downtime_ms: u64,
    /// What went while the container ran.
    pub rounds: Vec<Round>,
    /// Why there were no more rounds, in words.
    pub ended: String,
    /// Bytes of the pages that were left when it stood still.
    pub left: u64,
    /// Bytes that all of it had on the link, without what follows the container.
    pub sent: u64,
    /// What its downtime was predicted to be, in milliseconds, if these went in the freeze.
    pub predicted_ms: u64,
}

/// A container's memory on its way.
pub struct Rounds {
    work: Option<Work>,
    downtime: Duration,
    rounds: Vec<Round>,
    ended: Option<Stop>,
}

/// The pages of each task that are to go.
type Missing = Vec<(TaskId, Extents)>;

/// What a round needs on a thread of its own.
struct Work {
    tracker: Box<dyn Tracker>,
    copied: Copied,
    chooser: Chooser,
}

/// What is to become of the pages that were left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// They go in the freeze, whatever that takes.
    Now,
    /// They go in the freeze if that is short enough, and follow the container otherwise.
    NowIfShort,
}

impl Rounds {
    /// Nothing has gone yet.
    pub fn new(tracker: Box<dyn Tracker>, downtime: Duration) -> Self {
        Self {
            work: Some(Work {
                tracker,
                copied: Copied::default(),
                chooser: Chooser::new(Instant::now()),
            }),
            downtime,
            rounds: Vec::new(),
            ended: None,
        }
    }

    /// Copies until it does not pay any more, or nobody wants to wait for it.
    pub async fn run(
        &mut self,
        link: &mut Link,
        observer: &Observer,
        clock: &mut Clock,
    ) -> Result<(), Problem> {
        while self.ended.is_none() {
            let began = Instant::now();
            let (look, missing) = match self.look().await? {
                Ok(seen) => seen,
                Err(error) => {
                    self.ended = Some(Stop::Unseen(error.to_string()));
                    break;
                }
            };
            let left = missing.iter().map(|(_, pages)| pages.bytes()).sum();
            self.note_dirtied(left, began, observer);
            self.ended = match judge(&self.rounds, left, self.downtime) {
                None if observer.hurry.is_cancelled() => Some(Stop::Hurried),
                judged => judged,
            };
            if self.ended.is_none() {
                observer.expect(left);
                let round = self.send(link, missing).await?;
                self.note_round(round, began, &look);
                clock.step("memory-round", began);
            }
        }
        Ok(())
    }

    /// Sends what is left of the pages that the dump has left `behind` in tasks that stand still, or says which of those
    /// that went are of no use any more. Returns the pages that are to follow the container; none: the destination has
    /// all.
    pub async fn finish(
        &mut self,
        link: &mut Link,
        behind: Vec<Task>,
        rest: Rest,
    ) -> Result<(Vec<Task>, PreCopy), Problem> {
        let mut work = self.take()?;
        let (mut work, left) = joined(spawn_blocking(move || {
            let look = work
                .tracker
                .look_at_last()
                .map_err(|error| Problem::io("looking at the memory of the frozen tasks", &error))?;
            let left = work.copied.left(&look, &behind);
            Ok((work, left))
        }))
        .await?;
        let bytes = bytes_of(left.iter().flat_map(|task| &task.ranges));
        let predicted = predict(&self.rounds, bytes);
        let is_short = rest == Rest::Now || bytes == 0 || predicted <= self.downtime;
        let mut account = PreCopy {
            downtime_ms: millis(self.downtime),
            rounds: self.rounds.clone(),
            ended: self.ended.as_ref().map(Stop::to_string).unwrap_or_default(),
            left: bytes,
            sent: self.rounds.iter().map(|round| round.sent).sum(),
            predicted_ms: millis(predicted),
        };
        let following = if is_short { Vec::new() } else { left.clone() };
        let write = move |out: &mut dyn Write| {
            let written = if is_short {
                work.write_rest(&left, out)
            } else {
                write_stale(&left, out)
            };
            written.map_err(|error| Problem::io("sending the memory that is left", &error))
        };
        let ((), sent) = link.send_bulk(Purpose::Memory, write).await?;
        account.sent += sent;
        Ok((following, account))
    }

    async fn look(&mut self) -> Result<io::Result<(Look, Missing)>, Problem> {
        let mut work = self.take()?;
        let (work, seen) = joined(spawn_blocking(move || {
            let seen = work.look();
            Ok((work, seen))
        }))
        .await?;
        self.work = Some(work);
        Ok(seen)
    }

    /// Sends a round and waits for the word that it has come.
    async fn send(&mut self, link: &mut Link, missing: Missing) -> Result<Round, Problem> {
        let mut work = self.take()?;
        let write = move |out: &mut dyn Write| {
            let bytes = work
                .write_round(&missing, out)
                .map_err(|error| Problem::io("sending memory", &error))?;
            Ok((work, bytes))
        };
        let ((work, bytes), sent) = link.send_bulk(Purpose::Memory, write).await?;
        self.work = Some(work);
        link.send(Message::RoundSent).await?;
        match link.receive("kept", deadlines::SYNC).await? {
            Message::Kept => Ok(Round {
                pages: pages_in(bytes),
                bytes,
                sent,
                ..Round::default()
            }),
            other => Err(link.out_of_turn(&other)),
        }
    }

    fn take(&mut self) -> Result<Work, Problem> {
        self.work
            .take()
            .ok_or_else(|| Problem::failed("its memory is no longer looked at"))
    }

    fn note_round(&mut self, round: Round, began: Instant, look: &Look) {
        let took = micros(began.elapsed());
        self.rounds.push(Round {
            number: u32::try_from(self.rounds.len() + 1).unwrap_or(u32::MAX),
            micros: took,
            stood_micros: micros(look.stood),
            bandwidth: per_second(round.bytes, took),
            ..round
        });
    }

    /// What a round did not cover is known by the look after it.
    fn note_dirtied(&mut self, left: u64, seen: Instant, observer: &Observer) {
        let Some(last) = self.rounds.last_mut() else {
            return;
        };
        let since = last.micros + micros(seen.elapsed());
        last.dirtied = left;
        last.dirty_rate = per_second(left, since);
        let round = *last;
        observer.tell(Event::Round {
            round,
            predicted_downtime_ms: millis(predict(&self.rounds, left)),
        });
    }
}

impl Work {
    fn look(&mut self) -> io::Result<(Look, Missing)> {
        let mut n_tried = 0;
        loop {
            match self.tracker.look() {
                Ok(look) => {
                    let missing = self.copied.missing(&look);
                    return Ok((look, missing));
                }
                Err(error) => {
                    self.copied.clear();
                    n_tried += 1;
                    if n_tried == LOOKS {
                        return Err(error);
                    }
                }
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Sends pages of tasks that run; returns the bytes of those that were still there.
    fn write_round(&mut self, missing: &[(TaskId, Extents)], out: &mut dyn Write) -> io::Result<u64> {
        let mut batch = Batch::default();
        let mut total = 0;
        self.chooser.forget(Instant::now());
        for (task, pages) in missing {
            let mut sent = Extents::default();
            for range in pages.ranges() {
                let mut at = range.start;
                while at < range.end {
                    let run = Range {
                        start: at,
                        end: range.end.min(at + RUN_BYTES),
                    };
                    let n_read = batch.read(self.tracker.as_mut(), *task, run);
                    if n_read > 0 {
                        let read = Range {
                            start: at,
                            end: at + n_read,
                        };
                        batch.add(task.pid, read, &mut self.chooser, out)?;
                        sent.append(read);
                        total += n_read;
                    }
                    // A page that is no longer there is passed over: it is none, or is not clean when it comes back.
                    at += if n_read < run.bytes() {
                        n_read + PAGE_BYTES as u64
                    } else {
                        n_read
                    };
                }
            }
            self.copied.add(*task, &sent);
        }
        batch.flush(&mut self.chooser, out)?;
        Ok(total)
    }

    /// Sends all pages of tasks that stand still, every one of which must be there; they are the last.
    fn write_rest(&mut self, left: &[Task], out: &mut dyn Write) -> io::Result<()> {
        let tasks: Vec<TaskId> = self.copied.tasks().collect();
        let mut batch = Batch::default();
        for task in left.iter().filter(|task| !task.ranges.is_empty()) {
            let id = tasks
                .iter()
                .find(|id| id.pid == task.pid)
                .ok_or_else(|| io::Error::other(format!("process {} of the container is gone", task.pid)))?;
            for run in runs(&task.ranges, RUN_BYTES) {
                if batch.read(self.tracker.as_mut(), *id, run) < run.bytes() {
                    return Err(io::Error::other(format!(
                        "process {} of the container lacks pages that its dump found at {:#x}",
                        task.pid, run.start
                    )));
                }
                batch.add(task.pid, run, &mut self.chooser, out)?;
            }
        }
        batch.flush(&mut self.chooser, out)?;
        out.write_all(&Header::bare(Kind::AllSent, 0, 0, 0).to_bytes())
    }
}

/// Records that are not written yet, and the pages that the next of them is made of.
#[derive(Default)]
struct Batch {
    content: Vec<u8>,
    records: Vec<u8>,
    /// Bytes of pages in the records.
    pages: u64,
}

impl Batch {
    fn read(&mut self, tracker: &mut dyn Tracker, task: TaskId, run: Range) -> u64 {
        self.content.resize(usize::try_from(run.bytes()).unwrap_or(0), 0);
        tracker.read(task, run.start, &mut self.content) as u64
    }

    fn add(&mut self, pid: u32, run: Range, chooser: &mut Chooser, out: &mut dyn Write) -> io::Result<()> {
        let content = &self.content[..usize::try_from(run.bytes()).unwrap_or(0)];
        codec::pack(pid, run.start, content, chooser.packing(), &mut self.records)?;
        self.pages += run.bytes();
        if self.records.len() >= BATCH_BYTES {
            self.flush(chooser, out)?;
        }
        Ok(())
    }

    fn flush(&mut self, chooser: &mut Chooser, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.records)?;
        chooser.note(self.pages, Instant::now());
        self.records.clear();
        self.pages = 0;
        Ok(())
    }
}

/// Says which pages the destination must not use, whether or not it has them.
fn write_stale(left: &[Task], out: &mut dyn Write) -> io::Result<()> {
    for task in left {
        for run in runs(&task.ranges, RUN_BYTES) {
            let n_pages = u32::try_from(pages_in(run.bytes())).unwrap_or(MAX_PAGES);
            let record = Header::bare(Kind::Stale, task.pid, run.start, n_pages);
            out.write_all(&record.to_bytes())?;
        }
    }
    Ok(())
}

/// Ranges in pieces of so many bytes at most.
fn runs(ranges: &[Range], most: u64) -> impl Iterator<Item = Range> {
    ranges.iter().flat_map(move |range| {
        let end = range.end;
        (range.start..end)
            .step_by(usize::try_from(most).unwrap_or(usize::MAX))
            .map(move |start| Range {
                start,
                end: end.min(start + most),
            })
    })
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
