//! What a request and a bundle say of a container, for as long as it lives, and how others find it.

use std::path::{Path, PathBuf};

use containerd_shim::api::CreateTaskRequest;
use containerd_shim::asynchronous::io::Stdio;
use godwit_runtime::bundle::Bundle;
use godwit_runtime::checkpoint::{self, Site};
use godwit_runtime::control::{ControlDir, ShimRecord};
use godwit_runtime::options::{CheckpointOptions, HOST_FILE, HostLayers, Layer};
use godwit_runtime::runc::Runc;
use log::warn;
use oci_spec::runtime::LinuxNamespaceType;

use super::Shim;
use crate::create_options::CreateOptions;
use crate::error::{ShimError, failed};
use crate::io::{self, IoOwner, Setting};
use crate::rootfs;

/// What fits into a file name with a suffix of ours; containerd's own ids end at 76 bytes.
const MAX_ID_BYTES: usize = 200;

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
    /// Whether the engine has told what it means by a checkpoint without options: the shim stands in for the stock one.
    pub(super) drop_in: bool,
    /// What the container's annotations say of checkpoints.
    pub(super) annotated: Layer,
    /// What they say of restores, against the image.
    pub(super) annotated_restore: Layer,
    /// The CRIU configuration the container brought itself.
    pub(super) own_criu_config: Option<PathBuf>,
    pub(super) no_pivot: bool,
    pub(super) no_new_keyring: bool,
    /// What the request that made it says of restores.
    pub(super) restore: Layer,
    /// The image to restore from, if the request names none itself.
    pub(super) criu_image_path: Option<PathBuf>,
    /// Where CRIU works while it restores, if not in the control directory.
    pub(super) criu_work_path: Option<PathBuf>,
}

impl Identity {
    /// Reads what the request and the bundle say, and changes nothing.
    pub(super) fn of(shim: &Shim, request: &CreateTaskRequest) -> Result<Self, ShimError> {
        check_id(&request.id)?;
        let options = CreateOptions::decode(request.options.as_ref())?;
        if !Path::new(&request.bundle).is_absolute() {
            return Err(ShimError::InvalidArgument(format!(
                "the bundle {} is no absolute path",
                request.bundle
            )));
        }
        io::check(&stdio(request))?;
        let bundle = Bundle::at(&request.bundle);
        if !bundle.path().is_dir() {
            return Err(ShimError::NotFound(format!(
                "there is no bundle {}",
                request.bundle
            )));
        }
        let spec = bundle.spec().map_err(failed("read the bundle's configuration"))?;
        let runc = Runc::new(
            options.runc_settings(&shim.namespace),
            bundle.path(),
            shim.reaper.clone(),
        );
        let annotated = Layer::from_annotations(spec.annotations())
            .map_err(|error| ShimError::InvalidArgument(error.to_string()))?;
        let annotated_restore = Layer::from_restore_annotations(spec.annotations())
            .map_err(|error| ShimError::InvalidArgument(error.to_string()))?;
        Ok(Self {
            namespace: shim.namespace.clone(),
            program: shim.program.clone(),
            drop_in: shim.drop_in,
            annotated,
            annotated_restore,
            own_criu_config: None,
            rootfs: bundle.root_path(&spec),
            private_pids: spec.has_own_namespace(LinuxNamespaceType::Pid),
            control: ControlDir::of(&shim.namespace, &request.id),
            io_owner: IoOwner {
                uid: options.io_uid,
                gid: options.io_gid,
            },
            no_pivot: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            restore: options.restore,
            criu_image_path: options.criu_image_path,
            criu_work_path: options.criu_work_path,
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

    /// The options of a dump that follow from `request`, the container's annotations and the host's file, and `usual`
    /// where none of them says anything.
    pub(super) fn dump_options(
        &self,
        request: &Layer,
        usual: &Layer,
    ) -> Result<CheckpointOptions, ShimError> {
        let host = host_layers()?;
        // Docker cannot say what it means under a runtime name that is not its own. Its own default is to stop.
        let engine = Layer {
            leave_running: Some(self.drop_in || !is_dockers(&self.namespace)),
            ..Layer::default()
        };
        Ok(CheckpointOptions::resolve(&[
            request,
            &self.annotated,
            &host.checkpoint,
            usual,
            &engine,
        ]))
    }

    /// The options of a restore: those that hold whatever the image says, and those where it says nothing.
    pub(super) fn restore_layers(&self) -> Result<(Layer, Layer), ShimError> {
        let host = host_layers()?;
        let told = Layer::merged(&[&self.restore, &self.annotated_restore, &host.restore]);
        let usual = Layer::merged(&[&self.annotated, &host.checkpoint]);
        Ok((told, usual))
    }

    /// Where the shim mounts what the request asks to mount. The container's root may lie elsewhere and be
    /// the engine's own, as with Docker.
    pub(super) fn mount_point(&self) -> PathBuf {
        self.bundle.join("rootfs")
    }

    /// For whom the init's streams are.
    pub(super) fn streams_of_init(&self) -> Setting<'_> {
        self.streams(&self.id, self.control.join("console.sock"))
    }

    /// For whom the streams of the process `id` are, whose terminal comes through the socket `console`.
    pub(super) fn streams<'a>(&'a self, id: &'a str, console: PathBuf) -> Setting<'a> {
        Setting {
            owner: self.io_owner,
            console,
            id,
            namespace: &self.namespace,
            reaper: self.runc.reaper(),
        }
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

/// An id becomes part of file names, of runC's and of ours.
fn check_id(id: &str) -> Result<(), ShimError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if id.is_empty() || id.len() > MAX_ID_BYTES || !id.chars().all(plain) || id.starts_with('.') {
        let shown: String = id.chars().take(MAX_ID_BYTES).collect();
        return Err(ShimError::InvalidArgument(format!(
            "{shown:?} cannot be the id of a container: it must have 1 to {MAX_ID_BYTES} of A-Z a-z 0-9 _ + - . and \
             begin with no dot"
        )));
    }
    Ok(())
}

fn host_layers() -> Result<HostLayers, ShimError> {
    HostLayers::read(HOST_FILE.as_ref()).map_err(failed("read the host's options"))
}

/// The streams the request asks for.
pub(super) fn stdio(request: &CreateTaskRequest) -> Stdio {
    Stdio::new(&request.stdin, &request.stdout, &request.stderr, request.terminal)
}

/// Docker's namespace is `moby`, and `moby-UID.GID` where the daemon maps users.
fn is_dockers(namespace: &str) -> bool {
    namespace == "moby" || namespace.starts_with("moby-")
}
