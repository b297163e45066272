//! How a container's memory goes over: the modes of a move.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::finding::{Code, Finding};

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

impl Mode {
    /// What it comes to where these modes are possible.
    pub fn settle(self, possible: &[&str]) -> Result<Self, Finding> {
        match self {
            Self::Stop => Ok(Self::Stop),
            Self::Auto | Self::Post if possible.contains(&"post") => Ok(Self::Post),
            Self::Auto => Ok(Self::Stop),
            Self::Post => Err(Finding::problem(
                Code::Modes,
                format!("memory cannot follow afterwards: {POST_NEEDS}"),
                "leave --mode away, or use --mode stop",
            )),
        }
    }
}

/// What is missing where mode post is not possible.
pub const POST_NEEDS: &str =
    "on one of the hosts CRIU finds no userfaultfd that tells of forks and mappings (CONFIG_USERFAULTFD)";

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn post_is_taken_where_it_can_be_and_refused_only_where_it_was_asked_for() {
        assert_eq!(Mode::Auto.settle(&["stop", "post"]), Ok(Mode::Post));
        assert_eq!(Mode::Auto.settle(&["stop"]), Ok(Mode::Stop));
        assert_eq!(Mode::Stop.settle(&["stop", "post"]), Ok(Mode::Stop));
        assert!(Mode::Post.settle(&["stop"]).unwrap_err().is_problem());
        for name in Mode::NAMES {
            assert_eq!(name.parse::<Mode>().unwrap().to_string(), name);
        }
        assert!("pre".parse::<Mode>().unwrap_err().contains("auto, stop, post"));
    }
}
