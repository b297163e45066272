//! The certificates of `godwit ca`: one authority that the operator owns, and one certificate per host.
//!
//! The authority's key stays in its directory, readable by its owner only; a host gets `host.pem`, `host.key` and a
//! copy of `ca.pem`. Nothing is revoked here: a host is shut out by taking it from the peers' configuration. An
//! authority is never overwritten, a host's certificate is renewed in place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};
use rustls::pki_types::DnsName;

use crate::tls::{CA_CERTIFICATE, HOST_CERTIFICATE, HOST_KEY, Identity, TlsError};

/// The authority's key, beside `ca.pem` in the authority's directory only.
const CA_KEY: &str = "ca.key";

const DAY: Duration = Duration::from_secs(24 * 3600);
/// A host's certificate outlives no hardware warranty; renewing it is one command.
const HOST_VALIDITY: Duration = Duration::from_secs(825 * 24 * 3600);
/// Replacing the authority means touching every host at once.
const CA_VALIDITY: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Hosts' clocks differ; a certificate is valid a little before it was made.
const CLOCK_TOLERANCE: Duration = DAY;

/// Why certificates could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// There is an authority already.
    #[error("{} exists already; issuing from a new authority would shut out every host of the old one", .0.display())]
    Exists(PathBuf),
    /// There is none.
    #[error("the authority's {} cannot be read: {source}; {}", path.display(), remedy(source))]
    NoAuthority {
        /// The file looked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A name that cannot stand in a certificate.
    #[error("{0:?} is neither a host name nor an address")]
    BadName(String),
    /// The authority's key is no key.
    #[error("{}: {reason}", path.display())]
    BadKey {
        /// The file.
        path: PathBuf,
        /// What the cryptography said.
        reason: rcgen::Error,
    },
    /// The cryptography refused.
    #[error("cannot make a certificate for {host}: {reason}")]
    Refused {
        /// For whom.
        host: String,
        /// What the cryptography said.
        reason: rcgen::Error,
    },
    /// What was issued does not work, for instance because `ca.pem` and `ca.key` belong to different authorities.
    #[error("the certificate issued to {host} is of no use: {source}")]
    Useless {
        /// For whom.
        host: String,
        /// What is wrong with it.
        source: TlsError,
    },
}

/// Makes an authority in `dir`: `ca.pem` and `ca.key`. Refuses where either exists.
pub fn init(dir: &Path) -> Result<(), CaError> {
    let certificate_path = dir.join(CA_CERTIFICATE);
    let key_path = dir.join(CA_KEY);
    if let Some(existing) = [&certificate_path, &key_path]
        .into_iter()
        .find(|path| path.exists())
    {
        return Err(CaError::Exists(existing.clone()));
    }
    let refused = |reason| CaError::Refused {
        host: "the authority".into(),
        reason,
    };
    let key = KeyPair::generate().map_err(refused)?;
    let certificate = authority(&key).self_signed(&key).map_err(refused)?;

    make_directory(dir)?;
    write(&key_path, &key.serialize_pem(), 0o600)?;
    write(&certificate_path, &certificate.pem(), 0o644)
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "only who has made it may",
        _ => "make one by `godwit ca init`",
    }
}

/// Issues a certificate for `host`, reached by its name or any of `addresses`, from the authority in `dir`: writes
/// `host.pem`, `host.key` and `ca.pem` into `out`, in place of those that are there.
pub fn issue(dir: &Path, host: &str, addresses: &[String], out: &Path) -> Result<(), CaError> {
    let key_path = dir.join(CA_KEY);
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|source| CaError::NoAuthority {
            path: path.to_owned(),
            source,
        })
    };
    let authority_pem = read(&dir.join(CA_CERTIFICATE))?;
    let authority_key = KeyPair::from_pem(&read(&key_path)?).map_err(|reason| CaError::BadKey {
        path: key_path,
        reason,
    })?;

    let expiry = SystemTime::now() + HOST_VALIDITY;
    let (certificate, key) = sign(&authority_key, host, addresses, expiry)?;
    make_directory(out)?;
    write(&out.join(HOST_KEY), &key.serialize_pem(), 0o600)?;
    write(&out.join(HOST_CERTIFICATE), &certificate.pem(), 0o644)?;
    write(&out.join(CA_CERTIFICATE), &authority_pem, 0o644)?;

    let useless = |source| CaError::Useless {
        host: host.to_owned(),
        source,
    };
    Identity::load(out)
        .map_err(useless)?
        .check_name(host)
        .map_err(useless)
}

/// A host's certificate for both ends of a connection, and its key.
fn sign(
    authority_key: &KeyPair,
    host: &str,
    addresses: &[String],
    expiry: SystemTime,
) -> Result<(Certificate, KeyPair), CaError> {
    if DnsName::try_from(host).is_err() {
        return Err(CaError::BadName(host.to_owned()));
    }
    let names: Vec<String> = std::iter::once(host.to_owned())
        .chain(addresses.iter().cloned())
        .collect();
    let is_name = |name: &&String| {
        name.parse::<std::net::IpAddr>().is_err() && DnsName::try_from(name.as_str()).is_err()
    };
    if let Some(bad) = names.iter().find(is_name) {
        return Err(CaError::BadName(bad.clone()));
    }

    let refused = |reason| CaError::Refused {
        host: host.to_owned(),
        reason,
    };
    let mut params = CertificateParams::new(names).map_err(refused)?;
    params.distinguished_name.push(DnType::CommonName, host);
    params.not_before = (SystemTime::now() - CLOCK_TOLERANCE).into();
    params.not_after = expiry.into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;

    let key = KeyPair::generate().map_err(refused)?;
    let issuer = Issuer::new(authority(authority_key), authority_key);
    let certificate = params.signed_by(&key, &issuer).map_err(refused)?;
    Ok((certificate, key))
}

/// The authority as a certificate's issuer: all of it follows from the key. Its name carries a digest of the key, so
/// that two authorities are told apart by name as well.
fn authority(key: &KeyPair) -> CertificateParams {
    let digest = blake3::hash(&key.subject_public_key_info()).to_hex();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Godwit authority {}", &digest[..8]));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (SystemTime::now() - CLOCK_TOLERANCE).into();
    params.not_after = (SystemTime::now() + CA_VALIDITY).into();
    params
}

fn make_directory(dir: &Path) -> Result<(), CaError> {
    let made = fs::create_dir_all(dir);
    made.map_err(|source| CaError::Unwritable {
        path: dir.to_owned(),
        source,
    })
}

/// Writes a file whole under another name, then gives it its own: a renewal that is cut short leaves the old one.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), CaError> {
    let temporary = path.with_extension("new");
    let written = (|| {
        let mut file: File = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        // The mode above counts only for a file that is made, and is cut by the umask.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    written.map_err(|source| CaError::Unwritable {
        path: path.to_owned(),
        source,
    })
}

/// For tests of what happens when time has passed: like [`issue`], with an expiry of one's own.
#[cfg(test)]
pub(crate) fn issue_until(dir: &Path, host: &str, out: &Path, expiry: SystemTime) {
    let authority_key = KeyPair::from_pem(&fs::read_to_string(dir.join(CA_KEY)).unwrap()).unwrap();
    let (certificate, key) = sign(&authority_key, host, &[], expiry).unwrap();
    make_directory(out).unwrap();
    write(&out.join(HOST_KEY), &key.serialize_pem(), 0o600).unwrap();
    write(&out.join(HOST_CERTIFICATE), &certificate.pem(), 0o644).unwrap();
    fs::copy(dir.join(CA_CERTIFICATE), out.join(CA_CERTIFICATE)).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path()).unwrap();
        let before = fs::read(dir.path().join(CA_KEY)).unwrap();
        assert!(matches!(init(dir.path()), Err(CaError::Exists(_))));
        fs::remove_file(dir.path().join(CA_CERTIFICATE)).unwrap();
        assert!(matches!(init(dir.path()), Err(CaError::Exists(_))));
        assert_eq!(fs::read(dir.path().join(CA_KEY)).unwrap(), before);
    }

    #[test]
    fn keys_are_their_owners_only() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("ha");
        init(dir.path()).unwrap();
        issue(dir.path(), "ha", &["10.77.0.11".into()], &out).unwrap();
        for key in [dir.path().join(CA_KEY), out.join(HOST_KEY)] {
            assert_eq!(
                fs::metadata(&key).unwrap().permissions().mode() & 0o777,
                0o600,
                "{}",
                key.display()
            );
        }
    }

    #[test]
    fn a_host_is_issued_again_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("ha");
        init(dir.path()).unwrap();
        issue(dir.path(), "ha", &[], &out).unwrap();
        let before = fs::read(out.join(HOST_CERTIFICATE)).unwrap();
        issue(dir.path(), "ha", &[], &out).unwrap();
        assert_ne!(fs::read(out.join(HOST_CERTIFICATE)).unwrap(), before);
    }

    #[test]
    fn a_certificate_of_one_authority_with_the_key_of_another_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        init(&one).unwrap();
        init(&other).unwrap();
        fs::copy(one.join(CA_CERTIFICATE), other.join(CA_CERTIFICATE)).unwrap();
        let error = issue(&other, "ha", &[], &dir.path().join("ha")).unwrap_err();
        assert!(matches!(error, CaError::Useless { .. }), "{error}");
    }

    #[test]
    fn names_that_are_no_host_names_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path()).unwrap();
        for (host, addresses) in [
            ("h a", vec![]),
            ("", vec![]),
            ("ha", vec!["no address".to_owned()]),
        ] {
            let error = issue(dir.path(), host, &addresses, &dir.path().join("out")).unwrap_err();
            assert!(matches!(error, CaError::BadName(_)), "{error}");
        }
    }

    #[test]
    fn without_an_authority_the_remedy_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = issue(dir.path(), "ha", &[], &dir.path().join("out"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("godwit ca init"), "{error}");
    }
}
