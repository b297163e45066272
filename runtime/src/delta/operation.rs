//! What a delta is made of: the operations, their encoding, and the bounds on what a peer may send.
//!
//! It knows no file system. Decoding borrows from one bounded buffer, so that no length in a hostile stream is
//! ever allocated before it is checked.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// The first bytes of a stream; the last is the version.
pub(super) const MAGIC: [u8; 8] = *b"GWDELTA\x01";

/// Longest record: a path, a link's target and all extended attributes of one file. The kernel allows 64 KiB for an
/// attribute, so this is room for many; a file that has more is refused by the writer.
pub const MAX_RECORD_BYTES: usize = 1024 * 1024;

/// Longest piece of a file's contents: large enough that calls cost nothing, small enough for one buffer.
pub const MAX_CHUNK_BYTES: usize = 256 * 1024;

/// Offset and length before each chunk.
const CHUNK_HEADER_BYTES: usize = 12;

/// One step towards the same tree. Paths are bytes, relative to the root, without `.`, `..` or empty parts.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation<'a> {
    /// Nothing is at `path` any more. It may be absent already.
    Remove {
        /// Where.
        path: &'a [u8],
    },
    /// A directory. What it holds stays, unless `empty` asks for a new one.
    Directory {
        /// Where.
        path: &'a [u8],
        /// Whether whatever was there goes first.
        empty: bool,
        /// Owner, mode, times, attributes.
        #[serde(borrow)]
        metadata: Metadata<'a>,
    },
    /// A regular file in place of whatever was there; chunks of contents follow the record.
    File {
        /// Where.
        path: &'a [u8],
        /// Length, holes included.
        size: u64,
        /// Owner, mode, times, attributes.
        #[serde(borrow)]
        metadata: Metadata<'a>,
    },
    /// A symbolic link in place of whatever was there.
    SymbolicLink {
        /// Where.
        path: &'a [u8],
        /// What it says.
        target: &'a [u8],
        /// Owner, times, attributes.
        #[serde(borrow)]
        metadata: Metadata<'a>,
    },
    /// One more name of the file that already is at `target`.
    HardLink {
        /// The new name.
        path: &'a [u8],
        /// The name it has.
        target: &'a [u8],
    },
    /// A fifo or a device in place of whatever was there.
    Node {
        /// Where.
        path: &'a [u8],
        /// Which sort.
        kind: NodeKind,
        /// Device number; 0 for a fifo.
        device: u64,
        /// Owner, mode, times, attributes.
        #[serde(borrow)]
        metadata: Metadata<'a>,
    },
    /// The times of a directory, sent when nothing in it will change any more.
    DirectoryTimes {
        /// Where.
        path: &'a [u8],
        /// Its times.
        times: Times,
    },
    /// The end of the stream.
    End {
        /// Of the root directory itself.
        #[serde(borrow)]
        metadata: Metadata<'a>,
        /// How many records came before this one.
        n_operations: u64,
        /// How many socket nodes were left out.
        n_sockets: u64,
    },
}

/// Special files that are more than a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeKind {
    /// A named pipe.
    Fifo,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
}

/// What every file has beside its name and contents.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata<'a> {
    /// Permission bits, with set-user-id, set-group-id and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last access and modification.
    pub times: Times,
    /// Extended attributes, names without a terminator. A file has exactly these.
    #[serde(borrow)]
    pub attributes: Vec<(&'a [u8], &'a [u8])>,
}

/// Last access and last modification, in seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// Last access.
    pub accessed: (i64, u32),
    /// Last modification.
    pub modified: (i64, u32),
}

/// Where in a file the following bytes belong.
pub(super) struct Chunk {
    pub(super) offset: u64,
    /// 0 ends the contents.
    pub(super) len: usize,
}

impl Operation<'_> {
    /// The path it is about, if it is about one.
    pub(super) fn path(&self) -> Option<&[u8]> {
        match self {
            Self::Remove { path }
            | Self::Directory { path, .. }
            | Self::File { path, .. }
            | Self::SymbolicLink { path, .. }
            | Self::HardLink { path, .. }
            | Self::Node { path, .. }
            | Self::DirectoryTimes { path, .. } => Some(path),
            Self::End { .. } => None,
        }
    }

    /// Writes one record. An operation longer than [`MAX_RECORD_BYTES`] is an error of kind `InvalidData`.
    pub(super) fn encode(&self, out: &mut dyn Write) -> io::Result<()> {
        let record = postcard::to_stdvec(self).map_err(io::Error::other)?;
        if record.len() > MAX_RECORD_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        out.write_all(&(record.len() as u32).to_le_bytes())?;
        out.write_all(&record)
    }

    /// Reads one record into `buffer` and borrows from it.
    pub(super) fn decode<'a>(
        input: &mut dyn Read,
        buffer: &'a mut Vec<u8>,
    ) -> io::Result<Result<Operation<'a>, String>> {
        let mut length = [0; 4];
        input.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if !(1..=MAX_RECORD_BYTES).contains(&length) {
            return Ok(Err(format!("a record of {length} bytes")));
        }
        buffer.resize(length, 0);
        input.read_exact(buffer)?;
        Ok(match postcard::take_from_bytes(buffer) {
            Ok((operation, [])) => Ok(operation),
            Ok((_, rest)) => Err(format!("{} bytes too many in a record", rest.len())),
            Err(error) => Err(format!("a record that makes no sense ({error})")),
        })
    }
}

impl Chunk {
    pub(super) const END: Self = Self { offset: 0, len: 0 };

    pub(super) fn encode(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.offset.to_le_bytes())?;
        out.write_all(&(self.len as u32).to_le_bytes())
    }

    pub(super) fn decode(input: &mut dyn Read) -> io::Result<Self> {
        let mut header = [0; CHUNK_HEADER_BYTES];
        input.read_exact(&mut header)?;
        let [o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3] = header;
        Ok(Self {
            offset: u64::from_le_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]) as usize,
        })
    }
}
