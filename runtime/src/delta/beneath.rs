//! A directory tree that nothing leads out of, and the extended attributes of files in it.
//!
//! Every path is resolved by `openat2` from the tree's own descriptor: no symbolic link is followed, no `..`
//! climbs, no mount is crossed. It decides nothing about what is read or written.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::buffer::spare_capacity;
use rustix::fs::{self, AtFlags, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// What the kernel allows for all names of a file together (`XATTR_LIST_MAX`).
const MAX_ATTRIBUTE_BYTES: usize = 64 * 1024;

/// Labels that follow from the host's own policy or keys, and mean nothing on another host.
const HOST_ATTRIBUTES: [&[u8]; 2] = [b"security.selinux", b"security.evm"];

/// How the overlay keeps its own notes, mounted by root and by a user.
const OVERLAY_PREFIXES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// One extended attribute: name and value.
pub(super) type Attribute = (Vec<u8>, Vec<u8>);

/// The tree beneath one directory.
pub(super) struct Beneath {
    root: OwnedFd,
}

/// A place in a tree: an open directory, and a name in it that may or may not exist.
pub(super) struct Place<'a> {
    pub(super) parent: OwnedFd,
    pub(super) name: &'a OsStr,
}

impl Beneath {
    pub(super) fn open(root: &Path) -> rustix::io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            root: fs::open(root, flags, Mode::empty())?,
        })
    }

    /// Opens what is at `path`, the root itself for an empty one.
    pub(super) fn get(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        fs::openat2(
            &self.root,
            path,
            flags | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH
                | ResolveFlags::NO_SYMLINKS
                | ResolveFlags::NO_MAGICLINKS
                | ResolveFlags::NO_XDEV,
        )
    }

    /// The place `path` names; its parent must be a directory. The root is a place, named `.`.
    pub(super) fn place<'a>(&self, path: &'a Path) -> rustix::io::Result<Place<'a>> {
        let parent = path.parent().unwrap_or(Path::new(""));
        Ok(Place {
            parent: self.get(parent, OFlags::PATH | OFlags::DIRECTORY)?,
            name: path.file_name().unwrap_or(OsStr::new(".")),
        })
    }
}

impl Place<'_> {
    /// What is there, a symbolic link itself included; `None` if nothing is.
    pub(super) fn status(&self) -> rustix::io::Result<Option<Stat>> {
        match fs::statat(&self.parent, self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(status) => Ok(Some(status)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A path for calls that take no descriptor. Only its last part may be a link, which those calls do not follow.
    pub(super) fn path(&self) -> PathBuf {
        in_directory(self.parent.as_fd(), self.name)
    }

    /// All extended attributes of what is there.
    pub(super) fn attributes(&self) -> rustix::io::Result<Vec<Attribute>> {
        let path = self.path();
        let mut names = Vec::with_capacity(MAX_ATTRIBUTE_BYTES);
        match fs::llistxattr(&path, spare_capacity(&mut names)) {
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            result => result?,
        };
        let mut attributes = Vec::new();
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            if let Some(value) = attribute(&path, name)? {
                attributes.push((name.to_vec(), value));
            }
        }
        attributes.sort();
        Ok(attributes)
    }
}

/// The name `name` in an open directory, as a path.
pub(super) fn in_directory(directory: BorrowedFd<'_>, name: &OsStr) -> PathBuf {
    let directory = directory.as_raw_fd().to_string();
    Path::new("/proc/self/fd").join(directory).join(name)
}

/// The file behind a descriptor, as a path that leads to it whatever its names are now.
pub(super) fn of_descriptor(file: BorrowedFd<'_>) -> PathBuf {
    Path::new("/proc/self/fd").join(file.as_raw_fd().to_string())
}

/// The note `name` that the overlay keeps on the file at `path`, if there is one.
pub(super) fn overlay_note(path: &Path, name: &str) -> rustix::io::Result<Option<Vec<u8>>> {
    for prefix in OVERLAY_PREFIXES {
        let value = attribute(path, &[prefix, name.as_bytes()].concat())?;
        if value.is_some() {
            return Ok(value);
        }
    }
    Ok(None)
}

/// The part of an attribute's name after the overlay's prefix, if it is one of the overlay's own notes.
pub(super) fn as_overlay_note(name: &[u8]) -> Option<&[u8]> {
    OVERLAY_PREFIXES
        .iter()
        .find_map(|prefix| name.strip_prefix(*prefix))
}

/// Whether the attribute `name` stays on its host.
pub(super) fn belongs_to_host(name: &[u8]) -> bool {
    HOST_ATTRIBUTES.contains(&name)
}

fn attribute(path: &Path, name: &[u8]) -> rustix::io::Result<Option<Vec<u8>>> {
    let length = match fs::lgetxattr_query(path, name) {
        Ok(0) => return Ok(Some(Vec::new())),
        Ok(length) => length,
        Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut value = Vec::with_capacity(length);
    match fs::lgetxattr(path, name, spare_capacity(&mut value)) {
        Ok(_) => Ok(Some(value)),
        Err(Errno::NODATA) => Ok(None),
        Err(error) => Err(error),
    }
}
