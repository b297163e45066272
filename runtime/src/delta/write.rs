//! Reads a tree into a stream: removals first, then what is new or changed, parents before children.
//!
//! It changes nothing in the tree and locks nothing. While the container runs the result may mix moments; whatever
//! moved meanwhile is noted in the index as not settled, and the next pass sends it again.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{self, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::beneath::{Attribute, Beneath, Place, as_overlay_note, belongs_to_host, of_descriptor};
use super::index::{Entry, Index, Kind, Settling, has_vanished, scan};
use super::operation::{Chunk, MAGIC, MAX_CHUNK_BYTES, Metadata, NodeKind, Operation, Times};
use super::{DeltaError, Tree};
use crate::sys::writeback::write_back;

/// Notes of the overlay without which a file is not what it seems.
const UNSUPPORTED_NOTES: [(&[u8], &str); 4] = [
    (
        b"redirect",
        "the overlay has renamed the directory; mount without redirect_dir",
    ),
    (
        b"metacopy",
        "the overlay keeps its data elsewhere; mount without metacopy",
    ),
    (
        b"protattr",
        "it is immutable or append-only; clear that by chattr",
    ),
    (
        b"verity.digest",
        "the overlay verifies it by fs-verity; mount without verity",
    ),
];

/// Sends what `tree` holds, or what differs from `since`, and returns what the other side has then.
///
/// The stream ends itself; `out` is flushed and can carry other things after it. On error the stream is cut short,
/// and the other side must give up what it made of it.
pub fn write(tree: Tree<'_>, since: Option<&Index>, out: &mut dyn Write) -> Result<Index, DeltaError> {
    let top = tree.top();
    let settling = Settling::of(top).map_err(DeltaError::file("look at the file system of", top))?;
    write_settled(tree, since, out, settling)
}

pub(super) fn write_settled(
    tree: Tree<'_>,
    since: Option<&Index>,
    out: &mut dyn Write,
    settling: Settling,
) -> Result<Index, DeltaError> {
    let (top, is_layer) = (tree.top(), tree.is_layer());
    let root = Beneath::open(top).map_err(DeltaError::file("open the directory", top))?;
    let (mut index, changed) = scan(&root, since, settling, is_layer)?;
    let mut pass = Pass {
        root: &root,
        out: BufWriter::with_capacity(MAX_CHUNK_BYTES, out),
        linked: HashMap::new(),
        touched: BTreeSet::new(),
        vanished: None,
        n_operations: 0,
        first: since.is_none(),
        settling,
        is_layer,
    };
    pass.out.write_all(&MAGIC).map_err(DeltaError::Stream)?;
    if let Some(since) = since {
        pass.remove_vanished(since, &index)?;
    }
    for (path, entry) in index
        .entries
        .iter()
        .filter(|(path, entry)| entry.is_linked() && !changed.contains(*path))
    {
        pass.linked.insert(entry.inode, path.clone());
    }
    for path in &changed {
        if let Some(entry) = index.entries.get_mut(path) {
            let before = since.and_then(|since| since.entries.get(path));
            entry.settled = pass.send(path, entry, before)?;
        }
    }
    pass.finish(&index)?;
    Ok(index)
}

impl Entry {
    /// Whether a file found later is the one that was indexed: a number that became free may serve another sort.
    pub(super) fn is_still(&self, status: &Stat) -> bool {
        let sort = FileType::from_raw_mode(status.st_mode);
        let is_sort = match self.kind {
            Kind::Directory { .. } => sort.is_dir(),
            Kind::File => sort.is_file(),
            Kind::SymbolicLink => sort.is_symlink(),
            Kind::Fifo => sort.is_fifo(),
            Kind::CharacterDevice => sort.is_char_device(),
            Kind::BlockDevice => sort.is_block_device(),
            Kind::Socket | Kind::Whiteout => false,
        };
        is_sort && (status.st_dev, status.st_ino) == self.inode
    }

    pub(super) fn is_linked(&self) -> bool {
        self.n_links > 1 && !matches!(self.kind, Kind::Directory { .. }) && !self.kind.is_absent()
    }
}

/// One pass under way.
struct Pass<'a> {
    root: &'a Beneath,
    out: BufWriter<&'a mut dyn Write>,
    /// For each inode with several names one that the other side has.
    linked: HashMap<(u64, u64), PathBuf>,
    /// Directories whose times the operations so far have spoilt at the other side.
    touched: BTreeSet<PathBuf>,
    /// The last name that was gone when its turn came; what is below it may be back, but has no parent over there.
    vanished: Option<PathBuf>,
    n_operations: u64,
    /// Whether there was no pass before, so that the container surely runs.
    first: bool,
    settling: Settling,
    is_layer: bool,
}

impl Pass<'_> {
    fn put(&mut self, operation: &Operation<'_>) -> Result<(), DeltaError> {
        self.n_operations += 1;
        operation
            .encode(&mut self.out)
            .map_err(|error| match operation.path() {
                Some(path) if error.kind() == io::ErrorKind::InvalidData => DeltaError::Unsupported {
                    path: to_path(path).into(),
                    reason: "its extended attributes are longer than 1 MiB",
                },
                _ => DeltaError::Stream(error),
            })
    }

    fn remove_vanished(&mut self, since: &Index, now: &Index) -> Result<(), DeltaError> {
        let mut removed: Option<&Path> = None;
        for (path, before) in &since.entries {
            let goes_along = removed.is_some_and(|removed| path.starts_with(removed));
            if goes_along || before.kind.is_absent() || now.entries.contains_key(path) {
                continue;
            }
            self.touch_parent(path);
            self.put(&Operation::Remove { path: to_bytes(path) })?;
            removed = Some(path);
        }
        Ok(())
    }

    fn touch_parent(&mut self, path: &Path) {
        self.touched.extend(path.parent().map(Path::to_path_buf));
    }

    /// Sends one name. Tells whether the next pass may rely on the entry.
    fn send(&mut self, path: &Path, entry: &Entry, before: Option<&Entry>) -> Result<bool, DeltaError> {
        if self
            .vanished
            .as_ref()
            .is_some_and(|vanished| path.starts_with(vanished))
        {
            return Ok(false);
        }
        self.touch_parent(path);
        if entry.kind.is_absent() {
            self.put(&Operation::Remove { path: to_bytes(path) })?;
            return Ok(entry.settled);
        }
        if entry.is_linked()
            && let Some(target) = self.linked.get(&entry.inode).cloned()
        {
            self.put(&Operation::HardLink {
                path: to_bytes(path),
                target: to_bytes(&target),
            })?;
            return Ok(entry.settled);
        }
        let sent = match self.send_whole(path, entry, before) {
            Ok(settled) => settled,
            Err(Sending::Vanished) => {
                self.vanished = Some(path.into());
                return Ok(false);
            }
            Err(Sending::Failed(error)) => return Err(error),
        };
        if entry.is_linked() {
            self.linked.insert(entry.inode, path.into());
        }
        Ok(sent)
    }

    fn send_whole(&mut self, path: &Path, entry: &Entry, before: Option<&Entry>) -> Result<bool, Sending> {
        let fail = |error| Sending::from(path, error);
        let place = self.root.place(path).map_err(fail)?;
        // Without opening it for reading: a name may have become a device since, whose opening does something.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = fs::openat(&place.parent, place.name, flags, Mode::empty()).map_err(fail)?;
        let status = fs::fstat(&found).map_err(fail)?;
        if !entry.is_still(&status) {
            return Err(Sending::Vanished);
        }
        let attributes = self.portable_attributes(path, &place)?;
        let metadata = metadata(&status, &attributes);
        let path_bytes = to_bytes(path);
        let operation = match entry.kind {
            Kind::File => return self.send_file(path, &found, entry, metadata),
            Kind::Directory { opaque } => {
                self.touched.insert(path.into());
                Operation::Directory {
                    path: path_bytes,
                    empty: opaque && !before.is_some_and(|before| before.is_same_inode(entry)),
                    metadata,
                }
            }
            Kind::SymbolicLink => {
                let target = fs::readlinkat(&found, "", Vec::new()).map_err(fail)?;
                self.put(&Operation::SymbolicLink {
                    path: path_bytes,
                    target: target.to_bytes(),
                    metadata,
                })?;
                return Ok(entry.settled);
            }
            kind => Operation::Node {
                path: path_bytes,
                kind: match kind {
                    Kind::CharacterDevice => NodeKind::CharacterDevice,
                    Kind::BlockDevice => NodeKind::BlockDevice,
                    _ => NodeKind::Fifo,
                },
                device: status.st_rdev,
                metadata,
            },
        };
        self.put(&operation)?;
        Ok(entry.settled)
    }

    fn send_file(
        &mut self,
        path: &Path,
        found: &OwnedFd,
        entry: &Entry,
        metadata: Metadata<'_>,
    ) -> Result<bool, Sending> {
        let fail = |source| DeltaError::File {
            action: "read",
            path: path.into(),
            source,
        };
        let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::CLOEXEC;
        let file = fs::open(of_descriptor(found.as_fd()), flags, Mode::empty())
            .map(File::from)
            .map_err(|error| fail(error.into()))?;
        let size = fs::fstat(&file).map_err(|error| fail(error.into()))?.st_size as u64;
        let mut settled = entry.settled;
        // Before it is read: from here on a store to a mapping of it changes the time, and the freeze need not send it again.
        let has_write_back = self.settling.mapping != Duration::MAX;
        if !settled && self.first && has_write_back && write_back(&file).is_ok() {
            settled = Settling::is_past(entry.changed_at, self.settling.clock);
        }
        self.put(&Operation::File {
            path: to_bytes(path),
            size,
            metadata,
        })?;
        self.send_contents(&file, size).map_err(|error| match error {
            Contents::Unreadable(source) => fail(source),
            Contents::Unsent(source) => DeltaError::Stream(source),
        })?;
        Ok(settled)
    }

    fn send_contents(&mut self, file: &File, size: u64) -> Result<(), Contents> {
        let mut buffer = vec![0; MAX_CHUNK_BYTES.min(size as usize)];
        let mut offset = 0;
        while offset < size {
            let start = match fs::seek(file, SeekFrom::Data(offset)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                Err(error) => return Err(Contents::Unreadable(error.into())),
            };
            let hole = match fs::seek(file, SeekFrom::Hole(start)) {
                Ok(hole) => hole,
                // The file was cut meanwhile; the next pass will find it changed.
                Err(Errno::NXIO) => break,
                Err(error) => return Err(Contents::Unreadable(error.into())),
            };
            let end = hole.min(size);
            offset = start;
            while offset < end {
                let wanted = buffer.len().min((end - offset) as usize);
                let len = file
                    .read_at(&mut buffer[..wanted], offset)
                    .map_err(Contents::Unreadable)?;
                if len == 0 {
                    // Cut, once more.
                    return Chunk::END.encode(&mut self.out).map_err(Contents::Unsent);
                }
                Chunk { offset, len }
                    .encode(&mut self.out)
                    .and_then(|()| self.out.write_all(&buffer[..len]))
                    .map_err(Contents::Unsent)?;
                offset += len as u64;
            }
        }
        Chunk::END.encode(&mut self.out).map_err(Contents::Unsent)
    }

    fn finish(mut self, index: &Index) -> Result<(), DeltaError> {
        for path in std::mem::take(&mut self.touched).iter().rev() {
            let is_directory = |entry: &Entry| matches!(entry.kind, Kind::Directory { .. });
            if !index.entries.get(path).is_some_and(is_directory) {
                continue;
            }
            let status = match self.root.place(path).and_then(|place| place.status()) {
                Ok(Some(status)) => status,
                Ok(None) => continue,
                Err(error) if has_vanished(error) => continue,
                Err(error) => return Err(DeltaError::file("look at", path)(error)),
            };
            self.put(&Operation::DirectoryTimes {
                path: to_bytes(path),
                times: times(&status),
            })?;
        }
        let top = Path::new("");
        let place = self.root.place(top).map_err(DeltaError::file("open", "/"))?;
        let status = place.status().map_err(DeltaError::file("look at", "/"))?;
        let status = status
            .ok_or(Errno::NOENT)
            .map_err(DeltaError::file("look at", "/"))?;
        let attributes = self
            .portable_attributes(top, &place)
            .map_err(|error| match error {
                Sending::Failed(error) => error,
                Sending::Vanished => DeltaError::file("look at", "/")(Errno::NOENT),
            })?;
        let n_sockets = index
            .entries
            .values()
            .filter(|entry| entry.kind == Kind::Socket)
            .count();
        let end = Operation::End {
            metadata: metadata(&status, &attributes),
            n_operations: self.n_operations,
            n_sockets: n_sockets as u64,
        };
        self.put(&end)?;
        self.out.flush().map_err(DeltaError::Stream)
    }

    fn portable_attributes(&self, path: &Path, place: &Place<'_>) -> Result<Vec<Attribute>, Sending> {
        portable_attributes(self.is_layer, path, place)
    }
}

/// The extended attributes that mean the same on another host.
pub(super) fn portable_attributes(
    is_layer: bool,
    path: &Path,
    place: &Place<'_>,
) -> Result<Vec<Attribute>, Sending> {
    let mut attributes = place.attributes().map_err(|error| Sending::from(path, error))?;
    attributes.retain(|(name, _)| !belongs_to_host(name));
    if is_layer {
        for (name, _) in &attributes {
            check_note(path, name)?;
        }
        attributes.retain(|(name, _)| as_overlay_note(name).is_none());
    }
    Ok(attributes)
}

/// Refuses a file of a layer that is not what it seems.
fn check_note(path: &Path, attribute: &[u8]) -> Result<(), DeltaError> {
    let Some(note) = as_overlay_note(attribute) else {
        return Ok(());
    };
    let refuse = |reason| {
        let path = path.into();
        Err(DeltaError::Unsupported { path, reason })
    };
    if let Some((_, reason)) = UNSUPPORTED_NOTES
        .iter()
        .find(|(unsupported, _)| *unsupported == note)
    {
        return refuse(reason);
    }
    if note.starts_with(b"overlay.") {
        return refuse(
            "it belongs to an overlay that the container itself has on its root; use a volume for that",
        );
    }
    Ok(())
}

/// Why a name was not sent.
pub(super) enum Sending {
    /// The running container was quicker; the next pass decides.
    Vanished,
    Failed(DeltaError),
}

impl Sending {
    pub(super) fn from(path: &Path, error: Errno) -> Self {
        if has_vanished(error) {
            Self::Vanished
        } else {
            Self::Failed(DeltaError::file("read", path)(error))
        }
    }
}

impl From<DeltaError> for Sending {
    fn from(error: DeltaError) -> Self {
        Self::Failed(error)
    }
}

enum Contents {
    Unreadable(io::Error),
    Unsent(io::Error),
}

fn metadata<'a>(status: &Stat, attributes: &'a [Attribute]) -> Metadata<'a> {
    Metadata {
        mode: status.st_mode & 0o7777,
        uid: status.st_uid,
        gid: status.st_gid,
        times: times(status),
        attributes: attributes
            .iter()
            .map(|(name, value)| (name.as_slice(), value.as_slice()))
            .collect(),
    }
}

pub(super) fn times(status: &Stat) -> Times {
    Times {
        accessed: (status.st_atime, status.st_atime_nsec as u32),
        modified: (status.st_mtime, status.st_mtime_nsec as u32),
    }
}

fn to_bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn to_path(path: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(path))
}
