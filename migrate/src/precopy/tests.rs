//! Rounds from a container that exists only here, over a real link into a real store.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use godwit_runtime::pages::soft_dirty::Seen;
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::pages::codec::unpack;
use crate::pages::rounds::{DEFAULT_DOWNTIME, MAX_ROUNDS};
use crate::pages::store::Store;
use crate::phase::Role;

const PAGE: u64 = PAGE_BYTES as u64;

/// The one task of the container.
const TASK: TaskId = TaskId {
    pid: 1,
    here: 4242,
    began: 7,
};

/// What a page holds, if there is one, and whether it was written to since the last look.
#[derive(Clone, Copy, Debug)]
struct Page {
    value: u8,
    is_dirty: bool,
}

/// What a container does to its memory, by page number.
type Deed = dyn FnMut(&mut BTreeMap<u64, Page>) + Send;

/// A container's memory, by page number, and what is done to it while it is copied.
struct Fake {
    pages: Arc<Mutex<BTreeMap<u64, Page>>>,
    /// Called before every page that is read: the container runs meanwhile.
    writes: Box<Deed>,
    /// It stands still, and writes to nothing any more.
    is_frozen: bool,
    /// How often looks still fail.
    failures: usize,
    /// How long a page takes to be read.
    pace: Duration,
    /// Cancelled when somebody wants it to stand still at once.
    hurry: CancellationToken,
}

impl Tracker for Fake {
    fn look(&mut self) -> io::Result<Look> {
        if self.failures > 0 {
            self.failures -= 1;
            // A look that fails half-way has forgotten what was written.
            self.pages
                .lock()
                .unwrap()
                .values_mut()
                .for_each(|page| page.is_dirty = false);
            return Err(io::Error::other("a thread does not stop"));
        }
        let look = self.seen();
        self.pages
            .lock()
            .unwrap()
            .values_mut()
            .for_each(|page| page.is_dirty = false);
        Ok(look)
    }

    fn look_at_last(&mut self) -> io::Result<Look> {
        self.is_frozen = true;
        Ok(self.seen())
    }

    fn read(&mut self, task: TaskId, address: u64, buffer: &mut [u8]) -> usize {
        assert_eq!(task, TASK);
        let mut n_read = 0;
        for content in buffer.chunks_mut(PAGE_BYTES) {
            std::thread::sleep(self.pace);
            let mut pages = self.pages.lock().unwrap();
            if !self.is_frozen {
                (self.writes)(&mut pages);
            }
            let Some(page) = pages.get(&(address / PAGE + n_read as u64)) else {
                break;
            };
            content.fill(page.value);
            n_read += 1;
        }
        n_read * PAGE_BYTES
    }
}

impl Fake {
    fn seen(&self) -> Look {
        let pages = self.pages.lock().unwrap();
        let range = |number: u64| Range {
            start: number * PAGE,
            end: (number + 1) * PAGE,
        };
        let clean = pages.iter().filter(|(_, page)| !page.is_dirty);
        let seen = Seen {
            present: Extents::of(pages.keys().map(|number| range(*number))),
            clean: Extents::of(clean.map(|(number, _)| range(*number))),
        };
        Look {
            tasks: vec![(TASK, seen)],
            stood: Duration::from_micros(50),
        }
    }
}

/// A move's memory: what the container holds at its end, and what the store of the destination does.
struct Moved {
    held: BTreeMap<u64, u8>,
    kept: BTreeMap<u64, u8>,
    following: Vec<u64>,
    is_complete: bool,
    account: PreCopy,
}

/// Copies the memory of `fake` and freezes it then; the dump leaves all of its pages behind.
fn moved(fake: Fake, rest: Rest, downtime: Duration) -> Moved {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let store = Arc::new(Store::create(&directory.path().join("kept")).unwrap());
        let (near, far) = tokio::io::duplex(1 << 16);
        let (mut near, mut far) = (Link::new(near, "hb"), Link::new(far, "ha"));
        let (pages, hurry) = (Arc::clone(&fake.pages), fake.hurry.clone());
        let away = async {
            let (mut observer, _events) = Observer::new(CancellationToken::new());
            observer.hurry = hurry;
            let mut clock = Clock::start(Role::Source);
            let mut rounds = Rounds::new(Box::new(fake), downtime);
            rounds.run(&mut near, &observer, &mut clock).await.unwrap();
            near.send(Message::Freezing).await.unwrap();
            let range = |number: &u64| Range {
                start: number * PAGE,
                end: (number + 1) * PAGE,
            };
            let behind = Task {
                pid: TASK.pid,
                ranges: pages.lock().unwrap().keys().map(range).collect(),
            };
            rounds.finish(&mut near, vec![behind], rest).await.unwrap()
        };
        let keep = async {
            let mut is_frozen = false;
            loop {
                match far.receive("memory", Duration::from_secs(20)).await.unwrap() {
                    Message::Freezing => is_frozen = true,
                    Message::Bulk {
                        purpose: Purpose::Memory,
                    } => {
                        let store = Arc::clone(&store);
                        let take = move |input: &mut crate::bulk::ChunkReader| {
                            store.take(input).map_err(|error| Problem::io("keeping", &error))
                        };
                        far.receive_bulk_blocking(take).await.unwrap();
                        if is_frozen {
                            return;
                        }
                    }
                    Message::RoundSent => far.send(Message::Kept).await.unwrap(),
                    other => panic!("{other:?}"),
                }
            }
        };
        let ((following, account), ()) = tokio::join!(away, keep);
        let held = pages
            .lock()
            .unwrap()
            .iter()
            .map(|(number, page)| (*number, page.value))
            .collect();
        let kept = contents(&store, &held);
        let numbers = |range: &Range| range.start / PAGE..range.end / PAGE;
        Moved {
            held,
            kept,
            following: following
                .iter()
                .flat_map(|task| &task.ranges)
                .flat_map(numbers)
                .collect(),
            is_complete: store.is_complete(),
            account,
        }
    })
}

/// What a store has of these pages.
fn contents(store: &Store, wanted: &BTreeMap<u64, u8>) -> BTreeMap<u64, u8> {
    let value = |number: &u64| {
        let (mut out, mut unpacked) = (Vec::new(), Vec::new());
        store.find(TASK.pid, number * PAGE, 1, &mut out).unwrap()?;
        let mut rest = out.as_slice();
        let header = Header::read(&mut rest).unwrap().unwrap();
        match header.kind {
            Kind::Zero => return Some((*number, 0)),
            Kind::Raw => unpacked.extend_from_slice(rest),
            _ => drop(unpack(header, rest, &mut unpacked).unwrap()),
        }
        assert!(
            unpacked.iter().all(|byte| *byte == unpacked[0]),
            "page {number} is torn"
        );
        Some((*number, unpacked[0]))
    };
    wanted.keys().filter_map(value).collect()
}

fn memory(n_pages: u64) -> Arc<Mutex<BTreeMap<u64, Page>>> {
    let page = |number: u64| Page {
        value: (number % 251) as u8,
        is_dirty: true,
    };
    Arc::new(Mutex::new(
        (0..n_pages).map(|number| (number, page(number))).collect(),
    ))
}

/// A container that writes one page of the first `hot` for every `every` pages that are read.
fn writing(n_pages: u64, hot: u64, every: u64) -> Fake {
    let (mut n_read, mut next) = (0, 0);
    let writes = move |pages: &mut BTreeMap<u64, Page>| {
        n_read += 1;
        if n_read % every == 0 {
            next = (next + 7919) % hot;
            let page = pages.entry(next).or_insert(Page {
                value: 0,
                is_dirty: true,
            });
            *page = Page {
                value: page.value.wrapping_add(1),
                is_dirty: true,
            };
        }
    };
    Fake {
        pages: memory(n_pages),
        writes: Box::new(writes),
        failures: 0,
        is_frozen: false,
        pace: Duration::ZERO,
        hurry: CancellationToken::new(),
    }
}

#[test]
fn memory_that_nobody_writes_to_goes_once() {
    let mut fake = writing(3000, 1, 1 << 40);
    fake.failures = LOOKS - 1;
    let moved = moved(fake, Rest::Now, DEFAULT_DOWNTIME);
    assert_eq!(moved.account.rounds.len(), 1, "{:?}", moved.account);
    assert_eq!(moved.account.rounds[0].pages, 3000);
    assert_eq!((moved.account.left, moved.is_complete), (0, true));
    assert!(moved.kept == moved.held);
}

#[test]
fn rounds_get_smaller_and_the_last_of_it_goes_in_the_freeze() {
    let mut fake = writing(1000, 1000, 4);
    fake.pace = Duration::from_micros(100);
    // Some hundred pages are left for it: at a page in 100 us or more, more rounds than one are needed.
    let moved = moved(fake, Rest::Now, Duration::from_millis(151));
    let sizes: Vec<u64> = moved.account.rounds.iter().map(|round| round.pages).collect();
    assert!(sizes.len() >= 3, "{sizes:?}");
    assert!(sizes.windows(2).all(|pair| pair[1] < pair[0]), "{sizes:?}");
    assert!(moved.is_complete && moved.following.is_empty());
    assert!(moved.kept == moved.held);
    for round in &moved.account.rounds {
        assert!(round.bandwidth > 0 && round.stood_micros == 50, "{round:?}");
        assert_eq!(round.bytes, round.pages * PAGE);
    }
}

#[test]
fn what_is_written_too_fast_follows_and_none_that_is_old_is_kept() {
    let mut fake = writing(1000, 900, 1);
    fake.pace = Duration::from_micros(100);
    let moved = moved(fake, Rest::NowIfShort, Duration::from_millis(151));
    assert!(
        moved.account.ended.contains("as fast as the link"),
        "{:?}",
        moved.account
    );
    assert!(moved.account.rounds.len() < MAX_ROUNDS);
    assert!(!moved.is_complete && !moved.following.is_empty());
    let mut both: Vec<u64> = moved.kept.keys().chain(&moved.following).copied().collect();
    both.sort_unstable();
    assert_eq!(both, moved.held.keys().copied().collect::<Vec<_>>(), "each once");
    for (number, value) in &moved.kept {
        assert_eq!(moved.held[number], *value, "page {number}");
    }
}

#[test]
fn who_does_not_want_to_wait_ends_the_rounds() {
    let mut fake = writing(1000, 1000, 4);
    fake.pace = Duration::from_micros(100);
    let (hurry, mut writes) = (fake.hurry.clone(), fake.writes);
    fake.writes = Box::new(move |pages| {
        hurry.cancel();
        writes(pages);
    });
    let moved = moved(fake, Rest::Now, Duration::from_millis(151));
    assert_eq!(moved.account.rounds.len(), 1, "the one that was under way");
    assert!(moved.account.ended.contains("no more"), "{}", moved.account.ended);
    assert!(moved.is_complete && moved.kept == moved.held);
}

#[test]
fn a_container_that_cannot_be_watched_is_moved_all_the_same() {
    let mut fake = writing(100, 1, 1 << 40);
    fake.failures = LOOKS;
    let moved = moved(fake, Rest::Now, DEFAULT_DOWNTIME);
    assert!(moved.account.rounds.is_empty());
    assert!(
        moved.account.ended.contains("does not stop"),
        "{}",
        moved.account.ended
    );
    assert_eq!(moved.account.left, 100 * PAGE);
    assert!(moved.kept == moved.held);
    assert!(moved.is_complete);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever a container does to its pages while they are read, what is kept at the end is what it holds.
    #[test]
    fn whatever_is_done_meanwhile_nothing_old_is_kept(
        deeds in prop::collection::vec((0..40u64, 0..5u8), 1..200),
        every in 1..6usize,
        short in any::<bool>(),
    ) {
        let (mut n_read, mut done) = (0_usize, 0);
        let writes = move |pages: &mut BTreeMap<u64, Page>| {
            n_read += 1;
            if !n_read.is_multiple_of(every) || done == deeds.len() {
                return;
            }
            let (number, deed) = deeds[done];
            done += 1;
            match deed {
                // Given back; what is mapped there again is a page that is dirty.
                0 => drop(pages.remove(&number)),
                1 => drop(pages.insert(number, Page { value: 0, is_dirty: true })),
                _ => {
                    let page = pages.entry(number).or_insert(Page { value: 9, is_dirty: true });
                    *page = Page { value: page.value.wrapping_mul(3).wrapping_add(deed), is_dirty: true };
                }
            }
        };
        let fake = Fake { pages: memory(32), writes: Box::new(writes), failures: 0,
        is_frozen: false, pace: Duration::ZERO, hurry: CancellationToken::new() };
        let rest = if short { Rest::NowIfShort } else { Rest::Now };
        let moved = moved(fake, rest, Duration::ZERO);
        prop_assert_eq!(moved.is_complete, moved.following.is_empty());
        for (number, value) in &moved.held {
            match moved.kept.get(number) {
                Some(kept) => prop_assert_eq!(kept, value, "page {}", number),
                None => prop_assert!(moved.following.contains(number), "page {} is lost", number),
            }
        }
    }
}
