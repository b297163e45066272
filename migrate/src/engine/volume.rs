//! Volumes as an engine keeps them: storage of its own that outlives containers.
//!
//! Implemented by Docker. containerd itself knows no volumes, only bind mounts: its engine has no [`VolumeStore`].

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Container, Created, EngineError};

/// The driver whose volumes are directories on the host's own disk.
pub const LOCAL_DRIVER: &str = "local";

/// Options of the local driver by which a volume is a mount of something else, such as NFS, and not a directory.
const MOUNT_OPTIONS: [&str; 3] = ["type", "device", "o"];

/// One volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Its name; of an anonymous one 64 hex digits.
    pub name: String,
    /// Who keeps its content; `local` unless told otherwise.
    pub driver: String,
    /// What its driver was told.
    pub options: BTreeMap<String, String>,
    /// What its users noted on it.
    pub labels: BTreeMap<String, String>,
    /// Where its content lies on the host that was asked. It does not cross the wire.
    #[serde(skip)]
    pub path: PathBuf,
}

impl Volume {
    /// Why its content cannot be read or written as a directory, if it cannot.
    pub fn is_no_directory(&self) -> Option<String> {
        if self.driver != LOCAL_DRIVER {
            return Some(format!("it has driver {}", self.driver));
        }
        let told = |key: &&str| Some(format!("{key}={}", self.options.get(*key)?));
        let mounted: Vec<String> = MOUNT_OPTIONS.iter().filter_map(told).collect();
        (!mounted.is_empty()).then(|| format!("it is a mount of its own ({})", mounted.join(", ")))
    }
}

/// A volume of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// The volume.
    pub volume: Volume,
    /// Where it is in the container; the first place, if it is in several.
    pub target: String,
    /// It was made along with its container, whose removal may take it along.
    pub is_anonymous: bool,
    /// Other containers that run and use it, by name.
    pub users: Vec<String>,
}

/// Asks an engine for its volumes. Every call has a deadline of its own inside.
#[async_trait]
pub trait VolumeStore: Send + Sync {
    /// The volumes of a container, each once.
    async fn used_by(&self, container: &Container) -> Result<Vec<Used>, EngineError>;

    /// A volume by its name; `None` if there is none.
    async fn find(&self, name: &str) -> Result<Option<Volume>, EngineError>;

    /// Running containers that use a volume, by name.
    async fn users(&self, name: &str) -> Result<Vec<String>, EngineError>;

    /// Makes a volume with this name, driver, options and labels; one that is there already stays as it is.
    async fn make(&self, volume: &Volume) -> Result<(), EngineError>;

    /// Removes a volume; absent is fine. One that a container uses stays, and the answer says so by `false`.
    async fn discard(&self, name: &str) -> Result<bool, EngineError>;

    /// Where the content of a container's volumes lies on this host, by their places in the container. To be asked before the
    /// container is started.
    async fn paths(&self, created: &Created) -> Result<HashMap<String, PathBuf>, EngineError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_directory_of_the_local_driver_is_one() {
        let local = Volume {
            driver: LOCAL_DRIVER.into(),
            options: BTreeMap::from([("size".into(), "1g".into())]),
            ..Volume::default()
        };
        assert_eq!(local.is_no_directory(), None);
        let mut nfs = local.clone();
        nfs.options.insert("type".into(), "nfs".into());
        nfs.options.insert("device".into(), ":/export".into());
        assert_eq!(
            nfs.is_no_directory().unwrap(),
            "it is a mount of its own (type=nfs, device=:/export)"
        );
        let mut foreign = local;
        foreign.driver = "rexray".into();
        assert_eq!(foreign.is_no_directory().unwrap(), "it has driver rexray");
    }
}
