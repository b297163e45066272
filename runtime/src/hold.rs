//! The holder: CRIU's action script, which can stop CRIU one step before its point of no return.
//!
//! CRIU runs it by the path `…/hold` in a container's control directory, without arguments, at every action. It
//! reports each to the shim, for the clock, and at `post-dump` and `post-restore` waits for the verdict file. It
//! needs neither shim nor agent: `hold.json` says all. It never writes `committed`.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::control::ControlDir;
use crate::gate::{self, Report};
use crate::verdict::{self, Verdict};

/// The name the shim's binary is called by to be the holder.
pub const NAME: &str = "hold";

/// CRIU's name of the action after which only "kill" or "resume" is left of a dump.
pub const POST_DUMP: &str = "post-dump";

/// CRIU's name of the last action of a restore that can still refuse.
pub const POST_RESTORE: &str = "post-restore";

/// CRIU's name of the action at which every socket is restored and traffic may flow.
pub const NETWORK_UNLOCK: &str = "network-unlock";

/// What the holder must know; written by the shim as `hold.json` before it starts CRIU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldRecord {
    /// Where the verdict will be. None: nothing is held, actions are only reported.
    pub verdict: Option<PathBuf>,
    /// For a dump: how long to wait before writing `aborted`.
    pub hold_ms: Option<u64>,
    /// Whether a gate has closed the network namespace, which the holder is to open at `network-unlock`.
    pub gated: bool,
}

/// Runs one action; an error fails it, which CRIU understands as "resume" after a dump and "kill" before a start.
pub fn main(called_as: &Path) -> io::Result<()> {
    let control = ControlDir::at(called_as.parent().unwrap_or(Path::new("/")));
    let action = std::env::var("CRTOOLS_SCRIPT_ACTION").map_err(io::Error::other)?;
    let record: HoldRecord = serde_json::from_slice(&fs::read(control.join("hold.json"))?)?;
    if action == NETWORK_UNLOCK && record.gated {
        let pid = std::env::var("CRTOOLS_INIT_PID").map_err(io::Error::other)?;
        gate::open_network(pid.parse().map_err(io::Error::other)?)?;
    }
    // The clock is not worth a container: a shim that is gone is no reason to fail.
    if let Ok(mut shim) = UnixStream::connect(control.join("ctl.sock")) {
        let _ = gate::send(
            &mut shim,
            &Report::Hold {
                action: action.clone(),
            },
        );
    }
    match (action.as_str(), &record.verdict) {
        (POST_DUMP, Some(path)) => obey(&hold_dump(path, record.hold_ms)?),
        (POST_RESTORE, Some(path)) => obey(&hold_restore(path)?),
        _ => Ok(()),
    }
}

/// A dump that nobody decides about in time is given up, unless somebody decided meanwhile.
fn hold_dump(path: &Path, hold_ms: Option<u64>) -> io::Result<Verdict> {
    let deadline = hold_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
    match verdict::wait(path, deadline)? {
        Some(verdict) => Ok(verdict),
        None => verdict::decide(path, Verdict::Aborted),
    }
}

/// A restore waits as long as it takes: only the source knows whether it has given the container away.
fn hold_restore(path: &Path) -> io::Result<Verdict> {
    verdict::wait(path, None)?
        .ok_or_else(|| io::Error::other("a wait without a deadline ended without a verdict"))
}

fn obey(verdict: &Verdict) -> io::Result<()> {
    match verdict {
        Verdict::Committed => Ok(()),
        Verdict::Aborted => Err(io::Error::other("the move was aborted")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_left_alone_is_aborted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("verdict");
        assert_eq!(hold_dump(&path, Some(5)).unwrap(), Verdict::Aborted);
        assert_eq!(
            verdict::decide(&path, Verdict::Committed).unwrap(),
            Verdict::Aborted
        );
    }

    #[test]
    fn a_committed_dump_is_never_resumed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("verdict");
        verdict::decide(&path, Verdict::Committed).unwrap();
        let verdict = hold_dump(&path, Some(0)).unwrap();
        assert!(obey(&verdict).is_ok());
    }

    #[test]
    fn a_restore_waits_for_its_verdict() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("verdict");
        let verdict = std::thread::scope(|scope| {
            let held = scope.spawn(|| hold_restore(&path).unwrap());
            verdict::decide(&path, Verdict::Aborted).unwrap();
            held.join().unwrap()
        });
        assert!(obey(&verdict).is_err());
    }
}
