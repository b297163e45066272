//! Where the bytes of an archive and the client that stores or brings them find each other: by the name of the export or import.
//!
//! Each is claimed once. What is forgotten here is at an end for the client.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::pipe::{Whole, pipe};
use crate::places::MigrationId;

/// All exports and imports under way; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<HashMap<MigrationId, Slot>>>);

#[derive(Debug)]
enum Slot {
    Export {
        archive: Option<Asked>,
        stored: Option<oneshot::Sender<()>>,
        whole: Whole,
    },
    Import {
        brought: Option<oneshot::Sender<Brought>>,
    },
}

#[derive(Debug)]
struct Asked {
    bytes: mpsc::Receiver<Bytes>,
    opened: oneshot::Sender<()>,
}

/// The agent's side of an export.
#[derive(Debug)]
pub struct Outgoing {
    board: Board,
    migration: MigrationId,
    /// Where the archive goes.
    pub bytes: Option<mpsc::Sender<Bytes>>,
    /// By which the thread that writes it says that all of it was written.
    pub whole: Whole,
    /// Told when the client reads.
    pub opened: Option<oneshot::Receiver<()>>,
    /// Told when the client has stored it.
    pub stored: Option<oneshot::Receiver<()>>,
}

/// The agent's side of an import.
#[derive(Debug)]
pub struct Incoming {
    board: Board,
    migration: MigrationId,
    /// Told when the client brings it.
    pub brought: Option<oneshot::Receiver<Brought>>,
}

/// How a client brings an archive.
#[derive(Debug)]
pub enum Brought {
    /// Byte by byte.
    Pieces(mpsc::Receiver<Bytes>),
    /// As a regular file, which it has open for reading.
    File(File),
}

impl Board {
    /// Awaits a client that stores an archive.
    pub fn export(&self, migration: &MigrationId) -> Outgoing {
        let (sender, bytes) = pipe();
        let (opened, when_opened) = oneshot::channel();
        let (stored, when_stored) = oneshot::channel();
        let whole = Whole::default();
        let slot = Slot::Export {
            archive: Some(Asked { bytes, opened }),
            stored: Some(stored),
            whole: whole.clone(),
        };
        self.slots().insert(migration.clone(), slot);
        Outgoing {
            board: self.clone(),
            migration: migration.clone(),
            bytes: Some(sender),
            whole,
            opened: Some(when_opened),
            stored: Some(when_stored),
        }
    }

    /// Awaits a client that brings an archive.
    pub fn import(&self, migration: &MigrationId) -> Incoming {
        let (brought, when_brought) = oneshot::channel();
        let slot = Slot::Import {
            brought: Some(brought),
        };
        self.slots().insert(migration.clone(), slot);
        Incoming {
            board: self.clone(),
            migration: migration.clone(),
            brought: Some(when_brought),
        }
    }

    /// A client begins to read; `None` if there is no such archive, or no more.
    pub fn read(&self, migration: &MigrationId) -> Option<mpsc::Receiver<Bytes>> {
        match self.slots().get_mut(migration)? {
            Slot::Export { archive, .. } => {
                let Asked { bytes, opened } = archive.take()?;
                let _ = opened.send(());
                Some(bytes)
            }
            Slot::Import { .. } => None,
        }
    }

    /// A client says that it has stored the archive; false if it cannot have, since not all of it was written.
    pub fn store(&self, migration: &MigrationId) -> bool {
        match self.slots().get_mut(migration) {
            Some(Slot::Export { stored, whole, .. }) if whole.is_noted() => {
                stored.take().is_some_and(|stored| stored.send(()).is_ok())
            }
            _ => false,
        }
    }

    /// A client begins to bring an archive; `None` if none is awaited, or no more.
    pub fn bring(&self, migration: &MigrationId) -> Option<oneshot::Sender<Brought>> {
        match self.slots().get_mut(migration)? {
            Slot::Import { brought } => brought.take(),
            Slot::Export { .. } => None,
        }
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<MigrationId, Slot>> {
        // Nothing is left half-done under this lock, so a panic elsewhere spoils nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.board.slots().remove(&self.migration);
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.board.slots().remove(&self.migration);
    }
}
