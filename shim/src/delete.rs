//! `delete`: cleans up after a shim that is no more, and tells containerd how the container ended.
//!
//! It must do what it can and then answer: whatever is left when it fails stays for ever.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use containerd_shim::Flags;
use containerd_shim::api::DeleteResponse;
use containerd_shim::protos::protobuf::Message;
use godwit_runtime::bundle::{Bundle, ExitRecord};
use godwit_runtime::checkpoint::{self, restore::end_abandoned};
use godwit_runtime::control::ControlDir;
use godwit_runtime::reaper::Reaper;
use godwit_runtime::runc::Runc;

use crate::create_options::CreateOptions;
use crate::publisher::timestamp;
use crate::rootfs;

/// Where runC binds a container's root while CRIU restores it, in its directory for the container.
const RESTORED_ROOT: &str = "criu-root";

/// Runs `delete`.
pub(crate) fn delete(flags: &Flags) -> Result<()> {
    let bundle = Bundle::at(match flags.bundle.as_str() {
        "" => env::current_dir()
            .context("find the bundle")?
            .with_file_name(&flags.id),
        path => path.into(),
    });
    let settings = bundle
        .runc_settings()
        .unwrap_or_else(|| CreateOptions::default().runc_settings(&flags.namespace));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let control = ControlDir::of(&flags.namespace, &flags.id);
    if let Err(error) = runtime.block_on(end_abandoned(&control)) {
        tell(&format!("the restore of {} goes on: {error}", flags.id));
    }
    // A restore that goes on without its shim has the container's root bound below runC's directory, and runC removes that
    // directory with all that it finds in it.
    let restored_root = settings.root.join(&flags.id).join(RESTORED_ROOT);
    if let Err(error) = rootfs::unmount_now(&restored_root) {
        bail!("{error}: the files of container {} would be removed", flags.id);
    }
    runtime.block_on(async {
        let reaper = Reaper::start().context("start the exit dispatcher")?;
        let runc = Runc::new(settings, bundle.path(), reaper);
        match runc.delete(&flags.id, true).await {
            Err(error) if !error.is_gone() => tell(&format!("runc keeps container {}: {error}", flags.id)),
            _ => {}
        }
        anyhow::Ok(())
    })?;
    // While the root is mounted: one part of it may be there.
    if let Err(error) = checkpoint::take_back(&control) {
        tell(&format!("of the restore of {}: {error}", flags.id));
    }
    if let Err(error) = rootfs::unmount_now(&bundle.join("rootfs")) {
        tell(&error.to_string());
    }
    if let Err(error) = control.remove() {
        tell(&format!("the control directory of {} stays: {error}", flags.id));
    }
    remove_dead_socket(&bundle);
    let response = response(&bundle).write_to_bytes()?;
    io::stdout().write_all(&response).context("answer containerd")
}

/// The true exit if the shim has seen it; else the container was killed just now.
fn response(bundle: &Bundle) -> DeleteResponse {
    let exit = bundle.exit();
    let killed = || bundle.init_pid().unwrap_or_default().unsigned_abs();
    DeleteResponse {
        pid: exit.map_or_else(killed, |exit| exit.pid),
        exit_status: exit.map_or(128 + 9, |exit| exit.status),
        exited_at: Some(timestamp(
            exit.map_or_else(SystemTime::now, |exit: ExitRecord| exit.at()),
        ))
        .into(),
        ..Default::default()
    }
}

/// Removes the socket unless a shim answers there: one that serves a pod has other containers.
fn remove_dead_socket(bundle: &Bundle) {
    let Ok(address) = fs::read_to_string(bundle.join("address")) else {
        return;
    };
    let path = address.trim_start_matches("unix://");
    if std::os::unix::net::UnixStream::connect(path).is_err() {
        // Absent, most of the time.
        let _ = fs::remove_file(path);
    }
}

/// containerd logs what `delete` writes to stderr.
fn tell(message: &str) {
    let _ = writeln!(io::stderr(), "{message}");
}
