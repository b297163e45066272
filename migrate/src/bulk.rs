//! The two ends of a bulk stream on a link, as ordinary readers and writers.
//!
//! Made and driven by [`crate::link::Link`]. A stream that breaks off is an error for its reader, never an end.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;

use crate::bandwidth::Pacer;
use crate::frame::{CHUNK_BYTES, Frame};
use crate::progress::Transfer;

/// Chunks that wait for the consumer: one being read, one ready.
const PARTS_BOUND: usize = 2;

/// What the link hands to a stream's reader.
#[derive(Debug)]
pub enum Part {
    /// Some of it.
    Data(Vec<u8>),
    /// There is no more.
    End,
}

/// The writing end, for threads: cuts what is written into chunks.
#[derive(Debug)]
pub struct ChunkWriter {
    outgoing: mpsc::Sender<Frame>,
    transfer: Arc<Transfer>,
    pacer: Pacer,
    buffer: Vec<u8>,
    total: u64,
}

impl ChunkWriter {
    /// Writes into the queue of a link, as fast as `pacer` lets it.
    pub fn new(outgoing: mpsc::Sender<Frame>, transfer: Arc<Transfer>, pacer: Pacer) -> Self {
        Self {
            outgoing,
            transfer,
            pacer,
            buffer: Vec::with_capacity(CHUNK_BYTES),
            total: 0,
        }
    }

    /// Ends the stream and returns its length.
    pub fn finish(mut self) -> io::Result<u64> {
        self.flush()?;
        self.push(Frame::End(self.total))?;
        Ok(self.total)
    }

    fn push(&self, frame: Frame) -> io::Result<()> {
        self.outgoing
            .blocking_send(frame)
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK_BYTES));
        self.total += chunk.len() as u64;
        // Before the queue, not behind it: heartbeats pass while this waits.
        self.pacer.take_blocking(chunk.len() as u64);
        self.transfer.add(chunk.len() as u64);
        self.push(Frame::Chunk(chunk))
    }
}

/// The reading end, for threads (`Read`) and tasks (`AsyncRead`).
#[derive(Debug)]
pub struct ChunkReader {
    parts: mpsc::Receiver<Part>,
    chunk: Vec<u8>,
    position: usize,
    ended: bool,
}

impl ChunkReader {
    /// A reader and the queue that feeds it.
    pub fn new() -> (mpsc::Sender<Part>, Self) {
        let (sender, parts) = mpsc::channel(PARTS_BOUND);
        let reader = Self {
            parts,
            chunk: Vec::new(),
            position: 0,
            ended: false,
        };
        (sender, reader)
    }

    /// Blocks until it is known whether more follows; false also if the stream broke off.
    pub fn is_at_end(&mut self) -> bool {
        while self.position == self.chunk.len() && !self.ended {
            let part = self.parts.blocking_recv();
            if self.accept(part).is_err() {
                return false;
            }
        }
        self.position == self.chunk.len()
    }

    fn accept(&mut self, part: Option<Part>) -> io::Result<()> {
        match part {
            Some(Part::Data(chunk)) => {
                self.chunk = chunk;
                self.position = 0;
            }
            Some(Part::End) => self.ended = true,
            None => {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the stream broke off",
                ));
            }
        }
        Ok(())
    }

    fn advance(&mut self, wanted: usize) -> &[u8] {
        let begin = self.position;
        self.position = self.chunk.len().min(begin.saturating_add(wanted));
        &self.chunk[begin..self.position]
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.position == self.chunk.len() && !self.ended {
            let part = self.parts.blocking_recv();
            self.accept(part)?;
        }
        let bytes = self.advance(buffer.len());
        buffer[..bytes.len()].copy_from_slice(bytes);
        Ok(bytes.len())
    }
}

impl AsyncRead for ChunkReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.position == self.chunk.len() && !self.ended {
            let part = ready!(self.parts.poll_recv(context));
            self.accept(part)?;
        }
        let room = buffer.remaining();
        buffer.put_slice(self.advance(room));
        Poll::Ready(Ok(()))
    }
}
