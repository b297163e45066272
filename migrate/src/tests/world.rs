//! Two hosts with fake engine and shim each, and a link between them that can be struck at any frame.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::fake::{Census, Fake, FakeShims, HOLD, IMAGE, NAME, SOURCE_ID, Tasks};
use super::fake_volumes::{ANONYMOUS, NAMED, VOLUMES};
use crate::ca;
use crate::clock::Report;
use crate::deadlines;
use crate::destination;
use crate::engine::Engine;
use crate::engine::set::Engines;
use crate::failure::{Cause, Failure};
use crate::frame::{self, Frame};
use crate::host::{Duplex, Host, Peers, Tools};
use crate::journal::Found;
use crate::link::Link;
use crate::message::{Intent, Message};
use crate::mode::Mode;
use crate::options::MoveOptions;
use crate::places::{MigrationId, Places};
use crate::progress::Observer;
use crate::recovery;
use crate::tls::Identity;

/// How long anything in these tests may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(25);

/// The hosts' certificates, of one authority.
pub(super) static IDENTITIES: LazyLock<[Identity; 2]> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    let authority = directory.path().join("ca");
    ca::init(&authority).unwrap();
    ["ha", "hb"].map(|host| {
        let own = directory.path().join(host);
        ca::issue(&authority, host, &[], &own).unwrap();
        Identity::load(&own).unwrap()
    })
});

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
    /// What is asked of its moves.
    pub(super) options: MoveOptions,
}

/// A host's connections: pipes to the other one, served as its agent would.
struct Pipes {
    me: &'static str,
    other: Arc<OnceLock<Arc<Host>>>,
}

impl World {
    pub(super) fn new() -> Self {
        Self::of(IDENTITIES.clone(), false)
    }

    /// With these certificates, and hosts that import signed archives only if that is said.
    pub(super) fn of(identities: [Identity; 2], require_signature: bool) -> Self {
        let [ha, hb] = identities;
        let directory = tempfile::tempdir().unwrap();
        let census = Arc::new(Census::default());
        let (to_source, to_destination) = (Arc::default(), Arc::default());
        let place = |name, identity, other: &Arc<_>| {
            Place::new(
                directory.path(),
                name,
                identity,
                require_signature,
                &census,
                Arc::clone(other),
            )
        };
        let source = place("ha", ha, &to_destination);
        let destination = place("hb", hb, &to_source);
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
        fs::create_dir(source.fake.bundle()).unwrap();
        fs::write(source.fake.bundle().join("config.json"), r#"{"mounts":[]}"#).unwrap();
        for name in VOLUMES {
            source.fake.make_volume(name);
            fs::write(source.fake.volume(name).join("first"), "first").unwrap();
        }
        Self {
            _directory: directory,
            census,
            source,
            destination,
            options: MoveOptions {
                mode: Mode::Stop,
                ..MoveOptions::default()
            },
        }
    }

    /// Moves the container over a link that is told of every frame; returns when both runners have ended.
    pub(super) async fn migrate(&self, strike: Strike) -> Option<Result<Report, Failure>> {
        let (observer, _events) = Observer::new(CancellationToken::new());
        let (destination_observer, _destination_events) = Observer::new(CancellationToken::new());
        let (near, near_wire) = tokio::io::duplex(1 << 16);
        let (far_wire, far) = tokio::io::duplex(1 << 16);
        let container = self.source.fake.inspect(NAME).await.unwrap();
        let migration = MigrationId::random().unwrap();
        let away = tokio::spawn(crate::source::run(
            Arc::clone(&self.source.host),
            Link::new(near, "hb"),
            observer.clone(),
            migration,
            container,
            self.options.clone(),
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
        for name in VOLUMES {
            assert!(
                !self.destination.fake.has_volume(name),
                "{what}: volume {name} was left"
            );
            assert!(self.source.fake.has_volume(name), "{what}: volume {name} is gone");
        }
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
        assert_eq!(names, [self.options.name.as_deref().unwrap_or(NAME)], "{what}");
        let kept = self
            .source
            .fake
            .containers
            .lock()
            .unwrap()
            .contains_key(SOURCE_ID);
        assert_eq!(kept, self.options.keep_source, "{what}: the source's container");
        let armed = *self.source.fake.armed.lock().unwrap();
        assert!(!armed, "{what}: the source would start it again");
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
        for name in VOLUMES {
            let entries = fs::read_dir(fake.volume(name))
                .unwrap()
                .map(|entry| entry.unwrap().file_name());
            let there: BTreeSet<_> = entries.collect();
            assert_eq!(
                there,
                BTreeSet::from(["first".into(), "last".into()]),
                "{what}: volume {name}"
            );
        }
        assert!(
            self.source.fake.has_volume(NAMED),
            "{what}: the source lost its named volume"
        );
        assert_eq!(
            self.source.fake.has_volume(ANONYMOUS),
            self.options.keep_source,
            "{what}: the source's anonymous volume"
        );
        let log = fs::read_to_string(fake.log()).unwrap();
        assert_eq!(log.trim_end_matches(' '), "one\ntwo\n", "{what}");
        self.assert_nothing_left(what);
    }

    pub(super) fn assert_nothing_left(&self, what: &str) {
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
        Intent::Pages { .. } => unreachable!("these moves leave no pages behind"),
        Intent::Plan => crate::plan::answer(&host, link, &versions).await,
        Intent::Doctor => crate::doctor::answer(&host, Path::new("/nonexistent"), link, &versions).await,
    }
}

#[async_trait]
impl Peers for Pipes {
    async fn open(&self, host: &str) -> Result<Box<dyn Duplex>, Cause> {
        let (near, far) = tokio::io::duplex(1 << 16);
        let other = Arc::clone(self.other.get().unwrap());
        assert_eq!(other.name, host);
        let (observer, _) = Observer::new(CancellationToken::new());
        tokio::spawn(serve(other, Link::new(far, self.me), observer));
        Ok(Box::new(near))
    }

    fn names(&self) -> Vec<String> {
        vec![self.other.get().unwrap().name.clone()]
    }
}

impl Place {
    fn new(
        root: &Path,
        name: &'static str,
        identity: Identity,
        require_signature: bool,
        census: &Arc<Census>,
        other: Arc<OnceLock<Arc<Host>>>,
    ) -> Self {
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
            archives: Mutex::default(),
            volumes: Mutex::default(),
            armed: Mutex::new(true),
            tasks: Mutex::new(Tasks::None),
            fault: Mutex::default(),
        });
        let host = Host {
            name: name.into(),
            identity,
            require_signature,
            engines: Engines::new(vec![Arc::clone(&fake) as Arc<dyn Engine>]),
            shims: Arc::new(FakeShims(Arc::clone(&fake))),
            peers: Arc::new(Pipes { me: name, other }),
            board: crate::pages::serve::Board::default(),
            places,
            tools: Tools {
                criu,
                runc: "/bin/true".into(),
                soft_dirty: || true,
            },
            upper_dir: |rootfs| Ok(rootfs.to_owned()),
            cap: None,
            hold: HOLD,
        };
        Self {
            host: Arc::new(host),
            fake,
        }
    }
}
