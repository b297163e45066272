//! Makes a container: root file system, streams, `runc create`. On failure nothing made here is left.

use containerd_shim::api::CreateTaskRequest;
use containerd_shim::asynchronous::io::Stdio;
use godwit_runtime::cgroup::Cgroup;
use godwit_runtime::reaper::Departure;
use godwit_runtime::runc::CreateOptions;
use log::warn;

use super::identity::{Identity, stdio};
use super::restore::{self, Exchange, Origin, PendingRestore};
use crate::error::{ShimError, failed};
use crate::io::{self, ProcessIo};
use crate::rootfs;

/// A container that was made.
pub(super) struct Created {
    pub(super) pid: i32,
    pub(super) departure: Departure,
    pub(super) io: ProcessIo,
    pub(super) cgroup: Option<Cgroup>,
    /// The restore it is made by, which waits at its gate.
    pub(super) restore: Option<PendingRestore>,
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
    let io = ProcessIo::default();
    let result = match restore::origin(identity, request, exchange).await? {
        Origin::Fresh => run_create(identity, &stdio, &io)
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
    io: &ProcessIo,
) -> Result<(i32, Departure), ShimError> {
    let Identity { id, bundle, runc, .. } = identity;
    let (streams, pending) = io::open(stdio, identity.streams_of_init()).await?;
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
        pending.connect(io).await?;
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
