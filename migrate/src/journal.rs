//! The journal of a move: what one side had done when its agent died, one JSON line each, on stable storage.
//!
//! A record is written *before* what it tells of, so that whoever reads it undoes too much rather than too little.
//! The decision to whom the container belongs is not here but in the verdict file beside it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use godwit_runtime::control::create_private_dir;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use crate::engine::{Container, Created};
use crate::options::MoveOptions;
use crate::phase::Role;
use crate::places::{MigrationId, Places, remove_tree};
use crate::protocol::{destination, source};
use crate::volumes::arrive::Claim;

const FILE_NAME: &str = "journal";

/// The first record of every journal.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opened {
    /// The move.
    pub migration: MigrationId,
    /// This host's part in it.
    pub role: Role,
    /// The other host.
    pub peer: String,
    /// The container as the source described it.
    pub container: Container,
    /// What was asked of the move.
    #[serde(default)]
    pub options: MoveOptions,
    /// It is an export to an archive, or an import from one: there is no other host.
    #[serde(default)]
    pub archive: bool,
}

/// What comes after it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Mark {
    /// Source: the engine is about to be told not to start the container again.
    Disarming,
    /// Source: the engine is about to be given an export as an image of this name.
    Image(String),
    /// Source: the container is about to be frozen.
    Freezing,
    /// Destination: the engine is about to be asked for the container.
    Creating,
    /// Destination: a volume is about to be made, or to be filled.
    Volume(Claim),
    /// Destination: the engine made it.
    Created(Created),
    /// Destination: from here on the source may have committed; only it knows.
    Restoring,
    /// Destination: it was committed, and the container does not run. For a human.
    Broken(String),
    /// Destination: a human has given the container up here; it is about to be removed.
    GivenUp,
    /// Destination: it is removed, and the source may start it afresh.
    Returned,
    /// Source: the container, which was committed, is this host's again, and is about to be started afresh.
    Reclaimed,
}

/// An open journal.
#[derive(Clone, Debug)]
pub struct Journal {
    directory: PathBuf,
}

/// A journal as found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Who, what, with whom.
    pub opened: Opened,
    /// What followed, in order.
    pub marks: Vec<Mark>,
}

impl Journal {
    /// Begins the journal of a move.
    pub async fn open(places: &Places, opened: Opened) -> io::Result<Self> {
        let directory = places.of(&opened.migration);
        let journal = Self { directory };
        let copy = journal.clone();
        blocking(move || {
            create_private_dir(&copy.directory)?;
            copy.append(&opened, true)?;
            // The file's name and the directory's must be as durable as the record.
            File::open(&copy.directory)?.sync_all()?;
            copy.directory
                .parent()
                .map_or(Ok(()), |parent| File::open(parent)?.sync_all())
        })
        .await?;
        Ok(journal)
    }

    /// The journal of a move that was begun earlier.
    pub fn at(places: &Places, migration: &MigrationId) -> Self {
        Self {
            directory: places.of(migration),
        }
    }

    /// Adds a record; it is on stable storage when this returns.
    pub async fn note(&self, mark: Mark) -> io::Result<()> {
        let journal = self.clone();
        // A journal that is gone says that the move is over: no record must make it anew.
        blocking(move || journal.append(&mark, false)).await
    }

    /// Removes the journal in a move's directory: from here on nothing is known of the move. Absent is fine.
    pub fn remove(directory: &Path) -> io::Result<()> {
        match fs::remove_file(directory.join(FILE_NAME)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn append(&self, record: &impl Serialize, is_first: bool) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        let mut file = OpenOptions::new()
            .append(true)
            .create(is_first)
            .mode(0o600)
            .open(self.directory.join(FILE_NAME))?;
        file.write_all(&line)?;
        file.sync_data()
    }
}

impl Found {
    /// Reads the journal of one move; `None` if there is none that has a first record.
    pub fn read(directory: &Path) -> io::Result<Option<Self>> {
        let text = match fs::read(directory.join(FILE_NAME)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // A last line without its end is a record whose deed was not begun.
        let whole = text.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
        let mut lines = text[..whole]
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        let Some(first) = lines.next() else {
            return Ok(None);
        };
        Ok(Some(Self {
            opened: serde_json::from_slice(first)?,
            marks: lines.map(serde_json::from_slice).collect::<Result<_, _>>()?,
        }))
    }

    /// All journals on this host, unreadable ones as errors with their directory.
    pub fn read_all(places: &Places) -> Vec<Result<Self, (PathBuf, io::Error)>> {
        let Ok(entries) = fs::read_dir(places.journals()) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| {
                Self::read(&entry.path())
                    .map_err(|error| (entry.path(), error))
                    .transpose()
            })
            .collect()
    }

    /// Removes the directories of moves that have no journal: their agent died when it began it, or after it had removed
    /// it. Only for an agent that starts.
    pub fn sweep(places: &Places) -> io::Result<()> {
        let memory = fs::read_dir(places.run.join("migrations"));
        for entry in memory.into_iter().flatten().flatten() {
            // An import has this before it has a journal.
            if let Ok(migration) = MigrationId::try_from(entry.file_name().to_string_lossy().into_owned())
                && matches!(Self::read(&places.of(&migration)), Ok(None))
            {
                remove_tree(&entry.path())?;
            }
        }
        let Ok(entries) = fs::read_dir(places.journals()) else {
            return Ok(());
        };
        for entry in entries.flatten() {
            let is_moves = MigrationId::try_from(entry.file_name().to_string_lossy().into_owned()).is_ok();
            if is_moves && matches!(Self::read(&entry.path()), Ok(None)) {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }

    /// The container that was made here, if it came so far.
    pub fn created(&self) -> Option<&Created> {
        self.marks.iter().find_map(|mark| match mark {
            Mark::Created(created) => Some(created),
            _ => None,
        })
    }
}

impl Found {
    /// What a source's journal says, as the rules ask for it.
    pub fn source_marks(&self) -> source::Marks {
        let mut marks = source::Marks::default();
        for mark in &self.marks {
            match mark {
                Mark::Disarming => marks.disarming = true,
                Mark::Freezing => marks.freezing = true,
                Mark::Reclaimed => marks.reclaimed = true,
                _ => {}
            }
        }
        marks
    }

    /// What a destination's journal says, as the rules ask for it.
    pub fn destination_marks(&self) -> destination::Marks {
        let mut marks = destination::Marks::default();
        for mark in &self.marks {
            match mark {
                Mark::Creating => marks.creating = true,
                Mark::Created(_) => marks.created = true,
                Mark::Restoring => marks.restoring = true,
                Mark::Broken(_) => marks.broken = true,
                Mark::GivenUp => marks.given_up = true,
                Mark::Returned => marks.returned = true,
                _ => {}
            }
        }
        marks
    }

    /// Whether nothing more happens unless a human decides.
    pub fn awaits_human(&self) -> bool {
        let marks = self.destination_marks();
        marks.broken && !marks.given_up
    }

    /// What the image is called that an export was to become, if the engine may have heard of it.
    pub fn image(&self) -> Option<&str> {
        self.marks.iter().find_map(|mark| match mark {
            Mark::Image(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Why a committed container does not run here, if it came to that.
    pub fn broken(&self) -> Option<String> {
        self.marks.iter().find_map(|mark| match mark {
            Mark::Broken(reason) => Some(reason.clone()),
            _ => None,
        })
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_record_cut_short_is_as_if_it_had_not_been_begun() {
        let root = tempfile::tempdir().unwrap();
        let places = Places {
            state: root.path().into(),
            run: root.path().into(),
        };
        let migration = MigrationId::random().unwrap();
        let opened = Opened {
            migration: migration.clone(),
            role: Role::Destination,
            peer: "ha".into(),
            container: crate::engine::Container {
                engine: "docker".into(),
                id: "abc".into(),
                name: "redis".into(),
                namespace: "moby".into(),
                image_name: String::new(),
                image_id: "sha256:0".into(),
                runtime: "io.containerd.godwit.v2".into(),
                running: true,
                networks: Vec::new(),
                mounts: Vec::new(),
                description: serde_json::Value::Null,
            },
            options: MoveOptions::default(),
            archive: false,
        };
        let journal = Journal::open(&places, opened).await.unwrap();
        journal.note(Mark::Creating).await.unwrap();
        let created = Created {
            id: "def".into(),
            namespace: "moby".into(),
        };
        journal.note(Mark::Created(created)).await.unwrap();
        let path = places.of(&migration);
        let found = Found::read(&path).unwrap().unwrap();
        assert_eq!(found.created().unwrap().id, "def");

        let text = fs::read(path.join(FILE_NAME)).unwrap();
        for length in 0..text.len() {
            fs::write(path.join(FILE_NAME), &text[..length]).unwrap();
            let found = Found::read(&path).unwrap();
            assert!(
                found.is_none_or(|found| found.created().is_none()),
                "cut at {length}"
            );
        }
        assert_eq!(Found::read_all(&places).len(), 1);

        Found::sweep(&places).unwrap();
        assert_eq!(
            Found::read_all(&places).len(),
            1,
            "a move that has a journal was swept away"
        );
        fs::write(path.join("verdict"), "committed\n").unwrap();
        Journal::remove(&path).unwrap();
        Found::sweep(&places).unwrap();
        assert!(!path.exists());
    }
}
