//! What a move asks of a container engine, whichever it is.
//!
//! An engine owns names, networks, images, layers and logs; it never sees a checkpoint image. Implementations: Docker
//! (`docker`, its HTTP API on the unix socket) and containerd (`containerd`, its gRPC API). Which of them a container
//! belongs to is said by its `engine`, and found out by `set`.

pub mod containerd;
pub mod docker;
pub mod image_store;
mod needs;
pub mod set;
pub mod volume;

use std::collections::HashMap;
use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::finding::Finding;
use image_store::ImageStore;
use volume::VolumeStore;

/// Godwit's own runtime, as containerd names it.
pub const RUNTIME: &str = "io.containerd.godwit.v2";

/// A running container as its engine knows it: all that is needed to make it again on another host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Container {
    /// `docker` or `containerd`: the name of its engine.
    pub engine: String,
    /// The engine's full id on this host.
    pub id: String,
    /// The name by which this engine finds it again: Docker's name without a leading slash; with containerd its id, with
    /// `NAMESPACE/` before it unless that is `default`.
    pub name: String,
    /// containerd's namespace; of Docker's containers `moby`.
    pub namespace: String,
    /// The name its image was asked for by, e.g. `redis:8`; may be empty or an id.
    pub image_name: String,
    /// The image's id, `sha256:…`: with Docker the digest of its configuration, with containerd that of its index or
    /// manifest.
    pub image_id: String,
    /// The containerd runtime it runs under.
    pub runtime: String,
    /// Whether it runs now, unpaused.
    pub running: bool,
    /// Its networks: what the destination must have under the same name.
    pub networks: Vec<Network>,
    /// Bind mounts and volumes: host path or volume name, and the place in the container.
    pub mounts: Vec<Mount>,
    /// The engine's own full description (Docker: the answer of `GET /containers/ID/json`; containerd: its record of the
    /// container), from which the destination's engine builds its create request.
    pub description: serde_json::Value,
}

impl Container {
    /// Its OCI annotations.
    pub fn annotations(&self) -> HashMap<String, String> {
        let annotations = match self.engine.as_str() {
            containerd::NAME => &self.description["spec"]["annotations"],
            _ => &self.description["HostConfig"]["Annotations"],
        };
        serde_json::from_value(annotations.clone()).unwrap_or_default()
    }

    /// Whether it sees the cgroups of its host.
    pub fn sees_host_cgroups(&self) -> bool {
        if self.engine != containerd::NAME {
            return self.description["HostConfig"]["CgroupnsMode"] != "private";
        }
        let spec = &self.description["spec"];
        let has = |list: &serde_json::Value, kind: &str| {
            let mut list = list.as_array().into_iter().flatten();
            list.any(|entry| entry["type"] == kind)
        };
        has(&spec["mounts"], "cgroup") && !has(&spec["linux"]["namespaces"], "cgroup")
    }
}

/// A container as its engine lists it, running or not: enough to choose one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// As in [`Container`].
    pub engine: &'static str,
    /// The engine's full id on this host.
    pub id: String,
    /// As in [`Container`].
    pub name: String,
    /// As in [`Container`].
    pub namespace: String,
    /// The name its image was asked for by; may be empty or an id.
    pub image: String,
    /// Docker's word for its state; containerd's are translated into those.
    pub state: String,
    /// The containerd runtime it is made for; `None` if the engine is too busy with it to say.
    pub runtime: Option<String>,
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
    /// A volume that its user has given no name.
    #[serde(default)]
    pub is_anonymous: bool,
}

/// A container on this host: one made at the destination for a move, or the source's own.
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
    /// The agent serves no engine of this name.
    #[error("this agent serves no engine called {0}; are both agents of the same release?")]
    Unknown(String),
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
    #[error("{engine} refused {request}: {message} (status {status})")]
    Refused {
        /// Which engine.
        engine: &'static str,
        /// Method and path, or call.
        request: String,
        /// Of HTTP, or of gRPC.
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
    /// Its name, as `Container::engine` has it.
    fn name(&self) -> &'static str;

    /// Finds a container by name, id or unique prefix of its id.
    async fn inspect(&self, container: &str) -> Result<Container, EngineError>;

    /// All containers it has, running or not.
    async fn list(&self) -> Result<Vec<Listed>, EngineError>;

    /// Every reason why this engine cannot take `container`; empty if it can. Changes nothing.
    /// Looks at: name taken, networks missing or different, address in use, bind sources missing, volumes,
    /// runtime not installed, ports in use. A missing image is no reason.
    async fn objections(&self, container: &Container) -> Result<Vec<Finding>, EngineError>;

    /// Whether the engine has the container's image.
    async fn has_image(&self, container: &Container) -> Result<bool, EngineError>;

    /// The id of the image of this name, if it is here.
    async fn find_image(&self, _name: &str) -> Result<Option<String>, EngineError> {
        Ok(None)
    }

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

    /// Streams the container's image (by name if it has one, else id) out, in the engine's own portable form.
    async fn export_image(&self, container: &Container) -> Result<Source, EngineError>;

    /// Takes what `export_image` gave. The image is there, under its name, when this returns.
    async fn import_image(&self, container: &Container, stream: Source) -> Result<(), EngineError>;

    /// Makes the container with the source's whole configuration (name, labels, environment, hostname, restart
    /// policy, networks with addresses, mounts …), not started.
    async fn create(&self, container: &Container) -> Result<Created, EngineError>;

    /// `container` as it is to be made under another name; its host name stays. Or why it cannot be called so.
    fn renamed(&self, container: &Container, name: &str) -> Result<Container, String>;

    /// Why a container of this engine cannot stay at the source once it has moved; `None` if it can.
    fn why_not_kept(&self, _container: &Container) -> Option<Finding> {
        None
    }

    /// Leaves a container whose tasks have been killed as one that is stopped; returns when the engine sees it so.
    async fn retire(&self, container: &Container) -> Result<(), EngineError>;

    /// Starts what was made of `container`; returns when the engine says it runs (for a ticketed one: after the commit).
    async fn start(&self, created: &Created, container: &Container) -> Result<(), EngineError>;

    /// Deletes what a start that has failed may have left of a task; the container stays. What runs is left alone.
    async fn clear_failed_start(&self, _created: &Created) -> Result<(), EngineError> {
        Ok(())
    }

    /// Removes a container, running or not, and none of its volumes; absent is fine.
    async fn remove(&self, namespace: &str, id: &str) -> Result<(), EngineError>;

    /// Removes what was made for a move that is undone: the container, and the anonymous volumes that the engine has made
    /// along with it. Absent is fine.
    async fn unmake(&self, namespace: &str, id: &str) -> Result<(), EngineError> {
        self.remove(namespace, id).await
    }

    /// The volumes it keeps; `None` if it keeps none.
    fn volumes(&self) -> Option<&dyn VolumeStore> {
        None
    }

    /// Its images, as far as an archive can be one; `None` if it cannot.
    fn images(&self) -> Option<&dyn ImageStore> {
        None
    }

    /// Keeps the engine from starting the container again when its tasks end.
    async fn disarm_restart(&self, container: &Container) -> Result<(), EngineError>;

    /// Lets the engine start the container again as it was described, whatever it is told now. May be repeated.
    async fn rearm_restart(&self, container: &Container) -> Result<(), EngineError>;

    /// The same for one that has been stopped for good, as by an operator: it is not started again now.
    async fn rearm_stopped(&self, container: &Container) -> Result<(), EngineError> {
        self.rearm_restart(container).await
    }

    /// The file a container's log so far lies in, if the engine keeps one that can be carried over.
    async fn log_path(&self, created: &Created) -> Result<Option<PathBuf>, EngineError>;
}
