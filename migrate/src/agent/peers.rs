//! The agent's doors to other agents: connections out, and the listener with its dispatch by the hello's intent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::agent::Agent;
use crate::config::Peer;
use crate::deadlines;
use crate::destination;
use crate::doctor;
use crate::drain;
use crate::failure::{Cause, Failure};
use crate::finding::{Code, Finding};
use crate::frame::{self, Frame};
use crate::history::{Ending, Record};
use crate::host::{Duplex, Peers};
use crate::journal::Found;
use crate::link::Link;
use crate::message::{Intent, Message};
use crate::phase::{Phase, Role};
use crate::places::MigrationId;
use crate::plan;
use crate::progress::Observer;
use crate::recovery;
use crate::tls::{self, BUSY_RECEIVER_PATIENCE, Identity, Stream};

/// Connections served at once, those in their handshake included: beyond any use, and bounded.
const MAX_CONNECTIONS: usize = 64;

/// Between two tries to accept when the system has no descriptor to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Agents reached over mutual TLS.
pub struct TlsPeers {
    identity: Identity,
    peers: BTreeMap<String, Peer>,
}

impl TlsPeers {
    /// The peers of a configuration.
    pub fn new(identity: Identity, peers: BTreeMap<String, Peer>) -> Self {
        Self { identity, peers }
    }
}

#[async_trait]
impl Peers for TlsPeers {
    async fn open(&self, host: &str) -> Result<Box<dyn Duplex>, Cause> {
        let peer = self.peers.get(host).ok_or_else(|| {
            let told = unknown_host(host, &self.names());
            Cause::Refused(vec![Finding::problem(Code::Peer, told, "")])
        })?;
        let stream = tls::connect(&self.identity, host, &peer.address)
            .await
            .map_err(|error| Cause::Lost(error.to_string()))?;
        be_patient(&stream, host);
        Ok(Box::new(stream))
    }

    fn names(&self) -> Vec<String> {
        self.peers.keys().cloned().collect()
    }
}

/// What to say of a host that is not among the peers.
pub fn unknown_host(host: &str, known: &[String]) -> String {
    let known = if known.is_empty() {
        "none".into()
    } else {
        known.join(", ")
    };
    format!("unknown host {host}: the agent's configuration names these peers: {known}")
}

/// Serves other agents until the agent stops.
pub async fn serve(agent: Arc<Agent>, peers: Arc<TlsPeers>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let connection = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((connection, _)) => connection,
                Err(error) => {
                    log::warn!("accepting a connection: {error}");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = agent.stop.cancelled() => return,
        };
        let (tracked, peers) = (Arc::clone(&agent), Arc::clone(&peers));
        agent.tasks.spawn(async move {
            let _place = place;
            serve_one(tracked, &peers, connection).await;
        });
    }
}

async fn serve_one(agent: Arc<Agent>, peers: &TlsPeers, connection: TcpStream) {
    let (mut stream, peer) = match tls::accept(&peers.identity, &peers.peers, connection).await {
        Ok(accepted) => accepted,
        Err(error) => return log::warn!("{error}"),
    };
    be_patient(&stream, &peer);
    let (versions, intent) = match timeout(deadlines::HELLO, frame::read(&mut stream)).await {
        Ok(Ok(Some(Frame::Message(message)))) => match *message {
            Message::Hello { versions, intent } => (versions, intent),
            other => return log::warn!("{peer} began with {}", other.name()),
        },
        other => return log::debug!("{peer} says no hello: {other:?}"),
    };
    if let Intent::Pages {
        migration,
        stream: kind,
    } = intent
    {
        if let Err(error) = drain::serve(&agent.host, stream, &peer, &versions, &migration, kind).await {
            log::warn!("migration {migration}: pages for {peer}: {error}");
        }
        return;
    }
    let link = Link::new(stream, &peer);
    match intent {
        Intent::Pages { .. } => {}
        Intent::Move { migration } => take_over(&agent, link, migration, versions).await,
        Intent::AskVerdict { migration } => {
            recovery::answer_verdict(&agent.host, link, &versions, &migration).await;
        }
        Intent::TellCommitted { migration } => {
            recovery::answer_committed(&agent.host, link, &versions, &migration).await;
        }
        Intent::Plan => plan::answer(&agent.host, link, &versions).await,
        Intent::Doctor => doctor::answer(&agent.host, &agent.tls, link, &versions).await,
    }
}

async fn take_over(agent: &Arc<Agent>, mut link: Link, migration: MigrationId, versions: Vec<u32>) {
    let source = link.peer().to_owned();
    let (observer, _events) = Observer::new(agent.stop.child_token());
    let listing = agent
        .registry
        .list(&migration, Role::Destination, "", &source, &observer);
    let Ok(_listing) = listing else {
        let cause = Cause::Protocol(format!("migration {migration} is under way already"));
        let failure = Failure::new(Role::Destination, &agent.host.name, Phase::Hello, cause);
        link.try_send(Message::Failed(failure));
        return link.close().await;
    };
    let host = Arc::clone(&agent.host);
    let outcome = destination::run(host, link, observer.clone(), migration.clone(), versions).await;
    let is_broken = Found::read(&agent.host.places.of(&migration))
        .is_ok_and(|found| found.is_some_and(|found| found.broken().is_some()));
    let ending = if is_broken { Ending::Broken } else { Ending::Moved };
    let (role, container) = (Role::Destination, observer.container());
    let mut record = Record::new(&migration, role, &agent.host.name, &source, &container, ending);
    record.phases = observer.spans();
    record.total_micros = observer.elapsed_micros();
    match outcome {
        Ok(()) => {
            log::info!("migration {migration} from {source} has ended");
            agent.finish(&record);
            agent.recover_rest(&migration);
        }
        Err(failure) => {
            log::error!("migration {migration} from {source}: {failure}");
            agent.finish(&record.with_failure(failure));
            agent.recover_rest(&migration);
        }
    }
}

/// The link's heartbeats notice a cut within seconds; the kernel must not end a connection whose receiver is busy writing
/// layers to a disk.
fn be_patient(stream: &Stream, peer: &str) {
    if let Err(error) = tls::set_patience(stream, BUSY_RECEIVER_PATIENCE) {
        log::debug!("the connection to {peer}: {error}");
    }
}
