//! What a user may ask of a move, beside which container goes where.
//!
//! One value for the local API, the command line, the journal and the offer to the destination, so that an option is
//! written down once and a restarted agent knows it too. What an option does stands where it is done; here is only what can
//! be asked for.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bandwidth::Bandwidth;
use crate::mode::Mode;
use crate::pages::rounds::DEFAULT_DOWNTIME;
use crate::tcp::TcpChoice;
use crate::volumes::policy::Policies;

/// The options of one move. What is left out is as by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MoveOptions {
    /// How its memory goes over.
    pub mode: Mode,
    /// How long it may stand still, in milliseconds, as far as the mode can see to that; 300 if nothing is said.
    pub downtime_ms: Option<u32>,
    /// What becomes of its TCP connections.
    pub tcp: TcpChoice,
    /// What becomes of its volumes.
    pub volumes: Policies,
    /// What it is called at the destination, if not as here; inside it keeps its host name.
    pub name: Option<String>,
    /// The container stays at the source as well: stopped, and never started again by its engine.
    pub keep_source: bool,
    /// It is given up if it has not committed after so many seconds.
    pub timeout_seconds: Option<NonZeroU32>,
    /// What all of its streams together send at most.
    pub bandwidth: Option<Bandwidth>,
}

impl MoveOptions {
    /// How long the container may stand still.
    pub fn downtime(&self) -> Duration {
        let asked = self.downtime_ms.map(|ms| Duration::from_millis(ms.into()));
        asked.unwrap_or(DEFAULT_DOWNTIME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_as_by_default_and_what_is_unknown_is_an_error() {
        let read = |text| serde_json::from_str::<MoveOptions>(text);
        assert_eq!(read("{}").unwrap(), MoveOptions::default());
        let asked = read(r#"{"mode":"stop","tcp":"close"}"#).unwrap();
        assert_eq!((asked.mode, asked.tcp), (Mode::Stop, TcpChoice::Close));
        let told = serde_json::to_string(&asked).unwrap();
        assert_eq!(read(&told).unwrap(), asked);
        assert!(read(r#"{"mood":"stop"}"#).is_err());
    }
}
