//! The agent: one per host. It listens for its peers, answers the local API, and first of all finishes or undoes what
//! an agent before it has left.
//!
//! It holds no migration logic: `source`, `destination` and `recovery` do. It decides only who may begin one.

pub mod api;
pub mod archives;
pub mod containers;
pub mod handover;
pub mod inspections;
pub mod migrations;
pub mod peers;
pub mod registry;
pub mod rescue;
pub mod restores;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use godwit_runtime::delta;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::archive::board::Board;
use crate::bandwidth::Bucket;
use crate::config::AgentConfig;
use crate::engine::containerd::Containerd;
use crate::engine::docker::Docker;
use crate::engine::set::Engines;
use crate::engine::{containerd, docker};
use crate::history::{Ending, History, Record};
use crate::host::{Host, Tools};
use crate::journal::{Found, Opened};
use crate::metrics::Metrics;
use crate::pages::serve;
use crate::places::{MigrationId, Places};
use crate::recovery;
use crate::shim::HostShims;
use crate::tls::{Identity, TlsError};
use peers::TlsPeers;
use registry::{Busy, Registry};

/// The local API's socket in the run directory.
pub const SOCKET_NAME: &str = "agent.sock";

/// The group whose members may use the local API.
const GROUP: &str = "godwit";

/// How long running moves get to undo themselves when the agent is stopped; systemd kills after 90 s.
const STOP_DEADLINE: Duration = Duration::from_secs(45);

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Another one is there.
    #[error("an agent is running already: it answers on {0}")]
    Running(PathBuf),
    /// A place or an address cannot be used.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// The system's word.
        source: io::Error,
    },
}

/// What all of an agent's tasks share.
pub struct Agent {
    /// This host.
    pub host: Arc<Host>,
    /// Where its certificates lie.
    pub tls: PathBuf,
    /// Moves under way.
    pub registry: Registry,
    /// Archives that clients store or bring.
    pub archives: Board,
    /// Moves that are over.
    pub history: History,
    /// What was counted of them.
    pub metrics: Metrics,
    /// Held while a human's decision is carried out: one at a time.
    rescues: tokio::sync::Mutex<()>,
    /// Cancelled when the agent is to stop.
    pub stop: CancellationToken,
    /// Every move and recovery runs in here.
    pub tasks: TaskTracker,
}

/// Runs an agent until `stop` is cancelled; moves that are not committed by then are undone.
pub async fn run(config: AgentConfig, stop: CancellationToken) -> Result<(), AgentError> {
    let identity = Identity::load(&config.tls)?;
    identity.check_name(&config.name)?;
    let places = Places {
        state: config.state_dir.clone(),
        run: config.run_dir.clone(),
    };
    let socket = places.run.join(SOCKET_NAME);
    let local = listen_locally(&places, &socket).await?;
    let remote = TcpListener::bind(config.listen)
        .await
        .map_err(failed(format!("listening on {}", config.listen)))?;

    let (name, listen) = (config.name.clone(), config.listen);
    let socket_of = |configured: Option<PathBuf>, default: &str| configured.unwrap_or_else(|| default.into());
    // Neither need be there: whoever is not is no engine of any container.
    let engines = Engines::new(vec![
        Arc::new(Docker::new(socket_of(
            config.docker_socket,
            docker::DEFAULT_SOCKET,
        ))),
        Arc::new(Containerd::new(socket_of(
            config.containerd_socket,
            containerd::DEFAULT_SOCKET,
        ))),
    ]);
    let history = History::at(&places);
    let metrics_listener = match config.metrics_listen {
        Some(address) => Some(
            TcpListener::bind(address)
                .await
                .map_err(failed(format!("listening on {address} for metrics")))?,
        ),
        None => None,
    };
    let peers = Arc::new(TlsPeers::new(identity.clone(), config.peers));
    let agent = Arc::new(Agent {
        host: Arc::new(Host {
            name: config.name,
            identity,
            require_signature: config.archives.require_signature,
            engines,
            shims: Arc::new(HostShims),
            peers: Arc::clone(&peers) as Arc<dyn crate::host::Peers>,
            board: serve::Board::default(),
            places,
            tools: Tools::default(),
            upper_dir: delta::upper_dir,
            cap: config.bandwidth.map(|bandwidth| Arc::new(Bucket::new(bandwidth))),
            hold: Duration::from_secs(config.hold_seconds),
        }),
        tls: config.tls,
        registry: Registry::default(),
        archives: Board::default(),
        history,
        metrics: Metrics::default(),
        rescues: tokio::sync::Mutex::default(),
        stop: stop.clone(),
        tasks: TaskTracker::new(),
    });
    agent.recover_all();
    log::info!("agent of {name} listens on {listen} and {}", socket.display());

    let peers_served = tokio::spawn(peers::serve(Arc::clone(&agent), peers, remote));
    let api_served = tokio::spawn(api::serve(Arc::clone(&agent), local));
    if let Some(listener) = metrics_listener {
        // It has nothing to finish: it ends with the agent's process.
        tokio::spawn(api::serve_metrics(Arc::clone(&agent), listener));
    }
    // To whoever started it as a service: it is there only now. Without a service there is nobody to tell.
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        log::warn!("telling systemd that the agent is ready: {error}");
    }
    stop.cancelled().await;
    log::info!("stopping");
    agent.tasks.close();
    if timeout(STOP_DEADLINE, agent.tasks.wait()).await.is_err() {
        log::warn!("migrations are left as they are; the next agent recovers them");
    }
    peers_served.abort();
    api_served.abort();
    match fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed(format!("removing {}", socket.display()))(error))
        }
        _ => Ok(()),
    }
}

impl Agent {
    /// Takes up every move that an agent before this one has left.
    fn recover_all(self: &Arc<Self>) {
        if let Err(error) = Found::sweep(&self.host.places) {
            log::warn!("removing what moves that are over have left: {error}");
        }
        for found in Found::read_all(&self.host.places) {
            match found {
                Ok(found) => self.recover(found),
                Err((path, error)) => log::error!("{}: {error}: look at it and remove it", path.display()),
            }
        }
    }

    /// Finishes or undoes a move in a task of its own.
    fn recover(self: &Arc<Self>, found: Found) {
        let opened = found.opened.clone();
        let (migration, container) = (&opened.migration, &opened.container);
        let claim = self
            .registry
            .claim(migration, &container.namespace, &container.id);
        let agent = Arc::clone(self);
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let _claim: Result<_, Busy> = claim;
            tokio::select! {
                ended = recovery::recover(Arc::clone(&agent.host), found) => {
                    if let Some(note) = ended
                        && !opened.archive
                    {
                        agent.finish_recovered(&opened, note);
                    }
                }
                // Whatever is left stays in the journal.
                () = stop.cancelled() => {}
            }
        });
    }

    /// Remembers and counts a move whose runner has ended.
    fn finish(&self, record: &Record) {
        self.metrics.count(record);
        self.keep(record);
    }

    /// The same for one that recovery has brought to its end; what its runner has told stays.
    fn finish_recovered(&self, opened: &Opened, note: &str) {
        let (migration, name) = (&opened.migration, &opened.container.name);
        let new = || {
            Record::new(
                migration,
                opened.role,
                &self.host.name,
                &opened.peer,
                name,
                Ending::Recovered,
            )
        };
        let mut record = self.history.read(migration).ok().flatten().unwrap_or_else(new);
        record.ending = Ending::Recovered;
        record.note = Some(note.into());
        let mut counted = new();
        counted.note.clone_from(&record.note);
        self.metrics.count(&counted);
        self.keep(&record);
    }

    fn keep(&self, record: &Record) {
        if let Err(error) = self.history.keep(record) {
            log::warn!(
                "migration {}: its report cannot be kept: {error}",
                record.migration
            );
        }
    }

    /// Takes up a move whose runner has ended and has left something to do.
    fn recover_rest(self: &Arc<Self>, migration: &MigrationId) {
        match Found::read(&self.host.places.of(migration)) {
            Ok(Some(found)) => self.recover(found),
            Ok(None) => {}
            Err(error) => log::error!("migration {migration}: the journal: {error}"),
        }
    }
}

async fn listen_locally(places: &Places, socket: &Path) -> Result<UnixListener, AgentError> {
    let prepare = || {
        fs::create_dir_all(places.journals())?;
        fs::set_permissions(places.journals(), fs::Permissions::from_mode(0o700))?;
        fs::create_dir_all(&places.run)?;
        // The group reaches the socket through it; what is secret lies in private directories below.
        fs::set_permissions(&places.run, fs::Permissions::from_mode(0o711))
    };
    prepare().map_err(failed(format!(
        "{} and {}",
        places.state.display(),
        places.run.display()
    )))?;
    if UnixStream::connect(socket).await.is_ok() {
        return Err(AgentError::Running(socket.into()));
    }
    let bind = || {
        // A socket nobody listens on is what a killed agent leaves.
        if socket.exists() {
            fs::remove_file(socket)?;
        }
        let listener = UnixListener::bind(socket)?;
        fs::set_permissions(socket, fs::Permissions::from_mode(0o660))?;
        if let Some(group) = nix::unistd::Group::from_name(GROUP)? {
            nix::unistd::chown(socket, None, Some(group.gid))?;
        }
        Ok(listener)
    };
    bind().map_err(failed(format!("listening on {}", socket.display())))
}

fn failed(doing: String) -> impl FnOnce(io::Error) -> AgentError {
    move |source| AgentError::Io { doing, source }
}
