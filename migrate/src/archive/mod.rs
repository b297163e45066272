//! Archives: a container in one file, that its own or another host makes it of again.
//!
//! An export is the source's half of a move and an import the destination's; between them there is no link but a file, which a
//! client of the local API writes or reads, or an image of the engine's. The layout is that of podman, CRI-O and checkpointctl
//! (`docs/archive.md`); what they have no place for stands in members of our own. Nothing here decides what a client does with the
//! file.

pub mod board;
pub mod bundle;
pub mod compress;
mod contents;
mod copy;
pub mod export;
mod foreign;
pub mod import;
pub mod layout;
pub mod manifest;
mod netns;
pub mod origin;
pub mod pipe;
pub mod publish;
pub mod read;
pub mod recovery;
pub mod signature;
pub mod stats;
pub mod target;
pub mod write;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::set::Choice;
use crate::tcp::TcpChoice;
use crate::volumes::policy::Policies;
use compress::Compression;
use publish::Published;

/// The other side of an export or import, where a move has a host.
pub const PEER: &str = "archive";

/// From the word that an export or import has begun to a client that reads the archive, or brings it.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);

/// Why an archive cannot be written or taken.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It is not what it should be.
    #[error("the archive is refused: {0}")]
    Refused(String),
    /// The system said so.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// The system's word.
        source: std::io::Error,
    },
}

impl ArchiveError {
    /// Wraps what the system said about `doing`.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    /// Whether whoever was to have the bytes has gone away.
    pub fn is_hang_up(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == std::io::ErrorKind::BrokenPipe)
    }
}

/// How a container is exported. What is left out is as by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExportOptions {
    /// It runs on once its memory and files are read.
    pub leave_running: bool,
    /// How the archive is packed.
    pub compress: Compression,
    /// Which volumes are in it.
    pub volumes: Policies,
    /// This host signs it.
    pub sign: bool,
    /// What the image is called that it becomes in the container's engine, instead of bytes for the client.
    pub image: Option<String>,
}

/// How an archive is imported. What is left out is as by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImportOptions {
    /// What the container is called here, if not as it was.
    pub name: Option<String>,
    /// The image that it is read from, instead of bytes that the client brings.
    pub image: Option<String>,
    /// containerd's namespace that has the image, if not `default`; means containerd.
    pub namespace: Option<String>,
    /// Whose container it becomes; the engine's that it came from unless told. With an image: whose the image is.
    pub engine: Choice,
    /// What becomes of its TCP connections.
    pub tcp: TcpChoice,
    /// The ports it publishes, in place of those it did.
    pub publish: Vec<Published>,
    /// One that no host of this authority has signed is refused, whatever the agent's configuration says.
    pub require_signature: bool,
}

/// What is told of an export or import that succeeded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// The container's name.
    pub container: String,
    /// Its engine.
    pub engine: String,
    /// Its id here.
    pub id: String,
    /// Whether it runs here now.
    pub runs: bool,
    /// Bytes of the archive's members, before packing.
    pub bytes: u64,
    /// How long the container stood still, or was not there, in microseconds; of an import from the first byte on.
    pub down_micros: u64,
    /// TCP connections that were kept.
    pub connections_kept: usize,
    /// TCP connections that were closed.
    pub connections_closed: usize,
    /// The host that has signed it; of an import, whose signature was found to be right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
    /// What did not go as it should, in words; empty as a rule.
    pub remarks: Vec<String>,
}
