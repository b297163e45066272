//! Where a host keeps what belongs to a move, and the names of moves.
//!
//! A move's name comes from a peer and becomes a path, so it is checked wherever it enters.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Random bytes in a name: enough that two never meet.
const ID_BYTES: usize = 8;

/// The name of a move: 16 hex digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MigrationId(String);

impl MigrationId {
    /// A new name, never used before.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; ID_BYTES];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for MigrationId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let hex =
            text.len() == 2 * ID_BYTES && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if hex {
            Ok(Self(text))
        } else {
            Err(format!("{text:?} is no migration"))
        }
    }
}

impl From<MigrationId> for String {
    fn from(id: MigrationId) -> Self {
        id.0
    }
}

impl fmt::Display for MigrationId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The two roots under which an agent keeps its things.
#[derive(Clone, Debug)]
pub struct Places {
    /// On disk, outlives the host: `/var/lib/godwit`.
    pub state: PathBuf,
    /// Memory-backed: `/run/godwit`.
    pub run: PathBuf,
}

impl Places {
    /// The directory of all moves' journals.
    pub fn journals(&self) -> PathBuf {
        self.state.join("migrations")
    }

    /// Journal and verdict of a move.
    pub fn of(&self, migration: &MigrationId) -> PathBuf {
        self.journals().join(migration.as_str())
    }

    /// The file that decides to whom the container belongs.
    pub fn verdict(&self, migration: &MigrationId) -> PathBuf {
        self.of(migration).join("verdict")
    }

    /// The memory-backed directory of a move.
    pub fn memory(&self, migration: &MigrationId) -> PathBuf {
        self.run.join("migrations").join(migration.as_str())
    }

    /// The checkpoint image of a move.
    pub fn image(&self, migration: &MigrationId) -> PathBuf {
        self.memory(migration).join("image")
    }

    /// Where the pager of a container that has come asks for its memory.
    pub fn pages_socket(&self, migration: &MigrationId) -> PathBuf {
        self.memory(migration).join("pages.sock")
    }

    /// Where pages of memory are kept that have come before their container.
    pub fn kept(&self, migration: &MigrationId) -> PathBuf {
        self.memory(migration).join("kept")
    }

    /// Says that nobody needs the memory of a container that has left any more.
    pub fn drained(&self, migration: &MigrationId) -> PathBuf {
        self.memory(migration).join("drained")
    }

    /// Where tickets lie.
    pub fn tickets(&self) -> PathBuf {
        self.run.join("tickets")
    }
}

/// How long a thread that still writes there may take to hear that nobody wants it any more: one read of what it writes.
const WRITERS_DEADLINE: Duration = Duration::from_secs(2);

/// Between looks whether it has heard.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Removes a directory and all in it, what is put in meanwhile too; absent is fine. It may sleep.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let began = Instant::now();
    loop {
        match std::fs::remove_dir_all(path) {
            Ok(()) => return Ok(()),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound => return Ok(()),
                io::ErrorKind::DirectoryNotEmpty if began.elapsed() < WRITERS_DEADLINE => sleep(LOOK_AGAIN),
                _ => return Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    #[test]
    fn what_is_put_into_a_directory_while_it_is_removed_goes_along() {
        let top = tempfile::tempdir().unwrap();
        let directory = top.path().join("image");
        std::fs::create_dir(&directory).unwrap();
        let (begun, has_begun) = channel();
        let writer = thread::spawn({
            let directory = directory.clone();
            move || {
                let (began, mut number) = (Instant::now(), 0);
                while began.elapsed() < WRITERS_DEADLINE / 10
                    && File::create(directory.join(number.to_string())).is_ok()
                {
                    let _ = begun.send(());
                    number += 1;
                }
            }
        });
        has_begun.recv().unwrap();
        remove_tree(&directory).unwrap();
        assert!(!directory.exists());
        writer.join().unwrap();
    }

    #[test]
    fn a_name_from_a_peer_cannot_be_a_path() {
        for bad in [
            "",
            ".",
            "..",
            "../0123456789abc",
            "0123456789ABCDEF",
            "0123456789abcde",
            "0123456789abcdef0",
        ] {
            assert!(
                serde_json::from_value::<MigrationId>(bad.into()).is_err(),
                "{bad}"
            );
        }
        let id = MigrationId::random().unwrap();
        assert_eq!(
            serde_json::from_value::<MigrationId>(id.as_str().into()).unwrap(),
            id
        );
        assert_ne!(id, MigrationId::random().unwrap());
    }
}
