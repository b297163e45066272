//! Carries a stream out beneath one directory: the mounted root of a container that does not run yet, or a volume of it.
//!
//! The stream is taken for hostile: every path is checked and resolved beneath the root, a link is never followed,
//! and nothing is allocated by a length that was not bounded first. It keeps no state between operations. It undoes
//! nothing: on error the caller discards the root.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::beneath::{Beneath, Place, as_overlay_note, belongs_to_host};
use super::operation::{Chunk, MAGIC, MAX_CHUNK_BYTES, Metadata, NodeKind, Operation, Times};
use super::{DeltaError, Tree};

/// Longest path the kernel takes, without its terminator.
const MAX_PATH_BYTES: usize = 4095;

/// What a stream brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Operations carried out.
    pub n_operations: u64,
    /// Bytes of file contents written.
    pub content_bytes: u64,
    /// Socket nodes the source left out.
    pub n_sockets: u64,
}

/// Reads one stream from `input`, not a byte further, and carries it out beneath the top of `tree`.
pub fn apply(tree: Tree<'_>, input: &mut dyn Read) -> Result<Applied, DeltaError> {
    let mut run = Run::new(tree, input)?;
    let mut magic = [0; MAGIC.len()];
    run.input
        .read_exact(&mut magic)
        .map_err(|error| run.broken(error))?;
    if magic != MAGIC {
        return Err(
            run.malformed("it is no delta of a version known here; run the same Godwit on both hosts")
        );
    }
    let mut buffer = Vec::new();
    loop {
        let operation = match Operation::decode(run.input, &mut buffer) {
            Ok(Ok(operation)) => operation,
            Ok(Err(reason)) => return Err(run.malformed(reason)),
            Err(error) => return Err(run.broken(error)),
        };
        if let Operation::End {
            metadata,
            n_operations,
            n_sockets,
        } = operation
        {
            if n_operations != run.applied.n_operations {
                return Err(run.malformed(format!("it should have {n_operations} operations")));
            }
            run.describe(Path::new(""), &metadata, true)?;
            run.applied.n_sockets = n_sockets;
            return Ok(run.applied);
        }
        run.perform(&operation)?;
        run.applied.n_operations += 1;
    }
}

/// A stream being carried out.
pub(super) struct Run<'a> {
    root: Beneath,
    is_layer: bool,
    pub(super) input: &'a mut dyn Read,
    /// The last path the stream named, for errors.
    after: PathBuf,
    pub(super) applied: Applied,
}

impl<'a> Run<'a> {
    pub(super) fn new(tree: Tree<'_>, input: &'a mut dyn Read) -> Result<Self, DeltaError> {
        let top = tree.top();
        Ok(Self {
            root: Beneath::open(top).map_err(DeltaError::file("open the root", top))?,
            is_layer: tree.is_layer(),
            input,
            after: PathBuf::from("the start"),
            applied: Applied::default(),
        })
    }
}

impl Run<'_> {
    pub(super) fn malformed(&self, reason: impl Into<String>) -> DeltaError {
        DeltaError::Malformed {
            after: self.after.clone(),
            reason: reason.into(),
        }
    }

    pub(super) fn broken(&self, error: io::Error) -> DeltaError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => self.malformed("it ends early"),
            _ => DeltaError::Stream(error),
        }
    }

    pub(super) fn checked<'p>(&self, path: &'p [u8]) -> Result<&'p Path, DeltaError> {
        let refused = path.is_empty()
            || path.len() > MAX_PATH_BYTES
            || path.contains(&0)
            || path
                .split(|byte| *byte == b'/')
                .any(|part| matches!(part, b"" | b"." | b".."));
        if refused {
            let shown = String::from_utf8_lossy(&path[..path.len().min(80)]);
            return Err(self.malformed(format!("{shown:?} is no path beneath the root")));
        }
        Ok(Path::new(OsStr::from_bytes(path)))
    }

    pub(super) fn perform(&mut self, operation: &Operation<'_>) -> Result<(), DeltaError> {
        let path = self.checked(operation.path().unwrap_or_default())?;
        self.after = path.into();
        match operation {
            Operation::Remove { .. } => match self.root.place(path) {
                Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
                place => clear(path, &place.map_err(DeltaError::file("reach", path))?),
            },
            Operation::Directory { empty, metadata, .. } => {
                let place = self.place(path)?;
                if *empty || !is_directory(path, &place)? {
                    clear(path, &place)?;
                    fs::mkdirat(&place.parent, place.name, Mode::RWXU)
                        .map_err(DeltaError::file("make directory", path))?;
                }
                self.describe(path, metadata, true)
            }
            Operation::File { size, metadata, .. } => {
                self.fill(path, *size)?;
                self.describe(path, metadata, true)
            }
            Operation::SymbolicLink { target, metadata, .. } => {
                let place = self.cleared(path)?;
                fs::symlinkat(*target, &place.parent, place.name)
                    .map_err(DeltaError::file("make link", path))?;
                self.describe(path, metadata, false)
            }
            Operation::HardLink { target, .. } => {
                let target = self.checked(target)?;
                if target.starts_with(path) {
                    return Err(self.malformed("it links a file to itself"));
                }
                let from = self.place(target)?;
                let to = self.cleared(path)?;
                fs::linkat(&from.parent, from.name, &to.parent, to.name, AtFlags::empty())
                    .map_err(DeltaError::file("make hard link", path))
            }
            Operation::Node {
                kind,
                device,
                metadata,
                ..
            } => {
                let place = self.cleared(path)?;
                let kind = match kind {
                    NodeKind::Fifo => FileType::Fifo,
                    NodeKind::CharacterDevice => FileType::CharacterDevice,
                    NodeKind::BlockDevice => FileType::BlockDevice,
                };
                fs::mknodat(&place.parent, place.name, kind, Mode::RUSR, *device)
                    .map_err(DeltaError::file("make node", path))?;
                self.describe(path, metadata, true)
            }
            Operation::DirectoryTimes { times, .. } => {
                let place = self.place(path)?;
                if !is_directory(path, &place)? {
                    return Err(self.malformed("it takes a file for a directory"));
                }
                self.set_times(path, &place, *times)
            }
            // `apply` has taken the end for itself.
            Operation::End { .. } => Ok(()),
        }
    }

    fn place<'p>(&self, path: &'p Path) -> Result<Place<'p>, DeltaError> {
        self.root.place(path).map_err(DeltaError::file("reach", path))
    }

    /// A place with nothing there.
    fn cleared<'p>(&self, path: &'p Path) -> Result<Place<'p>, DeltaError> {
        let place = self.place(path)?;
        clear(path, &place)?;
        Ok(place)
    }

    /// Makes a regular file of this size that is one hole.
    pub(super) fn make_file(&mut self, path: &Path, size: u64) -> Result<File, DeltaError> {
        self.after = path.into();
        let place = self.cleared(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(&place.parent, place.name, flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
            .map_err(DeltaError::file("make file", path))?;
        fs::ftruncate(&file, size).map_err(DeltaError::file("size", path))?;
        Ok(file)
    }

    /// Makes a regular file of the chunks that follow.
    fn fill(&mut self, path: &Path, size: u64) -> Result<(), DeltaError> {
        let file = self.make_file(path, size)?;
        let mut buffer = Vec::new();
        let mut written_to = 0;
        loop {
            let chunk = Chunk::decode(self.input).map_err(|error| self.broken(error))?;
            if chunk.len == 0 {
                return Ok(());
            }
            let end = chunk
                .offset
                .checked_add(chunk.len as u64)
                .filter(|end| *end <= size);
            let (Some(end), true) = (end, chunk.len <= MAX_CHUNK_BYTES && chunk.offset >= written_to) else {
                let Chunk { offset, len } = chunk;
                return Err(self.malformed(format!("{len} bytes at {offset} of a file of {size}")));
            };
            buffer.resize(chunk.len, 0);
            self.input
                .read_exact(&mut buffer)
                .map_err(|error| self.broken(error))?;
            file.write_all_at(&buffer, chunk.offset)
                .map_err(|source| DeltaError::File {
                    action: "write",
                    path: path.into(),
                    source,
                })?;
            self.applied.content_bytes += chunk.len as u64;
            written_to = end;
        }
    }

    /// Gives a file its owner, attributes, mode and times, in the order in which none undoes another.
    pub(super) fn describe(
        &self,
        path: &Path,
        metadata: &Metadata<'_>,
        has_mode: bool,
    ) -> Result<(), DeltaError> {
        // All ones means "leave as it is" to the kernel.
        if metadata.mode > 0o7777 || metadata.uid == u32::MAX || metadata.gid == u32::MAX {
            return Err(self.malformed("an owner or a mode that no file has"));
        }
        let place = self.place(path)?;
        let (uid, gid) = (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
        fs::chownat(
            &place.parent,
            place.name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(DeltaError::file("change the owner of", path))?;
        self.set_attributes(path, &place, metadata)?;
        if has_mode {
            fs::chmodat(
                &place.parent,
                place.name,
                Mode::from_raw_mode(metadata.mode),
                AtFlags::empty(),
            )
            .map_err(DeltaError::file("change the mode of", path))?;
        }
        self.set_times(path, &place, metadata.times)
    }

    /// A new file may have inherited attributes from its directory, so that those not wanted have to go.
    fn set_attributes(
        &self,
        path: &Path,
        place: &Place<'_>,
        metadata: &Metadata<'_>,
    ) -> Result<(), DeltaError> {
        let fail = || DeltaError::file("set the extended attributes of", path);
        let wanted = &metadata.attributes;
        if self.is_layer && wanted.iter().any(|(name, _)| as_overlay_note(name).is_some()) {
            return Err(self.malformed("an attribute that only the overlay may set"));
        }
        let found = place.attributes().map_err(fail())?;
        for (name, _) in &found {
            if !belongs_to_host(name) && !wanted.iter().any(|(wanted, _)| *wanted == name.as_slice()) {
                fs::lremovexattr(place.path(), name.as_slice()).map_err(fail())?;
            }
        }
        for (name, value) in wanted {
            if !found.iter().any(|(found, has)| found == name && has == value) {
                fs::lsetxattr(place.path(), *name, value, XattrFlags::empty()).map_err(fail())?;
            }
        }
        Ok(())
    }

    fn set_times(&self, path: &Path, place: &Place<'_>, times: Times) -> Result<(), DeltaError> {
        let timespec = |(seconds, nanoseconds): (i64, u32)| Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds.into(),
        };
        // Larger values mean "now" or "leave as it is" to the kernel.
        if times.accessed.1 >= 1_000_000_000 || times.modified.1 >= 1_000_000_000 {
            return Err(self.malformed("a time that is none"));
        }
        let times = Timestamps {
            last_access: timespec(times.accessed),
            last_modification: timespec(times.modified),
        };
        fs::utimensat(&place.parent, place.name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(DeltaError::file("set the times of", path))
    }
}

fn is_directory(path: &Path, place: &Place<'_>) -> Result<bool, DeltaError> {
    let status = place.status().map_err(DeltaError::file("look at", path))?;
    Ok(status.is_some_and(|status| FileType::from_raw_mode(status.st_mode).is_dir()))
}

/// Removes whatever is at a place, with all it holds.
fn clear(path: &Path, place: &Place<'_>) -> Result<(), DeltaError> {
    if is_directory(path, place)? {
        return std::fs::remove_dir_all(place.path()).map_err(|source| DeltaError::File {
            action: "remove",
            path: path.into(),
            source,
        });
    }
    match fs::unlinkat(&place.parent, place.name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(DeltaError::file("remove", path)(error)),
    }
}
