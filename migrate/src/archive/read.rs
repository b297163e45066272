//! Takes an archive in: every member into a private place, or into memory if it is small, and nothing of it is used before all of it
//! was checked.
//!
//! It is taken for hostile. Only known members are taken, each once, by names that are made here; bytes are counted against the
//! room there is before they are written; in an archive of ours each member must be one that its manifest lists, of that size, and
//! have the sum that the last but the signature says. Whose signature it may be is for the caller to judge. What lies where when this fails is for the caller to remove, with the places.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use godwit_runtime::tar::{self, Kind, Member};

use super::ArchiveError;
use super::copy::{CopyError, copy};
use super::layout::{self, Place};
use super::manifest::Manifest;
use super::signature::Signature;
use crate::progress::Transfer;

/// Members at most: an image has some ten, and some for each task.
const MAX_MEMBERS: usize = 1_000_000;

/// Where an archive is taken in, and how many bytes each place has for it.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// A private directory in memory, for CRIU's image.
    pub image: &'a Path,
    /// A private directory on disk, for files.
    pub files: &'a Path,
    /// Bytes that the image may have.
    pub image_room: u64,
    /// Bytes that files may have.
    pub files_room: u64,
}

/// An archive that was taken in and checked.
#[derive(Debug, Default)]
pub struct Staged {
    /// What Godwit says of it; nothing if somebody else made it.
    pub manifest: Option<Manifest>,
    /// A signature over its sums, of whomever.
    pub signature: Option<Signature>,
    /// Small members by name.
    pub notes: BTreeMap<&'static str, Vec<u8>>,
    /// The writable layer.
    pub layer: Option<PathBuf>,
    /// The content of `/dev/shm`.
    pub shm: Option<PathBuf>,
    /// The contents of volumes, by the volume's name.
    pub volumes: BTreeMap<String, PathBuf>,
    /// Bytes of all members.
    pub bytes: u64,
}

/// Reads an archive from its first byte to its last.
pub fn stage(input: impl Read, places: Places<'_>, transfer: &Arc<Transfer>) -> Result<Staged, ArchiveError> {
    let mut archive = tar::Reader::new(super::compress::unpack(input).map_err(unreadable)?);
    let mut run = Run {
        places,
        staged: Staged::default(),
        digests: BTreeMap::new(),
        listed: HashMap::new(),
        image_bytes: 0,
        files_bytes: 0,
        transfer,
    };
    let mut n_members = 0;
    while let Some(member) = archive.next_member().map_err(unreadable)? {
        n_members += 1;
        if n_members > MAX_MEMBERS {
            return refused("it has more members than any");
        }
        run.check_order(&member.path)?;
        run.take(&member, n_members == 1, &mut archive)?;
    }
    archive.finish().map_err(unreadable)?;
    run.check()
}

/// An archive being taken in.
struct Run<'a> {
    places: Places<'a>,
    staged: Staged,
    /// The sums of all members so far.
    digests: BTreeMap<String, String>,
    /// What the manifest announces.
    listed: HashMap<String, u64>,
    image_bytes: u64,
    files_bytes: u64,
    transfer: &'a Transfer,
}

impl Run<'_> {
    /// Behind the sums comes a signature or nothing, and a signature comes nowhere else.
    fn check_order(&self, path: &[u8]) -> Result<(), ArchiveError> {
        let is_signature = matches!(layout::place(path), Some(Place::Note(layout::SIGNATURE, _)));
        match (self.staged.notes.contains_key(layout::DIGESTS), is_signature) {
            (true, true) if self.staged.signature.is_none() => Ok(()),
            (true, _) => refused("something follows its last member"),
            (false, true) => refused(format!(
                "{} stands where Godwit does not write it",
                layout::SIGNATURE
            )),
            (false, false) => Ok(()),
        }
    }

    fn take(&mut self, member: &Member, is_first: bool, contents: &mut dyn Read) -> Result<(), ArchiveError> {
        let shown = shown(&member.path);
        let Some(place) = layout::place(&member.path) else {
            return refused(format!("{shown} is no member of a container's archive"));
        };
        match (&place, member.kind) {
            (Place::Directory, Kind::Directory) | (Place::PassedOver, _) => return Ok(()),
            (Place::Directory, _) | (_, Kind::Directory) => {
                return refused(format!("{shown} is not what it is called"));
            }
            (_, Kind::File) => {}
            (_, kind) => return refused(format!("{shown} is no file but {kind:?}")),
        }
        let name = String::from_utf8_lossy(&member.path).into_owned();
        let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
        if self.digests.contains_key(&name) {
            return refused(format!("{shown} comes twice"));
        }
        self.expect(&name, member.size, is_first)?;
        let size = member.size;
        let digest = match place {
            Place::Note(note, limit) => {
                if size > limit {
                    return refused(format!("{shown} has {size} bytes, {limit} are allowed"));
                }
                let mut bytes = Vec::new();
                contents.read_to_end(&mut bytes).map_err(unreadable)?;
                self.transfer.add(size);
                let digest = blake3::hash(&bytes).to_hex().to_string();
                if note == layout::SIGNATURE {
                    self.staged.signature = Some(Signature::parse(&bytes)?);
                }
                if note == layout::MANIFEST {
                    let manifest = Manifest::parse(&bytes)?;
                    self.check_room(&manifest)?;
                    let listed = manifest.members.iter();
                    self.listed = listed.map(|one| (one.name.clone(), one.size)).collect();
                    self.staged.manifest = Some(manifest);
                }
                self.staged.notes.insert(note, bytes);
                digest
            }
            Place::Image(file) => {
                self.image_bytes = room(&shown, self.image_bytes, size, self.places.image_room)?;
                let path = self.places.image.join(file);
                self.copy_to(&path, contents)?
            }
            Place::Layer | Place::Shm | Place::Volume(_) => {
                self.files_bytes = room(&shown, self.files_bytes, size, self.places.files_room)?;
                // A name of our own, whatever the archive calls it.
                let path = self.places.files.join(format!("member-{}", self.digests.len()));
                let digest = self.copy_to(&path, contents)?;
                match place {
                    Place::Layer => self.staged.layer = Some(path),
                    Place::Shm => self.staged.shm = Some(path),
                    Place::Volume(volume) => drop(self.staged.volumes.insert(volume, path)),
                    _ => {}
                }
                digest
            }
            Place::Directory | Place::PassedOver => return Ok(()),
        };
        self.staged.bytes += size;
        self.digests.insert(name, digest);
        Ok(())
    }

    /// In an archive of ours nothing comes that was not announced.
    fn expect(&self, name: &str, size: u64, is_first: bool) -> Result<(), ArchiveError> {
        match (&self.staged.manifest, name) {
            (None, layout::MANIFEST) if is_first => Ok(()),
            (None, layout::MANIFEST | layout::DIGESTS) => {
                refused(format!("{name} stands where Godwit does not write it"))
            }
            (None, _) | (Some(_), layout::DIGESTS | layout::SIGNATURE) => Ok(()),
            (Some(_), name) => match self.listed.get(name) {
                Some(told) if *told == size => Ok(()),
                Some(told) => refused(format!("{name} has {size} bytes, its manifest says {told}")),
                None => refused(format!("{name} is not in its manifest")),
            },
        }
    }

    /// Before anything large is written.
    fn check_room(&self, manifest: &Manifest) -> Result<(), ArchiveError> {
        let image = manifest.bytes(layout::IMAGE_DIR);
        room("its image", 0, image, self.places.image_room)?;
        let files = manifest.bytes("").saturating_sub(image);
        room("what it has of files", 0, files, self.places.files_room).map(drop)
    }

    fn copy_to(&self, path: &Path, contents: &mut dyn Read) -> Result<String, ArchiveError> {
        let doing = || format!("taking {} in", path.display());
        let mut file: File = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(ArchiveError::io(doing()))?;
        copy(contents, &mut file, |n_bytes| self.transfer.add(n_bytes)).map_err(|error| match error {
            CopyError::Reading(error) => unreadable(error),
            CopyError::Writing(error) => ArchiveError::io("taking the archive in")(error),
        })
    }

    fn check(mut self) -> Result<Staged, ArchiveError> {
        let Some(manifest) = &self.staged.manifest else {
            return Ok(self.staged);
        };
        for listed in &manifest.members {
            if !self.digests.contains_key(&listed.name) {
                return refused(format!("{} is missing", listed.name));
            }
        }
        let Some(told) = self.staged.notes.get(layout::DIGESTS) else {
            return refused("it ends early: the sums of its members are missing");
        };
        let told: BTreeMap<String, String> = serde_json::from_slice(told)
            .map_err(|error| ArchiveError::Refused(format!("{}: {error}", layout::DIGESTS)))?;
        self.digests.remove(layout::DIGESTS);
        self.digests.remove(layout::SIGNATURE);
        for (name, digest) in &self.digests {
            match told.get(name) {
                Some(told) if told == digest => {}
                Some(_) => return refused(format!("{name} is damaged: its sum is wrong")),
                None => return refused(format!("there is no sum of {name}")),
            }
        }
        Ok(self.staged)
    }
}

/// What is taken of a room with `size` more.
fn room(what: &str, taken: u64, size: u64, room: u64) -> Result<u64, ArchiveError> {
    match taken.checked_add(size).filter(|sum| *sum <= room) {
        Some(sum) => Ok(sum),
        None => refused(format!(
            "{what} does not fit into the {} MB that are free for it",
            room >> 20
        )),
    }
}

fn shown(path: &[u8]) -> String {
    let path = &path[..path.len().min(80)];
    path.escape_ascii().to_string()
}

fn unreadable(error: io::Error) -> ArchiveError {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => ArchiveError::Refused(error.to_string()),
        _ => ArchiveError::io("reading the archive")(error),
    }
}

fn refused<T>(reason: impl Into<String>) -> Result<T, ArchiveError> {
    Err(ArchiveError::Refused(reason.into()))
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
