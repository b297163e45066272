//! Where Godwit keeps its run-time files of one container, and how programs find a container's shim.
//!
//! Only names and small records: what happens in these places is told by the modules that use them.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Everything Godwit keeps while the host is up.
pub const RUN_DIR: &str = "/run/godwit";

/// The control directory of one container, `/run/godwit/tasks/KEY`.
///
/// `KEY` is a hash because a unix socket's path must fit in 107 bytes and ids and namespaces may have 76 each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlDir(PathBuf);

/// Says where a container's shim listens; written by the shim as `shim.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimRecord {
    /// containerd's namespace: `moby` for Docker.
    pub namespace: String,
    /// The container's full id.
    pub id: String,
    /// The shim's ttrpc address, `unix:///…`.
    pub address: String,
    /// The container's bundle directory.
    pub bundle: PathBuf,
}

impl ControlDir {
    /// The control directory of container `id` in containerd's `namespace`; it need not exist.
    pub fn of(namespace: &str, id: &str) -> Self {
        let hash = blake3::hash(format!("{namespace}/{id}").as_bytes());
        Self(Path::new(RUN_DIR).join("tasks").join(&hash.to_hex()[..16]))
    }

    /// A control directory at a known place, as the gate and the holder find it from their own path.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Makes the directory, mode 0700, if it is not there.
    pub fn create(&self) -> io::Result<()> {
        create_private_dir(&self.0)
    }

    /// Removes the directory and all in it; absent is fine.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file of the directory.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes `shim.json`.
    pub fn write_shim(&self, record: &ShimRecord) -> io::Result<()> {
        write_atomically(&self.join("shim.json"), &serde_json::to_vec(record)?)
    }

    /// Reads `shim.json`; `None` while no shim has written it.
    pub fn read_shim(&self) -> io::Result<Option<ShimRecord>> {
        match fs::read(self.join("shim.json")) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Makes `path` and its missing parents, mode 0700; an existing one gets that mode.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Replaces the file at `path` in one step: readers see the old content or the new, never a part.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    fs::write(&temporary, content)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_ids_still_make_a_socket_path() {
        let id = "x".repeat(76);
        assert!(ControlDir::of(&id, &id).join("ctl.sock").as_os_str().len() < 107);
    }

    #[test]
    fn a_shim_is_found_by_its_record() {
        let directory = tempfile::tempdir().unwrap();
        let control = ControlDir::at(directory.path().join("task"));
        control.create().unwrap();
        assert_eq!(control.read_shim().unwrap(), None);
        let record = ShimRecord {
            namespace: "moby".into(),
            id: "abc".into(),
            address: "unix:///run/containerd/s/1".into(),
            bundle: "/b".into(),
        };
        control.write_shim(&record).unwrap();
        assert_eq!(control.read_shim().unwrap(), Some(record));
        control.remove().unwrap();
        control.remove().unwrap();
    }
}
