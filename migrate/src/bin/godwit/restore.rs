//! `godwit restore`: has the agent restore a stopped container in place, and waits.
//!
//! ^C ends the waiting, not the restore, which the engine is at by then.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf, absolute};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::ValueHint;
use godwit_migrate::agent::restores::RestoreRequest;
use godwit_migrate::engine::set::Choice;
use godwit_migrate::in_place::Restored;
use indicatif::ProgressBar;

use crate::migrate::{EXIT_REFUSED, size};
use crate::{client, complete, findings};

/// Often enough to look alive.
const TICK: Duration = Duration::from_millis(100);

/// What is to be restored from what.
#[derive(Debug, clap::Args)]
pub(crate) struct Order {
    /// Name, id or unique prefix of the id; with containerd also NAMESPACE/ID. It must be stopped.
    #[arg(add = complete::stopped())]
    container: String,
    /// An image's directory, which has a slash in it; or the name that `docker checkpoint ls` gives.
    #[arg(value_hint = ValueHint::DirPath)]
    checkpoint: String,
    /// The directory that Docker was told to keep the checkpoint in.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    checkpoint_dir: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Whose container it is: docker, containerd or auto, the first that knows it.
    #[arg(long, default_value_t)]
    engine: Choice,
    /// containerd's namespace, if not `default`; the same as NAMESPACE/ID.
    #[arg(long)]
    namespace: Option<String>,
}

/// Restores.
pub(crate) async fn run(socket: &Path, order: Order) -> anyhow::Result<ExitCode> {
    let json = order.json;
    let name = order.container.clone();
    let waiting = std::io::stderr().is_terminal().then(|| {
        let bar = ProgressBar::new_spinner().with_message(format!("{name} is being restored"));
        bar.enable_steady_tick(TICK);
        bar
    });
    let outcome = client::post::<Restored>(socket, "/v1/restore", &request(order)?).await;
    if let Some(bar) = waiting {
        bar.finish_and_clear();
    }
    let restored = match outcome {
        Ok(restored) => restored,
        Err(error) => match error.downcast_ref::<client::Refused>() {
            Some(refused) if refused.status == hyper::StatusCode::UNPROCESSABLE_ENTITY => {
                eprintln!("godwit: {error:#}");
                return Ok(EXIT_REFUSED.into());
            }
            _ => return Err(error),
        },
    };
    let mut out = anstream::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(&restored)?)?;
    } else {
        findings::print(&mut out, &restored.findings, false)?;
        writeln!(
            out,
            "{} goes on from {} ({}, {:.2} s)",
            restored.container,
            restored.image.display(),
            size(restored.image_bytes),
            Duration::from_micros(restored.micros).as_secs_f64()
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The agent has another working directory, and follows no links.
fn request(order: Order) -> anyhow::Result<RestoreRequest> {
    let real = |path: &Path| match path.canonicalize() {
        // What cannot be looked at here may be for the agent, which is root.
        Err(_) => absolute(path),
        known => known,
    };
    let checkpoint_dir = order.checkpoint_dir.as_deref().map(real).transpose()?;
    let checkpoint = if checkpoint_dir.is_none() && order.checkpoint.contains('/') {
        let path = real(Path::new(&order.checkpoint))?;
        path.into_os_string()
            .into_string()
            .map_err(|path| anyhow::anyhow!("{} is no text", path.display()))
            .context("the checkpoint's path")?
    } else {
        order.checkpoint
    };
    Ok(RestoreRequest {
        container: order.container,
        checkpoint,
        checkpoint_dir,
        engine: order.engine,
        namespace: order.namespace,
    })
}
