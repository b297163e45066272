//! How an archive is packed: by what was asked for when it is written, by its first bytes when it is read.

use std::fmt;
use std::io::{self, BufReader, Chain, Cursor, Read, Write};
use std::str::FromStr;

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The container stands still meanwhile, so both are at their quickest.
const ZSTD_LEVEL: i32 = 1;
const GZIP_LEVEL: flate2::Compression = flate2::Compression::fast();

/// What a zstd stream may make its reader keep, as a power of two: 32 MiB, four times what podman's packer asks for.
const ZSTD_WINDOW_LOG: u32 = 25;

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Bytes unpacked at a time.
const BLOCK_BYTES: usize = 256 * 1024;

/// How an archive is packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// By zstd.
    #[default]
    Zstd,
    /// By gzip, for whoever reads nothing else.
    Gzip,
    /// Not at all.
    None,
}

impl Compression {
    const ALL: [Self; 3] = [Self::Zstd, Self::Gzip, Self::None];
}

impl fmt::Display for Compression {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::None => "none",
        })
    }
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|compression| compression.to_string() == text)
            .ok_or_else(|| "it is zstd, gzip or none".to_owned())
    }
}

/// What packs.
pub enum Packer<W: Write> {
    /// By zstd.
    Zstd(zstd::Encoder<'static, W>),
    /// By gzip.
    Gzip(GzEncoder<W>),
    /// Not at all.
    None(W),
}

impl<W: Write> Packer<W> {
    /// Packs into `out`.
    pub fn new(compression: Compression, out: W) -> io::Result<Self> {
        Ok(match compression {
            Compression::Zstd => {
                let mut encoder = zstd::Encoder::new(out, ZSTD_LEVEL)?;
                encoder.include_checksum(true)?;
                Self::Zstd(encoder)
            }
            Compression::Gzip => Self::Gzip(GzEncoder::new(out, GZIP_LEVEL)),
            Compression::None => Self::None(out),
        })
    }

    /// Ends the packed stream.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::Zstd(encoder) => encoder.finish(),
            Self::Gzip(encoder) => encoder.finish(),
            Self::None(out) => Ok(out),
        }
    }
}

impl<W: Write> Write for Packer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Zstd(encoder) => encoder.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::None(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Zstd(encoder) => encoder.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::None(out) => out.flush(),
        }
    }
}

/// Takes the sha256 of what goes through, if somebody wants it.
pub struct Summed<W: Write> {
    out: W,
    hasher: Option<Sha256>,
}

impl<W: Write> Summed<W> {
    /// Passes on to `out`.
    pub fn new(out: W, is_wanted: bool) -> Self {
        Self {
            out,
            hasher: is_wanted.then(Sha256::new),
        }
    }

    /// Where all of it went, and what it was: `sha256:…`, or nothing.
    pub fn finish(self) -> (W, String) {
        let digits = |hasher: Sha256| {
            hasher
                .finalize()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect()
        };
        let digest = self
            .hasher
            .map(digits)
            .map(|digits: String| format!("sha256:{digits}"));
        (self.out, digest.unwrap_or_default())
    }
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes[..written]);
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// What is in a stream, however it is packed. It tells nothing of what it has not read yet: it has no length.
pub fn unpack<'a, R: Read + 'a>(mut input: R) -> io::Result<Box<dyn Read + 'a>> {
    let mut first = [0; 4];
    let mut n_read = 0;
    while n_read < first.len() {
        match input.read(&mut first[n_read..])? {
            0 => break,
            read => n_read += read,
        }
    }
    let whole: Chain<Cursor<Vec<u8>>, R> = Cursor::new(first[..n_read].to_vec()).chain(input);
    if first[..n_read].starts_with(&ZSTD_MAGIC) {
        let mut decoder = zstd::Decoder::new(whole)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG)?;
        return Ok(Box::new(decoder));
    }
    if first[..n_read].starts_with(&GZIP_MAGIC) {
        return Ok(Box::new(MultiGzDecoder::new(BufReader::with_capacity(
            BLOCK_BYTES,
            whole,
        ))));
    }
    Ok(Box::new(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked_by_its_first_bytes() {
        let content = b"content ".repeat(50_000);
        for compression in Compression::ALL {
            let mut packer = Packer::new(compression, Vec::new()).unwrap();
            packer.write_all(&content).unwrap();
            let packed = packer.finish().unwrap();
            let mut unpacked = Vec::new();
            unpack(&packed[..]).unwrap().read_to_end(&mut unpacked).unwrap();
            assert!(unpacked == content, "{compression}");
            if compression != Compression::None {
                let cut = unpack(&packed[..packed.len() - 1])
                    .unwrap()
                    .read_to_end(&mut Vec::new());
                assert!(cut.is_err(), "{compression} cut short");
            }
        }
        assert_eq!("zstd".parse(), Ok(Compression::Zstd));
        assert!("xz".parse::<Compression>().is_err());
    }

    #[test]
    fn a_stream_that_wants_much_memory_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.write_all(&vec![7; 1 << 20]).unwrap();
        let packed = encoder.finish().unwrap();
        let outcome = unpack(&packed[..]).unwrap().read_to_end(&mut Vec::new());
        assert!(outcome.is_err());
    }
}
