//! Copies a process's input from containerd's fifo.
//!
//! The shim holds the fifo open for writing itself, from before its reader opens until CloseIO, so that containerd's
//! writers coming and going never end the input. It ends once CloseIO has let go of that hold and the last writer has
//! gone, after all that was written. A CloseIO that comes before there is anything to hold counts as well.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use godwit_runtime::descriptor::Descriptor;
use nix::libc::O_NONBLOCK;
use tokio::task::coop;

use crate::error::{ShimError, failed};

/// What is copied at once; people and pipes write little at a time.
const CHUNK_BYTES: usize = 4 << 10;

/// The shim's own writer on a process's stdin.
#[derive(Clone, Default)]
pub(super) struct InputHold(Arc<Mutex<State>>);

#[derive(Default)]
enum State {
    /// There is no copy yet.
    #[default]
    Pending,
    /// Kept only to be dropped.
    Held { _writer: File },
    /// Released for good.
    Released,
}

impl InputHold {
    /// Lets go, now or as soon as there is something.
    pub(super) fn release(&self) {
        self.put(State::Released);
    }

    /// A hold for another start of the same process, which knows of a CloseIO that came before.
    pub(super) fn renewed(&self) -> Self {
        let fresh = Self::default();
        if matches!(
            *self.0.lock().unwrap_or_else(PoisonError::into_inner),
            State::Released
        ) {
            fresh.release();
        }
        fresh
    }

    fn keep(&self, writer: File) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*state, State::Released) {
            *state = State::Held { _writer: writer };
        }
    }

    fn put(&self, next: State) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = next;
    }
}

/// Opens the fifo without waiting for a writer, and puts the shim's own into `hold`.
pub(super) fn open(path: &Path, hold: &InputHold) -> Result<Descriptor, ShimError> {
    let open = |options: &mut OpenOptions| {
        let opened = options.custom_flags(O_NONBLOCK).open(path);
        opened.map_err(failed(format!("open stdin {}", path.display())))
    };
    // A writer alone cannot be opened before a reader, and a reader alone would see the end at once.
    let bridge = open(OpenOptions::new().read(true).write(true))?;
    let reader = open(OpenOptions::new().read(true))?;
    hold.keep(open(OpenOptions::new().write(true))?);
    drop(bridge);
    Descriptor::new(reader).map_err(failed("use stdin"))
}

/// Copies until all writers have gone, or the process reads no more.
pub(super) async fn copy(from: &Descriptor, to: &Descriptor) {
    loop {
        // Small, and not kept while nothing is typed.
        let mut chunk = [0; CHUNK_BYTES];
        let read = from.try_read(&mut chunk);
        match read {
            Ok(0) => return,
            Ok(n_read) => {
                let rest = chunk[..n_read].to_vec();
                if to.write_all(&rest).await.is_err() {
                    return;
                }
                coop::consume_budget().await;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if from.readable().await.is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}
