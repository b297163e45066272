//! What a tree holds, as found by one walk, and what of it differs from an earlier walk.
//!
//! A file is the same if its inode, its size and the time of its last status change are. That time can stand still
//! while a file changes (see [`Settling`]), so an entry that is too young counts as changed the next time. The walk
//! reads no contents. Names that vanish while it runs are left out: their directory will be found changed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{self, AtFlags, Dir, FileType, OFlags, Stat};
use rustix::io::Errno;

use super::DeltaError;
use super::beneath::{Beneath, in_directory, overlay_note};

/// How old an entry's change time must be to be trusted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settling {
    /// Two changes within one tick of the kernel's clock leave one time: ten ticks of the slowest clock (100 Hz).
    pub(super) clock: Duration,
    /// A page written through a shared mapping changes the time once, and then not before the kernel has written
    /// it back, which is due after 30 s; twice that.
    pub(super) mapping: Duration,
}

/// Memory has no write-back, so a file there can change unseen for ever (`TMPFS_MAGIC` of the kernel).
const TMPFS: u64 = 0x0102_1994;

impl Settling {
    /// What it takes on the file system of `upper`.
    pub(super) fn of(upper: &Path) -> rustix::io::Result<Self> {
        let in_memory = fs::statfs(upper)?.f_type as u64 == TMPFS;
        Ok(Self {
            clock: Duration::from_millis(100),
            mapping: if in_memory {
                Duration::MAX
            } else {
                Duration::from_secs(60)
            },
        })
    }

    /// Whether a change at `changed_at` is at least `age` ago.
    pub(super) fn is_past(changed_at: (i64, u32), age: Duration) -> bool {
        let changed_at = UNIX_EPOCH + Duration::new(changed_at.0.max(0) as u64, changed_at.1);
        SystemTime::now()
            .duration_since(changed_at)
            .is_ok_and(|passed| passed >= age)
    }
}

/// What a pass has seen, and the other side therefore has.
#[derive(Clone, Debug)]
pub struct Index {
    pub(super) entries: BTreeMap<PathBuf, Entry>,
}

/// One name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) inode: (u64, u64),
    pub(super) size: u64,
    pub(super) changed_at: (i64, u32),
    pub(super) n_links: u64,
    /// Whether `changed_at` can be trusted to move with the next change.
    pub(super) settled: bool,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `opaque` hides what lower layers hold in it.
    Directory {
        opaque: bool,
    },
    File,
    SymbolicLink,
    Fifo,
    CharacterDevice,
    BlockDevice,
    /// A bound socket's node; CRIU or the program makes it again.
    Socket,
    /// Hides a name of a lower layer.
    Whiteout,
}

impl Kind {
    /// Whether the other side has nothing under a name of this kind.
    pub(super) fn is_absent(self) -> bool {
        matches!(self, Self::Socket | Self::Whiteout)
    }
}

impl Index {
    /// How many names the writable layer holds.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the container has written nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Walks the tree; gives what is there, and which of it is not as `since` has it.
pub(super) fn scan(
    root: &Beneath,
    since: Option<&Index>,
    settling: Settling,
    is_layer: bool,
) -> Result<(Index, BTreeSet<PathBuf>), DeltaError> {
    let mut entries = BTreeMap::new();
    let mut changed = BTreeSet::new();
    // Directories still to read, each with whether the other side has nothing of what is below it.
    let mut pending = vec![(PathBuf::new(), since.is_none())];
    while let Some((directory, all_new)) = pending.pop() {
        let Some(opened) = open_directory(root, &directory)? else {
            continue;
        };
        for name in names(&opened, &directory)? {
            let path = directory.join(&name);
            let before = since
                .filter(|_| !all_new)
                .and_then(|since| since.entries.get(&path));
            let Some(mut entry) = look(&opened, &name, before, settling, is_layer)
                .map_err(DeltaError::file("look at", &path))?
            else {
                continue;
            };
            let same = before.is_some_and(|before| before.settled && before.is_same(&entry));
            if let Kind::Directory { opaque } = entry.kind {
                let emptied = opaque && !before.is_some_and(|before| before.is_same_inode(&entry));
                pending.push((path.clone(), all_new || emptied));
            }
            if same {
                // However young it is: an earlier pass has made sure that a change would have shown.
                entry.settled = true;
            } else {
                changed.insert(path.clone());
            }
            entries.insert(path, entry);
        }
    }
    Ok((Index { entries }, changed))
}

impl Entry {
    fn is_same(&self, other: &Self) -> bool {
        self.is_same_inode(other) && self.size == other.size && self.changed_at == other.changed_at
    }

    /// Whether both are the same file, whatever has become of it.
    pub(super) fn is_same_inode(&self, other: &Self) -> bool {
        self.kind == other.kind && self.inode == other.inode
    }
}

fn open_directory(root: &Beneath, path: &Path) -> Result<Option<OwnedFd>, DeltaError> {
    match root.get(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOATIME) {
        Ok(directory) => Ok(Some(directory)),
        Err(error) if has_vanished(error) && !path.as_os_str().is_empty() => Ok(None),
        Err(error) => Err(DeltaError::file("open directory", path)(error)),
    }
}

/// Whether an error only says that a running container was quicker.
pub(super) fn has_vanished(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE)
}

fn names(directory: &OwnedFd, path: &Path) -> Result<Vec<OsString>, DeltaError> {
    Dir::read_from(directory)
        .and_then(|entries| {
            entries
                .map(|entry| Ok(OsString::from_vec(entry?.file_name().to_bytes().to_vec())))
                .filter(|name| !matches!(name, Ok(name) if name == "." || name == ".."))
                .collect()
        })
        .map_err(DeltaError::file("read directory", path))
}

fn look(
    directory: &OwnedFd,
    name: &OsStr,
    before: Option<&Entry>,
    settling: Settling,
    is_layer: bool,
) -> rustix::io::Result<Option<Entry>> {
    let status = match fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(error) if has_vanished(error) => return Ok(None),
        status => status?,
    };
    let mut entry = Entry {
        kind: Kind::Whiteout,
        inode: (status.st_dev, status.st_ino),
        size: status.st_size as u64,
        changed_at: (status.st_ctime, status.st_ctime_nsec as u32),
        n_links: status.st_nlink,
        settled: false,
    };
    // Only a change of the file itself can change what the overlay has noted on it.
    entry.kind = match before {
        Some(before) if before.inode == entry.inode && before.changed_at == entry.changed_at => before.kind,
        _ if !is_layer => plain_kind(&status),
        _ => match kind_in_layer(&status, &in_directory(directory.as_fd(), name)) {
            Err(error) if has_vanished(error) => return Ok(None),
            kind => kind?,
        },
    };
    let age = if entry.kind == Kind::File {
        settling.mapping
    } else {
        settling.clock
    };
    entry.settled = Settling::is_past(entry.changed_at, age);
    Ok(Some(entry))
}

fn kind_in_layer(status: &Stat, path: &Path) -> rustix::io::Result<Kind> {
    Ok(match plain_kind(status) {
        Kind::Directory { .. } => Kind::Directory {
            opaque: overlay_note(path, "opaque")?.is_some_and(|note| note == b"y"),
        },
        Kind::File if status.st_size == 0 && overlay_note(path, "whiteout")?.is_some() => Kind::Whiteout,
        Kind::CharacterDevice if status.st_rdev == 0 => Kind::Whiteout,
        kind => kind,
    })
}

fn plain_kind(status: &Stat) -> Kind {
    match FileType::from_raw_mode(status.st_mode) {
        FileType::Directory => Kind::Directory { opaque: false },
        FileType::Symlink => Kind::SymbolicLink,
        FileType::Fifo => Kind::Fifo,
        FileType::CharacterDevice => Kind::CharacterDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::Socket => Kind::Socket,
        _ => Kind::File,
    }
}
