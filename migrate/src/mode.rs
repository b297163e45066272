//! How a container's memory goes over: the modes of a move.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Post-copy where both hosts can do it, otherwise stop.
    #[default]
    Auto,
    /// All memory travels while the container stands still: the source is done with it when it runs again.
    Stop,
    /// Memory follows after the container runs: the freeze is short whatever its size, and until all has followed the
    /// container needs both hosts.
    Post,
}

impl Mode {
    /// All of them, as they are written.
    pub const NAMES: [&str; 3] = ["auto", "stop", "post"];
}

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Auto => "auto",
            Self::Stop => "stop",
            Self::Post => "post",
        })
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "stop" => Ok(Self::Stop),
            "post" => Ok(Self::Post),
            other => Err(format!(
                "{other:?} is no mode; there are {}",
                Self::NAMES.join(", ")
            )),
        }
    }
}
