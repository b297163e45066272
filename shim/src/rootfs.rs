//! Mounts and unmounts a container's root file system.
//!
//! Mounting may change the thread's working directory (overlays with many layers), so it is done on a thread of its
//! own that ends with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use containerd_shim::mount;
use containerd_shim::protos::types::mount::Mount;
use nix::mount::MntFlags;
use tokio::sync::oneshot;

use crate::error::{ShimError, failed};

/// Mounts `mounts` in their order at `target`; what was mounted is unmounted again if one fails.
pub(crate) async fn mount(mounts: &[Mount], target: &Path) -> Result<(), ShimError> {
    if mounts.is_empty() {
        return Ok(());
    }
    let (mounts, target) = (mounts.to_vec(), target.to_owned());
    on_own_thread(move || {
        fs::create_dir_all(&target).map_err(failed(format!("make {}", target.display())))?;
        let result = mounts.iter().try_for_each(|mount| mount_one(mount, &target));
        if result.is_err() {
            // The first error is the one to tell.
            let _ = unmount_now(&target);
        }
        result
    })
    .await
}

/// Unmounts all that is mounted at `target`; nothing mounted is fine.
pub(crate) async fn unmount(target: &Path) -> Result<(), ShimError> {
    let target = target.to_owned();
    on_own_thread(move || unmount_now(&target)).await
}

/// As [`unmount`], for a program without a runtime.
pub(crate) fn unmount_now(target: &Path) -> Result<(), ShimError> {
    let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
    let unmounted = mount::umount_recursive(target.to_str(), flags.bits());
    unmounted.map_err(failed(format!("unmount {}", target.display())))
}

fn mount_one(entry: &Mount, target: &Path) -> Result<(), ShimError> {
    let target: PathBuf = match entry.target.trim_start_matches('/') {
        "" => target.to_owned(),
        inner => target.join(inner),
    };
    let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let (kind, source) = (some(&entry.type_), some(&entry.source));
    mount::mount_rootfs(kind.as_deref(), source.as_deref(), &entry.options, &target).map_err(failed(format!(
        "mount the root file system at {}",
        target.display()
    )))
}

async fn on_own_thread(
    work: impl FnOnce() -> Result<(), ShimError> + Send + 'static,
) -> Result<(), ShimError> {
    let (sender, done) = oneshot::channel();
    let spawned = thread::Builder::new().name("mount".to_owned()).spawn(move || {
        // Only a runtime that shuts down stops listening.
        let _ = sender.send(work());
    });
    spawned.map_err(failed("start a thread to mount with"))?;
    done.await
        .unwrap_or_else(|_| Err(ShimError::Failed("the mounting thread died".to_owned())))
}
