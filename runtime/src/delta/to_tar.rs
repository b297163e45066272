//! A tree as a tar archive, in the form that podman and CRI-O give a container's writable layer, and without what theirs loses.
//!
//! The archive has what the tree holds; what a layer hides of those below it is a list of paths beside it, since the form has no
//! whiteouts. A directory that hides all below it ([`OPAQUE`](crate::tar)) is marked as well, for readers of ours, which need not
//! know the lower layers. The size is known before the first byte, without reading any contents: the tree must not change from
//! [`TarPlan::new`] on, and if it does, writing fails.
//!
//! Sockets' nodes are left out, as in a delta. Holes are written as zeros.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self, FileType, Mode, OFlags, Stat};

use super::beneath::{Attribute, Beneath, of_descriptor};
use super::index::{Entry, Index, Kind, Settling, scan};
use super::operation::MAX_CHUNK_BYTES;
use super::write::{Sending, portable_attributes};
use super::{DeltaError, Tree};
use crate::tar::{self, Member, padding};

/// Takes a member's head, and the file and size of its contents.
type Each<'a> = dyn FnMut(&[u8], Option<(File, u64)>) -> io::Result<()> + 'a;

/// A tree that was looked at, and what its archive comes to.
pub struct TarPlan<'a> {
    tree: Tree<'a>,
    root: Beneath,
    index: Index,
    deleted: Vec<PathBuf>,
    bytes: u64,
}

impl<'a> TarPlan<'a> {
    /// Looks at `tree`. Of a layer `lowers` are the directories below it, uppermost first.
    pub fn new(tree: Tree<'a>, lowers: &[PathBuf]) -> Result<Self, DeltaError> {
        let top = tree.top();
        let root = Beneath::open(top).map_err(DeltaError::file("open the directory", top))?;
        let settling = Settling::of(top).map_err(DeltaError::file("look at the file system of", top))?;
        let (index, _) = scan(&root, None, settling, tree.is_layer())?;
        let mut plan = Self {
            tree,
            root,
            deleted: hidden(&index, lowers),
            index,
            bytes: 0,
        };
        let mut counted = Counted(0);
        plan.members(&mut |head, contents| {
            counted.write_all(head)?;
            counted.0 += contents.map_or(0, |(_, size)| size + padding(size) as u64);
            Ok(())
        })?;
        plan.bytes = counted.0 + tar::END.len() as u64;
        Ok(plan)
    }

    /// Exactly what [`TarPlan::write`] will write.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The names of lower layers that are not seen any more, relative to the root.
    pub fn deleted(&self) -> &[PathBuf] {
        &self.deleted
    }

    /// Whether there is nothing in the tree.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Writes the archive.
    pub fn write(&self, out: &mut dyn Write) -> Result<(), DeltaError> {
        let mut buffer = vec![0; MAX_CHUNK_BYTES];
        self.members(&mut |head, contents| {
            out.write_all(head)?;
            let Some((mut file, size)) = contents else {
                return Ok(());
            };
            let mut left = size;
            while left > 0 {
                let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let read = file.read(&mut buffer[..wanted])?;
                if read == 0 {
                    return Err(changed());
                }
                out.write_all(&buffer[..read])?;
                left -= read as u64;
            }
            out.write_all(&tar::END[..padding(size)])
        })?;
        out.write_all(&tar::END).map_err(DeltaError::Stream)
    }

    /// Calls `each` with the head of every member, and the file and size of its contents.
    fn members(&self, each: &mut Each<'_>) -> Result<(), DeltaError> {
        let mut linked: HashMap<(u64, u64), &Path> = HashMap::new();
        let top = Path::new("");
        let place = self.root.place(top).map_err(DeltaError::file("open", "/"))?;
        let status = place.status().map_err(DeltaError::file("look at", "/"))?;
        let status = status.ok_or_else(|| moved(top))?;
        let attributes = whole(top, portable_attributes(self.tree.is_layer(), top, &place))?;
        let mut member = described(&status, attributes);
        (member.path, member.kind) = (b"./".to_vec(), tar::Kind::Directory);
        put(top, &member, None, each)?;
        for (path, entry) in self
            .index
            .entries
            .iter()
            .filter(|(_, entry)| !entry.kind.is_absent())
        {
            if let Some(target) = entry.is_linked().then(|| linked.get(&entry.inode)).flatten() {
                let member = Member {
                    kind: tar::Kind::HardLink,
                    link: target.as_os_str().as_bytes().into(),
                    ..Member::file(path.as_os_str().as_bytes(), 0)
                };
                put(path, &member, None, each)?;
                continue;
            }
            if entry.is_linked() {
                linked.insert(entry.inode, path);
            }
            let (member, contents) = whole(path, self.member(path, entry))?;
            put(path, &member, contents, each)?;
        }
        Ok(())
    }

    fn member(&self, path: &Path, entry: &Entry) -> Result<(Member, Option<(File, u64)>), Sending> {
        let fail = |error| Sending::from(path, error);
        let place = self.root.place(path).map_err(fail)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = fs::openat(&place.parent, place.name, flags, Mode::empty()).map_err(fail)?;
        let status = fs::fstat(&found).map_err(fail)?;
        if !entry.is_still(&status) {
            return Err(Sending::Vanished);
        }
        let mut member = described(&status, portable_attributes(self.tree.is_layer(), path, &place)?);
        member.path = path.as_os_str().as_bytes().into();
        match entry.kind {
            Kind::Directory { opaque } => {
                member.path.push(b'/');
                member.is_opaque = opaque;
            }
            Kind::SymbolicLink => {
                member.link = fs::readlinkat(&found, "", Vec::new()).map_err(fail)?.into_bytes();
            }
            Kind::File => {
                let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::CLOEXEC;
                let file = fs::open(of_descriptor(found.as_fd()), flags, Mode::empty()).map_err(fail)?;
                member.size = status.st_size as u64;
                let size = member.size;
                return Ok((member, Some((file.into(), size))));
            }
            _ => {}
        }
        Ok((member, None))
    }
}

/// Names of lower layers that a layer hides: by a whiteout, or because they are in a directory that hides all below it, and were
/// not made anew.
fn hidden(index: &Index, lowers: &[PathBuf]) -> Vec<PathBuf> {
    let mut hidden: BTreeSet<PathBuf> = BTreeSet::new();
    let mut opaque: Option<&Path> = None;
    for (path, entry) in &index.entries {
        let is_below = opaque.is_some_and(|opaque| path.starts_with(opaque));
        match entry.kind {
            // CRIU, or the program, makes a socket's node again, where none may be in its way.
            Kind::Whiteout | Kind::Socket => drop(hidden.insert(path.clone())),
            // What is in such a directory is not merged with anything below either.
            Kind::Directory { opaque: is_opaque } if is_opaque || is_below => {
                if !is_below {
                    opaque = Some(path);
                }
                for lower in lowers {
                    let names = std::fs::read_dir(lower.join(path))
                        .into_iter()
                        .flatten()
                        .flatten();
                    let names = names.map(|name| path.join(name.file_name()));
                    hidden.extend(names.filter(|name| !index.entries.contains_key(name)));
                }
            }
            _ => {}
        }
    }
    hidden.into_iter().collect()
}

fn put(
    path: &Path,
    member: &Member,
    contents: Option<(File, u64)>,
    each: &mut Each<'_>,
) -> Result<(), DeltaError> {
    let head = tar::head(member).map_err(|_| DeltaError::Unsupported {
        path: path.into(),
        reason: "its extended attributes are longer than 2 MiB",
    })?;
    each(&head, contents).map_err(DeltaError::Stream)
}

fn described(status: &Stat, attributes: Vec<Attribute>) -> Member {
    let sort = FileType::from_raw_mode(status.st_mode);
    Member {
        kind: match sort {
            FileType::Directory => tar::Kind::Directory,
            FileType::Symlink => tar::Kind::SymbolicLink,
            FileType::CharacterDevice => tar::Kind::CharacterDevice,
            FileType::BlockDevice => tar::Kind::BlockDevice,
            FileType::Fifo => tar::Kind::Fifo,
            _ => tar::Kind::File,
        },
        mode: status.st_mode & 0o7777,
        uid: status.st_uid,
        gid: status.st_gid,
        modified: (status.st_mtime, status.st_mtime_nsec as u32),
        device: (fs::major(status.st_rdev), fs::minor(status.st_rdev)),
        attributes,
        ..Member::file(Vec::new(), 0)
    }
}

/// Nothing may be missing.
fn whole<T>(path: &Path, sending: Result<T, Sending>) -> Result<T, DeltaError> {
    sending.map_err(|error| match error {
        Sending::Failed(error) => error,
        Sending::Vanished => moved(path),
    })
}

fn moved(path: &Path) -> DeltaError {
    DeltaError::File {
        action: "read",
        path: path.into(),
        source: changed(),
    }
}

fn changed() -> io::Error {
    io::Error::other("it was changed by somebody while it was read")
}

/// Counts what is written to it.
struct Counted(u64);

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
