//! A checkpoint image as a bulk stream, straight from one memory-backed directory into another.
//!
//! `[name length: u16][name][size: u64][bytes][blake3: 32 bytes]` for each file, then a zero name length and the number
//! of files as u32; all numbers big endian. An image is a flat directory of regular files; anything else in it is an
//! error. The receiver believes no name and no size, and a file counts only when its sum is right.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Bytes read at a time: one chunk of the link.
const BLOCK_BYTES: usize = crate::frame::CHUNK_BYTES;

/// Longest file name Linux has.
const MAX_NAME_BYTES: usize = 255;

/// Files in one image at most: CRIU writes about ten, and some per task.
const MAX_FILES: u32 = 1_000_000;

const HASH_BYTES: usize = blake3::OUT_LEN;

/// Why an image cannot be sent or taken.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Something in the image directory is not a regular file.
    #[error("{0} in the checkpoint image is not a regular file")]
    NotAFile(String),
    /// The received stream is not an image.
    #[error("the checkpoint image is refused: {0}")]
    Refused(String),
    /// A file arrived changed.
    #[error("{0} of the checkpoint image arrived damaged: its sum is wrong")]
    Damaged(String),
    /// The system said so.
    #[error("checkpoint image, {doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// The system's word.
        source: io::Error,
    },
}

/// How much an image has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageSize {
    /// Files.
    pub files: u32,
    /// Bytes in them.
    pub bytes: u64,
}

/// The size of the image at `directory`.
pub fn measure(directory: &Path) -> Result<ImageSize, ImageError> {
    let mut size = ImageSize::default();
    for entry in fs::read_dir(directory).map_err(io_error("listing it"))? {
        let metadata = entry
            .and_then(|entry| entry.metadata())
            .map_err(io_error("listing it"))?;
        size.files += 1;
        size.bytes += metadata.len();
    }
    Ok(size)
}

/// Writes the image at `directory`. Blocks.
pub fn send(directory: &Path, out: &mut dyn Write) -> Result<ImageSize, ImageError> {
    let mut size = ImageSize::default();
    for entry in fs::read_dir(directory).map_err(io_error("listing it"))? {
        let entry = entry.map_err(io_error("listing it"))?;
        let name = entry.file_name();
        let shown = name.to_string_lossy().into_owned();
        if !entry.file_type().map_err(io_error(&shown))?.is_file() {
            return Err(ImageError::NotAFile(shown));
        }
        size.bytes += send_file(&entry.path(), name.as_bytes(), out).map_err(io_error(&shown))?;
        size.files += 1;
    }
    out.write_all(&0u16.to_be_bytes())
        .and_then(|()| out.write_all(&size.files.to_be_bytes()))
        .map_err(io_error("sending its end"))?;
    Ok(size)
}

fn send_file(path: &Path, name: &[u8], out: &mut dyn Write) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let name_length = u16::try_from(name.len()).map_err(io::Error::other)?;
    out.write_all(&name_length.to_be_bytes())?;
    out.write_all(name)?;
    out.write_all(&size.to_be_bytes())?;
    let hash = copy_hashed(&mut file, out, size)?;
    out.write_all(&hash)?;
    Ok(size)
}

/// Reads an image into `directory`, which is empty; refuses more than `room` bytes. Blocks.
///
/// On error what was written is left for the caller to remove with the directory.
pub fn receive(directory: &Path, room: u64, input: &mut dyn Read) -> Result<ImageSize, ImageError> {
    // The fields of the format are small, and reading each from the link's chunks costs a lock.
    let mut input = BufReader::with_capacity(BLOCK_BYTES, input);
    let mut size = ImageSize::default();
    loop {
        let name_length = usize::from(u16::from_be_bytes(read_array(&mut input)?));
        if name_length == 0 {
            break;
        }
        if name_length > MAX_NAME_BYTES || size.files == MAX_FILES {
            return Err(ImageError::Refused(
                "a name is too long, or there are too many files".into(),
            ));
        }
        let mut name = vec![0; name_length];
        input.read_exact(&mut name).map_err(io_error("receiving"))?;
        if name == b"." || name == b".." || name.iter().any(|byte| matches!(byte, b'/' | 0)) {
            let shown = String::from_utf8_lossy(&name);
            return Err(ImageError::Refused(format!("{shown:?} is no file name")));
        }
        let name = std::ffi::OsString::from_vec(name);
        let shown = name.to_string_lossy().into_owned();
        let bytes = u64::from_be_bytes(read_array(&mut input)?);
        if bytes > room.saturating_sub(size.bytes) {
            return Err(ImageError::Refused(format!(
                "{shown} does not fit into the {room} bytes that are free"
            )));
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(directory.join(&name))
            .map_err(io_error(&shown))?;
        let hash = copy_hashed(&mut input, &mut file, bytes).map_err(io_error(&shown))?;
        if hash != read_array::<HASH_BYTES>(&mut input)? {
            return Err(ImageError::Damaged(shown));
        }
        size.files += 1;
        size.bytes += bytes;
    }
    if u32::from_be_bytes(read_array(&mut input)?) != size.files {
        return Err(ImageError::Refused("files are missing".into()));
    }
    if input.read(&mut [0]).map_err(io_error("receiving"))? != 0 {
        return Err(ImageError::Refused("there is something behind its end".into()));
    }
    Ok(size)
}

fn copy_hashed(from: &mut dyn Read, to: &mut dyn Write, size: u64) -> io::Result<[u8; HASH_BYTES]> {
    let mut hasher = blake3::Hasher::new();
    let mut block = vec![0; BLOCK_BYTES];
    let mut left = size;
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(BLOCK_BYTES);
        let read = from.read(&mut block[..wanted])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(&block[..read]);
        to.write_all(&block[..read])?;
        left -= read as u64;
    }
    Ok(*hasher.finalize().as_bytes())
}

fn read_array<const N: usize>(input: &mut dyn Read) -> Result<[u8; N], ImageError> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes).map_err(io_error("receiving"))?;
    Ok(bytes)
}

fn io_error(doing: &str) -> impl FnOnce(io::Error) -> ImageError {
    let doing = doing.to_owned();
    move |source| ImageError::Io { doing, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: u64 = 1 << 30;

    fn image() -> (tempfile::TempDir, Vec<u8>) {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("pages-1.img"), vec![7; BLOCK_BYTES + 3]).unwrap();
        fs::write(directory.path().join("core-1.img"), b"core").unwrap();
        fs::write(directory.path().join("empty"), b"").unwrap();
        let mut stream = Vec::new();
        let size = send(directory.path(), &mut stream).unwrap();
        assert_eq!(size, measure(directory.path()).unwrap());
        (directory, stream)
    }

    fn take(stream: &[u8]) -> (tempfile::TempDir, Result<ImageSize, ImageError>) {
        let directory = tempfile::tempdir().unwrap();
        let outcome = receive(directory.path(), ROOM, &mut &stream[..]);
        (directory, outcome)
    }

    fn entry(name: &[u8], content: &[u8]) -> Vec<u8> {
        let mut bytes = (name.len() as u16).to_be_bytes().to_vec();
        bytes.extend(name);
        bytes.extend((content.len() as u64).to_be_bytes());
        bytes.extend(content);
        bytes.extend(blake3::hash(content).as_bytes());
        bytes
    }

    #[test]
    fn an_image_arrives_as_it_was() {
        let (from, stream) = image();
        let (to, outcome) = take(&stream);
        assert_eq!(outcome.unwrap().files, 3);
        for name in ["pages-1.img", "core-1.img", "empty"] {
            assert_eq!(
                fs::read(from.path().join(name)).unwrap(),
                fs::read(to.path().join(name)).unwrap()
            );
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a"), b"content").unwrap();
        let mut stream = Vec::new();
        send(directory.path(), &mut stream).unwrap();
        // The name of a file is bound to its content by nobody but the order of the stream, so begin behind it.
        for index in 3..stream.len() {
            let mut damaged = stream.clone();
            damaged[index] ^= 1;
            assert!(take(&damaged).1.is_err(), "byte {index}");
        }
    }

    #[test]
    fn an_image_cut_anywhere_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a"), b"content").unwrap();
        let mut stream = Vec::new();
        send(directory.path(), &mut stream).unwrap();
        for length in 0..stream.len() {
            assert!(take(&stream[..length]).1.is_err(), "length {length}");
        }
        stream.push(0);
        assert!(take(&stream).1.is_err(), "something behind the end");
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for name in [&b".."[..], b".", b"a/b", b"/etc/passwd", b"a\0b"] {
            let outcome = take(&entry(name, b"x")).1;
            assert!(matches!(outcome, Err(ImageError::Refused(_))), "{name:?}");
        }
        let mut twice = entry(b"a", b"x");
        twice.extend(entry(b"a", b"y"));
        assert!(matches!(take(&twice).1, Err(ImageError::Io { .. })));
    }

    #[test]
    fn an_image_that_does_not_fit_is_refused_before_it_is_written() {
        let mut stream = entry(b"a", b"x");
        stream[3..11].copy_from_slice(&u64::MAX.to_be_bytes());
        let (directory, outcome) = take(&stream);
        assert!(matches!(outcome, Err(ImageError::Refused(_))));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_in_an_image_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("d")).unwrap();
        assert!(matches!(
            send(directory.path(), &mut Vec::new()),
            Err(ImageError::NotAFile(_))
        ));
    }
}
