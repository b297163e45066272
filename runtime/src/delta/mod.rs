//! The writable layer of an overlay container, or a volume, as a stream of operations, and the way back.
//!
//! [`write`] reads a [`Tree`]; [`apply`] carries the operations out on the other host's. A layer is read from its
//! overlay's upper directory and applied through the *mounted* root of the other container, so that a removal means the
//! same there whichever way that overlay expresses it. A pass returns an [`Index`]; a later pass given this index sends
//! only what has changed since. The first pass is made while the container runs, the last while it is frozen.
//!
//! # Layout of the stream (version 1)
//!
//! | part | bytes |
//! |---|---|
//! | magic | `GWDELTA` and the version, 1 |
//! | record, any number | length (4, little endian, 1 to [`MAX_RECORD_BYTES`]), then one [`Operation`] in postcard's encoding |
//! | contents, after each `File` | chunks: offset (8), length (4, up to [`MAX_CHUNK_BYTES`]), the bytes; one of length 0 ends them |
//! | last record | `End`: the root directory's metadata, the number of records before it |
//!
//! Parents come before their children, removals before everything else. Holes of sparse files are not sent.
//!
//! # What it refuses
//!
//! In a layer renamed directories (`redirect_dir`), files whose data is elsewhere (`metacopy`) and file flags kept by the
//! overlay are an error, never a silent loss. Socket nodes are not carried, CRIU binds them again. Labels that
//! belong to the host's policy (`security.selinux`) stay behind. The stream has no digest: the transport has.

mod apply;
mod beneath;
mod from_tar;
mod index;
mod operation;
#[cfg(test)]
mod tests;
mod to_tar;
mod upper;
mod write;

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use apply::{Applied, apply};
pub use from_tar::{Permitted, apply_tar};
pub use index::Index;
pub use operation::{MAX_CHUNK_BYTES, MAX_RECORD_BYTES, Operation};
pub use to_tar::TarPlan;
pub use upper::{lower_dirs, upper_dir};
pub use write::write;

/// A tree of files to be read or written.
#[derive(Clone, Copy, Debug)]
pub enum Tree<'a> {
    /// A container's own layer: to be read its overlay's upper directory, in which the overlay's notes and whiteouts mean
    /// something; to be written its mounted root, on which nobody but the overlay may leave notes.
    Layer(&'a Path),
    /// A directory in its own right, such as a volume: whatever is in it is content, the layers of an overlay that the
    /// container itself keeps there included.
    Plain(&'a Path),
}

impl<'a> Tree<'a> {
    /// The directory at its top.
    fn top(self) -> &'a Path {
        match self {
            Self::Layer(top) | Self::Plain(top) => top,
        }
    }

    fn is_layer(self) -> bool {
        matches!(self, Self::Layer(_))
    }
}

/// Why a delta could not be written or applied. All paths are relative to the container's root.
#[derive(Debug, Error)]
pub enum DeltaError {
    /// The layer holds something this stream cannot carry.
    #[error("{} cannot be moved: {reason}", path.display())]
    Unsupported {
        /// Where it is.
        path: PathBuf,
        /// What it is, and what to do about it.
        reason: &'static str,
    },
    /// A file of the container could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The stream is not one of ours, was cut, or asks for something it must not.
    #[error("the file delta is refused after {}: {reason}", after.display())]
    Malformed {
        /// The last path the stream named.
        after: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The other end of the stream failed.
    #[error("the stream of the file delta broke: {0}")]
    Stream(#[source] io::Error),
}

impl DeltaError {
    /// Wraps what the system said about `action` on `path`.
    fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source: source.into(),
        }
    }
}
