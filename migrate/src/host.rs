//! What a move finds on its own host: engine, shims, peers, places and programs.
//!
//! Everything a runner touches goes through here, so that tests give it a host of their own.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::bandwidth::{Bucket, Pacer};
use crate::engine::set::Engines;
use crate::failure::Cause;
use crate::link::Link;
use crate::options::MoveOptions;
use crate::pages::serve::Board;
use crate::places::Places;
use crate::shim::Shims;
use crate::tls::Identity;

/// A connection, both sides proven, on which nothing has been said yet.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The agents this host may talk to.
#[async_trait]
pub trait Peers: Send + Sync {
    /// Connects to the agent of `host`.
    async fn open(&self, host: &str) -> Result<Box<dyn Duplex>, Cause>;
    /// The same, for messages.
    async fn connect(&self, host: &str) -> Result<Link, Cause> {
        Ok(Link::new(self.open(host).await?, host))
    }
    /// All hosts known by name.
    fn names(&self) -> Vec<String>;
}

/// Programs that a restore needs, by name or path.
#[derive(Clone, Debug)]
pub struct Tools {
    /// CRIU.
    pub criu: PathBuf,
    /// runC.
    pub runc: PathBuf,
    /// Whether the kernel tells which pages were written to.
    pub soft_dirty: fn() -> bool,
}

impl Default for Tools {
    fn default() -> Self {
        Self {
            criu: "criu".into(),
            runc: "runc".into(),
            soft_dirty: godwit_runtime::pages::soft_dirty::is_told,
        }
    }
}

/// One host, as a move sees it.
pub struct Host {
    /// Its name, by which its peers know it.
    pub name: String,
    /// Its certificate and authority: who it is to its peers, signs its archives, and believes others'.
    pub identity: Identity,
    /// Whether it imports signed archives only.
    pub require_signature: bool,
    /// Its container engines.
    pub engines: Engines,
    /// Its shims.
    pub shims: Arc<dyn Shims>,
    /// The other agents.
    pub peers: Arc<dyn Peers>,
    /// The memory of containers that have left and is still being fetched.
    pub board: Board,
    /// Where its files go.
    pub places: Places,
    /// What it runs.
    pub tools: Tools,
    /// Finds the writable layer of a mounted root; `godwit_runtime::delta::upper_dir` on a real host.
    pub upper_dir: fn(&Path) -> io::Result<PathBuf>,
    /// What all moves of this host together send at most, if that is bounded.
    pub cap: Option<Arc<Bucket>>,
    /// How long a container is held frozen before it runs on by itself, whoever is dead by then.
    pub hold: Duration,
}

impl Host {
    /// What a move from here with these options is bound by. All of its streams share one.
    pub fn pacer(&self, options: &MoveOptions) -> Pacer {
        let own = options
            .bandwidth
            .map(|bandwidth| Arc::new(Bucket::new(bandwidth)));
        Pacer::new(own.into_iter().chain(self.cap.clone()))
    }
}

/// The default of [`Host::hold`]: two minutes carry 14 GB over a 1 Gbit/s link; longer, and a user would rather have
/// the container back.
pub const DEFAULT_HOLD: Duration = Duration::from_secs(120);
