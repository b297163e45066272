//! Who made an archive: the signature of a host over the sums of its members, in a member of its own behind them.
//!
//! It is PEM, so that `openssl` alone can check it: the host's certificates, its own first, then the signature. Whoever it is of must
//! be the host that the manifest, which has a sum as well, names. Nothing else is said by it: neither that the container does no
//! harm, nor that the archive is the newest of its container.

use std::io;

use pem::{EncodeConfig, LineEnding, Pem};
use rustls::pki_types::{CertificateDer, UnixTime};

use super::{ArchiveError, layout};
use crate::tls::{Identity, SignatureError};

/// What is signed begins so: a handshake of TLS, which the host's key signs too, can never be taken for an archive's sums, nor these
/// for a handshake.
const CONTEXT: &[u8] = b"godwit archive signature 1\n";

/// The labels of the parts.
const CERTIFICATE: &str = "CERTIFICATE";
const SIGNATURE: &str = "GODWIT ARCHIVE SIGNATURE";

/// A signature, of whomever.
#[derive(Debug)]
pub struct Signature {
    certificates: Vec<CertificateDer<'static>>,
    signature: Vec<u8>,
}

/// The member by which this host signs `digests`, the bytes of the sums' member.
pub fn sign(identity: &Identity, digests: &[u8]) -> io::Result<Vec<u8>> {
    let signature = identity.sign(&signed(digests)).map_err(io::Error::other)?;
    let certificates = identity.certificates();
    let mut parts: Vec<Pem> = certificates
        .map(|one| Pem::new(CERTIFICATE, one.to_vec()))
        .collect();
    parts.push(Pem::new(SIGNATURE, signature));
    let form = EncodeConfig::new().set_line_ending(LineEnding::LF);
    Ok(pem::encode_many_config(&parts, form).into_bytes())
}

impl Signature {
    /// What a member says.
    pub fn parse(member: &[u8]) -> Result<Self, ArchiveError> {
        let refused = |reason: &str| ArchiveError::Refused(format!("{}: {reason}", layout::SIGNATURE));
        let mut parts = pem::parse_many(member).map_err(|error| refused(&error.to_string()))?;
        let signature = match parts.pop() {
            Some(last) if last.tag() == SIGNATURE => last.into_contents(),
            _ => return Err(refused("there is no signature at its end")),
        };
        if parts.is_empty() || parts.iter().any(|part| part.tag() != CERTIFICATE) {
            return Err(refused("there are not certificates alone before its signature"));
        }
        let certificates = parts.into_iter().map(|part| part.into_contents().into());
        Ok(Self {
            certificates: certificates.collect(),
            signature,
        })
    }

    /// Whether `host`, of the authority of `identity`, has signed `digests`.
    pub fn check(&self, identity: &Identity, host: &str, digests: &[u8]) -> Result<(), SignatureError> {
        let (message, now) = (signed(digests), UnixTime::now());
        identity.check_signed(&self.certificates, host, now, &message, &self.signature)
    }
}

fn signed(digests: &[u8]) -> Vec<u8> {
    [CONTEXT, digests].concat()
}

#[cfg(test)]
#[path = "signature_tests.rs"]
mod tests;
