//! The pager's connections to the agent that brings the pages.
//!
//! Two of them, so that an urgent page does not wait behind megabytes that were pushed: requests and their answers go over
//! one, what is pushed comes over the other. When either is lost, or everything was pushed, there is only the first, and
//! nothing comes but what is asked for. An agent that is not there is tried for as long as it takes: the pages are
//! nowhere else.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::wire::{HEADER_BYTES, Header, Kind, MAX_PAGES, PAGE_BYTES};

/// Between two attempts to reach the agent.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Requests for what nobody waits for yet: one is being answered while the next travels.
const WANTED_REQUESTS: usize = 2;

/// How long the agent may take to take the last word; it need not hear it.
const LAST_WORD_DEADLINE: Duration = Duration::from_secs(5);

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The agent sends everything unasked.
    Push,
    /// The pager asks for everything.
    Pull,
}

/// Which connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The one for requests and answers.
    Asked,
    /// The one for what is pushed.
    Pushed,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Link {
    path: PathBuf,
    mode: Mode,
    asked: Option<Connection>,
    pushed: Option<Connection>,
    /// Requests that are still to be written.
    outbox: Vec<u8>,
    /// Requests for what nobody waits for that are not answered, by task and address.
    wanted: Vec<Header>,
    next_attempt: Instant,
    last_loss: String,
}

/// Received bytes of one record.
#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    buffer: Vec<u8>,
    n_read: usize,
}

impl Link {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            mode: Mode::Push,
            asked: None,
            pushed: None,
            outbox: Vec::new(),
            wanted: Vec::new(),
            next_attempt: Instant::now(),
            last_loss: String::new(),
        }
    }

    /// Connects if it is time to. True if requests must be made anew: what was asked before is forgotten.
    pub(super) fn connect(&mut self) -> bool {
        if self.asked.is_some() || Instant::now() < self.next_attempt {
            return false;
        }
        self.next_attempt = Instant::now() + RETRY_INTERVAL;
        match self.try_connect() {
            Ok((asked, pushed)) => {
                self.asked = Some(asked);
                self.pushed = pushed;
                self.outbox.clear();
                self.wanted.clear();
                true
            }
            Err(error) => {
                self.told(&error);
                false
            }
        }
    }

    fn try_connect(&self) -> io::Result<(Connection, Option<Connection>)> {
        let asked = Connection::open(&self.path, Kind::Urgent)?;
        let pushed = match self.mode {
            Mode::Push => Some(Connection::open(&self.path, Kind::Wanted)?),
            Mode::Pull => None,
        };
        Ok((asked, pushed))
    }

    /// Until when there is nothing to do but to wait, if the agent is to be tried again.
    pub(super) fn next_attempt(&self) -> Option<Instant> {
        self.asked.is_none().then_some(self.next_attempt)
    }

    /// Asks for pages that threads wait for.
    pub(super) fn ask(&mut self, requests: &[Header]) {
        if self.asked.is_some() {
            for request in requests {
                self.outbox.extend(request.to_bytes());
            }
        }
    }

    /// True while more may be asked for that nobody waits for.
    pub(super) fn may_want(&self) -> bool {
        self.asked.is_some() && self.mode == Mode::Pull && self.wanted.len() < WANTED_REQUESTS
    }

    /// What was asked for so and is not answered, in ascending order.
    pub(super) fn wanted(&self) -> &[Header] {
        &self.wanted
    }

    /// Asks for pages that nobody waits for.
    pub(super) fn want(&mut self, request: Header) {
        self.ask(&[request]);
        self.wanted.push(request);
        self.wanted.sort_by_key(|wanted| (wanted.task, wanted.address));
    }

    /// Everything was pushed: from now on the rest is asked for.
    pub(super) fn pull(&mut self) {
        self.mode = Mode::Pull;
        self.pushed = None;
    }

    /// Writes requests as far as the socket takes them.
    pub(super) fn flush(&mut self) {
        let Some(asked) = &mut self.asked else { return };
        while !self.outbox.is_empty() {
            match asked.stream.write(&self.outbox) {
                Ok(n_written) => drop(self.outbox.drain(..n_written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return self.lose(&error),
            }
        }
    }

    /// The next whole record, with its content; `None` if none is here yet.
    pub(super) fn next(&mut self, way: Way) -> io::Result<Option<(Header, &[u8])>> {
        let connection = match way {
            Way::Asked => &mut self.asked,
            Way::Pushed => &mut self.pushed,
        };
        let Some(connection) = connection else {
            return Ok(None);
        };
        let record = connection.next()?;
        if let (Way::Asked, Some((header, _))) = (way, &record) {
            let (start, end) = (header.address, header.end());
            self.wanted.retain(|wanted| {
                wanted.task != header.task || wanted.end() <= start || end <= wanted.address
            });
        }
        Ok(record)
    }

    /// Both connections end; the pager asks for everything from now on.
    pub(super) fn lose(&mut self, error: &io::Error) {
        self.asked = None;
        self.pull();
        self.told(error);
    }

    /// Says that no page is wanted any more. The agent finds out by itself if it does not hear it.
    pub(super) fn say_drained(mut self) {
        self.next_attempt = Instant::now();
        self.pull();
        let _ = self.connect();
        let Some(mut asked) = self.asked else { return };
        self.outbox
            .extend(Header::bare(Kind::Drained, 0, 0, 0).to_bytes());
        let _ = asked.stream.set_nonblocking(false);
        let _ = asked.stream.set_write_timeout(Some(LAST_WORD_DEADLINE));
        let _ = asked.stream.write_all(&self.outbox);
    }

    pub(super) fn descriptor(&self, way: Way) -> Option<BorrowedFd<'_>> {
        let connection = match way {
            Way::Asked => &self.asked,
            Way::Pushed => &self.pushed,
        };
        connection.as_ref().map(|connection| connection.stream.as_fd())
    }

    pub(super) fn has_to_write(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Logs a loss, unless it is the same as the last.
    fn told(&mut self, error: &io::Error) {
        let text = format!("no connection to the agent at {}: {error}", self.path.display());
        if text != self.last_loss {
            super::pager::say(&text);
            self.last_loss = text;
        }
    }
}

impl Connection {
    /// Connects and says by the first record which connection it is.
    fn open(path: &Path, kind: Kind) -> io::Result<Self> {
        let mut stream = UnixStream::connect(path)?;
        Header::bare(kind, 0, 0, 1).write(&[], &mut stream)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            buffer: vec![0; HEADER_BYTES + MAX_PAGES as usize * PAGE_BYTES],
            n_read: 0,
        })
    }

    fn next(&mut self) -> io::Result<Option<(Header, &[u8])>> {
        let mut header = None;
        loop {
            if self.n_read >= HEADER_BYTES && header.is_none() {
                header = Some(self.header()?);
            }
            let whole = HEADER_BYTES + header.map_or(0, |header| header.length as usize);
            if let Some(header) = header
                && self.n_read == whole
            {
                self.n_read = 0;
                return Ok(Some((header, &self.buffer[HEADER_BYTES..whole])));
            }
            match self.stream.read(&mut self.buffer[self.n_read..whole]) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has ended")),
                Ok(n_read) => self.n_read += n_read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    fn header(&self) -> io::Result<Header> {
        let (bytes, _) = self
            .buffer
            .split_first_chunk()
            .ok_or(io::ErrorKind::InvalidData)?;
        let header = Header::parse(bytes)?;
        match header.kind {
            Kind::Raw | Kind::Zero | Kind::AllSent => Ok(header),
            kind => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the agent sends what a pager cannot take: {kind:?}"),
            )),
        }
    }
}
