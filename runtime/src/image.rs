//! A checkpoint image's manifest: what Godwit must know at the restore and CRIU's own files do not say.
//!
//! It lies in the image directory as `godwit.json`, so that it travels with the image through an engine's content
//! store as well as through a move. An image without one was made by another shim and is restored by defaults.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::control::write_atomically;

/// The manifest's name in the image directory.
pub const MANIFEST: &str = "godwit.json";

/// The format this code writes and reads.
const VERSION: u32 = 1;

/// Who fills the container's network namespace at a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkOwner {
    /// The engine, as at a create: CRIU dumped nothing of the namespace itself.
    Engine,
    /// CRIU: the namespace has nothing but a loopback, or is not the container's own.
    Criu,
}

/// The manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    version: u32,
    /// The container's id where it was dumped.
    pub id: String,
    /// Who fills the network namespace.
    pub network: NetworkOwner,
    /// Whether the container has a terminal: it can only be restored with one.
    pub terminal: bool,
    /// The files of the complete image and their sizes in bytes; empty while it is being written.
    #[serde(default)]
    files: BTreeMap<String, u64>,
}

impl Manifest {
    /// A manifest of this version.
    pub fn new(id: &str, network: NetworkOwner, terminal: bool) -> Self {
        Self {
            version: VERSION,
            id: id.into(),
            network,
            terminal,
            files: BTreeMap::new(),
        }
    }

    /// Notes what a complete image consists of, so that [`Manifest::check`] can tell a part of it from the whole.
    pub fn seal(image_dir: &Path) -> io::Result<()> {
        let Some(mut manifest) = Self::read(image_dir)? else {
            return Ok(());
        };
        for entry in fs::read_dir(image_dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != MANIFEST {
                manifest.files.insert(name, entry.metadata()?.len());
            }
        }
        manifest.write(image_dir)
    }

    /// Whether every file of the image is there with all its bytes. CRIU 4.2 does not notice pages that are missing
    /// at a file's end: its restore tries to read them for ever.
    pub fn check(&self, image_dir: &Path) -> io::Result<()> {
        self.files.iter().try_for_each(|(name, expected)| {
            let present = match fs::metadata(image_dir.join(name)) {
                Ok(metadata) => metadata.len(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
                Err(error) => return Err(error),
            };
            if present == *expected {
                return Ok(());
            }
            Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the checkpoint image is damaged: {name} has {present} of {expected} bytes"),
            ))
        })
    }

    /// Writes it into an image directory, which it makes if there is none, as runC does.
    pub fn write(&self, image_dir: &Path) -> io::Result<()> {
        if let Err(error) = DirBuilder::new().mode(0o700).create(image_dir)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            let made = format!("make the image's directory {}: {error}", image_dir.display());
            return Err(io::Error::new(error.kind(), made));
        }
        write_atomically(&image_dir.join(MANIFEST), &serde_json::to_vec_pretty(self)?)
    }

    /// Reads it from an image directory; `None` if another shim made the image.
    pub fn read(image_dir: &Path) -> io::Result<Option<Self>> {
        let bytes = match fs::read(image_dir.join(MANIFEST)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let manifest: Self = serde_json::from_slice(&bytes).map_err(|error| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the checkpoint image is damaged: {MANIFEST}: {error}"),
            )
        })?;
        if manifest.version != VERSION {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "the image's manifest has version {}, this Godwit reads {VERSION}",
                    manifest.version
                ),
            ));
        }
        Ok(Some(manifest))
    }
}

/// Bytes of all files of an image directory.
pub fn size_bytes(image_dir: &Path) -> io::Result<u64> {
    fs::read_dir(image_dir)?.try_fold(0, |sum, entry| Ok(sum + entry?.metadata()?.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_lacks_bytes_or_files_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let pages = directory.path().join("pages-1.img");
        let check = || {
            Manifest::read(directory.path())
                .unwrap()
                .unwrap()
                .check(directory.path())
        };
        Manifest::new("abc", NetworkOwner::Criu, false)
            .write(directory.path())
            .unwrap();
        fs::write(&pages, "12345").unwrap();
        check().unwrap();
        Manifest::seal(directory.path()).unwrap();
        check().unwrap();
        fs::write(&pages, "123").unwrap();
        assert!(
            check()
                .unwrap_err()
                .to_string()
                .ends_with("pages-1.img has 3 of 5 bytes")
        );
        fs::remove_file(&pages).unwrap();
        assert!(
            check()
                .unwrap_err()
                .to_string()
                .ends_with("pages-1.img has 0 of 5 bytes")
        );
    }

    #[test]
    fn a_manifest_survives_and_strangers_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Manifest::read(directory.path()).unwrap(), None);
        let manifest = Manifest::new("abc", NetworkOwner::Engine, true);
        manifest.write(directory.path()).unwrap();
        assert_eq!(Manifest::read(directory.path()).unwrap(), Some(manifest));
        fs::write(
            directory.path().join(MANIFEST),
            r#"{"version":9,"id":"a","network":"criu","terminal":false}"#,
        )
        .unwrap();
        assert!(
            Manifest::read(directory.path())
                .unwrap_err()
                .to_string()
                .contains("version 9")
        );
    }
}
