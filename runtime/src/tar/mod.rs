//! Members of tar archives, as POSIX has them since 2001 ("pax"): what each is beside its contents, and the way to blocks and
//! back.
//!
//! The crate `tar` knows the blocks of a header. What it does not bound or cannot say is here: extended records of any
//! bytes, as attributes of files have them, and a limit on each before anything is allocated. Sparse members, and all
//! that only GNU's tar knows but long names, are refused: they would be taken for something else.

mod read;
#[cfg(test)]
mod tests;
mod write;

pub use read::Reader;
pub use write::{END, head, padding};

/// What tar counts in.
pub const BLOCK_BYTES: usize = 512;

/// Extended records of one member at most: a path, a link and all attributes of a file, for which the kernel has limits of 4 KiB
/// and some 64 KiB each.
pub const MAX_RECORDS_BYTES: usize = 2 << 20;

/// In an extended record's name: an attribute of the file follows, as GNU's tar, Go and bsdtar write it.
const ATTRIBUTE: &[u8] = b"SCHILY.xattr.";

/// Our own record: of a directory that hides what lower layers have in it.
const OPAQUE: &[u8] = b"GODWIT.opaque";

/// Seconds and nanoseconds since 1970.
pub type Time = (i64, u32);

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file, whose contents follow.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    SymbolicLink,
    /// One more name of a member before it.
    HardLink,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
}

/// A member without its contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name; any bytes, and as the archive has it.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Bytes of contents; 0 unless it is a file.
    pub size: u64,
    /// Permission bits, with set-user-id, set-group-id and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub modified: Time,
    /// Last access, if that is said.
    pub accessed: Option<Time>,
    /// Where a link leads.
    pub link: Vec<u8>,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes of the file.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether a directory hides what lower layers have in it.
    pub is_opaque: bool,
}

impl Member {
    /// A private file of root's, made at the begin of 1970.
    pub fn file(path: impl Into<Vec<u8>>, size: u64) -> Self {
        Self {
            path: path.into(),
            kind: Kind::File,
            size,
            mode: 0o600,
            uid: 0,
            gid: 0,
            modified: (0, 0),
            accessed: None,
            link: Vec::new(),
            device: (0, 0),
            attributes: Vec::new(),
            is_opaque: false,
        }
    }

    /// A private directory of root's.
    pub fn directory(path: impl Into<Vec<u8>>) -> Self {
        Self {
            kind: Kind::Directory,
            mode: 0o700,
            ..Self::file(path, 0)
        }
    }
}
