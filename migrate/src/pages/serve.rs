//! The source's end of the page streams: sends what has its turn, and what a task at the destination waits for.
//!
//! Streams are connections of their own, beside the link of the move, opened by the destination before the freeze: they
//! wait here until there are pages, and end when the move does. A stream says nothing but records of pages
//! ([`godwit_runtime::pages::wire`]); what is asked for and cannot be is an error that ends it.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use godwit_runtime::pages::layout::Task;
use godwit_runtime::pages::wire::{HEADER_BYTES, Header, Kind};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::chooser::Chooser;
use super::codec::{self, Packing};
use super::memory::Memory;
use super::neighbours::{Neighbours, Rate};
use super::portion::{Backlog, Portion, arrival};
use super::schedule::{Run, Schedule};
use super::turn::{Order, Turn};
use crate::bandwidth::Pacer;
use crate::places::MigrationId;
use crate::progress::Transfer;

/// Bytes of records that are read from the tasks and packed at once: still in the cache when they are written.
const BATCH_BYTES: usize = 1 << 20;

/// Bytes between two looks at whose turn it is, where nobody waits.
const LOOK_BYTES: usize = 128 << 10;

/// Batches read ahead of the link on each stream: one is filled while one is written.
const BATCHES_AHEAD: usize = 2;

/// The memory of a container that stands still here, shared by the streams that send it.
#[derive(Debug)]
pub struct Pages {
    memory: Memory,
    schedule: Mutex<Schedule>,
    chooser: Mutex<Chooser>,
    turn: Mutex<Turn>,
    rate: Mutex<Rate>,
    transfer: Arc<Transfer>,
    pacer: Pacer,
}

impl Pages {
    /// Pages to be sent as fast as `pacer` lets them, counted in `transfer`.
    pub fn new(memory: Memory, transfer: Arc<Transfer>, pacer: Pacer) -> Self {
        Self {
            schedule: Mutex::new(Schedule::new(memory.tasks())),
            chooser: Mutex::new(Chooser::new(Instant::now())),
            turn: Mutex::default(),
            rate: Mutex::default(),
            memory,
            transfer,
            pacer,
        }
    }

    /// Bytes of all pages.
    pub fn bytes(&self) -> u64 {
        self.memory.bytes()
    }

    /// The tasks with their pages.
    pub fn tasks(&self) -> Vec<Task> {
        self.memory.tasks().to_vec()
    }

    /// Only these are to be sent; the destination has all others.
    pub fn keep(&mut self, left: &[Task]) {
        self.memory.keep(left);
        self.schedule = Mutex::new(Schedule::new(self.memory.tasks()));
    }

    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        locked(&self.schedule)
    }

    /// Waits while pages that go unasked have to stand back; returns how they are to go then.
    async fn stand_back(&self) -> Order {
        let mut has_waited = false;
        loop {
            // The guard must not be held while this waits.
            let order = locked(&self.turn).order(Instant::now());
            if has_waited || order != Order::Go {
                locked(&self.chooser).forget(Instant::now());
            }
            let Order::StandBack(wait) = order else {
                return order;
            };
            sleep(wait).await;
            has_waited = true;
        }
    }

    fn pack(&self, run: Run, packing: Packing, buffer: &mut Vec<u8>, out: &mut Vec<u8>) -> io::Result<()> {
        buffer.resize(run.bytes(), 0);
        self.memory.read(run, buffer)?;
        codec::pack(self.memory.pid_of(run.task), run.address, buffer, packing, out)
    }
}

fn locked<T>(bookkeeping: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere cannot leave any of it half-done.
    bookkeeping.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the pages of a move will be, or are.
pub type Shelf = watch::Receiver<Option<Arc<Pages>>>;

/// The moves of this host whose pages are, or will be, fetched; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<HashMap<MigrationId, Shelf>>>);

/// A move whose pages may be fetched for as long as this lives.
#[derive(Debug)]
pub struct Offering {
    board: Board,
    migration: MigrationId,
    pages: watch::Sender<Option<Arc<Pages>>>,
}

impl Board {
    /// Says that the pages of a move will be there; streams wait for them.
    pub fn expect(&self, migration: &MigrationId) -> Offering {
        let (pages, shelf) = watch::channel(None);
        self.table().insert(migration.clone(), shelf);
        Offering {
            board: self.clone(),
            migration: migration.clone(),
            pages,
        }
    }

    /// Whether the pages of a move are, or will be, there.
    pub fn shelf(&self, migration: &MigrationId) -> Option<Shelf> {
        self.table().get(migration).cloned()
    }

    fn table(&self) -> MutexGuard<'_, HashMap<MigrationId, Shelf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Offering {
    /// Here they are.
    pub fn open(&self, pages: Pages) {
        self.pages.send_replace(Some(Arc::new(pages)));
    }

    /// The tasks run at the destination.
    pub fn begin(&self) {
        if let Some(pages) = &*self.pages.borrow() {
            locked(&pages.turn).begin();
        }
    }
}

impl Drop for Offering {
    fn drop(&mut self) {
        self.board.table().remove(&self.migration);
    }
}

/// Waits until the pages are there; an error if the move ends before.
pub async fn wait(shelf: &mut Shelf) -> io::Result<Arc<Pages>> {
    let pages = shelf.wait_for(Option::is_some).await.map_err(|_| ended())?;
    pages.clone().ok_or_else(ended)
}

/// Does `work` for as long as the move lives.
pub async fn while_offered(shelf: &mut Shelf, work: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    tokio::select! {
        done = work => done,
        () = async { while shelf.changed().await.is_ok() {} } => Ok(()),
    }
}

fn ended() -> io::Error {
    io::Error::other("the move has ended")
}

/// Sends every page once, in turn with other streams that do the same; then waits until the other end closes.
pub async fn push(
    mut stream: impl AsyncRead + AsyncWrite + Backlog + Unpin,
    pages: Arc<Pages>,
) -> io::Result<()> {
    let (filled, mut to_write) = mpsc::channel(BATCHES_AHEAD);
    let (written, empty) = std::sync::mpsc::sync_channel(BATCHES_AHEAD + 1);
    let filler = {
        let pages = Arc::clone(&pages);
        spawn_blocking(move || fill(&pages, &filled, &empty))
    };
    let mut portion = Portion::default();
    while let Some((content, batch)) = to_write.recv().await {
        let batch: Vec<u8> = batch;
        let mut rest = batch.as_slice();
        while !rest.is_empty() {
            let order = pages.stand_back().await;
            let bytes = match order {
                Order::Go => LOOK_BYTES,
                _ => portion.left(),
            };
            let (now, later) = rest.split_at(bytes.min(rest.len()));
            pages.pacer.take(now.len() as u64).await;
            let began = Instant::now();
            stream.write_all(now).await?;
            stream.flush().await?;
            pages.transfer.add(now.len() as u64);
            if order != Order::Go {
                portion.wrote(now.len(), began.elapsed());
                if portion.left() == 0 {
                    let took = arrival(&stream).await;
                    let due = portion.arrived(took, &mut locked(&pages.rate));
                    if order == Order::Moderate {
                        sleep(due).await;
                    }
                }
            }
            rest = later;
        }
        locked(&pages.chooser).note(content, Instant::now());
        let _ = written.try_send(batch);
    }
    filler.await.map_err(io::Error::other)??;
    stream
        .write_all(&Header::bare(Kind::AllSent, 0, 0, 0).to_bytes())
        .await?;
    stream.flush().await?;
    match stream.read(&mut [0]).await {
        // A destination that has everything closes without a farewell of TLS.
        Ok(0) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        Ok(_) => Err(io::Error::other("something came on a stream that only sends")),
        Err(error) => Err(error),
    }
}

/// Fills batches until all pages have gone, or nobody takes them any more.
fn fill(
    pages: &Pages,
    filled: &mpsc::Sender<(u64, Vec<u8>)>,
    empty: &std::sync::mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let mut batch = empty
            .try_recv()
            .unwrap_or_else(|_| Vec::with_capacity(2 * BATCH_BYTES));
        batch.clear();
        let packing = locked(&pages.chooser).packing();
        let mut content = 0;
        while batch.len() < BATCH_BYTES {
            let Some(run) = pages.schedule().advance() else {
                break;
            };
            pages.pack(run, packing, &mut buffer, &mut batch)?;
            content += run.bytes() as u64;
        }
        if batch.is_empty() || filled.blocking_send((content, batch)).is_err() {
            return Ok(());
        }
    }
}

/// Answers what is asked for, until the other end says that it has all, or closes.
pub async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Backlog + Unpin,
    pages: Arc<Pages>,
) -> io::Result<()> {
    let (mut buffer, mut out) = (Vec::new(), Vec::new());
    let mut neighbours = Neighbours::default();
    while let Some(header) = read_header(&mut stream).await? {
        match header.kind {
            Kind::Urgent => locked(&pages.turn).urgent(Instant::now()),
            Kind::Wanted => {}
            Kind::Drained => return Ok(()),
            other => {
                return Err(io::Error::other(format!(
                    "a record of kind {other:?} came out of turn"
                )));
            }
        }
        let task = pages
            .memory
            .index_of(header.task)
            .ok_or_else(|| io::Error::other(format!("there is no task {} here", header.task)))?;
        let mut wanted = Run {
            task,
            address: header.address,
            pages: header.pages,
        };
        let mut before = 0;
        if header.kind == Kind::Urgent {
            let neighbours = neighbours.next(&stream, &locked(&pages.rate));
            let behind = neighbours / 3;
            wanted.pages = wanted.pages.min(1 + behind);
            before = neighbours - behind;
        }
        let found = pages.schedule().asked(wanted, before);
        if let Some(run) = found {
            let (before, wanted) = run.split_at(header.address);
            out.clear();
            // What is waited for first: the task runs on while the rest is on its way.
            for run in [wanted, before].into_iter().flatten() {
                pages.pack(run, Packing::None, &mut buffer, &mut out)?;
            }
            match header.kind {
                // A task waits for it: what is sent unasked makes room.
                Kind::Urgent => pages.pacer.note(out.len() as u64),
                _ => pages.pacer.take(out.len() as u64).await,
            }
            stream.write_all(&out).await?;
            stream.flush().await?;
            pages.transfer.add(out.len() as u64);
        }
    }
    Ok(())
}

/// Reads the header of a record; `None` if the stream ended before it.
pub async fn read_header(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Header>> {
    let mut bytes = [0; HEADER_BYTES];
    if stream.read(&mut bytes[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut bytes[1..]).await?;
    Header::parse(&bytes).map(Some)
}
