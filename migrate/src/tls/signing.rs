//! What a host signs to outlive a connection, and what is believed of another's signature.
//!
//! The key is that of the host's connections. So whoever signs by it begins what is signed with words of its own, with which no
//! handshake of TLS begins. What the words are, and what is done with what was signed, is not decided here.

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{CertificateError, SignatureScheme};

use super::TlsError;
use super::identity::{Identity, carries_name, unusable};

/// One for each sort of key, by its usual hash, in the form that `openssl dgst -verify` takes without being told.
const SCHEMES: [SignatureScheme; 5] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PKCS1_SHA256,
];

/// Why a signature is not believed, with what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The certificate is not of this host's authority.
    #[error(
        "it is signed with a certificate of another authority than this host's; \
         both hosts need certificates of the same `godwit ca`"
    )]
    OtherAuthority,
    /// The certificate's time is over.
    #[error(
        "the certificate that it is signed with has expired; see that this host's clock is right, or take the signature off"
    )]
    Expired,
    /// The certificate's time is still to come.
    #[error("the certificate that it is signed with is not valid yet; set this host's clock")]
    NotYetValid,
    /// Another host of the authority signed than the one that is named.
    #[error("it says that it is of {name}, and is signed with the certificate of: {presented}")]
    OtherHost {
        /// The host that is named.
        name: String,
        /// The names in the certificate.
        presented: String,
    },
    /// It was made by another key, or of something else.
    #[error("its signature is wrong: {name} has not signed this; get it anew from where it was made")]
    Wrong {
        /// The host that is named.
        name: String,
    },
    /// The certificate is none that can be used.
    #[error("the certificate that it is signed with cannot be used: {0}")]
    BadCertificate(String),
}

impl Identity {
    /// Signs `message` by this host's key.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let signer = self.server.key.key.choose_scheme(&SCHEMES);
        let no_scheme =
            || rustls::Error::General("this host's key is of a sort that signs only connections".into());
        signer.ok_or_else(no_scheme)?.sign(message)
    }

    /// This host's certificate, and behind it intermediate ones if any: what whoever is to believe its signatures must have.
    pub fn certificates(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        std::iter::once(&self.certificate).chain(&self.intermediates)
    }

    /// Whether this host's certificate is valid at `now`; it was when the agent started.
    pub fn check_time(&self, now: UnixTime) -> Result<(), TlsError> {
        let verified = self
            .server
            .verifier
            .verify_client_cert(&self.certificate, &self.intermediates, now);
        verified
            .map(drop)
            .map_err(|error| unusable(&self.certificate_path, &self.authority_path, error))
    }

    /// Whether the owner of `certificates`, a host of our authority at `now` and called `name`, has signed `message`.
    pub fn check_signed(
        &self,
        certificates: &[CertificateDer<'_>],
        name: &str,
        now: UnixTime,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), SignatureError> {
        let none = || SignatureError::BadCertificate("there is none".into());
        let (certificate, intermediates) = certificates.split_first().ok_or_else(none)?;
        self.server
            .verifier
            .verify_client_cert(certificate, intermediates, now)
            .map_err(distrust)?;
        carries_name(certificate, name).map_err(|presented| SignatureError::OtherHost {
            name: name.into(),
            presented: presented.join(", "),
        })?;
        let bad = |error: webpki::Error| SignatureError::BadCertificate(error.to_string());
        let certificate = webpki::EndEntityCert::try_from(certificate).map_err(bad)?;
        let mut algorithms = self.server.provider.signature_verification_algorithms.all.iter();
        // Each takes keys of its own sort only, and none is weak: whichever says yes is the one it was made by.
        if algorithms.any(|algorithm| {
            certificate
                .verify_signature(*algorithm, message, signature)
                .is_ok()
        }) {
            Ok(())
        } else {
            Err(SignatureError::Wrong { name: name.into() })
        }
    }
}

fn distrust(error: rustls::Error) -> SignatureError {
    let rustls::Error::InvalidCertificate(reason) = error else {
        return SignatureError::BadCertificate(error.to_string());
    };
    match reason {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => SignatureError::OtherAuthority,
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => SignatureError::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            SignatureError::NotYetValid
        }
        other => SignatureError::BadCertificate(other.to_string()),
    }
}
