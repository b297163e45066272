//! What Godwit says of an archive of its own, in its first member: the container as an offer of a move has it, and what follows.

use serde::{Deserialize, Serialize};

use super::ArchiveError;
use super::layout;
use crate::message::Offer;

/// The format this release writes and reads.
const VERSION: u32 = 1;

/// The first member.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    version: u32,
    /// The release that made it.
    pub made_by: String,
    /// When, in milliseconds since 1970.
    pub made_unix_ms: u64,
    /// On which host.
    pub host: String,
    /// The container ran on there.
    pub left_running: bool,
    /// The container, as a source offers it, with the facts of that host.
    pub offer: Offer,
    /// Every member that follows but the last, in order.
    pub members: Vec<Listed>,
    /// Of what the container removed from its image, names that are no UTF-8, which the list of others cannot have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deleted_bytes: Vec<Vec<u8>>,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub size: u64,
}

/// What every version says.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Manifest {
    /// A manifest of this version.
    pub fn new(host: &str, left_running: bool, offer: Offer, members: Vec<Listed>) -> Self {
        Self {
            version: VERSION,
            made_by: format!("godwit {}", env!("CARGO_PKG_VERSION")),
            made_unix_ms: crate::checks::facts::clock_millis(),
            host: host.into(),
            left_running,
            offer,
            members,
            deleted_bytes: Vec::new(),
        }
    }

    /// What `bytes` say.
    pub fn parse(bytes: &[u8]) -> Result<Self, ArchiveError> {
        let damaged =
            |error: serde_json::Error| ArchiveError::Refused(format!("{}: {error}", layout::MANIFEST));
        let Version { version } = serde_json::from_slice(bytes).map_err(damaged)?;
        if version != VERSION {
            return Err(ArchiveError::Refused(format!(
                "it has version {version}, and this Godwit reads {VERSION}"
            )));
        }
        serde_json::from_slice(bytes).map_err(damaged)
    }

    /// Bytes of all members that follow, or of those whose names begin so. No sum that an archive claims overflows.
    pub fn bytes(&self, prefix: &str) -> u64 {
        self.members
            .iter()
            .filter(|member| member.name.starts_with(prefix))
            .fold(0, |sum, member| sum.saturating_add(member.size))
    }
}
