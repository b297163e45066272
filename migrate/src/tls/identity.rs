//! Who this host is: the three files of its TLS directory, checked when they are loaded so that a mistake shows when
//! the agent starts and not in the middle of a handshake.
//!
//! It also decides who is let in: `Guest` accepts a client's certificate only if it names a configured peer.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};

use super::TlsError;
use crate::config::Peer;

/// The authority's certificate.
pub const CA_CERTIFICATE: &str = "ca.pem";
/// This host's certificate, and intermediate ones if any.
pub const HOST_CERTIFICATE: &str = "host.pem";
/// This host's key.
pub const HOST_KEY: &str = "host.key";

const DAY_SECONDS: u64 = 24 * 3600;

/// A host's certificate, key and authority, checked.
#[derive(Clone, Debug)]
pub struct Identity {
    pub(super) authority_path: PathBuf,
    pub(super) certificate_path: PathBuf,
    pub(super) certificate: CertificateDer<'static>,
    pub(super) intermediates: Vec<CertificateDer<'static>>,
    pub(super) client: Arc<ClientConfig>,
    /// Lacks the verifier, which knows the peers and differs per connection.
    pub(super) server: ServerParts,
}

#[derive(Clone, Debug)]
pub(super) struct ServerParts {
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    pub(super) key: Arc<rustls::sign::CertifiedKey>,
}

impl Identity {
    /// Loads `ca.pem`, `host.pem` and `host.key` from `dir`: the key must be its owner's only and the certificate's,
    /// the certificate must be valid now, for both ends of a connection, and of the authority.
    pub fn load(dir: &Path) -> Result<Identity, TlsError> {
        let authority_path = dir.join(CA_CERTIFICATE);
        let certificate_path = dir.join(HOST_CERTIFICATE);
        let key_path = dir.join(HOST_KEY);

        let mut roots = RootCertStore::empty();
        for authority in read_certificates(&authority_path)? {
            roots
                .add(authority)
                .map_err(|error| malformed(&authority_path, &error))?;
        }
        let roots = Arc::new(roots);
        let chain = read_certificates(&certificate_path)?;
        let key = read_key(&key_path)?;

        let provider = Arc::new(provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| malformed(&authority_path, &error))?;
        check_chain(&chain, &roots, &provider, &*verifier)
            .map_err(|error| unusable(&certificate_path, &authority_path, error))?;

        let certified = rustls::sign::CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider)
            .map_err(|error| unusable_key(&key_path, &certificate_path, error))?;
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| malformed(&key_path, &error))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain.clone(), key)
            .map_err(|error| unusable_key(&key_path, &certificate_path, error))?;
        client.resumption = Resumption::disabled();

        Ok(Identity {
            authority_path,
            certificate_path,
            certificate: chain[0].clone(),
            intermediates: chain[1..].to_vec(),
            client: Arc::new(client),
            server: ServerParts {
                provider,
                verifier,
                key: Arc::new(certified),
            },
        })
    }

    /// Whether the certificate is host `name`'s: otherwise no peer would accept it.
    pub fn check_name(&self, name: &str) -> Result<(), TlsError> {
        match carries_name(&self.certificate, name) {
            Ok(()) => Ok(()),
            Err(presented) => Err(TlsError::OtherName {
                path: self.certificate_path.clone(),
                name: name.to_owned(),
                presented: presented.join(", "),
            }),
        }
    }

    /// For how many days from now the certificate is valid, counted to `most`.
    pub fn days_left(&self, most: u64) -> u64 {
        let now = UnixTime::now().as_secs();
        let valid_on = |day: u64| {
            let then = UnixTime::since_unix_epoch(Duration::from_secs(now + day * DAY_SECONDS));
            let verifier = &self.server.verifier;
            verifier
                .verify_client_cert(&self.certificate, &self.intermediates, then)
                .is_ok()
        };
        // Nothing here reads a certificate's dates; whether it would be accepted on a day can be asked.
        let (mut valid, mut invalid) = (0, most + 1);
        while invalid - valid > 1 {
            let day = valid.midpoint(invalid);
            if valid_on(day) {
                valid = day;
            } else {
                invalid = day;
            }
        }
        valid
    }

    /// How to serve one connection, and where it will stand whom it let in.
    pub(super) fn server_config(&self, peers: &BTreeMap<String, Peer>) -> (Arc<ServerConfig>, Arc<Guest>) {
        let guest = Arc::new(Guest {
            peers: peers.keys().cloned().collect(),
            chain: self.server.verifier.clone(),
            verdict: OnceLock::new(),
        });
        let mut config = ServerConfig::builder_with_provider(self.server.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the same provider has served the client's configuration")
            .with_client_cert_verifier(guest.clone())
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
                self.server.key.clone(),
            )));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        (Arc::new(config), guest)
    }
}

/// Decides about the client of one connection and remembers who it is.
#[derive(Debug)]
pub(super) struct Guest {
    peers: Vec<String>,
    /// Checks everything but the name.
    chain: Arc<dyn ClientCertVerifier>,
    verdict: OnceLock<Result<String, Vec<String>>>,
}

impl Guest {
    /// The peer's name, or the names in a certificate that is nobody's; `None` if it did not come so far.
    pub(super) fn verdict(&self) -> Option<&Result<String, Vec<String>>> {
        self.verdict.get()
    }

    fn recognize(&self, certificate: &CertificateDer<'_>) -> Result<String, Vec<String>> {
        let mut presented = Vec::new();
        for peer in &self.peers {
            match carries_name(certificate, peer) {
                Ok(()) => return Ok(peer.clone()),
                Err(names) => presented = names,
            }
        }
        Err(presented)
    }
}

impl ClientCertVerifier for Guest {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(certificate, intermediates, now)?;
        match self.verdict.get_or_init(|| self.recognize(certificate)) {
            Ok(_) => Ok(verified),
            // The client sees `access_denied`, which no other failure here causes.
            Err(_) => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// AES-GCM only, the shorter key first: memory images are large, and every host that runs containers has AES in
/// hardware.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        ],
        ..aws_lc_rs::default_provider()
    }
}

/// Checks the host's own certificate as either end of a connection would.
fn check_chain(
    chain: &[CertificateDer<'static>],
    roots: &RootCertStore,
    provider: &CryptoProvider,
    client_side: &dyn ClientCertVerifier,
) -> Result<(), rustls::Error> {
    let (certificate, intermediates) = chain.split_first().ok_or(CertificateError::BadEncoding)?;
    let now = UnixTime::now();
    client_side.verify_client_cert(certificate, intermediates, now)?;
    let parsed = ParsedCertificate::try_from(certificate)?;
    let algorithms = provider.signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)
}

/// Whether a certificate carries a DNS name; if not, those it does carry.
pub(super) fn carries_name(certificate: &CertificateDer<'_>, name: &str) -> Result<(), Vec<String>> {
    let checked = ServerName::try_from(name)
        .map_err(|_| rustls::Error::from(CertificateError::NotValidForName))
        .and_then(|name| verify_server_name(&ParsedCertificate::try_from(certificate)?, &name));
    match checked {
        Ok(()) => Ok(()),
        Err(rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext {
            presented,
            ..
        })) => Err(presented),
        Err(_) => Err(Vec::new()),
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| malformed(path, &error))?;
    if certificates.is_empty() {
        return Err(malformed(path, &"there is no certificate in it"));
    }
    Ok(certificates)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = read(path)?;
    let mode = fs::metadata(path)
        .map_err(|error| unreadable(path, error))?
        .permissions()
        .mode()
        & 0o777;
    if mode & 0o077 != 0 {
        return Err(TlsError::OpenKey {
            path: path.to_owned(),
            mode,
        });
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| malformed(path, &error))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let metadata = fs::metadata(path).map_err(|error| unreadable(path, error))?;
    if !metadata.is_file() {
        return Err(TlsError::NotAFile {
            path: path.to_owned(),
        });
    }
    fs::read(path).map_err(|error| unreadable(path, error))
}

fn unreadable(path: &Path, source: io::Error) -> TlsError {
    let path = path.to_owned();
    if source.kind() == io::ErrorKind::NotFound {
        TlsError::Missing { path }
    } else {
        TlsError::Unreadable { path, source }
    }
}

fn malformed(path: &Path, reason: &impl ToString) -> TlsError {
    TlsError::Malformed {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

fn unusable_key(key: &Path, certificate: &Path, error: rustls::Error) -> TlsError {
    match error {
        rustls::Error::InconsistentKeys(_) => TlsError::OtherKey {
            path: key.to_owned(),
            certificate: certificate.to_owned(),
        },
        other => malformed(key, &other),
    }
}

pub(super) fn unusable(path: &Path, authority: &Path, error: rustls::Error) -> TlsError {
    let path = path.to_owned();
    let rustls::Error::InvalidCertificate(reason) = error else {
        return malformed(&path, &error);
    };
    match reason {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => TlsError::Expired { path },
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            TlsError::NotYetValid { path }
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => TlsError::OtherAuthority {
            path,
            authority: authority.to_owned(),
        },
        other => malformed(&path, &other),
    }
}
