//! Records of pages: what agents, and an agent and a pager, say to each other of a container's memory.
//!
//! `[kind: u8][0: 3 bytes][task: u32][address: u64][pages: u32][length: u32]`, big endian, then `length` bytes. Lengths are
//! checked against the kind before anything is allocated. This layer knows no order of records, and it does not compress:
//! it says which kinds are compressed and what their bounds are.

use std::io::{self, Read, Write};

/// Bytes of a page: the only size CRIU's images know on the machines that are supported.
pub const PAGE_BYTES: usize = 4096;

/// Pages of one record at most: 1 MiB, large enough that the cost per record vanishes beside the copy, small enough that
/// an urgent page waits behind at most one of them in a program.
pub const MAX_PAGES: u32 = 256;

/// Bytes of a record's header.
pub const HEADER_BYTES: usize = 24;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The content of pages, as it is.
    Raw = 1,
    /// Pages of zeros.
    Zero = 2,
    /// The content of pages as one LZ4 block; between agents only.
    Lz4 = 3,
    /// The content of pages as one zstd frame; between agents only.
    Zstd = 4,
    /// A task waits for these pages.
    Urgent = 5,
    /// These pages are wanted next.
    Wanted = 6,
    /// Every page has been sent once, unasked. Nothing more comes but answers.
    AllSent = 7,
    /// No page is wanted any more.
    Drained = 8,
    /// What came of these pages before is of no use any more; between agents only, before the restore.
    Stale = 9,
}

/// A record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// The task whose memory it is: its pid in the container, as CRIU's images name it.
    pub task: u32,
    /// Address of the first page at the time of the dump, a multiple of [`PAGE_BYTES`].
    pub address: u64,
    /// How many pages, 1 to [`MAX_PAGES`]; 0 in [`Kind::AllSent`] and [`Kind::Drained`].
    pub pages: u32,
    /// Bytes that follow.
    pub length: u32,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [
            Self::Raw,
            Self::Zero,
            Self::Lz4,
            Self::Zstd,
            Self::Urgent,
            Self::Wanted,
            Self::AllSent,
            Self::Drained,
            Self::Stale,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

impl Header {
    /// A record without content.
    pub fn bare(kind: Kind, task: u32, address: u64, pages: u32) -> Self {
        Self {
            kind,
            task,
            address,
            pages,
            length: 0,
        }
    }

    /// The end of what it covers.
    pub fn end(&self) -> u64 {
        self.address + u64::from(self.pages) * PAGE_BYTES as u64
    }

    /// Its bytes.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = self.kind as u8;
        bytes[4..8].copy_from_slice(&self.task.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.address.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.pages.to_be_bytes());
        bytes[20..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// Reads and checks a header.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> io::Result<Self> {
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let refuse = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        let Some(kind) = Kind::of(bytes[0]) else {
            return refuse(format!("unknown kind of page record {}", bytes[0]));
        };
        let header = Self {
            kind,
            task: word(4),
            address: u64::from(word(8)) << 32 | u64::from(word(12)),
            pages: word(16),
            length: word(20),
        };
        let raw = header.pages as usize * PAGE_BYTES;
        let length = header.length as usize;
        let fits = match kind {
            Kind::Raw => length == raw,
            // What compression does not make smaller is sent as it is.
            Kind::Lz4 | Kind::Zstd => (1..raw).contains(&length),
            Kind::Zero | Kind::Urgent | Kind::Wanted | Kind::AllSent | Kind::Drained | Kind::Stale => {
                length == 0
            }
        };
        let counts = match kind {
            Kind::AllSent | Kind::Drained => header.pages == 0,
            _ => (1..=MAX_PAGES).contains(&header.pages),
        };
        let aligned = header.address.is_multiple_of(PAGE_BYTES as u64)
            && header.address.checked_add(raw as u64).is_some();
        if bytes[1..4] != [0; 3] || !counts || !fits || !aligned {
            return refuse(format!("a page record that cannot be: {header:?}"));
        }
        Ok(header)
    }

    /// Reads one header; `None` if the stream ended before it.
    pub fn read(stream: &mut impl Read) -> io::Result<Option<Self>> {
        let mut bytes = [0; HEADER_BYTES];
        // An end between two records is how a peer leaves; inside one it is an error.
        loop {
            match stream.read(&mut bytes[..1]) {
                Ok(0) => return Ok(None),
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        stream.read_exact(&mut bytes[1..])?;
        Self::parse(&bytes).map(Some)
    }

    /// Writes a record.
    pub fn write(self, content: &[u8], stream: &mut impl Write) -> io::Result<()> {
        debug_assert_eq!(self.length as usize, content.len());
        stream.write_all(&self.to_bytes())?;
        stream.write_all(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_header_has_exactly_these_bytes() {
        let header = Header {
            kind: Kind::Raw,
            task: 7,
            address: 0x7f00_0000_1000,
            pages: 2,
            length: 8192,
        };
        let bytes = b"\x01\0\0\0\0\0\0\x07\0\0\x7f\0\0\0\x10\0\0\0\0\x02\0\0\x20\0";
        assert_eq!(&header.to_bytes(), bytes);
        assert_eq!(Header::parse(bytes).unwrap(), header);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let good = Header::bare(Kind::Zero, 1, 4096, 1).to_bytes();
        Header::parse(&good).unwrap();
        // kind 0, a kind that is none, padding, an address inside a page, no pages, too many, content where none can be
        for (at, value) in [(0, 0), (0, 10), (1, 1), (15, 1), (19, 0), (18, 2), (23, 1)] {
            let mut bad = good;
            bad[at] = value;
            assert!(Header::parse(&bad).is_err(), "byte {at} = {value}");
        }
        let past_the_end = Header::bare(Kind::Zero, 1, u64::MAX - 4095, 2).to_bytes();
        assert!(Header::parse(&past_the_end).is_err());
        let hostile = Header {
            length: u32::MAX,
            ..Header::bare(Kind::Raw, 1, 0, 1)
        };
        assert!(Header::parse(&hostile.to_bytes()).is_err());
    }

    #[test]
    fn an_end_between_records_is_no_error_and_one_inside_is() {
        let bytes = Header::bare(Kind::Drained, 0, 0, 0).to_bytes();
        assert!(Header::read(&mut &bytes[..0]).unwrap().is_none());
        for length in 1..HEADER_BYTES {
            assert!(Header::read(&mut &bytes[..length]).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::array::uniform24(any::<u8>())) {
            if let Ok(header) = Header::parse(&bytes) {
                prop_assert_eq!(header.to_bytes(), bytes);
            }
        }
    }
}
