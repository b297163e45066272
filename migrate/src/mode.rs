//! How a container's memory goes over: the modes of a move.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::finding::{Code, Finding};

/// What a user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Pre-copy where it is possible and as long as it pays, the rest by post-copy; post-copy alone where only that is
    /// possible, otherwise stop.
    #[default]
    Auto,
    /// All memory travels while the container stands still: the source is done with it when it runs again.
    Stop,
    /// Memory is copied while the container runs, what it writes to meanwhile again, and the last of it while it stands
    /// still: the source is done with it when it runs again.
    Pre,
    /// Memory follows after the container runs: the freeze is short whatever its size, and until all has followed the
    /// container needs both hosts.
    Post,
}

impl Mode {
    /// All of them, as they are written.
    pub const NAMES: [&str; 4] = ["auto", "stop", "pre", "post"];
}

impl Mode {
    /// What it comes to where these modes are possible; `auto` may still end by post-copy where it begins by pre-copy.
    pub fn settle(self, possible: &[&str]) -> Result<Self, Finding> {
        match self {
            Self::Stop => Ok(Self::Stop),
            Self::Auto | Self::Pre if possible.contains(&"pre") => Ok(Self::Pre),
            Self::Auto | Self::Post if possible.contains(&"post") => Ok(Self::Post),
            Self::Auto => Ok(Self::Stop),
            Self::Pre => Err(Finding::problem(
                Code::Modes,
                format!(
                    "memory cannot be copied beforehand: {}",
                    if possible.contains(&"post") {
                        PRE_NEEDS
                    } else {
                        POST_NEEDS
                    }
                ),
                "use --mode post, or --mode stop where the source must not be needed afterwards",
            )),
            Self::Post => Err(Finding::problem(
                Code::Modes,
                format!("memory cannot follow afterwards: {POST_NEEDS}"),
                "leave --mode away, or use --mode stop",
            )),
        }
    }
}

/// What is missing where only mode post is possible.
pub const PRE_NEEDS: &str =
    "the source's kernel does not tell which pages were written to (CONFIG_MEM_SOFT_DIRTY, Linux 6.7)";

/// What is missing where neither mode pre nor mode post is possible.
pub const POST_NEEDS: &str = "on one of the hosts CRIU does not say that there is a userfaultfd which tells of forks and mappings (CONFIG_USERFAULTFD)";

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Auto => "auto",
            Self::Stop => "stop",
            Self::Pre => "pre",
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
            "pre" => Ok(Self::Pre),
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
    fn the_best_is_taken_and_refused_only_where_it_was_asked_for() {
        let all = ["stop", "pre", "post"];
        assert_eq!(Mode::Auto.settle(&all), Ok(Mode::Pre));
        assert_eq!(Mode::Pre.settle(&all), Ok(Mode::Pre));
        assert_eq!(Mode::Post.settle(&all), Ok(Mode::Post));
        let refused = Mode::Pre.settle(&["stop", "post"]).unwrap_err().to_string();
        assert!(
            refused.contains("MEM_SOFT_DIRTY") && refused.contains("--mode post"),
            "{refused}"
        );
        assert!(
            Mode::Pre
                .settle(&["stop"])
                .unwrap_err()
                .text
                .contains("USERFAULTFD")
        );
        assert_eq!(Mode::Auto.settle(&["stop", "post"]), Ok(Mode::Post));
        assert_eq!(Mode::Auto.settle(&["stop"]), Ok(Mode::Stop));
        assert_eq!(Mode::Stop.settle(&["stop", "post"]), Ok(Mode::Stop));
        assert!(Mode::Post.settle(&["stop"]).unwrap_err().is_problem());
        for name in Mode::NAMES {
            assert_eq!(name.parse::<Mode>().unwrap().to_string(), name);
        }
        assert!(
            "late"
                .parse::<Mode>()
                .unwrap_err()
                .contains("auto, stop, pre, post")
        );
    }
}
