//! What can go wrong between two agents, in words that tell whose fault it is and what to do.
//!
//! TLS itself reports alerts and certificate errors; the three functions here turn them into that.

use std::io;
use std::path::PathBuf;

use rustls::{AlertDescription, CertificateError};

/// Why an identity cannot be used, or a connection does not stand.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not there.
    #[error("{} is missing; make this host's certificate by `godwit ca issue`", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// It is a directory or the like.
    #[error("{} is not a file", path.display())]
    NotAFile {
        /// The place.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others than its owner can read the key.
    #[error("{} can be read by others (mode {mode:03o}); chmod 600 it, and issue it again if others had access", path.display())]
    OpenKey {
        /// The key.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It does not hold what its name says.
    #[error("{} cannot be used: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The key is not the certificate's.
    #[error("{} is not the key of {}; issue both again by `godwit ca issue`", path.display(), certificate.display())]
    OtherKey {
        /// The key.
        path: PathBuf,
        /// The certificate.
        certificate: PathBuf,
    },
    /// The certificate is of another authority.
    #[error("{} was not issued by the authority in {}; both must come from the same `godwit ca`", path.display(), authority.display())]
    OtherAuthority {
        /// The certificate.
        path: PathBuf,
        /// The authority's certificate.
        authority: PathBuf,
    },
    /// The certificate's time is over.
    #[error("{} has expired; issue it again by `godwit ca issue`, or set this host's clock", path.display())]
    Expired {
        /// The certificate.
        path: PathBuf,
    },
    /// The certificate's time is still to come.
    #[error("{} is not valid yet; set this host's clock", path.display())]
    NotYetValid {
        /// The certificate.
        path: PathBuf,
    },
    /// The certificate is another host's.
    #[error("{} is not the certificate of {name}, but of: {presented}; issue one for {name}, or correct `name` in the configuration", path.display())]
    OtherName {
        /// The certificate.
        path: PathBuf,
        /// The name that was looked for.
        name: String,
        /// The names it carries.
        presented: String,
    },

    /// A name that cannot be a host's.
    #[error("{peer:?} is no host name")]
    BadPeerName {
        /// The name.
        peer: String,
    },
    /// The peer's address has a name that does not resolve.
    #[error(
        "the address of {peer}, {address}, cannot be looked up: {source}; correct it in the configuration"
    )]
    UnknownHost {
        /// The peer.
        peer: String,
        /// Its configured address.
        address: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// Nobody listens there.
    #[error("no agent answers at {address}; is `godwit agent` running on {peer}?")]
    NoAgent {
        /// The peer.
        peer: String,
        /// Its configured address.
        address: String,
    },
    /// The network does not lead there.
    #[error("{peer} cannot be reached at {address}: {source}")]
    Unreachable {
        /// The peer.
        peer: String,
        /// Its configured address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// No answer in time.
    #[error(
        "{peer} did not answer at {address} within {seconds} s; is the host up, and does a firewall let the port through?"
    )]
    Silent {
        /// The peer.
        peer: String,
        /// Its configured address.
        address: String,
        /// How long was waited.
        seconds: u64,
    },
    /// Who answers there is not the peer.
    #[error("what answers at {address} is not trusted to be {peer}: {reason}")]
    NotThePeer {
        /// The peer.
        peer: String,
        /// Its configured address.
        address: String,
        /// Why not.
        reason: String,
    },
    /// The peer does not trust us.
    #[error("{peer} refuses this host: {reason}")]
    RefusedByPeer {
        /// The peer.
        peer: String,
        /// Its reason.
        reason: String,
    },

    /// The client has a certificate of our authority, but is not among the peers.
    #[error(
        "refused {from}: its certificate is of no configured peer (it names: {presented}); list it under [peers] if it should be one"
    )]
    NotAPeer {
        /// Where it connected from.
        from: String,
        /// The names in its certificate.
        presented: String,
    },
    /// The client's certificate is missing or not trusted.
    #[error("refused {from}: {reason}")]
    RefusedClient {
        /// Where it connected from.
        from: String,
        /// Why.
        reason: String,
    },
    /// A client that connected and did not finish its handshake.
    #[error("{with} did not finish the handshake within {seconds} s")]
    Slow {
        /// Where it connected from.
        with: String,
        /// How long was waited.
        seconds: u64,
    },
    /// The connection broke meanwhile, or the other end speaks something else.
    #[error("the handshake with {with} failed: {source}")]
    Broken {
        /// The peer, or where it connected from.
        with: String,
        /// What happened.
        source: io::Error,
    },
}

/// No connection to `peer`.
pub(super) fn while_connecting(peer: &str, address: &str, source: io::Error) -> TlsError {
    let (peer, address) = (peer.to_owned(), address.to_owned());
    match source.kind() {
        io::ErrorKind::ConnectionRefused => TlsError::NoAgent { peer, address },
        _ => TlsError::Unreachable {
            peer,
            address,
            source,
        },
    }
}

/// A connection to `peer`, but no trust between us.
pub(super) fn while_shaking_hands(peer: &str, address: &str, source: io::Error) -> TlsError {
    let not_the_peer = |reason: String| TlsError::NotThePeer {
        peer: peer.to_owned(),
        address: address.to_owned(),
        reason,
    };
    match tls_cause(&source) {
        Some(rustls::Error::InvalidCertificate(reason)) => not_the_peer(distrust(reason)),
        Some(rustls::Error::InvalidMessage(_)) => {
            not_the_peer("it does not speak TLS 1.3; is the port right?".to_owned())
        }
        Some(rustls::Error::AlertReceived(alert)) => TlsError::RefusedByPeer {
            peer: peer.to_owned(),
            reason: refusal(*alert, peer),
        },
        _ => TlsError::Broken {
            with: peer.to_owned(),
            source,
        },
    }
}

/// A connection from someone, but no trust between us.
pub(super) fn while_accepting(from: String, source: io::Error) -> TlsError {
    match tls_cause(&source) {
        Some(rustls::Error::InvalidCertificate(reason)) => TlsError::RefusedClient {
            from,
            reason: distrust(reason),
        },
        Some(rustls::Error::NoCertificatesPresented) => TlsError::RefusedClient {
            from,
            reason: "it has no certificate".into(),
        },
        Some(rustls::Error::AlertReceived(alert)) => TlsError::RefusedClient {
            from,
            reason: format!("it does not trust this host's certificate (its alert: {alert:?})"),
        },
        _ => TlsError::Broken { with: from, source },
    }
}

fn tls_cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Why we do not trust a certificate.
fn distrust(reason: &CertificateError) -> String {
    match reason {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate is of another authority; both hosts need certificates of the same `godwit ca`"
                .into()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired; issue it again by `godwit ca issue`, or set the clocks".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet; set the clocks".into()
        }
        CertificateError::NotValidForNameContext { presented, .. } => {
            format!(
                "its certificate names: {}; is the address right?",
                presented.join(", ")
            )
        }
        other => other.to_string(),
    }
}

/// Why the peer does not trust us, as far as its alert tells.
fn refusal(alert: AlertDescription, peer: &str) -> String {
    match alert {
        AlertDescription::AccessDenied => {
            format!("it does not list this host under [peers] in its configuration; add it on {peer}")
        }
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "this host's certificate is not of its authority; both need certificates of the same `godwit ca`"
                .into()
        }
        AlertDescription::CertificateExpired => {
            "this host's certificate is not valid at this time; issue it again by `godwit ca issue`, or set the clocks"
                .into()
        }
        AlertDescription::CertificateRequired => "it wants a certificate and got none".into(),
        other => format!("its alert was {other:?}; its log says why"),
    }
}
