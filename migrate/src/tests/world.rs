//! Two hosts with fake engine and shim each, and a link between them that can be struck at any frame.
//!
//! The fake shim obeys verdict files from a thread of its own, as CRIU's holder does: no agent is needed for it. Whenever
//! a container starts to run, the world checks that no other copy does.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use godwit_runtime::ticket::Ticket;
use godwit_runtime::verdict::{self, Verdict};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use crate::clock::{Report, Step};
use crate::deadlines;
use crate::destination;
use crate::engine::{Container, Created, Engine, EngineError, Source};
use crate::failure::{Cause, Failure};
use crate::frame::{self, Frame};
use crate::host::{Host, Peers, Tools};
use crate::journal::Found;
use crate::link::Link;
use crate::message::{Intent, Message};
use crate::phase::Role;
use crate::places::{MigrationId, Places};
use crate::progress::Observer;
use crate::recovery;
use crate::shim::{Finished, SHIM_PROTOCOL, ShimClient, ShimError, ShimView, Shims};

pub(super) const NAME: &str = "redis";
const SOURCE_ID: &str = "source0";
const DESTINATION_ID: &str = "destination0";
const IMAGE: &str = "sha256:1";

/// How long a held dump waits in these tests: longer than any of them.
const HOLD: Duration = Duration::from_secs(30);

/// How long anything in these tests may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(25);

/// What the container's tasks do on one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tasks {
    None,
    Running,
    Frozen,
    AwaitingImage,
    Held,
}

/// Counts running copies over both hosts.
#[derive(Debug, Default)]
pub(super) struct Census(Mutex<(i32, bool)>);

impl Census {
    fn change(&self, by: i32) {
        let mut census = self.0.lock().unwrap();
        census.0 += by;
        census.1 |= census.0 > 1;
    }

    pub(super) fn never_two(&self) -> bool {
        !self.0.lock().unwrap().1
    }
}

/// The state of one host's engine and shim.
pub(super) struct Fake {
    directory: PathBuf,
    places: Places,
    census: Arc<Census>,
    pub(super) containers: Mutex<BTreeMap<String, String>>,
    pub(super) images: Mutex<Vec<String>>,
    pub(super) armed: Mutex<bool>,
    tasks: Mutex<Tasks>,
    fault: Mutex<Option<&'static str>>,
}

/// A host and what is behind it.
pub(super) struct Place {
    pub(super) host: Arc<Host>,
    pub(super) fake: Arc<Fake>,
}

/// Both hosts.
pub(super) struct World {
    _directory: tempfile::TempDir,
    pub(super) census: Arc<Census>,
    pub(super) source: Place,
    pub(super) destination: Place,
}

/// A host's connections: pipes to the other one, served as its agent would.
struct Pipes {
    me: &'static str,
    other: Arc<OnceLock<Arc<Host>>>,
}

impl World {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let census = Arc::new(Census::default());
        let (to_source, to_destination) = (Arc::default(), Arc::default());
        let source = Place::new(directory.path(), "ha", &census, Arc::clone(&to_destination));
        let destination = Place::new(directory.path(), "hb", &census, Arc::clone(&to_source));
        to_source.set(Arc::clone(&source.host)).ok().unwrap();
        to_destination.set(Arc::clone(&destination.host)).ok().unwrap();
        source
            .fake
            .containers
            .lock()
            .unwrap()
            .insert(SOURCE_ID.into(), NAME.into());
        source.fake.images.lock().unwrap().push(IMAGE.into());
        source.fake.set_tasks(Tasks::Running);
        fs::write(source.fake.rootfs().join("first"), "first").unwrap();
        fs::write(source.fake.log(), "one\n").unwrap();
        Self {
            _directory: directory,
            census,
            source,
            destination,
        }
    }

    /// Moves the container over a link that is told of every frame; returns when both runners have ended.
    pub(super) async fn migrate(&self, strike: Strike) -> Option<Result<Report, Failure>> {
        let (observer, _events) = Observer::new(CancellationToken::new());
        let (destination_observer, _destination_events) = Observer::new(CancellationToken::new());
        let (near, near_wire) = tokio::io::duplex(1 << 16);
        let (far_wire, far) = tokio::io::duplex(1 << 16);
        let container = self.source.host.engine.inspect(NAME).await.unwrap();
        let migration = MigrationId::random().unwrap();
        let away = tokio::spawn(crate::source::run(
            Arc::clone(&self.source.host),
            Link::new(near, "hb"),
            observer.clone(),
            migration,
            container,
        ));
        let arrive = tokio::spawn(serve(
            Arc::clone(&self.destination.host),
            Link::new(far, "ha"),
            destination_observer.clone(),
        ));
        let (kill_source, kill_destination) = (away.abort_handle(), arrive.abort_handle());
        let wire = tokio::spawn(relay(near_wire, far_wire, strike.at, move || match strike.blow {
            Blow::None => false,
            Blow::Cut => true,
            Blow::KillSource => {
                kill_source.abort();
                true
            }
            Blow::KillDestination => {
                kill_destination.abort();
                true
            }
            Blow::KillBoth => {
                kill_source.abort();
                kill_destination.abort();
                true
            }
            Blow::AbortSource => {
                observer.abort.cancel();
                false
            }
            Blow::StopDestination => {
                destination_observer.abort.cancel();
                false
            }
        }));
        let ended = tokio::time::timeout(PATIENCE, async { (away.await, arrive.await) }).await;
        wire.abort();
        let (away, _) = ended.expect("the runners do not end");
        away.ok()
    }

    /// What new agents do on both hosts; returns when no journal is left.
    pub(super) async fn recover(&self) {
        let all = [&self.source, &self.destination].map(|place| {
            let host = Arc::clone(&place.host);
            tokio::spawn(async move {
                for found in Found::read_all(&host.places) {
                    recovery::recover(Arc::clone(&host), found.unwrap()).await;
                }
            })
        });
        let [source, destination] = all;
        for (task, place) in [(source, &self.source), (destination, &self.destination)] {
            let ended = tokio::time::timeout(PATIENCE, task).await;
            let left = Found::read_all(&place.host.places);
            let tasks = (self.source.fake.tasks(), self.destination.fake.tasks());
            let ended =
                ended.unwrap_or_else(|_| panic!("{} does not recover: {tasks:?} {left:?}", place.host.name));
            ended.unwrap();
        }
    }

    /// Waits until the tasks of both hosts have come to rest.
    pub(super) async fn rest(&self) {
        let until = Instant::now() + PATIENCE;
        let restless = |place: &Place| !matches!(place.fake.tasks(), Tasks::None | Tasks::Running);
        while restless(&self.source) || restless(&self.destination) {
            assert!(
                Instant::now() < until,
                "{:?} {:?}",
                self.source.fake.tasks(),
                self.destination.fake.tasks()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(super) fn assert_at_source(&self, what: &str) {
        assert!(self.census.never_two(), "{what}: two copies ran at once");
        assert_eq!(
            self.source.fake.tasks(),
            Tasks::Running,
            "{what}: it does not run at the source"
        );
        assert!(
            *self.source.fake.armed.lock().unwrap(),
            "{what}: its restart policy was not put back"
        );
        assert!(
            self.source
                .fake
                .containers
                .lock()
                .unwrap()
                .contains_key(SOURCE_ID),
            "{what}"
        );
        assert_eq!(
            self.destination.fake.tasks(),
            Tasks::None,
            "{what}: something runs at the destination"
        );
        assert!(
            self.destination.fake.containers.lock().unwrap().is_empty(),
            "{what}: a container was left"
        );
        self.assert_nothing_left(what);
    }

    pub(super) fn assert_at_destination(&self, what: &str) {
        assert!(self.census.never_two(), "{what}: two copies ran at once");
        assert_eq!(
            self.destination.fake.tasks(),
            Tasks::Running,
            "{what}: it does not run at the destination"
        );
        assert_eq!(
            self.source.fake.tasks(),
            Tasks::None,
            "{what}: something runs at the source"
        );
        let names: Vec<_> = self
            .destination
            .fake
            .containers
            .lock()
            .unwrap()
            .values()
            .cloned()
            .collect();
        assert_eq!(names, [NAME], "{what}");
        assert!(
            self.source.fake.containers.lock().unwrap().is_empty(),
            "{what}: the source kept its container"
        );
        let fake = &self.destination.fake;
        assert_eq!(
            fs::read_to_string(fake.rootfs().join("first")).unwrap(),
            "first",
            "{what}"
        );
        assert_eq!(
            fs::read_to_string(fake.rootfs().join("last")).unwrap(),
            "last",
            "{what}"
        );
        let log = fs::read_to_string(fake.log()).unwrap();
        assert_eq!(log.trim_end_matches(' '), "one\ntwo\n", "{what}");
        self.assert_nothing_left(what);
    }

    fn assert_nothing_left(&self, what: &str) {
        for place in [&self.source, &self.destination] {
            let places = &place.host.places;
            for directory in [
                places.journals(),
                places.run.join("migrations"),
                places.tickets().join("moby"),
            ] {
                let left: Vec<_> = fs::read_dir(&directory).into_iter().flatten().flatten().collect();
                assert!(left.is_empty(), "{what}: {left:?}");
            }
        }
    }
}

/// What happens to a move, and at which frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strike {
    pub(super) at: usize,
    pub(super) blow: Blow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blow {
    None,
    Cut,
    KillSource,
    KillDestination,
    KillBoth,
    AbortSource,
    StopDestination,
}

/// Carries frames both ways; `strike` is called instead of carrying frame number `at`, and says whether to cut.
async fn relay(
    near: tokio::io::DuplexStream,
    far: tokio::io::DuplexStream,
    at: usize,
    strike: impl Fn() -> bool,
) -> usize {
    let (mut near_read, mut near_write) = tokio::io::split(near);
    let (mut far_read, mut far_write) = tokio::io::split(far);
    let mut carried = 0;
    loop {
        let (frame, to_far) = tokio::select! {
            frame = frame::read(&mut near_read) => (frame, true),
            frame = frame::read(&mut far_read) => (frame, false),
        };
        let Ok(Some(frame)) = frame else { return carried };
        if !matches!(frame, Frame::Heartbeat) {
            carried += 1;
            if carried == at && strike() {
                return carried;
            }
        }
        let written = match to_far {
            true => frame::write(&mut far_write, &frame).await,
            false => frame::write(&mut near_write, &frame).await,
        };
        if written.is_err() {
            return carried;
        }
    }
}

async fn serve(host: Arc<Host>, mut link: Link, observer: Observer) {
    let Ok(Message::Hello { versions, intent }) = link.receive("hello", deadlines::HELLO).await else {
        return;
    };
    match intent {
        Intent::Move { migration } => {
            let _ = destination::run(host, link, observer, migration, versions).await;
        }
        Intent::AskVerdict { migration } => {
            recovery::answer_verdict(&host, link, &versions, &migration).await;
        }
        Intent::TellCommitted { migration } => {
            recovery::answer_committed(&host, link, &versions, &migration).await;
        }
    }
}

#[async_trait]
impl Peers for Pipes {
    async fn connect(&self, host: &str) -> Result<Link, Cause> {
        let (near, far) = tokio::io::duplex(1 << 16);
        let other = Arc::clone(self.other.get().unwrap());
        assert_eq!(other.name, host);
        let (observer, _) = Observer::new(CancellationToken::new());
        tokio::spawn(serve(other, Link::new(far, self.me), observer));
        Ok(Link::new(near, host))
    }

    fn names(&self) -> Vec<String> {
        vec![self.other.get().unwrap().name.clone()]
    }
}

impl Place {
    fn new(root: &Path, name: &'static str, census: &Arc<Census>, other: Arc<OnceLock<Arc<Host>>>) -> Self {
        let directory = root.join(name);
        let places = Places {
            state: directory.join("state"),
            run: directory.join("run"),
        };
        fs::create_dir_all(directory.join("rootfs")).unwrap();
        let criu = directory.join("criu");
        fs::write(&criu, "#!/bin/sh\necho Version: 4.2.1\n").unwrap();
        fs::set_permissions(&criu, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let fake = Arc::new(Fake {
            directory,
            places: places.clone(),
            census: Arc::clone(census),
            containers: Mutex::default(),
            images: Mutex::default(),
            armed: Mutex::new(true),
            tasks: Mutex::new(Tasks::None),
            fault: Mutex::default(),
        });
        let host = Host {
            name: name.into(),
            engine: Arc::clone(&fake) as Arc<dyn Engine>,
            shims: Arc::new(FakeShims(Arc::clone(&fake))),
            peers: Arc::new(Pipes { me: name, other }),
            places,
            tools: Tools {
                criu,
                runc: "/bin/true".into(),
            },
            upper_dir: |rootfs| Ok(rootfs.to_owned()),
            hold: HOLD,
        };
        Self {
            host: Arc::new(host),
            fake,
        }
    }
}

impl Fake {
    pub(super) fn tasks(&self) -> Tasks {
        *self.tasks.lock().unwrap()
    }

    pub(super) fn rootfs(&self) -> PathBuf {
        self.directory.join("rootfs")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// Makes the next call of this name fail.
    pub(super) fn fail_at(&self, call: &'static str) {
        *self.fault.lock().unwrap() = Some(call);
    }

    pub(super) fn fault_is_pending(&self) -> bool {
        self.fault.lock().unwrap().is_some()
    }

    pub(super) fn set_tasks(&self, tasks: Tasks) {
        let mut now = self.tasks.lock().unwrap();
        let running = |tasks| i32::from(tasks == Tasks::Running);
        self.census.change(running(tasks) - running(*now));
        *now = tasks;
    }

    fn fails(&self, call: &'static str) -> bool {
        let mut fault = self.fault.lock().unwrap();
        let hit = *fault == Some(call);
        if hit {
            *fault = None;
        }
        hit
    }

    fn engine_call(&self, call: &'static str) -> Result<(), EngineError> {
        if self.fails(call) {
            return Err(EngineError::Broken {
                engine: "fake",
                request: call.into(),
                reason: "injected".into(),
            });
        }
        Ok(())
    }

    fn shim_call(&self, call: &'static str) -> Result<(), ShimError> {
        if self.fails(call) {
            return Err(shim_error(call, "injected"));
        }
        Ok(())
    }

    async fn wait_while(&self, tasks: Tasks) -> Tasks {
        while self.tasks() == tasks {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.tasks()
    }

    /// What CRIU's holder does, on a thread that nobody can kill.
    fn hold(self: &Arc<Self>, held: Tasks, verdict: &Path, hold: Duration, after: [Tasks; 2]) {
        self.set_tasks(held);
        let (fake, path) = (Arc::clone(self), verdict.to_owned());
        std::thread::spawn(move || {
            let standing = match verdict::wait(&path, Some(Instant::now() + hold)) {
                Ok(Some(standing)) => standing,
                _ if held == Tasks::Frozen => {
                    verdict::decide(&path, Verdict::Aborted).unwrap_or(Verdict::Aborted)
                }
                _ => Verdict::Aborted,
            };
            fake.set_tasks(after[usize::from(standing == Verdict::Aborted)]);
        });
    }
}

fn shim_error(call: &'static str, reason: &str) -> ShimError {
    ShimError {
        container: NAME.into(),
        call,
        reason: reason.into(),
    }
}

#[async_trait]
impl Engine for Fake {
    async fn inspect(&self, container: &str) -> Result<Container, EngineError> {
        self.engine_call("inspect")?;
        let containers = self.containers.lock().unwrap();
        let found = containers
            .iter()
            .find(|(id, name)| *id == container || *name == container);
        let (id, name) = found.ok_or_else(|| EngineError::NoSuchContainer(container.into()))?;
        Ok(Container {
            engine: "fake".into(),
            id: id.clone(),
            name: name.clone(),
            namespace: "moby".into(),
            image_name: "redis:8".into(),
            image_id: IMAGE.into(),
            runtime: "io.containerd.godwit.v2".into(),
            running: self.tasks() == Tasks::Running,
            networks: Vec::new(),
            mounts: Vec::new(),
            description: serde_json::Value::Null,
        })
    }

    async fn objections(&self, container: &Container) -> Result<Vec<String>, EngineError> {
        self.engine_call("objections")?;
        let taken = self
            .containers
            .lock()
            .unwrap()
            .values()
            .any(|name| *name == container.name);
        Ok(taken
            .then(|| "the name is taken".to_owned())
            .into_iter()
            .collect())
    }

    async fn has_image(&self, image_id: &str) -> Result<bool, EngineError> {
        self.engine_call("has_image")?;
        Ok(self.images.lock().unwrap().iter().any(|image| image == image_id))
    }

    async fn export_image(&self, container: &Container) -> Result<Source, EngineError> {
        self.engine_call("export_image")?;
        Ok(Box::new(std::io::Cursor::new(
            container.image_id.clone().into_bytes(),
        )))
    }

    async fn import_image(&self, mut stream: Source) -> Result<(), EngineError> {
        self.engine_call("import_image")?;
        let mut image = String::new();
        stream
            .read_to_string(&mut image)
            .await
            .map_err(|error| EngineError::Broken {
                engine: "fake",
                request: "import".into(),
                reason: error.to_string(),
            })?;
        self.images.lock().unwrap().push(image);
        Ok(())
    }

    async fn create(&self, container: &Container) -> Result<Created, EngineError> {
        self.engine_call("create")?;
        self.containers
            .lock()
            .unwrap()
            .insert(DESTINATION_ID.into(), container.name.clone());
        Ok(Created {
            id: DESTINATION_ID.into(),
            namespace: "moby".into(),
        })
    }

    async fn start(&self, id: &str) -> Result<(), EngineError> {
        self.engine_call("start")?;
        let failed = |reason: String| EngineError::Broken {
            engine: "fake",
            request: "start".into(),
            reason,
        };
        let claimed = Ticket::claim(&self.places.tickets(), "moby", id)
            .map_err(|error| failed(error.to_string()))?
            .ok_or_else(|| failed("a fresh start in place of a restore".into()))?;
        self.set_tasks(Tasks::AwaitingImage);
        while self.tasks() == Tasks::AwaitingImage {
            if let Err(error) = claimed.check() {
                self.set_tasks(Tasks::None);
                return Err(failed(error.to_string()));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        match self.wait_while(Tasks::Held).await {
            Tasks::Running => self.engine_call("start_end"),
            other => Err(failed(format!("{other:?}"))),
        }
    }

    async fn remove(&self, id: &str) -> Result<(), EngineError> {
        self.engine_call("remove")?;
        // An engine's removal waits for a start that is under way.
        while matches!(self.tasks(), Tasks::AwaitingImage | Tasks::Held) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if self.containers.lock().unwrap().remove(id).is_some() {
            self.set_tasks(Tasks::None);
        }
        Ok(())
    }

    async fn disarm_restart(&self, _container: &Container) -> Result<(), EngineError> {
        *self.armed.lock().unwrap() = false;
        self.engine_call("disarm_restart")
    }

    async fn rearm_restart(&self, _container: &Container) -> Result<(), EngineError> {
        self.engine_call("rearm_restart")?;
        *self.armed.lock().unwrap() = true;
        Ok(())
    }

    async fn log_path(&self, _id: &str) -> Result<Option<PathBuf>, EngineError> {
        self.engine_call("log_path")?;
        Ok(Some(self.log()))
    }
}

/// Finds the fake as the shim of its one container.
struct FakeShims(Arc<Fake>);

struct FakeShim(Arc<Fake>);

#[async_trait]
impl Shims for FakeShims {
    async fn find(
        &self,
        _role: Role,
        _namespace: &str,
        _id: &str,
    ) -> Result<Option<Arc<dyn ShimClient>>, ShimError> {
        self.0.shim_call("find")?;
        Ok(match self.0.tasks() {
            Tasks::None => None,
            _ => Some(Arc::new(FakeShim(Arc::clone(&self.0)))),
        })
    }
}

#[async_trait]
impl ShimClient for FakeShim {
    async fn inspect(&self) -> Result<ShimView, ShimError> {
        self.0.shim_call("shim_inspect")?;
        let state = match self.0.tasks() {
            Tasks::None => "stopped",
            Tasks::Running => "running",
            Tasks::Frozen => "dumping",
            Tasks::AwaitingImage => "awaiting-image",
            Tasks::Held => "held",
        };
        Ok(ShimView {
            protocol: SHIM_PROTOCOL,
            state: state.into(),
            pid: std::process::id(),
            rootfs: self.0.rootfs(),
            execs: Vec::new(),
        })
    }

    async fn dump(&self, image: &Path, verdict: &Path, hold: Duration) -> Result<Vec<Step>, ShimError> {
        self.0.shim_call("dump")?;
        fs::write(image.join("core-1.img"), "core")
            .map_err(|error| shim_error("dump", &error.to_string()))?;
        fs::write(image.join("pages-1.img"), vec![7; 300_000]).unwrap();
        // What a container does in its last moment must come along.
        fs::write(self.0.rootfs().join("last"), "last").unwrap();
        fs::write(self.0.log(), "one\ntwo\n").unwrap();
        self.0
            .hold(Tasks::Frozen, verdict, hold, [Tasks::None, Tasks::Running]);
        Ok(Vec::new())
    }

    async fn finish_dump(&self) -> Result<Finished, ShimError> {
        self.0.shim_call("finish_dump")?;
        let running = self.0.wait_while(Tasks::Frozen).await == Tasks::Running;
        Ok(Finished {
            running,
            steps: Vec::new(),
        })
    }

    async fn restore(&self, image: &Path, verdict: &Path) -> Result<Vec<Step>, ShimError> {
        if self.0.fails("restore") {
            self.0.set_tasks(Tasks::None);
            return Err(shim_error("restore", "injected"));
        }
        let pages =
            fs::read(image.join("pages-1.img")).map_err(|error| shim_error("restore", &error.to_string()))?;
        assert!(pages == vec![7; 300_000]);
        self.0
            .hold(Tasks::Held, verdict, HOLD, [Tasks::Running, Tasks::None]);
        Ok(Vec::new())
    }

    async fn finish_restore(&self) -> Result<Finished, ShimError> {
        self.0.shim_call("finish_restore")?;
        // A shim that still awaits its image has something to finish, too.
        self.0.wait_while(Tasks::AwaitingImage).await;
        let running = self.0.wait_while(Tasks::Held).await == Tasks::Running;
        Ok(Finished {
            running,
            steps: Vec::new(),
        })
    }
}
