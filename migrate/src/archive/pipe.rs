//! Bytes between a thread that reads or writes an archive and the client's connection: bounded, so that whoever is slower sets the
//! pace, and at an end as soon as either side is gone.

use std::io::{self, Read, Write};

use axum::body::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Bytes handed over at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// Chunks on their way: 2 MiB.
const CHUNKS_BOUND: usize = 8;

/// A pipe.
pub fn pipe() -> (mpsc::Sender<Bytes>, mpsc::Receiver<Bytes>) {
    mpsc::channel(CHUNKS_BOUND)
}

/// The end of a thread that writes.
pub struct Outlet {
    chunks: mpsc::Sender<Bytes>,
    pending: Vec<u8>,
    stop: CancellationToken,
}

impl Outlet {
    /// Writes into the pipe until `stop` is cancelled.
    pub fn new(chunks: mpsc::Sender<Bytes>, stop: CancellationToken) -> Self {
        Self {
            chunks,
            pending: Vec::with_capacity(CHUNK_BYTES),
            stop,
        }
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.stop.is_cancelled() {
            return Err(io::Error::other("given up"));
        }
        let room = CHUNK_BYTES - self.pending.len();
        let taken = room.min(bytes.len());
        self.pending.extend_from_slice(&bytes[..taken]);
        if self.pending.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.pending, Vec::with_capacity(CHUNK_BYTES));
        self.chunks
            .blocking_send(chunk.into())
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "whoever was to store it has gone away"))
    }
}

/// The end of a thread that reads.
pub struct Inlet {
    chunks: mpsc::Receiver<Bytes>,
    pending: Bytes,
}

impl Inlet {
    /// Reads from the pipe until its other end is dropped.
    pub fn new(chunks: mpsc::Receiver<Bytes>) -> Self {
        Self {
            chunks,
            pending: Bytes::new(),
        }
    }
}

impl Read for Inlet {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.pending.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.pending = chunk,
                None => return Ok(0),
            }
        }
        let taken = self.pending.split_to(buffer.len().min(self.pending.len()));
        buffer[..taken.len()].copy_from_slice(&taken);
        Ok(taken.len())
    }
}
