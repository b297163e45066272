//! The phases of a move and its two roles, by name.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A phase of a move; both sides are in the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Versions are agreed on.
    Hello,
    /// Every reason why not, before anything is touched.
    Plan,
    /// Everything that can be done while the container runs.
    Prepare,
    /// The container stands still; what is left of it travels.
    Freeze,
    /// The destination restores, up to the last step before running.
    Restore,
    /// The container belongs to the destination.
    Commit,
    /// Memory that was left behind follows; the container runs meanwhile.
    Drain,
    /// The source lets go of what it had.
    Release,
}

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Hello => "hello",
            Self::Plan => "plan",
            Self::Prepare => "prepare",
            Self::Freeze => "freeze",
            Self::Restore => "restore",
            Self::Commit => "commit",
            Self::Drain => "drain",
            Self::Release => "release",
        })
    }
}

/// Which side of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Has the container at first.
    Source,
    /// Has it in the end.
    Destination,
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}
