//! The destination's end of the page streams: between the source's agent, the store of pages that came before, and the
//! pager of the container.
//!
//! At first the source sends everything unasked on some streams, while another carries what a task waits for. If any of
//! them breaks, all that was on its way counts as lost: the pager's connections are closed, it comes again and from then
//! on asks for what it misses. So neither a cut link nor a killed agent costs a page. What the store has is taken from
//! there, and if it has all the source is not asked for anything. Nothing is kept here but what is being passed on and a bounded
//! part of what the pager does not take yet ([`super::ahead`]).

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use godwit_runtime::pages::wire::{HEADER_BYTES, Header, Kind};
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::ahead::Ahead;
use super::codec;
use super::given::{BUFFER_BYTES, Given};
use super::serve::read_header;
use super::store::Store;
use crate::deadlines;
use crate::failure::{Cause, Problem};
use crate::frame::{self, Frame};
use crate::host::{Duplex, Host};
use crate::message::{Intent, Message, PageStream, VERSIONS};
use crate::places::MigrationId;

/// Streams that carry pages unasked: while one is being encrypted the other waits for its processor or its peer.
const PUSH_STREAMS: usize = 2;

/// What has come, in bytes of pages by how they came.
#[derive(Debug, Default)]
struct Counters {
    raw: AtomicU64,
    zero: AtomicU64,
    lz4: AtomicU64,
    zstd: AtomicU64,
    wire: AtomicU64,
    urgent: AtomicU64,
    /// When the first page came, and how many microseconds later the last so far.
    began: OnceLock<Instant>,
    micros: AtomicU64,
}

/// How the memory of a container came over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    /// Bytes of pages that came as they are.
    pub raw: u64,
    /// Bytes of pages that are zero, which do not travel.
    pub zero: u64,
    /// Bytes of pages that came as LZ4.
    pub lz4: u64,
    /// Bytes of pages that came as zstd.
    pub zstd: u64,
    /// Bytes that all of it had on the link.
    pub wire: u64,
    /// How often a task waited for a page.
    pub urgent: u64,
    /// Microseconds from the first page to the last, as they reach the agent.
    pub micros: u64,
}

/// A relay at work; it ends when it is dropped.
#[derive(Debug)]
pub struct Relay {
    drained: CancellationToken,
    counters: Arc<Counters>,
    _task: AbortOnDropHandle<()>,
}

/// Whose pages, from where.
#[derive(Clone)]
struct Origin {
    host: Arc<Host>,
    source: String,
    migration: MigrationId,
    counters: Arc<Counters>,
    store: Option<Arc<Store>>,
}

/// The source's streams of a first attempt.
struct Streams {
    urgent: Box<dyn Duplex>,
    pushed: Vec<Box<dyn Duplex>>,
}

impl Relay {
    /// Opens all streams to the source, and the socket at which the pager will call. `store` is where pages come before.
    pub async fn open(
        host: &Arc<Host>,
        source: &str,
        migration: &MigrationId,
        store: Option<Arc<Store>>,
    ) -> Result<Self, Problem> {
        let origin = Origin::new(host, source, migration, store);
        let urgent = origin.connect(PageStream::Urgent).await?;
        let mut pushed = Vec::new();
        for _ in 0..PUSH_STREAMS {
            pushed.push(origin.connect(PageStream::Push).await?);
        }
        Self::start(origin, Some(Streams { urgent, pushed }))
    }

    /// Takes over from a relay that is gone: the pager asks for what it misses.
    pub fn resume(host: &Arc<Host>, source: &str, migration: &MigrationId) -> Result<Self, Problem> {
        let store = Store::reopen(&host.places.kept(migration))
            .map_err(|error| Problem::io("the memory that was kept", &error))?;
        Self::start(Origin::new(host, source, migration, store.map(Arc::new)), None)
    }

    fn start(origin: Origin, streams: Option<Streams>) -> Result<Self, Problem> {
        let path = origin.host.places.pages_socket(&origin.migration);
        let listener = listen(&path).map_err(|error| Problem::io("the pager's socket", &error))?;
        let drained = CancellationToken::new();
        let (counters, done) = (Arc::clone(&origin.counters), drained.clone());
        let task = tokio::spawn(async move {
            if run(&origin, &listener, streams).await {
                done.cancel();
            }
        });
        Ok(Self {
            drained,
            counters,
            _task: AbortOnDropHandle::new(task),
        })
    }

    /// Returns when the pager has every page.
    pub async fn drained(&self) {
        self.drained.cancelled().await;
    }

    /// What has come so far.
    pub fn figures(&self) -> Figures {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Figures {
            raw: read(&self.counters.raw),
            zero: read(&self.counters.zero),
            lz4: read(&self.counters.lz4),
            zstd: read(&self.counters.zstd),
            wire: read(&self.counters.wire),
            urgent: read(&self.counters.urgent),
            micros: read(&self.counters.micros),
        }
    }
}

impl Origin {
    fn new(host: &Arc<Host>, source: &str, migration: &MigrationId, store: Option<Arc<Store>>) -> Self {
        Self {
            host: Arc::clone(host),
            source: source.into(),
            migration: migration.clone(),
            counters: Arc::default(),
            store,
        }
    }

    /// Whether nothing is needed from the source.
    fn has_all(&self) -> bool {
        self.store.as_ref().is_some_and(|store| store.is_complete())
    }

    async fn connect(&self, stream: PageStream) -> Result<Box<dyn Duplex>, Problem> {
        let hello = async {
            let mut connection = self.host.peers.open(&self.source).await.map_err(Problem::Here)?;
            let intent = Intent::Pages {
                migration: self.migration.clone(),
                stream,
            };
            let hello = Message::Hello {
                versions: VERSIONS.to_vec(),
                intent,
            };
            let broken = |error: frame::FrameError| Problem::Here(Cause::Lost(error.to_string()));
            frame::write(&mut connection, &Frame::Message(Box::new(hello)))
                .await
                .map_err(broken)?;
            connection
                .flush()
                .await
                .map_err(|error| Problem::io("greeting", &error))?;
            match frame::read(&mut connection).await.map_err(broken)? {
                Some(Frame::Message(message)) => match *message {
                    Message::Welcome { .. } => Ok(connection),
                    Message::Failed(failure) => Err(Problem::There(failure)),
                    other => Err(Problem::protocol(format!(
                        "{} said {}",
                        self.source,
                        other.name()
                    ))),
                },
                _ => Err(Problem::protocol(format!("{} does not welcome us", self.source))),
            }
        };
        timeout(deadlines::HELLO, hello).await.unwrap_or_else(|_| {
            Err(Problem::Here(Cause::Lost(format!(
                "{} does not answer",
                self.source
            ))))
        })
    }

    fn count(&self, header: &Header) {
        let counter = match header.kind {
            Kind::Raw => &self.counters.raw,
            Kind::Zero => &self.counters.zero,
            Kind::Lz4 => &self.counters.lz4,
            Kind::Zstd => &self.counters.zstd,
            Kind::Urgent => {
                self.counters.urgent.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Kind::Wanted | Kind::AllSent | Kind::Drained | Kind::Stale => return,
        };
        counter.fetch_add(header.end() - header.address, Ordering::Relaxed);
        let wire = header.to_bytes().len() as u64 + u64::from(header.length);
        self.counters.wire.fetch_add(wire, Ordering::Relaxed);
        let since = self.counters.began.get_or_init(Instant::now).elapsed();
        let micros = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
        self.counters.micros.fetch_max(micros, Ordering::Relaxed);
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    // A socket nobody listens on is what a killed agent leaves.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Relays until the pager has all; false if that cannot be any more.
async fn run(origin: &Origin, listener: &UnixListener, streams: Option<Streams>) -> bool {
    if let Some(streams) = streams {
        match first(origin, listener, streams).await {
            Ok(()) => return true,
            Err(error) => log::warn!(
                "migration {}: pages from {}: {error}; asking for what is missing",
                origin.migration,
                origin.source
            ),
        }
    }
    loop {
        let pager = match accept(listener).await {
            Ok((Kind::Urgent, pager)) => pager,
            // It has not noticed yet that nothing comes unasked any more.
            Ok(_) => continue,
            Err(error) => {
                log::warn!("migration {}: the pager: {error}", origin.migration);
                sleep(deadlines::LOOK_AGAIN).await;
                continue;
            }
        };
        let source = loop {
            if origin.has_all() {
                break None;
            }
            match origin.connect(PageStream::Urgent).await {
                Ok(source) => break Some(source),
                Err(problem) => log::warn!(
                    "migration {}: {} does not send the pages that are missing: {problem}",
                    origin.migration,
                    origin.source
                ),
            }
            sleep(deadlines::ASK_AGAIN).await;
        };
        match converse(origin, pager, source).await {
            Ok(()) => return true,
            Err(error) => log::warn!("migration {}: pages: {error}", origin.migration),
        }
    }
}

/// The first attempt: everything comes unasked, and what is waited for comes first.
async fn first(origin: &Origin, listener: &UnixListener, streams: Streams) -> io::Result<()> {
    let (mut urgent, mut push) = (None, None);
    while urgent.is_none() || push.is_none() {
        match accept(listener).await? {
            (Kind::Urgent, pager) => urgent = Some(pager),
            (_, pager) => push = Some(pager),
        }
    }
    let (Some(urgent), Some(push)) = (urgent, push) else {
        return Ok(());
    };
    let (_keep_open, mut push) = push.into_split();
    if origin.has_all() {
        // It was all sent; what is here is given as it is asked for.
        push.write_all(&all_sent()).await?;
        return converse(origin, urgent, None).await;
    }
    let left = AtomicU64::new(streams.pushed.len() as u64);
    let (ahead, mut queue) = Ahead::new();
    let pushed = futures_all(
        streams
            .pushed
            .into_iter()
            .map(|stream| pass_on(origin, stream, &ahead, &left))
            .collect(),
    );
    tokio::select! {
        done = converse(origin, urgent, Some(streams.urgent)) => done,
        error = pushed => Err(error),
        ended = ahead.hand_on(&mut queue, &mut push) => ended.and(Err(io::ErrorKind::BrokenPipe.into())),
    }
}

fn all_sent() -> [u8; HEADER_BYTES] {
    Header::bare(Kind::AllSent, 0, 0, 0).to_bytes()
}

/// Waits for the first of several passings-on that ends by an error; the others end with it.
async fn futures_all<F: Future<Output = io::Error>>(futures: Vec<F>) -> io::Error {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|context| {
        for future in &mut futures {
            if let std::task::Poll::Ready(error) = future.as_mut().poll(context) {
                return std::task::Poll::Ready(error);
            }
        }
        std::task::Poll::Pending
    })
    .await
}

/// Passes pushed records on towards the pager; returns only if that is not possible any more.
async fn pass_on(origin: &Origin, mut stream: Box<dyn Duplex>, ahead: &Ahead, left: &AtomicU64) -> io::Error {
    let pass = async {
        let (mut content, mut pages) = (Vec::new(), Vec::new());
        loop {
            let header = read_record(origin, &mut stream, &mut content).await?;
            if header.kind == Kind::AllSent {
                break;
            }
            let (header, content) = unpacked(header, &content, &mut pages)?;
            ahead.put([&header.to_bytes(), content].concat()).await?;
        }
        if left.fetch_sub(1, Ordering::Relaxed) == 1 {
            ahead.put(all_sent().to_vec()).await?;
        }
        Ok::<(), io::Error>(())
    };
    match pass.await {
        // The stream stays open to its end: the source takes its closing for a loss.
        Ok(()) => std::future::pending().await,
        Err(error) => error,
    }
}

/// Carries questions to the store, or else to the source, and answers to the pager, until the pager has all.
async fn converse(origin: &Origin, pager: UnixStream, source: Option<Box<dyn Duplex>>) -> io::Result<()> {
    // So that it is known what the pager must have taken, see `Given`.
    setsockopt(&pager, sockopt::SndBuf, &BUFFER_BYTES)?;
    let (mut from_pager, to_pager) = pager.into_split();
    let to_pager = Mutex::new(to_pager);
    let (from_source, mut to_source) = source.map(tokio::io::split).unzip();
    let ask = async {
        let mut given = Given::default();
        let mut records = Vec::new();
        loop {
            let Some(header) = read_header(&mut from_pager).await? else {
                return Err(io::Error::other("the pager is gone"));
            };
            origin.count(&header);
            if let (Some(store), Kind::Urgent | Kind::Wanted) = (&origin.store, header.kind) {
                records.clear();
                if let Some(found) = store.find(header.task, header.address, header.pages, &mut records)? {
                    to_pager.lock().await.write_all(&records).await?;
                    for (task, pages) in given.add(&header, found, records.len()) {
                        store.remove(task, pages)?;
                    }
                    continue;
                }
            }
            if let Some(source) = &mut to_source {
                source.write_all(&header.to_bytes()).await?;
                source.flush().await?;
            } else if header.kind != Kind::Drained {
                return Err(io::Error::other(format!(
                    "page {:#x} of task {} has not come",
                    header.address, header.task
                )));
            }
            if header.kind == Kind::Drained {
                return Ok(());
            }
        }
    };
    let tell = async {
        let Some(mut source) = from_source else {
            return std::future::pending().await;
        };
        let (mut content, mut pages) = (Vec::new(), Vec::new());
        loop {
            let header = read_record(origin, &mut source, &mut content).await?;
            write_record(header, &content, &mut pages, &mut *to_pager.lock().await).await?;
        }
    };
    tokio::select! {
        asked = ask => asked,
        told = tell => told,
    }
}

/// Takes a connection of the pager's, whose first record says what it is for.
async fn accept(listener: &UnixListener) -> io::Result<(Kind, UnixStream)> {
    let (mut pager, _) = listener.accept().await?;
    let hello = timeout(deadlines::HELLO, read_header(&mut pager))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    match hello {
        Some(header) if header.task == 0 && matches!(header.kind, Kind::Urgent | Kind::Wanted) => {
            Ok((header.kind, pager))
        }
        _ => Err(io::Error::other("that is no hello of a pager")),
    }
}

async fn read_record(
    origin: &Origin,
    stream: &mut (impl AsyncRead + Unpin),
    content: &mut Vec<u8>,
) -> io::Result<Header> {
    let header = read_header(stream)
        .await?
        .ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the source closed its stream"))?;
    match header.kind {
        Kind::Raw | Kind::Zero | Kind::Lz4 | Kind::Zstd | Kind::AllSent => {}
        other => {
            return Err(io::Error::other(format!(
                "the source sent a record of kind {other:?}"
            )));
        }
    }
    // The header's bounds are checked: at most a record's pages.
    content.resize(header.length as usize, 0);
    stream.read_exact(content).await?;
    origin.count(&header);
    Ok(header)
}

async fn write_record(
    header: Header,
    content: &[u8],
    pages: &mut Vec<u8>,
    pager: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let (header, content) = unpacked(header, content, pages)?;
    pager.write_all(&header.to_bytes()).await?;
    pager.write_all(content).await
}

/// A record as the pager takes it: what is packed is unpacked into `pages`.
fn unpacked<'a>(header: Header, content: &'a [u8], pages: &'a mut Vec<u8>) -> io::Result<(Header, &'a [u8])> {
    Ok(match header.kind {
        Kind::Lz4 | Kind::Zstd => (codec::unpack(header, content, pages)?, pages.as_slice()),
        _ => (header, content),
    })
}
