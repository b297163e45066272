//! Reads an archive member by member. It is taken for hostile: every length is bounded before anything is allocated, and what is
//! not known is an error.
//!
//! It says what a member claims and believes nothing of it: paths are not looked at, and nothing is written.

use std::io::{self, Read};

use tar::Header;

use super::{ATTRIBUTE, BLOCK_BYTES, Kind, MAX_RECORDS_BYTES, Member, OPAQUE, Time, padding};

/// Zeros after the end of an archive at most: tar fills up a record of 20 blocks, and some write more.
const MAX_TAIL_BYTES: u64 = 1 << 20;

/// Descriptions before a member at most: records, a long name and a long link, and records for the whole archive.
const MAX_DESCRIPTIONS: u32 = 8;

/// An archive that is being read. Read from it are the contents of the member that was last told.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    /// Of the member's contents.
    left: u64,
    padding: usize,
    is_over: bool,
}

/// What stands before a member and is about it.
#[derive(Default)]
struct Described {
    records: Vec<(Vec<u8>, Vec<u8>)>,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: Read> Reader<R> {
    /// An archive from its first byte on.
    pub fn new(input: R) -> Self {
        Self {
            input,
            left: 0,
            padding: 0,
            is_over: false,
        }
    }

    /// The next member, whatever is left of the one before; `None` behind the last.
    pub fn next_member(&mut self) -> io::Result<Option<Member>> {
        self.skip_rest()?;
        let mut described = Described::default();
        for _ in 0..=MAX_DESCRIPTIONS {
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = header.entry_size().map_err(|_| damaged("a size that is none"))?;
            match header.as_old().linkflag[0] {
                b'x' => described.records = records(&self.small(size)?)?,
                // Of the whole archive: git and others say where it comes from.
                b'g' => drop(self.small(size)?),
                b'L' => described.path = Some(cut_at_zero(self.small(size)?)),
                b'K' => described.link = Some(cut_at_zero(self.small(size)?)),
                _ => return self.member(&header, size, described).map(Some),
            }
        }
        Err(damaged("descriptions without a member"))
    }

    /// Reads the rest behind the last member, which is zeros and no more than some.
    pub fn finish(&mut self) -> io::Result<()> {
        if !self.is_over {
            return Err(damaged("it ends early"));
        }
        let mut tail = (&mut self.input).take(MAX_TAIL_BYTES);
        let mut block = [0; BLOCK_BYTES];
        loop {
            match tail.read(&mut block)? {
                0 if tail.limit() == 0 => return Err(damaged("something follows its end")),
                0 => return Ok(()),
                read if block[..read].iter().any(|byte| *byte != 0) => {
                    return Err(damaged("something follows its end"));
                }
                _ => {}
            }
        }
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        let rest = self.left + self.padding as u64;
        let skipped = io::copy(&mut (&mut self.input).take(rest), &mut io::sink())?;
        if skipped < rest {
            return Err(damaged("it is cut short"));
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// The next header; `None` at the blocks of zeros that end an archive.
    fn header(&mut self) -> io::Result<Option<Header>> {
        if self.is_over {
            return Ok(None);
        }
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        self.input.read_exact(block).map_err(cut_short)?;
        if block.iter().all(|byte| *byte == 0) {
            self.is_over = true;
            return Ok(None);
        }
        let sum: u32 = block[..148]
            .iter()
            .chain(&block[156..])
            .map(|byte| u32::from(*byte))
            .sum();
        if header.cksum().ok() != Some(sum + 8 * u32::from(b' ')) {
            return Err(damaged("a header whose sum is wrong"));
        }
        Ok(Some(header))
    }

    /// The contents of a description.
    fn small(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_RECORDS_BYTES as u64 {
            return Err(damaged("a description that is longer than any"));
        }
        let mut bytes = vec![0; size as usize + padding(size)];
        self.input.read_exact(&mut bytes).map_err(cut_short)?;
        bytes.truncate(size as usize);
        Ok(bytes)
    }

    fn member(&mut self, header: &Header, size: u64, described: Described) -> io::Result<Member> {
        let number = |value: io::Result<u64>| {
            let value = value.ok().and_then(|value| u32::try_from(value).ok());
            value.ok_or_else(|| damaged("a number that is none"))
        };
        let kind = match header.as_old().linkflag[0] {
            b'0' | 0 => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::SymbolicLink,
            b'3' => Kind::CharacterDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let shown = char::from(other).escape_default().to_string();
                return Err(damaged(&format!(
                    "a member of type {shown}, which is not known here"
                )));
            }
        };
        let is_device = matches!(kind, Kind::CharacterDevice | Kind::BlockDevice);
        let device_number = |value: io::Result<Option<u32>>| {
            let value = value.ok().flatten().filter(|_| is_device);
            if is_device && value.is_none() {
                return Err(damaged("a device without a number"));
            }
            Ok(value.unwrap_or_default())
        };
        let seconds = header.mtime().ok().and_then(|mtime| i64::try_from(mtime).ok());
        let mut member = Member {
            path: described.path.unwrap_or_else(|| header.path_bytes().into_owned()),
            kind,
            size,
            mode: number(header.mode().map(u64::from))? & 0o7777,
            uid: number(header.uid())?,
            gid: number(header.gid())?,
            modified: (seconds.unwrap_or(0), 0),
            accessed: None,
            link: described
                .link
                .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
                .unwrap_or_default(),
            device: (
                device_number(header.device_major())?,
                device_number(header.device_minor())?,
            ),
            attributes: Vec::new(),
            is_opaque: false,
        };
        for (key, value) in described.records {
            apply(&mut member, &key, value)?;
        }
        if kind != Kind::File && member.size != 0 {
            // Some write the size of a hard link's file; others would take what follows for contents.
            return Err(damaged("contents of something that has none"));
        }
        (self.left, self.padding) = (member.size, padding(member.size));
        Ok(member)
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let read = self.input.read(&mut buffer[..wanted])?;
        if read == 0 {
            return Err(damaged("it is cut short"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// Takes an extended record in, which counts more than the header.
fn apply(member: &mut Member, key: &[u8], value: Vec<u8>) -> io::Result<()> {
    let text = || String::from_utf8_lossy(&value).into_owned();
    let bad = || damaged(&format!("{} is {:?}", String::from_utf8_lossy(key), text()));
    match key {
        b"path" => member.path = value,
        b"linkpath" => member.link = value,
        b"size" => member.size = text().parse().map_err(|_| bad())?,
        b"uid" => member.uid = text().parse().map_err(|_| bad())?,
        b"gid" => member.gid = text().parse().map_err(|_| bad())?,
        b"mtime" => member.modified = time(&text()).ok_or_else(bad)?,
        b"atime" => member.accessed = Some(time(&text()).ok_or_else(bad)?),
        OPAQUE => member.is_opaque = true,
        _ if key.starts_with(ATTRIBUTE) => member.attributes.push((key[ATTRIBUTE.len()..].to_vec(), value)),
        // What the member would have to be read otherwise by.
        _ if key.starts_with(b"GNU.sparse.") => return Err(damaged("a sparse member")),
        _ => {}
    }
    Ok(())
}

/// Records are counted and not ended, so that a value may have any bytes.
fn records(mut bytes: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let bad = || damaged("an extended record that is none");
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let blank = bytes.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
        let length: usize = std::str::from_utf8(&bytes[..blank])
            .ok()
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(bad)?;
        let record = bytes.get(blank + 1..length).ok_or_else(bad)?;
        let (record, end) = record
            .split_at_checked(record.len().wrapping_sub(1))
            .ok_or_else(bad)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
        if end != b"\n" {
            return Err(bad());
        }
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        bytes = &bytes[length..];
    }
    Ok(records)
}

/// A decimal number of seconds.
fn time(text: &str) -> Option<Time> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let seconds: i64 = whole.parse().ok()?;
    if !is_digits(part) {
        return None;
    }
    let nanoseconds: u32 = format!("{part:0<9}").get(..9)?.parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

fn cut_at_zero(mut name: Vec<u8>) -> Vec<u8> {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    name.truncate(end);
    name
}

fn cut_short(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged("it is cut short"),
        _ => error,
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("not a tar archive as expected: {what}"),
    )
}
