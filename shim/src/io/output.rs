//! Copies a process's output to where containerd wants it, and loses nothing on the way.
//!
//! What cannot be delivered yet is left where it is, so that a slow reader slows the process, and this holds one chunk
//! at most. A fifo is held open for reading as well: a reader that goes away neither kills the process by SIGPIPE nor
//! takes along what it has not read, and one that comes back goes on there. Even when the process has ended, the rest
//! waits for a reader until the process is deleted.

use std::cell::RefCell;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use godwit_runtime::descriptor::Descriptor;
use log::{error, warn};
use nix::errno::Errno;
use nix::libc::O_NONBLOCK;
use tokio::task::{coop, spawn_blocking};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::error::{ShimError, failed};

/// What is copied at once: half of what a pipe holds, so that reading and writing overlap.
const CHUNK_BYTES: usize = 32 << 10;

/// A full disk is looked at again this often; nothing tells when there is room.
const ROOM_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A fifo that nobody reads is looked at this often; nothing tells when it is opened.
const READER_CHECK_INTERVAL: Duration = Duration::from_millis(250);

thread_local! {
    /// One buffer for all copies of the thread: it is empty whenever another one runs.
    static CHUNK: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK_BYTES]);
}

/// Where output goes.
pub(super) enum Sink {
    Fifo {
        writer: Descriptor,
        hold: Hold,
    },
    /// The pipe to a logger.
    Pipe(Descriptor),
    File(Arc<File>),
    /// Nobody takes it any more, and the process shall not notice.
    Nowhere,
}

/// The shim's own reader of a fifo, until it lets go.
#[derive(Clone, Default)]
pub(super) struct Hold(Arc<Mutex<Option<File>>>);

impl Hold {
    fn of(reader: File) -> Self {
        Self(Arc::new(Mutex::new(Some(reader))))
    }

    /// From now on only others' readers count: writing fails if there is none.
    pub(super) fn release(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// What the copies of one process have in common.
#[derive(Clone, Default)]
pub(super) struct Course {
    /// Bytes delivered so far: shows whether somebody takes them.
    pub(super) delivered_bytes: Arc<AtomicU64>,
    /// The process is being deleted, so no reader is waited for any more.
    pub(super) leaving: CancellationToken,
}

impl Sink {
    /// Opens a fifo, or a file that exists, without waiting for a reader.
    pub(super) fn open(path: &Path) -> Result<Self, ShimError> {
        let open = |options: &mut OpenOptions| {
            let opened = options.custom_flags(O_NONBLOCK).open(path);
            opened.map_err(failed(format!("open the standard stream {}", path.display())))
        };
        let is_fifo = path
            .metadata()
            .is_ok_and(|metadata| metadata.file_type().is_fifo());
        if !is_fifo {
            return Ok(Self::File(Arc::new(open(OpenOptions::new().append(true))?)));
        }
        let reader = open(OpenOptions::new().read(true))?;
        let writer = open(OpenOptions::new().write(true))?;
        Ok(Self::Fifo {
            writer: Descriptor::new(writer).map_err(failed("use a fifo"))?,
            hold: Hold::of(reader),
        })
    }

    /// Writes all of it, or turns to nowhere.
    async fn write(&mut self, chunk: Vec<u8>) {
        let written = match self {
            Self::Fifo { writer, .. } | Self::Pipe(writer) => writer.write_all(&chunk).await,
            Self::File(file) => append(file, chunk).await,
            Self::Nowhere => return,
        };
        if let Err(error) = written {
            match error.kind() {
                // The logger is gone, or the last reader while the process is being deleted.
                ErrorKind::BrokenPipe => {
                    warn!("nobody takes the output of a process any more: it is dropped");
                }
                _ => error!("the output of a process is dropped: it cannot be written: {error}"),
            }
            *self = Self::Nowhere;
        }
    }

    /// Keeps what is in a fifo for a reader that comes back, until the process is deleted.
    async fn finish(self, course: &Course) {
        let Self::Fifo { writer, hold } = self else { return };
        hold.release();
        let awaits_reader =
            || writer.unread_bytes().is_ok_and(|n_bytes| n_bytes > 0) && !writer.has_reader().unwrap_or(true);
        let read = async {
            while awaits_reader() {
                sleep(READER_CHECK_INTERVAL).await;
            }
        };
        tokio::select! {
            () = read => {}
            () = course.leaving.cancelled() => {}
        }
    }
}

/// Opens a log file, and makes it and its directories as the stock shim does.
pub(super) fn open_log(path: &Path) -> Result<Arc<File>, ShimError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let made = DirBuilder::new().recursive(true).mode(0o755).create(directory);
    made.map_err(failed(format!("make the log directory {}", directory.display())))?;
    let opened = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o644)
        .open(path);
    opened
        .map(Arc::new)
        .map_err(failed(format!("open the log {}", path.display())))
}

/// Copies until the process, and all who share its output, have closed it.
pub(super) async fn copy(from: &Descriptor, mut sink: Sink, course: Course) {
    loop {
        match step(from, &sink) {
            Ok((0, _)) => break,
            Ok((n_read, rest)) => {
                if !rest.is_empty() {
                    sink.write(rest).await;
                }
                let n_bytes = u64::try_from(n_read).unwrap_or_default();
                course.delivered_bytes.fetch_add(n_bytes, Ordering::Relaxed);
                // A process that writes without pause must not keep the shim from everything else.
                coop::consume_budget().await;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if from.readable().await.is_err() {
                    break;
                }
            }
            // How a terminal tells that its last user has closed it.
            Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => break,
            Err(error) => {
                error!("the output of a process cannot be read: {error}");
                break;
            }
        }
    }
    sink.finish(&course).await;
}

/// Reads a chunk and writes what the sink takes at once. Returns how much was read and what is left to write.
fn step(from: &Descriptor, sink: &Sink) -> io::Result<(usize, Vec<u8>)> {
    CHUNK.with_borrow_mut(|buffer| {
        let n_read = from.try_read(buffer)?;
        let n_written = match sink {
            // What went wrong shows again with the rest.
            Sink::Fifo { writer, .. } | Sink::Pipe(writer) => {
                writer.try_write(&buffer[..n_read]).unwrap_or(0)
            }
            Sink::File(_) => 0,
            Sink::Nowhere => n_read,
        };
        Ok((n_read, buffer[n_written..n_read].to_vec()))
    })
}

/// Appends to a file on a thread that may block, and waits while the disk is full.
async fn append(file: &Arc<File>, chunk: Vec<u8>) -> io::Result<()> {
    let mut n_done = 0;
    let chunk = Arc::new(chunk);
    while n_done < chunk.len() {
        let (file, rest) = (file.clone(), chunk.clone());
        let written = spawn_blocking(move || (&*file).write(&rest[n_done..])).await;
        match written.map_err(io::Error::other)? {
            Ok(n_written) => n_done += n_written,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                sleep(ROOM_CHECK_INTERVAL).await;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
