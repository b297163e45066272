//! The form of CRIU's image files: `[magic: u32][magic: u32]` and then `[length: u32][protobuf]` for each entry, little endian
//! (criu/include/magic.h, criu/include/protobuf.h).
//!
//! Which fields of an entry matter is for the reader of each file to know. An image may come from another host: nothing is
//! allocated by a length alone, and no message is followed into another but by its reader.

use std::fs;
use std::io;
use std::path::Path;

use protobuf::CodedInputStream;

/// What an image begins with.
pub(crate) const MAGIC_BYTES: usize = 8;

/// Images of metadata are some hundred kilobytes; one for each of 16 million scattered pages would have this.
pub const LIMIT_BYTES: u64 = 256 << 20;

/// A field's value.
pub enum Field {
    /// A number; a signed one as protobuf writes it, and an enumeration's value.
    Number(u64),
    /// A message, a text or bytes.
    Message(Vec<u8>),
}

/// Calls `each` with every entry of an image.
pub fn entries(path: &Path, each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    if fs::metadata(path).map_err(named)?.len() > LIMIT_BYTES {
        return Err(named(damaged("larger than any")));
    }
    let bytes = fs::read(path).map_err(named)?;
    entries_in(&bytes, each).map_err(named)
}

/// The same with an image that has been read.
pub fn entries_in(bytes: &[u8], mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut rest = bytes.get(MAGIC_BYTES..).ok_or_else(|| damaged("cut short"))?;
    while !rest.is_empty() {
        let (length, behind) = rest
            .split_first_chunk::<4>()
            .ok_or_else(|| damaged("cut short"))?;
        let length = u32::from_le_bytes(*length) as usize;
        each(behind.get(..length).ok_or_else(|| damaged("cut short"))?)?;
        rest = &behind[length..];
    }
    Ok(())
}

/// Calls `each` with every number and message of a protobuf message, and passes over all else.
pub fn fields(message: &[u8], mut each: impl FnMut(u32, Field)) -> io::Result<()> {
    let mut input = CodedInputStream::from_bytes(message);
    let broken = |error: protobuf::Error| damaged(&error.to_string());
    while let Some(tag) = input.read_raw_tag_or_eof().map_err(broken)? {
        let number = tag >> 3;
        match tag & 7 {
            0 => each(number, Field::Number(input.read_uint64().map_err(broken)?)),
            1 => input.skip_raw_bytes(8).map_err(broken)?,
            2 => each(number, Field::Message(input.read_bytes().map_err(broken)?)),
            5 => input.skip_raw_bytes(4).map_err(broken)?,
            _ => return Err(damaged("a field of an unknown type")),
        }
    }
    Ok(())
}

/// That a file is not what it is said to be.
pub fn damaged(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("not an image of CRIU's: {what}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(bytes: &[u8]) -> io::Result<Vec<usize>> {
        let mut lengths = Vec::new();
        entries_in(bytes, |entry| {
            lengths.push(entry.len());
            Ok(())
        })?;
        Ok(lengths)
    }

    #[test]
    fn an_entry_that_is_longer_than_its_file_is_damage() {
        let mut bytes = vec![0; MAGIC_BYTES];
        assert!(lengths(&bytes).unwrap().is_empty());
        bytes.extend([2, 0, 0, 0, 7, 7, 0, 0, 0, 0]);
        assert_eq!(lengths(&bytes).unwrap(), [2, 0]);
        bytes.extend(u32::MAX.to_le_bytes());
        assert!(lengths(&bytes).is_err());
        assert!(lengths(&bytes[..MAGIC_BYTES - 1]).is_err());
    }

    #[test]
    fn a_field_that_is_longer_than_its_message_is_damage() {
        let mut numbers = Vec::new();
        let mut read = |message: &[u8]| fields(message, |number, _| numbers.push(number));
        // a text of a number of bytes that nobody has
        assert!(read(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x07, 1]).is_err());
        assert!(read(&[0x0b]).is_err(), "a group");
        read(&[0x08, 1, 0x12, 1, 7, 0x1d, 0, 0, 0, 0]).unwrap();
        assert_eq!(numbers, [1, 2]);
    }
}
