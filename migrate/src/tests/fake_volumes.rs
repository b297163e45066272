//! The volumes of a fake engine: directories of one host. The container has two, one with a name and one without.
//!
//! As Docker does, it makes an anonymous one of its own along with a container, and fills what is empty from the image.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use async_trait::async_trait;

use super::fake::Fake;
use crate::engine::volume::{LOCAL_DRIVER, Used, Volume, VolumeStore};
use crate::engine::{Container, Created, EngineError, Mount};

/// Both, by name.
pub(super) const VOLUMES: [&str; 2] = [NAMED, ANONYMOUS];
pub(super) const NAMED: &str = "data";
pub(super) const ANONYMOUS: &str = "f00d";

/// What an image has where a volume is.
const OF_THE_IMAGE: &str = "of-the-image";

impl Fake {
    /// Where a volume's content is.
    pub(super) fn volume(&self, name: &str) -> PathBuf {
        self.directory.join("volumes").join(name)
    }

    pub(super) fn make_volume(&self, name: &str) {
        if self.volumes.lock().unwrap().insert(name.into()) {
            fs::create_dir_all(self.volume(name)).unwrap();
        }
    }

    pub(super) fn has_volume(&self, name: &str) -> bool {
        self.volumes.lock().unwrap().contains(name)
    }

    /// Those of the container, as it was asked for.
    pub(super) fn mounts(&self) -> Vec<Mount> {
        let mount = |name: &str| Mount {
            kind: "volume".into(),
            source: name.into(),
            target: format!("/{name}"),
            is_anonymous: name == ANONYMOUS,
        };
        VOLUMES.map(mount).into()
    }

    /// What comes with a new container.
    pub(super) fn fill_volumes(&self) {
        for name in VOLUMES {
            self.make_volume(name);
            if fs::read_dir(self.volume(name)).unwrap().next().is_none() {
                fs::write(self.volume(name).join(OF_THE_IMAGE), "old").unwrap();
            }
        }
    }

    /// What goes with a container whose removal takes its anonymous volumes along.
    pub(super) fn remove_anonymous(&self) {
        self.remove_volume(ANONYMOUS);
    }

    fn remove_volume(&self, name: &str) {
        if self.volumes.lock().unwrap().remove(name) {
            fs::remove_dir_all(self.volume(name)).unwrap();
        }
    }
}

#[async_trait]
impl VolumeStore for Fake {
    async fn used_by(&self, container: &Container) -> Result<Vec<Used>, EngineError> {
        self.engine_call("used_by")?;
        let mut used = Vec::new();
        for mount in &container.mounts {
            if let Some(volume) = self.find(&mount.source).await? {
                used.push(Used {
                    volume,
                    target: mount.target.clone(),
                    is_anonymous: mount.is_anonymous,
                    users: Vec::new(),
                });
            }
        }
        Ok(used)
    }

    async fn find(&self, name: &str) -> Result<Option<Volume>, EngineError> {
        self.engine_call("find_volume")?;
        Ok(self.has_volume(name).then(|| Volume {
            name: name.into(),
            driver: LOCAL_DRIVER.into(),
            path: self.volume(name),
            ..Volume::default()
        }))
    }

    async fn users(&self, _name: &str) -> Result<Vec<String>, EngineError> {
        Ok(Vec::new())
    }

    async fn make(&self, volume: &Volume) -> Result<(), EngineError> {
        self.engine_call("make_volume")?;
        self.make_volume(&volume.name);
        Ok(())
    }

    async fn discard(&self, name: &str) -> Result<bool, EngineError> {
        self.engine_call("discard_volume")?;
        let is_used = !self.containers.lock().unwrap().is_empty();
        if !is_used {
            self.remove_volume(name);
        }
        Ok(!is_used)
    }

    async fn paths(&self, _created: &Created) -> Result<HashMap<String, PathBuf>, EngineError> {
        self.engine_call("volume_paths")?;
        let path = |mount: Mount| (mount.target, self.volume(&mount.source));
        Ok(self.mounts().into_iter().map(path).collect())
    }
}
