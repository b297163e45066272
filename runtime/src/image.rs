//! A checkpoint image's manifest: what Godwit must know at the restore and CRIU's own files do not say.
//!
//! It lies in the image directory as `godwit.json`, so that it travels with the image through an engine's content
//! store as well as through a move. An image without one was made by another shim and is restored by defaults.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::control::write_atomically;
use crate::options::{Digests, Layer};

/// The manifest's name in the image directory.
pub const MANIFEST: &str = "godwit.json";

/// The format this code writes and reads.
const VERSION: u32 = 1;

/// How the names of files with memory pages begin: by far the largest part of an image.
const PAGES_PREFIX: &str = "pages-";

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
    /// Whether pages of memory are missing that were left in the tasks: it restores only with somebody to fetch them.
    #[serde(default)]
    pub lazy: bool,
    /// The options of the dump that a restore goes by.
    #[serde(default)]
    pub options: Layer,
    /// The files of the complete image and their sizes in bytes; empty while it is being written.
    #[serde(default)]
    files: BTreeMap<String, u64>,
    /// BLAKE3 of some of the files, in hexadecimal.
    #[serde(default)]
    digests: BTreeMap<String, String>,
}

/// What every version's manifest says.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Manifest {
    /// A manifest of this version.
    pub fn new(id: &str, network: NetworkOwner, terminal: bool, options: Layer) -> Self {
        Self {
            version: VERSION,
            id: id.into(),
            network,
            terminal,
            lazy: false,
            options,
            files: BTreeMap::new(),
            digests: BTreeMap::new(),
        }
    }

    /// Notes what a complete image consists of, so that [`Manifest::check`] can tell a part of it from the whole, and
    /// a damaged file where there is a digest of it.
    pub fn seal(image_dir: &Path, digests: Digests) -> io::Result<()> {
        let Some(mut manifest) = Self::read(image_dir)? else {
            return Ok(());
        };
        // It may have been sealed before.
        manifest.files.clear();
        manifest.digests.clear();
        for entry in fs::read_dir(image_dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == MANIFEST {
                continue;
            }
            let has_digest = match digests {
                Digests::None => false,
                Digests::Metadata => !name.starts_with(PAGES_PREFIX),
                Digests::All => true,
            };
            if has_digest {
                manifest.digests.insert(name.clone(), digest(&entry.path())?);
            }
            manifest.files.insert(name, entry.metadata()?.len());
        }
        manifest.write(image_dir)
    }

    /// Notes that nothing is left in the tasks, and what the complete image consists of, where files of these `sizes` are still to
    /// come.
    pub fn make_whole(image_dir: &Path, sizes: &BTreeMap<String, u64>) -> io::Result<()> {
        Self::seal(image_dir, Digests::None)?;
        let Some(mut manifest) = Self::read(image_dir)? else {
            return Ok(());
        };
        manifest.lazy = false;
        manifest.files.extend(sizes.clone());
        manifest.write(image_dir)
    }

    /// Whether every file of the image is there with all its bytes, and unchanged where there is a digest of it. CRIU
    /// 4.2 does not notice pages that are missing at a file's end: its restore tries to read them for ever. And it
    /// believes what its files say, so that a damaged one may restore a container that is subtly another.
    pub fn check(&self, image_dir: &Path) -> io::Result<()> {
        self.check_sizes(|name| match fs::metadata(image_dir.join(name)) {
            Ok(metadata) => Ok(metadata.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        })?;
        self.digests.iter().try_for_each(|(name, expected)| {
            if digest(&image_dir.join(name))? == *expected {
                return Ok(());
            }
            Err(damaged(&format!("{name} is not what was written at the dump")))
        })
    }

    /// Whether every file has all its bytes, by what `present` says of each.
    pub fn check_sizes(&self, present: impl Fn(&str) -> io::Result<u64>) -> io::Result<()> {
        self.files.iter().try_for_each(|(name, expected)| {
            let present = present(name)?;
            if present == *expected {
                return Ok(());
            }
            Err(damaged(&format!("{name} has {present} of {expected} bytes")))
        })
    }

    /// Whether it lists the files of a complete image.
    pub fn is_sealed(&self) -> bool {
        !self.files.is_empty()
    }

    /// Writes it into an image directory, which it makes if there is none, as runC does.
    pub fn write(&self, image_dir: &Path) -> io::Result<()> {
        if let Err(error) = DirBuilder::new().mode(0o700).create(image_dir)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            let made = format!("make the image's directory {}: {error}", image_dir.display());
            return Err(io::Error::new(error.kind(), made));
        }
        let path = image_dir.join(MANIFEST);
        write_atomically(&path, &serde_json::to_vec_pretty(self)?).map_err(|error| {
            let text = format!("write {}: {error}", path.display());
            io::Error::new(error.kind(), text)
        })
    }

    /// Reads it from an image directory; `None` if another shim made the image.
    pub fn read(image_dir: &Path) -> io::Result<Option<Self>> {
        let bytes = match fs::read(image_dir.join(MANIFEST)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Self::parse(&bytes).map(Some)
    }

    /// What `bytes` say. It is an error of kind `InvalidData` if they are no manifest, or of another version, or if
    /// they name a file that is not the image directory's own.
    pub fn parse(bytes: &[u8]) -> io::Result<Self> {
        let damaged = |why: String| damaged(&format!("{MANIFEST}: {why}"));
        // The version first: another one may have other fields.
        let Version { version } =
            serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        if version != VERSION {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the image's manifest has version {version}, this Godwit reads {VERSION}"),
            ));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        let mut names = manifest.files.keys().chain(manifest.digests.keys());
        match names.find(|name| !is_plain(name)) {
            Some(name) => Err(damaged(format!("{name:?} is no file of an image"))),
            None => Ok(manifest),
        }
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the checkpoint image is damaged: {what}"),
    )
}

/// Whether `name` is one of a file directly in a directory, and of nothing elsewhere.
fn is_plain(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

fn digest(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(fs::File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// An image's directory that a dump makes, or finds.
#[derive(Debug)]
pub struct ImageDir {
    path: PathBuf,
    was_there: bool,
}

impl ImageDir {
    /// The directory at `path`, before anything is done.
    pub fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            was_there: fs::symlink_metadata(path).is_ok(),
        }
    }

    /// Removes the directory and all in it, if the dump has made it; a part of an image is of no use. One that was there
    /// is its owner's, and stays as it is.
    pub fn discard(&self) {
        if self.was_there {
            return;
        }
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("{} stays, with a part of an image: {error}", self.path.display());
            }
            _ => {}
        }
    }
}

/// Bytes of the files of an image directory that describe a container, all but the pages of its memory.
pub fn metadata_bytes(image_dir: &Path) -> io::Result<u64> {
    fs::read_dir(image_dir)?.try_fold(0, |sum, entry| {
        let entry = entry?;
        let is_pages = entry.file_name().to_string_lossy().starts_with(PAGES_PREFIX);
        Ok(if is_pages {
            sum
        } else {
            sum + entry.metadata()?.len()
        })
    })
}

/// Bytes of all files of an image directory.
pub fn size_bytes(image_dir: &Path) -> io::Result<u64> {
    fs::read_dir(image_dir)?.try_fold(0, |sum, entry| Ok(sum + entry?.metadata()?.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_directory_that_a_dump_has_made_is_discarded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let made = ImageDir::at(&path);
        made.discard();
        Manifest::new("abc", NetworkOwner::Criu, false, Layer::default())
            .write(&path)
            .unwrap();
        ImageDir::at(&path).discard();
        assert!(path.join(MANIFEST).is_file(), "it was there before");
        made.discard();
        assert!(!path.exists());
    }

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
        Manifest::new("abc", NetworkOwner::Criu, false, Layer::default())
            .write(directory.path())
            .unwrap();
        fs::write(&pages, "12345").unwrap();
        check().unwrap();
        Manifest::seal(directory.path(), Digests::None).unwrap();
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
    fn a_changed_byte_is_damage_where_there_is_a_digest() {
        for (digests, pages_too) in [(Digests::Metadata, false), (Digests::All, true)] {
            let directory = tempfile::tempdir().unwrap();
            let check = || {
                let manifest = Manifest::read(directory.path()).unwrap().unwrap();
                manifest
                    .check(directory.path())
                    .map_err(|error| error.to_string())
            };
            Manifest::new("abc", NetworkOwner::Criu, false, Layer::default())
                .write(directory.path())
                .unwrap();
            let (core, pages) = (
                directory.path().join("core-1.img"),
                directory.path().join("pages-1.img"),
            );
            fs::write(&core, "12345").unwrap();
            fs::write(&pages, "12345").unwrap();
            Manifest::seal(directory.path(), digests).unwrap();
            check().unwrap();
            fs::write(&pages, "12346").unwrap();
            assert_eq!(check().is_err(), pages_too);
            fs::write(&pages, "12345").unwrap();
            fs::write(&core, "12346").unwrap();
            assert!(
                check()
                    .unwrap_err()
                    .contains("core-1.img is not what was written")
            );
        }
    }

    #[test]
    fn a_manifest_survives_and_strangers_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Manifest::read(directory.path()).unwrap(), None);
        let options = Layer {
            file_locks: Some(false),
            ..Layer::default()
        };
        let manifest = Manifest::new("abc", NetworkOwner::Engine, true, options);
        manifest.write(directory.path()).unwrap();
        assert_eq!(Manifest::read(directory.path()).unwrap(), Some(manifest));
        fs::write(
            directory.path().join(MANIFEST),
            r#"{"version":9,"id":"a","network":"somebody","more":{}}"#,
        )
        .unwrap();
        assert!(
            Manifest::read(directory.path())
                .unwrap_err()
                .to_string()
                .contains("version 9")
        );
    }

    #[test]
    fn a_manifest_names_files_of_its_own_directory_only() {
        let naming = |name: &str, files: serde_json::Value, digests: serde_json::Value| {
            let text = serde_json::json!({
                "version": 1, "id": "a", "network": "criu", "terminal": false, "files": files, "digests": digests
            });
            let parsed = Manifest::parse(text.to_string().as_bytes());
            parsed.map(drop).map_err(|error| format!("{name}: {error}"))
        };
        for name in [
            "/etc/passwd",
            "../pages-1.img",
            "a/b",
            "..",
            "",
            "a\0b",
            "pages-1.img",
        ] {
            for (files, digests) in [
                (serde_json::json!({ name: 1 }), serde_json::json!({})),
                (serde_json::json!({}), serde_json::json!({ name: "00" })),
            ] {
                match naming(name, files, digests) {
                    Ok(()) => assert_eq!(name, "pages-1.img"),
                    Err(error) => assert!(error.ends_with("is no file of an image"), "{error}"),
                }
            }
        }
    }
}
