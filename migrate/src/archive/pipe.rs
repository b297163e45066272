//! Bytes between a thread that reads or writes an archive and whoever has it: bounded, so that whoever is slower sets the pace, and
//! at an end as soon as either side is gone.
//!
//! The end of a pipe does not say that all came through it. Who writes says so by `Whole`, and holds the last bytes back until
//! then, so that nobody can take for an archive what is none.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use axum::body::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
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

/// That all of an archive was written, and what it is before it is packed: its sha256 as `sha256:…`, empty if nobody needs that.
#[derive(Clone, Debug, Default)]
pub struct Whole(pub Arc<OnceLock<String>>);

impl Whole {
    /// All of it was written. To be said before the pipe ends: whoever reads may answer its end at once.
    pub fn note(&self, digest: String) {
        // It is said once.
        let _ = self.0.set(digest);
    }

    /// Whether all of it was written.
    pub fn is_noted(&self) -> bool {
        self.0.get().is_some()
    }
}

/// The end of a thread that writes. Some bytes stay here until they are flushed: whatever fails before keeps them.
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
        if self.pending.len() == CHUNK_BYTES && !bytes.is_empty() {
            self.flush()?;
        }
        let room = CHUNK_BYTES - self.pending.len();
        let taken = room.min(bytes.len());
        self.pending.extend_from_slice(&bytes[..taken]);
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

/// The end of a task that reads what a thread writes. It fails at the pipe's end if not all was written.
pub struct Stream {
    chunks: mpsc::Receiver<Bytes>,
    pending: Bytes,
    whole: Whole,
}

impl Stream {
    /// Reads from the pipe until its other end is dropped.
    pub fn new(chunks: mpsc::Receiver<Bytes>, whole: Whole) -> Self {
        Self {
            chunks,
            pending: Bytes::new(),
            whole,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.pending.is_empty() {
            match ready!(self.chunks.poll_recv(context)) {
                Some(chunk) => self.pending = chunk,
                None if self.whole.is_noted() => return Poll::Ready(Ok(())),
                None => return Poll::Ready(Err(io::Error::other("the archive was cut short"))),
            }
        }
        let length = buffer.remaining().min(self.pending.len());
        let taken = self.pending.split_to(length);
        buffer.put_slice(&taken);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::task::spawn_blocking;

    use super::*;

    /// What comes out of a pipe into which so many bytes are written, to their end or not.
    async fn sent(n_bytes: usize, is_ended: bool) -> (usize, io::Result<usize>) {
        let (chunks, queue) = pipe();
        let whole = Whole::default();
        let mut stream = Stream::new(queue, whole.clone());
        let writer = spawn_blocking(move || {
            let mut out = Outlet::new(chunks, CancellationToken::new());
            out.write_all(&vec![1; n_bytes]).unwrap();
            if is_ended {
                out.flush().unwrap();
                whole.note(String::new());
            }
        });
        let mut read = Vec::new();
        let outcome = stream.read_to_end(&mut read).await;
        writer.await.unwrap();
        (read.len(), outcome)
    }

    #[tokio::test]
    async fn an_end_that_was_not_meant_is_an_error_and_the_last_bytes_do_not_come() {
        for n_bytes in [1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 20 * CHUNK_BYTES] {
            let (n_read, outcome) = sent(n_bytes, true).await;
            assert_eq!((n_read, outcome.unwrap()), (n_bytes, n_bytes));
            let (n_read, outcome) = sent(n_bytes, false).await;
            assert!(n_read < n_bytes && outcome.is_err(), "{n_read} of {n_bytes}");
        }
    }
}
