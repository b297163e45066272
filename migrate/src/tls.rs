//! Mutual TLS between two agents: TLS 1.3 only, one authority that the operator owns, peers named by configuration.
//!
//! A connection is either refused with a reason that a person can act on, on both sides and within
//! `SETUP_DEADLINE`, or it stands and both ends know each other's name. Nothing of a move is said here: the one byte
//! the server sends first only tells the client that it was let in, because in TLS 1.3 a client otherwise learns of a
//! refusal at some later read. There is no session resumption: each connection proves both ends anew.

mod error;
mod identity;
mod signing;

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::config::Peer;
pub use error::TlsError;
pub use identity::{CA_CERTIFICATE, HOST_CERTIFICATE, HOST_KEY, Identity};
pub use signing::SignatureError;

/// An encrypted connection to a peer that has proved its name.
pub type Stream = tokio_rustls::TlsStream<TcpStream>;

/// Name look-up, connection and handshake together: a user who named the wrong host hears of it within 5 s.
const SETUP_DEADLINE: Duration = Duration::from_secs(4);

/// How long a cut link may go unnoticed: the source's tasks stand still meanwhile.
pub const CUT_LINK_PATIENCE: Duration = Duration::from_secs(5);
/// The same while image layers go over: Docker writes them to its disk, and may not read for a while.
pub const BUSY_RECEIVER_PATIENCE: Duration = Duration::from_secs(60);
/// An idle connection is probed this often once it has been idle this long.
const PROBE_INTERVAL_SECONDS: u32 = 1;

/// Sent by the server when it has let the client in.
const WELCOME: u8 = b'g';

/// Lets a connection in: the client must prove, by a certificate of our authority, to be one of `peers`. Returns its
/// name.
pub async fn accept(
    identity: &Identity,
    peers: &BTreeMap<String, Peer>,
    connection: TcpStream,
) -> Result<(Stream, String), TlsError> {
    let from = connection
        .peer_addr()
        .map_or_else(|_| "a client".to_owned(), |address| address.to_string());
    let deadline = Instant::now() + SETUP_DEADLINE;
    tune(&connection).map_err(|source| TlsError::Broken {
        with: from.clone(),
        source,
    })?;

    let (config, guest) = identity.server_config(peers);
    let handshake = async {
        let mut stream = TlsAcceptor::from(config).accept(connection).await?;
        stream.write_all(&[WELCOME]).await?;
        stream.flush().await?;
        Ok(Stream::Server(stream))
    };
    let outcome = timeout_at(deadline, handshake).await;
    match (outcome, guest.verdict()) {
        (Ok(Ok(stream)), Some(Ok(name))) => Ok((stream, name.clone())),
        (_, Some(Err(presented))) => Err(TlsError::NotAPeer {
            from,
            presented: presented.join(", "),
        }),
        (Ok(Ok(_)), None) => Err(TlsError::NotAPeer {
            from,
            presented: String::new(),
        }),
        (Ok(Err(source)), _) => Err(error::while_accepting(from, source)),
        (Err(_), _) => Err(TlsError::Slow {
            with: from,
            seconds: SETUP_DEADLINE.as_secs(),
        }),
    }
}

/// Connects to the agent of host `peer` at `address` (`host:port`), which must prove to be that host. When this
/// returns, the peer has let us in.
pub async fn connect(identity: &Identity, peer: &str, address: &str) -> Result<Stream, TlsError> {
    let name = ServerName::try_from(peer.to_owned()).map_err(|_| TlsError::BadPeerName {
        peer: peer.to_owned(),
    })?;
    let deadline = Instant::now() + SETUP_DEADLINE;
    let silent = || TlsError::Silent {
        peer: peer.to_owned(),
        address: address.to_owned(),
        seconds: SETUP_DEADLINE.as_secs(),
    };

    let addresses: Vec<_> = timeout_at(deadline, tokio::net::lookup_host(address))
        .await
        .map_err(|_| silent())?
        .map_err(|source| TlsError::UnknownHost {
            peer: peer.to_owned(),
            address: address.to_owned(),
            source,
        })?
        .collect();
    let connection = timeout_at(deadline, TcpStream::connect(&*addresses))
        .await
        .map_err(|_| silent())?
        .map_err(|source| error::while_connecting(peer, address, source))?;
    tune(&connection).map_err(|source| TlsError::Broken {
        with: peer.to_owned(),
        source,
    })?;

    let handshake = async {
        let connector = TlsConnector::from(identity.client.clone());
        let mut stream = connector.connect(name, connection).await?;
        match stream.read_u8().await? {
            WELCOME => Ok(Stream::Client(stream)),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the greeting is not a godwit agent's",
            )),
        }
    };
    timeout_at(deadline, handshake)
        .await
        .map_err(|_| silent())?
        .map_err(|source| error::while_shaking_hands(peer, address, source))
}

/// How long this end waits for a sign of life before the connection counts as cut. The kernel counts a receiver that
/// does not read as silent too, so the *sender* of a long stream into a slow receiver grants
/// [`BUSY_RECEIVER_PATIENCE`] while it lasts; otherwise it is [`CUT_LINK_PATIENCE`].
pub fn set_patience(stream: &Stream, patience: Duration) -> io::Result<()> {
    set_connection_patience(stream.get_ref().0, patience)
}

fn set_connection_patience(connection: &TcpStream, patience: Duration) -> io::Result<()> {
    let milliseconds = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
    Ok(setsockopt(connection, sockopt::TcpUserTimeout, &milliseconds)?)
}

/// Small frames go at once, and a cut link is noticed whether or not data is on its way.
fn tune(connection: &TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    setsockopt(connection, sockopt::KeepAlive, &true)?;
    setsockopt(connection, sockopt::TcpKeepIdle, &PROBE_INTERVAL_SECONDS)?;
    setsockopt(connection, sockopt::TcpKeepInterval, &PROBE_INTERVAL_SECONDS)?;
    set_connection_patience(connection, CUT_LINK_PATIENCE)
}

#[cfg(test)]
mod tests;
