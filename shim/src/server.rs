//! The shim server: serves its services on the socket that `start` has bound, until it is asked to end.

use std::env;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::{fs, panic};

use anyhow::{Context, Result, ensure};
use containerd_shim::Flags;
use containerd_shim::logger::FifoLogger;
use containerd_shim::protos::ttrpc::r#async::Server;
use containerd_shim::protos::ttrpc::r#async::transport::Listener;
use godwit_runtime::reaper::Reaper;
use log::{LevelFilter, info, warn};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::bootstrap::READY;
use crate::container::Shim;
use crate::publisher::Publisher;
use crate::{checkpoint, service};

/// The name by which containerd calls the stock shim, and us where we stand in for it.
const STOCK_NAME: &str = "containerd-shim-runc-v2";

/// Threads for file operations that block; a shim has little of that.
const MAX_BLOCKING_THREADS: usize = 4;

/// Runs the server to its end.
pub(crate) fn serve(flags: &Flags) -> Result<()> {
    ensure!(
        !flags.socket.is_empty(),
        "nothing to do: give an action (start, delete), -info or -v"
    );
    let listener = take_stdin().context("take over the socket from stdin")?;
    nix::sys::prctl::set_child_subreaper(true).context("become a subreaper")?;
    start_log(flags.debug);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .build()
        .context("start the runtime")?;
    runtime.block_on(Box::pin(run(flags, listener)))
}

async fn run(flags: &Flags, listener: UnixListener) -> Result<()> {
    let events = env::var("TTRPC_ADDRESS").context("TTRPC_ADDRESS is not set")?;
    let shim = Arc::new(Shim {
        program: env::current_exe().context("find the shim's own binary")?,
        drop_in: is_drop_in(env::args_os().next().as_deref()),
        namespace: flags.namespace.clone(),
        address: flags.socket.clone(),
        reaper: Reaper::start().context("start the exit dispatcher")?,
        publisher: Publisher::start(&flags.namespace, &events),
        registry: Default::default(),
        shutdown: CancellationToken::new(),
    });
    let listener = Listener::try_from(listener).context("use the socket")?;
    let mut server = Server::new()
        .add_listener(listener)
        .register_service(service::services(&shim))
        .register_service(checkpoint::services(&shim));
    server.start().await.context("serve")?;
    ignore_termination()?;
    announce_ready().context("say that the server is ready")?;
    info!("shim {} of namespace {} serves", flags.id, flags.namespace);
    shim.shutdown.cancelled().await;
    // First of all: while this one drains, another shim may be started at the same place, whose socket is not ours.
    let _ = fs::remove_file(flags.socket.trim_start_matches("unix://"));
    // No new requests, the answers that are due, then what is still to be told.
    if let Err(error) = server.shutdown().await {
        warn!("the server did not end well: {error}");
    }
    drop(server);
    shim.publisher.drain().await;
    info!("shim {} of namespace {} ends", flags.id, flags.namespace);
    Ok(())
}

fn is_drop_in(called_as: Option<&OsStr>) -> bool {
    called_as.and_then(|path| Path::new(path).file_name()) == Some(OsStr::new(STOCK_NAME))
}

/// A shim ends when containerd says so, not when the host's service manager signals its group.
fn ignore_termination() -> Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).context("catch signals")?;
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                warn!("a signal to end is ignored: the shim ends with its containers");
            }
        });
    }
    Ok(())
}

fn take_stdin() -> Result<UnixListener> {
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    listener
        .local_addr()
        .context("stdin is no socket: only `start` runs the server")?;
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    Ok(listener)
}

/// Tells `start`, and lets go of the streams it shares with containerd, which waits for their end.
fn announce_ready() -> Result<()> {
    io::stdout().write_all(&[READY])?;
    io::stdout().flush()?;
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}

/// Logs to the fifo that containerd reads in the bundle. Without a reader there is no log, and a full fifo
/// loses lines: neither may stop a shim.
fn start_log(debug: bool) {
    let opened = OpenOptions::new()
        .write(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open("log");
    let Ok(fifo) = opened else { return };
    if log::set_boxed_logger(Box::new(FifoLogger::with_file(fifo))).is_ok() {
        log::set_max_level(if debug {
            LevelFilter::Debug
        } else {
            LevelFilter::Info
        });
        panic::set_hook(Box::new(|panic| log::error!("panic: {panic}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_it_is_called_by_says_whether_it_stands_in_for_the_stock_shim() {
        for (name, stands_in) in [
            ("/usr/local/lib/godwit/drop-in/containerd-shim-runc-v2", true),
            ("containerd-shim-runc-v2", true),
            ("/usr/local/bin/containerd-shim-godwit-v2", false),
            ("/containerd-shim-runc-v2/x", false),
        ] {
            assert_eq!(is_drop_in(Some(OsStr::new(name))), stands_in, "{name}");
        }
        assert!(!is_drop_in(None));
    }
}
