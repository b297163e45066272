//! Writes an archive, member after member, and takes the sum of each on the way: nothing is read or written twice.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use godwit_runtime::tar::{self, Member};

use super::{layout, signature};
use crate::progress::Transfer;
use crate::tls::Identity;

/// An archive that is being written.
pub struct Writer<W: Write> {
    out: W,
    digests: BTreeMap<String, String>,
    transfer: Arc<Transfer>,
}

impl<W: Write> Writer<W> {
    /// Writes to `out` and counts in `transfer`.
    pub fn new(out: W, transfer: Arc<Transfer>) -> Self {
        Self {
            out,
            digests: BTreeMap::new(),
            transfer,
        }
    }

    /// A directory, for readers that make none by themselves.
    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        self.out.write_all(&tar::head(&Member::directory(name))?)
    }

    /// A member whose bytes are there.
    pub fn note(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.stream(name, bytes.len() as u64, |out| out.write_all(bytes))
    }

    /// A member of exactly `size` bytes, which `contents` writes.
    pub fn stream<E: From<io::Error>>(
        &mut self,
        name: &str,
        size: u64,
        contents: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<(), E> {
        self.out.write_all(&tar::head(&Member::file(name, size))?)?;
        let mut summed = Summed {
            out: &mut self.out,
            hasher: blake3::Hasher::new(),
            left: size,
            transfer: &self.transfer,
        };
        contents(&mut summed)?;
        if summed.left > 0 {
            let left = summed.left;
            return Err(io::Error::other(format!("{name} is {left} bytes shorter than it was to be")).into());
        }
        let digest = summed.hasher.finalize().to_hex().to_string();
        self.digests.insert(name.into(), digest);
        self.out.write_all(&tar::END[..tar::padding(size)])?;
        Ok(())
    }

    /// Writes the sums of all, the signature over them of whoever is to sign, and the end.
    pub fn finish(mut self, signer: Option<&Identity>) -> io::Result<W> {
        let digests = serde_json::to_vec(&self.digests)?;
        self.note(layout::DIGESTS, &digests)?;
        if let Some(identity) = signer {
            self.note(layout::SIGNATURE, &signature::sign(identity, &digests)?)?;
        }
        self.out.write_all(&tar::END)?;
        Ok(self.out)
    }
}

/// The contents of one member on their way.
struct Summed<'a, W> {
    out: &'a mut W,
    hasher: blake3::Hasher,
    left: u64,
    transfer: &'a Transfer,
}

impl<W: Write> Write for Summed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::Error::other("a member is longer than it was to be"));
        }
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.left -= written as u64;
        self.transfer.add(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
