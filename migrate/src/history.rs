//! What this host remembers of moves that are over, one JSON file each, the newest [`KEPT`] of them.
//!
//! For people and their tools: no decision depends on it, so a file that cannot be written is a line in the log. The
//! journal, which decisions do depend on, is another thing and gone by then.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use godwit_runtime::control::create_private_dir;
use serde::{Deserialize, Serialize};

use crate::clock::{Outcome, Report};
use crate::failure::{Cause, Failure};
use crate::phase::Role;
use crate::places::{MigrationId, Places};
use crate::progress::PhaseSpan;

/// Moves remembered: weeks of a busy host, in some hundred kilobytes.
pub const KEPT: usize = 100;

/// How a move ended on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// The container is the destination's, and runs there.
    Moved,
    /// It is the destination's, which had not confirmed that it runs when the runner ended; recovery goes on.
    Unconfirmed,
    /// It is the destination's and does not run there.
    Broken,
    /// The plan said no; nothing was touched.
    Refused,
    /// Given up on request, and undone.
    Aborted,
    /// Failed, and undone.
    Failed,
    /// Brought to its end by an agent that found it in its journal; `note` says which.
    Recovered,
}

impl Ending {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::Unconfirmed => "unconfirmed",
            Self::Broken => "broken",
            Self::Refused => "refused",
            Self::Aborted => "aborted",
            Self::Failed => "failed",
            Self::Recovered => "recovered",
        }
    }
}

/// A move that is over, as seen from this host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The move's id.
    pub migration: MigrationId,
    /// This host's part.
    pub role: Role,
    /// This host.
    pub host: String,
    /// The other one.
    pub peer: String,
    /// The container's name; empty if the move ended before it was told.
    pub container: String,
    /// When it ended, in milliseconds since 1970.
    pub ended_unix_ms: u64,
    /// How.
    pub ending: Ending,
    /// How long the runner was at it; 0 if it died with its agent.
    pub total_micros: u64,
    /// The phases that were begun, in order.
    pub phases: Vec<PhaseSpan>,
    /// The source's figures of a move that was committed.
    pub report: Option<Report>,
    /// Why it was not.
    pub failure: Option<Failure>,
    /// What recovery had to say.
    pub note: Option<String>,
}

impl Record {
    /// A move that ends now, of which nothing more is known.
    pub fn new(
        migration: &MigrationId,
        role: Role,
        host: &str,
        peer: &str,
        container: &str,
        ending: Ending,
    ) -> Self {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        Self {
            migration: migration.clone(),
            role,
            host: host.into(),
            peer: peer.into(),
            container: container.into(),
            ended_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            ending,
            total_micros: 0,
            phases: Vec::new(),
            report: None,
            failure: None,
            note: None,
        }
    }

    /// With the runner's outcome at the source.
    pub fn with_report(mut self, report: Report) -> Self {
        self.ending = match report.outcome {
            Outcome::Moved => Ending::Moved,
            Outcome::CommittedUnconfirmed { .. } => Ending::Unconfirmed,
        };
        self.report = Some(report);
        self
    }

    /// With the reason why it was undone.
    pub fn with_failure(mut self, failure: Failure) -> Self {
        self.ending = match failure.cause {
            Cause::Refused(_) => Ending::Refused,
            Cause::Aborted => Ending::Aborted,
            Cause::Lost(_) | Cause::Protocol(_) | Cause::Failed(_) => Ending::Failed,
        };
        self.failure = Some(failure);
        self
    }
}

/// The records of one host.
#[derive(Clone, Debug)]
pub struct History {
    directory: PathBuf,
}

impl History {
    /// Those below `places`.
    pub fn at(places: &Places) -> Self {
        Self {
            directory: places.state.join("reports"),
        }
    }

    /// Writes a record, in place of an earlier one of the same move, and forgets what is too old.
    pub fn keep(&self, record: &Record) -> io::Result<()> {
        create_private_dir(&self.directory)?;
        let path = self.path(&record.migration);
        let temporary = path.with_extension("new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        file.sync_data()?;
        fs::rename(&temporary, &path)?;
        self.forget_oldest()
    }

    /// The record of one move.
    pub fn read(&self, migration: &MigrationId) -> io::Result<Option<Record>> {
        match fs::read(self.path(migration)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All of them, the newest first. What cannot be read, of another release say, is passed over.
    pub fn read_all(&self) -> Vec<Record> {
        let mut records: Vec<Record> = self
            .files()
            .into_iter()
            .filter_map(|(_, path)| serde_json::from_slice(&fs::read(path).ok()?).ok())
            .collect();
        records.sort_by_key(|record| std::cmp::Reverse(record.ended_unix_ms));
        records
    }

    fn path(&self, migration: &MigrationId) -> PathBuf {
        self.directory.join(format!("{migration}.json"))
    }

    fn files(&self) -> Vec<(SystemTime, PathBuf)> {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|kind| kind == "json"))
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect()
    }

    fn forget_oldest(&self) -> io::Result<()> {
        let mut files = self.files();
        files.sort();
        for (_, path) in files.iter().rev().skip(KEPT) {
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn record(ended_unix_ms: u64) -> Record {
        let migration = MigrationId::random().unwrap();
        Record {
            ended_unix_ms,
            ..Record::new(&migration, Role::Source, "ha", "hb", "redis", Ending::Moved)
        }
    }

    #[test]
    fn only_the_newest_moves_are_remembered_and_nobody_else_reads_them() {
        let root = tempfile::tempdir().unwrap();
        let history = History {
            directory: root.path().join("reports"),
        };
        assert!(history.read_all().is_empty());
        let first = record(0);
        history.keep(&first).unwrap();
        // Files of the same instant have no order.
        let old = SystemTime::now() - Duration::from_secs(60);
        fs::File::open(history.path(&first.migration))
            .unwrap()
            .set_modified(old)
            .unwrap();
        let mut last = first.clone();
        for number in 1..=KEPT as u64 {
            last = record(number);
            history.keep(&last).unwrap();
        }
        let all = history.read_all();
        assert_eq!(all.len(), KEPT);
        assert_eq!(all[0], last);
        assert_eq!(history.read(&first.migration).unwrap(), None);
        let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&history.directory), 0o700);
        assert_eq!(mode(&history.path(&last.migration)), 0o600);
    }

    #[test]
    fn a_later_record_of_a_move_takes_the_place_of_the_earlier() {
        let root = tempfile::tempdir().unwrap();
        let history = History {
            directory: root.path().join("reports"),
        };
        let mut told = record(1);
        history.keep(&told).unwrap();
        told.note = Some("committed, the container is at the destination".into());
        history.keep(&told).unwrap();
        assert_eq!(history.read_all(), vec![told]);
    }
}
