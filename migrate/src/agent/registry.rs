//! The moves under way on this host, and the rule that a container has one at a time.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::phase::{Phase, Role};
use crate::places::MigrationId;
use crate::progress::Observer;

/// The container of each move, by namespace and id.
pub type Claims = BTreeMap<(String, String), MigrationId>;

/// Moves under way; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Registry(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    containers: Claims,
    live: BTreeMap<MigrationId, Live>,
}

#[derive(Clone, Debug)]
struct Live {
    role: Role,
    container: String,
    peer: String,
    observer: Observer,
}

/// A move as the local API lists it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrationView {
    /// Its id.
    pub migration: String,
    /// This host's part.
    pub role: Role,
    /// The container's name.
    pub container: String,
    /// The other host.
    pub peer: String,
    /// `running`; `recovering` or `broken` for one whose runner is gone; of one that is over, its ending.
    pub state: String,
    /// The phase it is in.
    pub phase: Option<Phase>,
    /// Bytes moved so far.
    pub transferred: u64,
    /// When it ended, in milliseconds since 1970; `None` if it is not over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_unix_ms: Option<u64>,
    /// How long the container stood still, of a source that knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_micros: Option<u64>,
}

/// The container has a move already.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("a migration of this container is under way already: see `godwit migrations`")]
pub struct Busy;

/// The right to move a container; given back when dropped.
#[derive(Debug)]
pub struct Claim {
    registry: Registry,
    container: (String, String),
}

/// A move in the list; taken off when dropped.
#[derive(Debug)]
pub struct Listing {
    registry: Registry,
    migration: MigrationId,
}

impl Registry {
    /// Claims a container of this host for a move.
    pub fn claim(&self, migration: &MigrationId, namespace: &str, id: &str) -> Result<Claim, Busy> {
        let container = (namespace.to_owned(), id.to_owned());
        match self.table().containers.entry(container.clone()) {
            Entry::Occupied(_) => return Err(Busy),
            Entry::Vacant(free) => free.insert(migration.clone()),
        };
        Ok(Claim {
            registry: self.clone(),
            container,
        })
    }

    /// Which containers of this host have a move.
    pub fn claims(&self) -> Claims {
        self.table().containers.clone()
    }

    /// Whether a container of this host has a move.
    pub fn is_claimed(&self, namespace: &str, id: &str) -> bool {
        let container = (namespace.to_owned(), id.to_owned());
        self.table().containers.contains_key(&container)
    }

    /// Lists a move for as long as the answer lives. A name that is taken is refused.
    pub fn list(
        &self,
        migration: &MigrationId,
        role: Role,
        container: &str,
        peer: &str,
        observer: &Observer,
    ) -> Result<Listing, Busy> {
        let mut table = self.table();
        if table.live.contains_key(migration) {
            return Err(Busy);
        }
        let live = Live {
            role,
            container: container.into(),
            peer: peer.into(),
            observer: observer.clone(),
        };
        table.live.insert(migration.clone(), live);
        Ok(Listing {
            registry: self.clone(),
            migration: migration.clone(),
        })
    }

    /// Asks a move to give up; false if there is none of that name. It is heeded up to the commit.
    pub fn abort(&self, migration: &MigrationId) -> bool {
        let table = self.table();
        let live = table.live.get(migration);
        if let Some(live) = live {
            live.observer.abort.cancel();
        }
        live.is_some()
    }

    /// Asks a move from this host to freeze its container now, instead of after more rounds; false if there is none of that
    /// name. One that is frozen already pays no heed to it.
    pub fn hurry(&self, migration: &MigrationId) -> bool {
        let table = self.table();
        let live = table.live.get(migration).filter(|live| live.role == Role::Source);
        if let Some(live) = live {
            live.observer.hurry.cancel();
        }
        live.is_some()
    }

    /// Whether a move's runner is at it.
    pub fn is_live(&self, migration: &MigrationId) -> bool {
        self.table().live.contains_key(migration)
    }

    /// All moves under way.
    pub fn views(&self) -> Vec<MigrationView> {
        let table = self.table();
        let view = |(migration, live): (&MigrationId, &Live)| MigrationView {
            migration: migration.to_string(),
            role: live.role,
            container: if live.container.is_empty() {
                live.observer.container()
            } else {
                live.container.clone()
            },
            peer: live.peer.clone(),
            state: "running".into(),
            phase: live.observer.phase(),
            transferred: live.observer.bytes(),
            ended_unix_ms: None,
            downtime_micros: None,
        };
        table.live.iter().map(view).collect()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing is left half-done under this lock, so a panic elsewhere spoils nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.registry.table().containers.remove(&self.container);
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        self.registry.table().live.remove(&self.migration);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_util::sync::CancellationToken;

    #[test]
    fn a_container_has_one_move_at_a_time() {
        let registry = Registry::default();
        let (migration, other) = (MigrationId::random().unwrap(), MigrationId::random().unwrap());
        let claim = registry.claim(&migration, "moby", "abc").unwrap();
        assert!(registry.claim(&other, "moby", "abc").is_err());
        assert!(registry.claim(&other, "k8s.io", "abc").is_ok());
        let claims = registry.claims();
        assert_eq!(claims.len(), 1, "the other is given back");
        assert_eq!(claims[&("moby".to_owned(), "abc".to_owned())], migration);
        drop(claim);
        assert!(registry.claim(&other, "moby", "abc").is_ok());
    }

    #[test]
    fn an_abort_reaches_the_move_it_names_and_no_other() {
        let registry = Registry::default();
        let (migration, other) = (MigrationId::random().unwrap(), MigrationId::random().unwrap());
        let (observer, _events) = Observer::new(CancellationToken::new());
        let listing = registry
            .list(&migration, Role::Source, "redis", "hb", &observer)
            .unwrap();
        assert!(!registry.abort(&other));
        assert!(!observer.abort.is_cancelled());
        assert!(registry.hurry(&migration) && observer.hurry.is_cancelled());
        assert!(!observer.abort.is_cancelled());
        assert!(registry.abort(&migration));
        assert!(observer.abort.is_cancelled());
        drop(listing);
        assert!(!registry.hurry(&migration));
        let arriving = registry
            .list(&other, Role::Destination, "", "hb", &observer)
            .unwrap();
        assert!(!registry.hurry(&other), "only its source can");
        drop(arriving);
        assert!(registry.views().is_empty());
    }
}
