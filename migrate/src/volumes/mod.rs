//! The volumes of a container in a move: what becomes of each (`policy`), what speaks against that (`judge`), and the two
//! ends of the way, `depart` at the source and `arrive` at the destination.
//!
//! A volume that is copied goes as the writable layer does: in rounds while the container runs, the rest in the freeze, each
//! as a delta with an index of its own. A named volume outlives its container, so the source keeps its copy; an anonymous one
//! that was copied goes with it.

pub mod arrive;
pub mod depart;
pub mod judge;
pub mod policy;

use serde::{Deserialize, Serialize};

use crate::engine::volume::Volume;
use policy::Policy;

/// A volume as a source offers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offered {
    /// The volume.
    pub volume: Volume,
    /// Its place in the container.
    pub target: String,
    /// The destination's engine makes one of its own along with the container, under another name.
    pub is_anonymous: bool,
    /// What is to become of it.
    pub policy: Policy,
    /// What it holds, about; 0 if that does not go over.
    pub bytes: u64,
}

impl Offered {
    /// What a person calls it: the name, or of an anonymous one its place.
    pub fn called(&self) -> String {
        if self.is_anonymous {
            format!("at {}", self.target)
        } else {
            self.volume.name.clone()
        }
    }
}

/// Those that go over, each with the number by which its streams name it.
pub fn copied(offered: &[Offered]) -> impl Iterator<Item = (u32, &Offered)> {
    (0..)
        .zip(offered)
        .filter(|(_, offered)| offered.policy == Policy::Copy)
}

/// What became of a volume, for the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Carried {
    /// Its name at the source.
    pub name: String,
    /// Its place in the container.
    pub target: String,
    /// What became of it.
    pub policy: Policy,
    /// Bytes sent for it, all rounds.
    pub bytes: u64,
    /// The source keeps it with its content, which from the move on grows old there.
    pub stays_at_source: bool,
}
