//! What a move asks of a container engine, whichever it is.
//!
//! An engine owns names, networks, images, layers and logs; it never sees a checkpoint image. Implementations: Docker
//! (`docker`, its HTTP API on the unix socket).

pub mod docker;

use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::finding::Finding;

/// A running container as its engine knows it: all that is needed to make it again on another host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Container {
    /// `docker`.
    pub engine: String,
    /// The engine's full id on this host.
    pub id: String,
    /// The name a user gave it, without a leading slash.
    pub name: String,
    /// containerd's namespace: `moby`.
    pub namespace: String,
    /// The name its image was asked for by, e.g. `redis:8`; may be empty or an id.
    pub image_name: String,
    /// The image's id (digest of its configuration), `sha256:…`.
    pub image_id: String,
    /// The containerd runtime it runs under.
    pub runtime: String,
    /// Whether it runs now, unpaused.
    pub running: bool,
    /// Its networks: what the destination must have under the same name.
    pub networks: Vec<Network>,
    /// Bind mounts and volumes: host path or volume name, and the place in the container.
    pub mounts: Vec<Mount>,
    /// The engine's own full description (Docker: the answer of `GET /containers/ID/json`), from which the
    /// destination's engine builds its create request.
    pub description: serde_json::Value,
}

/// One network a container is attached to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Network {
    /// The engine's name of it.
    pub name: String,
    /// Its driver: `bridge`, `macvlan` …
    pub driver: String,
    /// IPv4 address in it, empty if none.
    pub address: String,
    /// MAC address in it, empty if none.
    pub mac: String,
    /// Whether the address can be the same at the destination (a user-defined network with a subnet).
    pub address_moves: bool,
    /// Its subnets, as the engine writes them; the destination's must be the same.
    #[serde(default)]
    pub subnets: Vec<String>,
}

/// One mount of a container that is not part of its image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mount {
    /// `bind`, `volume` or `tmpfs`.
    pub kind: String,
    /// Host path or volume name.
    pub source: String,
    /// Path in the container.
    pub target: String,
}

/// A container made at the destination for a move, not yet started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Created {
    /// The engine's full id on this host.
    pub id: String,
    /// containerd's namespace.
    pub namespace: String,
}

/// What went wrong at the engine, in its own words.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The engine knows no such container.
    #[error("no such container: {0}")]
    NoSuchContainer(String),
    /// The engine does not answer.
    #[error("{engine} does not answer on {socket}: {source}")]
    Unreachable {
        /// Which engine.
        engine: &'static str,
        /// Its socket.
        socket: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The engine refused; `message` is what it said.
    #[error("{engine} refused {request}: {message} (HTTP {status})")]
    Refused {
        /// Which engine.
        engine: &'static str,
        /// Method and path, or call.
        request: String,
        /// HTTP status or the like.
        status: u16,
        /// The engine's own words.
        message: String,
    },
    /// The engine's answer made no sense, or the connection broke.
    #[error("{engine}, {request}: {reason}")]
    Broken {
        /// Which engine.
        engine: &'static str,
        /// Method and path, or call.
        request: String,
        /// What happened.
        reason: String,
    },
}

/// A byte stream out of an engine.
pub type Source = Box<dyn AsyncRead + Send + Unpin>;
/// A byte stream into an engine or a file.
pub type Sink = Box<dyn AsyncWrite + Send + Unpin>;

/// The calls of a move. Every one has a deadline of its own inside.
#[async_trait]
pub trait Engine: Send + Sync {
    /// Finds a container by name, id or unique prefix of its id.
    async fn inspect(&self, container: &str) -> Result<Container, EngineError>;

    /// Every reason why this engine cannot take `container`; empty if it can. Changes nothing.
    /// Looks at: name taken, networks missing or different, address in use, bind sources missing, volumes,
    /// runtime not installed, ports in use. A missing image is no reason.
    async fn objections(&self, container: &Container) -> Result<Vec<Finding>, EngineError>;

    /// Whether the engine has the image with this id.
    async fn has_image(&self, image_id: &str) -> Result<bool, EngineError>;

    /// What the layers of the container's image hold, about; `None` if the engine does not say.
    async fn image_bytes(&self, _container: &Container) -> Result<Option<u64>, EngineError> {
        Ok(None)
    }

    /// The directory in which the engine keeps layers; `None` if it does not say.
    async fn storage(&self) -> Result<Option<PathBuf>, EngineError> {
        Ok(None)
    }

    /// How the engine itself is: whether it answers, its version, what of its settings stands in the way.
    async fn examine(&self) -> Vec<Finding> {
        Vec::new()
    }

    /// Streams image `image` (by name if it has one, else id) out, in the engine's own portable form.
    async fn export_image(&self, container: &Container) -> Result<Source, EngineError>;

    /// Takes what `export_image` gave. The image is there, under its name, when this returns.
    async fn import_image(&self, stream: Source) -> Result<(), EngineError>;

    /// Makes the container with the source's whole configuration (name, labels, environment, hostname, restart
    /// policy, networks with addresses, mounts …), not started.
    async fn create(&self, container: &Container) -> Result<Created, EngineError>;

    /// Starts a container; returns when the engine says it runs (for a ticketed one: after the commit).
    async fn start(&self, id: &str) -> Result<(), EngineError>;

    /// Removes a container, running or not; absent is fine.
    async fn remove(&self, id: &str) -> Result<(), EngineError>;

    /// Keeps the engine from starting the container again when its tasks end, and returns what undoes it.
    async fn disarm_restart(&self, container: &Container) -> Result<(), EngineError>;

    /// Undoes `disarm_restart`.
    async fn rearm_restart(&self, container: &Container) -> Result<(), EngineError>;

    /// The file a container's log so far lies in, if the engine keeps one that can be carried over.
    async fn log_path(&self, id: &str) -> Result<Option<PathBuf>, EngineError>;
}
