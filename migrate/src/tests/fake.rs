//! An engine and a shim that exist only in memory, both of one host's one container.
//!
//! The shim obeys verdict files from a thread of its own, as CRIU's holder does: no agent is needed for it. Whenever a
//! container starts to run, the census checks that no other copy does. Any call can be made to fail once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use godwit_runtime::ticket::Ticket;
use godwit_runtime::verdict::{self, Verdict};
use tokio::io::AsyncReadExt;

use crate::clock::Step;
use crate::engine::image_store::ImageStore;
use crate::engine::volume::VolumeStore;
use crate::engine::{Container, Created, Engine, EngineError, Listed, Source};
use crate::finding::{Code, Finding};
use crate::phase::Role;
use crate::places::Places;
use crate::shim::{DumpOrder, Finished, SHIM_PROTOCOL, ShimClient, ShimError, ShimView, Shims};

use super::fake_images::FakeImage;
use super::fake_volumes::VOLUMES;

pub(super) const NAME: &str = "redis";
pub(super) const SOURCE_ID: &str = "source0";
const DESTINATION_ID: &str = "destination0";
pub(super) const IMAGE: &str = "sha256:1";

/// How long a held dump waits in these tests: longer than any of them.
pub(super) const HOLD: Duration = Duration::from_secs(30);

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
    pub(super) directory: PathBuf,
    pub(super) places: Places,
    pub(super) census: Arc<Census>,
    pub(super) containers: Mutex<BTreeMap<String, String>>,
    pub(super) images: Mutex<Vec<String>>,
    pub(super) archives: Mutex<BTreeMap<String, FakeImage>>,
    pub(super) volumes: Mutex<BTreeSet<String>>,
    pub(super) armed: Mutex<bool>,
    pub(super) tasks: Mutex<Tasks>,
    pub(super) fault: Mutex<Option<&'static str>>,
}

impl Fake {
    pub(super) fn tasks(&self) -> Tasks {
        *self.tasks.lock().unwrap()
    }

    pub(super) fn rootfs(&self) -> PathBuf {
        self.directory.join("rootfs")
    }

    pub(super) fn bundle(&self) -> PathBuf {
        self.directory.join("bundle")
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

    pub(super) fn engine_call(&self, call: &'static str) -> Result<(), EngineError> {
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

/// A container of this engine that has no volumes.
pub(super) fn container() -> Container {
    Container {
        engine: "fake".into(),
        id: SOURCE_ID.into(),
        name: NAME.into(),
        namespace: "moby".into(),
        image_name: "redis:8".into(),
        image_id: IMAGE.into(),
        runtime: "io.containerd.godwit.v2".into(),
        running: true,
        networks: Vec::new(),
        mounts: Vec::new(),
        description: serde_json::Value::Null,
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
    fn name(&self) -> &'static str {
        "fake"
    }

    async fn inspect(&self, container: &str) -> Result<Container, EngineError> {
        self.engine_call("inspect")?;
        let containers = self.containers.lock().unwrap();
        let found = containers
            .iter()
            .find(|(id, name)| *id == container || *name == container);
        let (id, name) = found.ok_or_else(|| EngineError::NoSuchContainer(container.into()))?;
        Ok(Container {
            id: id.clone(),
            name: name.clone(),
            running: self.tasks() == Tasks::Running,
            mounts: self.mounts(),
            ..self::container()
        })
    }

    async fn list(&self) -> Result<Vec<Listed>, EngineError> {
        // No move asks for it.
        Ok(Vec::new())
    }

    async fn objections(&self, container: &Container) -> Result<Vec<Finding>, EngineError> {
        self.engine_call("objections")?;
        let taken = self
            .containers
            .lock()
            .unwrap()
            .values()
            .any(|name| *name == container.name);
        Ok(taken
            .then(|| Finding::problem(Code::Name, "the name is taken", "rename it"))
            .into_iter()
            .collect())
    }

    async fn has_image(&self, container: &Container) -> Result<bool, EngineError> {
        self.engine_call("has_image")?;
        Ok(self.images.lock().unwrap().contains(&container.image_id))
    }

    async fn export_image(&self, container: &Container) -> Result<Source, EngineError> {
        self.engine_call("export_image")?;
        Ok(Box::new(std::io::Cursor::new(
            container.image_id.clone().into_bytes(),
        )))
    }

    async fn import_image(&self, _container: &Container, mut stream: Source) -> Result<(), EngineError> {
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
        self.fill_volumes();
        self.containers
            .lock()
            .unwrap()
            .insert(DESTINATION_ID.into(), container.name.clone());
        Ok(Created {
            id: DESTINATION_ID.into(),
            namespace: "moby".into(),
        })
    }

    fn renamed(&self, container: &Container, name: &str) -> Result<Container, String> {
        Ok(Container {
            name: name.into(),
            ..container.clone()
        })
    }

    async fn retire(&self, _container: &Container) -> Result<(), EngineError> {
        self.engine_call("retire")?;
        match self.tasks() {
            Tasks::None => Ok(()),
            other => panic!("{other:?} is not stopped"),
        }
    }

    async fn start(&self, created: &Created, _container: &Container) -> Result<(), EngineError> {
        let id = created.id.as_str();
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

    async fn remove(&self, _namespace: &str, id: &str) -> Result<(), EngineError> {
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

    async fn unmake(&self, namespace: &str, id: &str) -> Result<(), EngineError> {
        self.remove(namespace, id).await?;
        self.remove_anonymous();
        Ok(())
    }

    fn volumes(&self) -> Option<&dyn VolumeStore> {
        Some(self)
    }

    fn images(&self) -> Option<&dyn ImageStore> {
        Some(self)
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

    async fn log_path(&self, _created: &Created) -> Result<Option<PathBuf>, EngineError> {
        self.engine_call("log_path")?;
        Ok(Some(self.log()))
    }
}

/// Finds the fake as the shim of its one container.
pub(super) struct FakeShims(pub(super) Arc<Fake>);

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
            // It has no processes: those of this machine are none of its.
            pid: 0,
            rootfs: self.0.rootfs(),
            bundle: self.0.bundle(),
            execs: Vec::new(),
            fetching_memory: false,
        })
    }

    async fn dump(&self, order: DumpOrder<'_>) -> Result<Vec<Step>, ShimError> {
        self.0.shim_call("dump")?;
        let image = order.image;
        fs::write(image.join("core-1.img"), "core")
            .map_err(|error| shim_error("dump", &error.to_string()))?;
        fs::write(image.join("pages-1.img"), vec![7; 300_000]).unwrap();
        // What a container does in its last moment must come along.
        fs::write(self.0.rootfs().join("last"), "last").unwrap();
        fs::write(self.0.log(), "one\ntwo\n").unwrap();
        for name in VOLUMES {
            fs::write(self.0.volume(name).join("last"), "last").unwrap();
        }
        self.0.hold(
            Tasks::Frozen,
            order.verdict,
            order.hold,
            [Tasks::None, Tasks::Running],
        );
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

    async fn restore(&self, image: &Path, verdict: &Path, _: Option<&Path>) -> Result<Vec<Step>, ShimError> {
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
