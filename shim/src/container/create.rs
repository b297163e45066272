//! Makes a container: root file system, streams, `runc create`. On failure nothing made here is left.

use std::path::{Path, PathBuf};

use containerd_shim::api::CreateTaskRequest;
use containerd_shim::asynchronous::io::Stdio;
use godwit_runtime::bundle::Bundle;
use godwit_runtime::cgroup::Cgroup;
use godwit_runtime::checkpoint::{self, Site};
use godwit_runtime::control::{ControlDir, ShimRecord};
use godwit_runtime::options::{CheckpointOptions, HOST_FILE, Layer};
use godwit_runtime::reaper::Departure;
use godwit_runtime::runc::{CreateOptions, Runc};
use log::warn;

use super::Shim;
use super::restore::{self, Exchange, Origin, PendingRestore};
use crate::error::{ShimError, failed};
use crate::io::{self, IoOwner, ProcessIo};
use crate::options;
use crate::rootfs;

/// What stays the same for a container's life.
#[derive(Clone)]
pub(super) struct Identity {
    pub(super) id: String,
    pub(super) bundle: Bundle,
    pub(super) rootfs: PathBuf,
    pub(super) runc: Runc,
    pub(super) control: ControlDir,
    pub(super) io_owner: IoOwner,
    /// Its processes end with its init, because it has a pid namespace of its own.
    pub(super) private_pids: bool,
    pub(super) namespace: String,
    /// The binary that CRIU and runC call back.
    pub(super) program: PathBuf,
    /// What the container's annotations say of checkpoints.
    pub(super) annotated: Layer,
    /// The CRIU configuration the container brought itself.
    pub(super) own_criu_config: Option<PathBuf>,
    pub(super) no_pivot: bool,
    no_new_keyring: bool,
}

/// A container that was made.
pub(super) struct Created {
    pub(super) pid: i32,
    pub(super) departure: Departure,
    pub(super) io: ProcessIo,
    pub(super) cgroup: Option<Cgroup>,
    /// The restore it is made by, which waits at its gate.
    pub(super) restore: Option<PendingRestore>,
}

impl Identity {
    /// Reads what the request and the bundle say, and changes nothing.
    pub(super) fn of(shim: &Shim, request: &CreateTaskRequest) -> Result<Self, ShimError> {
        let options = options::decode(request.options.as_ref())?;
        if !Path::new(&request.bundle).is_absolute() {
            return Err(ShimError::InvalidArgument(format!(
                "the bundle {} is no absolute path",
                request.bundle
            )));
        }
        io::check(&stdio(request))?;
        let bundle = Bundle::at(&request.bundle);
        let spec = bundle.spec().map_err(failed("read the bundle's configuration"))?;
        let runc = Runc::new(
            options::runc_settings(&options, &shim.namespace),
            bundle.path(),
            shim.reaper.clone(),
        );
        let annotations = spec.annotations().clone().unwrap_or_default();
        let annotated = Layer::from_annotations(&annotations)
            .map_err(|error| ShimError::InvalidArgument(error.to_string()))?;
        Ok(Self {
            namespace: shim.namespace.clone(),
            program: shim.program.clone(),
            annotated,
            own_criu_config: None,
            rootfs: bundle.root_path(&spec),
            private_pids: has_private_pids(&spec),
            control: ControlDir::of(&shim.namespace, &request.id),
            io_owner: IoOwner {
                uid: options.io_uid,
                gid: options.io_gid,
            },
            no_pivot: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            id: request.id.clone(),
            bundle,
            runc,
        })
    }

    /// Writes what lets others find the container and `delete` clean up after a dead shim.
    pub(super) fn publish(&mut self, shim: &Shim) -> Result<(), ShimError> {
        self.control
            .create()
            .map_err(failed("make the control directory"))?;
        let named = checkpoint::name_criu_config(&self.bundle, &self.control);
        self.own_criu_config = named.map_err(failed("write the bundle's configuration"))?;
        let record = ShimRecord {
            namespace: shim.namespace.clone(),
            id: self.id.clone(),
            address: shim.address.clone(),
            bundle: self.bundle.path().to_owned(),
        };
        self.control
            .write_shim(&record)
            .map_err(failed("write the container's record"))?;
        let kept = self.bundle.write_runc_settings(self.runc.settings());
        kept.map_err(failed("write to the bundle"))
    }

    /// The container as dump and restore see it.
    pub(super) fn site(&self) -> Site {
        Site {
            namespace: self.namespace.clone(),
            id: self.id.clone(),
            control: self.control.clone(),
            bundle: self.bundle.clone(),
            runc: self.runc.clone(),
            program: self.program.clone(),
            own_criu_config: self.own_criu_config.clone(),
        }
    }

    /// The options that follow from `request`, the container's annotations and the host's file.
    pub(super) fn checkpoint_options(&self, request: &Layer) -> Result<CheckpointOptions, ShimError> {
        let host = Layer::from_host_file(HOST_FILE.as_ref()).map_err(failed("read the host's options"))?;
        // Docker cannot say what it means under a runtime name that is not its own. Its own default is to stop.
        let engine = Layer {
            leave_running: Some(self.namespace != "moby"),
            ..Layer::default()
        };
        Ok(CheckpointOptions::resolve(&[
            request,
            &self.annotated,
            &host,
            &engine,
        ]))
    }

    /// Where the shim mounts what the request asks to mount. The container's root may lie elsewhere and be
    /// the engine's own, as with Docker.
    fn mount_point(&self) -> PathBuf {
        self.bundle.join("rootfs")
    }

    /// Removes what [`Identity::publish`] and mounting have made.
    pub(super) async fn withdraw(&self) {
        if let Err(error) = rootfs::unmount(&self.mount_point()).await {
            warn!("the root file system of {} stays mounted: {error}", self.id);
        }
        if let Err(error) = self.control.remove() {
            warn!("the control directory of {} stays: {error}", self.id);
        }
    }
}

/// The streams the request asks for.
pub(super) fn stdio(request: &CreateTaskRequest) -> Stdio {
    Stdio::new(&request.stdin, &request.stdout, &request.stderr, request.terminal)
}

/// Makes the container up to the point where its init waits to be started.
pub(super) async fn create(
    identity: Identity,
    request: CreateTaskRequest,
    exchange: Exchange,
) -> Result<Created, ShimError> {
    let result = try_create(&identity, &request, exchange).await;
    if result.is_err() {
        identity.withdraw().await;
    }
    result
}

async fn try_create(
    identity: &Identity,
    request: &CreateTaskRequest,
    exchange: Exchange,
) -> Result<Created, ShimError> {
    rootfs::mount(&request.rootfs, &identity.mount_point()).await?;
    let stdio = stdio(request);
    let mut io = ProcessIo::default();
    let result = match restore::origin(identity, request, exchange).await? {
        Origin::Fresh => run_create(identity, &stdio, &mut io)
            .await
            .map(|(pid, departure)| (pid, departure, None)),
        Origin::Image(image) => restore::run(identity, &stdio, image)
            .await
            .map(|(pid, departure, restore)| (pid, departure, Some(restore))),
    };
    match result {
        Ok((pid, departure, restore)) => Ok(Created {
            restore,
            // A process that has ended already has no cgroup; its stats are asked of nobody then.
            cgroup: Cgroup::of_pid(pid).ok(),
            pid,
            departure,
            io,
        }),
        Err(error) => {
            io.abort().await;
            Err(error)
        }
    }
}

async fn run_create(
    identity: &Identity,
    stdio: &Stdio,
    io: &mut ProcessIo,
) -> Result<(i32, Departure), ShimError> {
    let Identity { id, bundle, runc, .. } = identity;
    let (streams, pending) = io::open(stdio, identity.io_owner, identity.control.join("console.sock"))?;
    let pid_file = bundle.init_pid_file();
    let options = CreateOptions {
        bundle: bundle.path(),
        pid_file: &pid_file,
        no_pivot: identity.no_pivot,
        no_new_keyring: identity.no_new_keyring,
    };
    // The init is runC's child until runC has ended, and may end before we know its pid.
    let nursery = runc.reaper().nursery();
    runc.create(id, &options, streams)
        .await
        .map_err(failed("OCI runtime create failed"))?;
    let made = async {
        pending.connect(stdio, io).await?;
        bundle
            .init_pid()
            .ok_or_else(|| ShimError::Failed(format!("runc left no pid of container {id}")))
    };
    match made.await {
        Ok(pid) => Ok((pid, nursery.adopt(pid))),
        Err(error) => {
            if let Err(leftover) = runc.delete(id, true).await {
                warn!("container {id} stays in runc after a failed create: {leftover}");
            }
            Err(error)
        }
    }
}

fn has_private_pids(spec: &oci_spec::runtime::Spec) -> bool {
    use oci_spec::runtime::LinuxNamespaceType;
    let namespaces = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref());
    namespaces.into_iter().flatten().any(|namespace| {
        namespace.typ() == LinuxNamespaceType::Pid
            && namespace
                .path()
                .as_ref()
                .is_none_or(|path| path.as_os_str().is_empty())
    })
}
