//! `godwit setup`: makes an engine of this host use Godwit, and takes it back.
//!
//! It changes configuration files and says what it changed and what is to be restarted; it restarts nothing. What it
//! made is kept in a record, so that `--undo` knows it from what was there before. A plan that cannot be carried out
//! as a whole changes nothing.

mod change;
mod json;
mod plan;
mod record;
#[cfg(test)]
mod tests;

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, ensure};
use clap::{Args, ValueEnum};

use plan::Plan;
use record::{Record, Undoing};

const SHIM: &str = "containerd-shim-godwit-v2";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// Docker: /etc/docker/daemon.json.
    Docker,
    /// containerd without Docker, as for Kubernetes: /etc/containerd/config.toml.
    Containerd,
}

#[derive(Args, Debug)]
pub(crate) struct Order {
    /// The engine.
    engine: Engine,
    /// Put Godwit in the place of the stock shim, for every container, in place of adding it by its name.
    #[arg(long)]
    drop_in: bool,
    /// Switch Docker's experimental features on: its checkpoint commands are among them.
    #[arg(long)]
    experimental: bool,
    /// Take back what an earlier setup changed: with --drop-in only that, else all for this engine.
    #[arg(long, conflicts_with = "experimental")]
    undo: bool,
    /// Say what would be changed, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// The engine's configuration file, where it is not in its usual place.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The shim; beside this program unless told.
    #[arg(long)]
    shim: Option<PathBuf>,
    /// Set up the system that is installed below this directory.
    #[arg(long, default_value = "/")]
    root: PathBuf,
}

/// Runs the command.
pub(crate) fn run(order: &Order) -> Result<ExitCode> {
    carry_out_order(order).map_err(|error| {
        let is_denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        if error
            .chain()
            .any(|cause| cause.downcast_ref().is_some_and(is_denied))
        {
            anyhow!("{error:#}; run this as root")
        } else {
            error
        }
    })
}

fn carry_out_order(order: &Order) -> Result<ExitCode> {
    let by_name = Record::named(
        &order.root,
        match order.engine {
            Engine::Docker => "docker",
            Engine::Containerd => "containerd",
        },
    );
    let drop_in = Record::named(&order.root, "drop-in");
    if order.undo {
        let mut n_changes = undo(order, &drop_in)?;
        if !order.drop_in {
            n_changes += undo(order, &by_name)?;
        }
        if n_changes == 0 {
            say("nothing to undo");
        }
        return Ok(ExitCode::SUCCESS);
    }
    // Both plans first: what cannot be done as a whole is not begun.
    let mut plans = Vec::new();
    let shim = shim(order)?;
    match order.engine {
        Engine::Docker => {
            let file = order
                .config
                .as_deref()
                .unwrap_or(Path::new("/etc/docker/daemon.json"));
            if !order.drop_in || order.experimental {
                plans.push((
                    &by_name,
                    plan::docker(&order.root, file, !order.drop_in, order.experimental)?,
                ));
            }
        }
        Engine::Containerd => {
            ensure!(!order.experimental, "--experimental is Docker's");
            let file = order
                .config
                .as_deref()
                .unwrap_or(Path::new("/etc/containerd/config.toml"));
            if !order.drop_in {
                plans.push((&by_name, plan::containerd(&order.root, file)?));
            }
        }
    }
    if order.drop_in {
        plans.push((&drop_in, plan::drop_in(&order.root, &shim)?));
    } else if !on_system_path(&shim) {
        say(&format!(
            "note: engines find the shim on their PATH only, and {} is not on the usual one",
            shim.display()
        ));
    }
    let n_changes: usize = plans.iter().map(|(_, plan)| plan.changes.len()).sum();
    if n_changes == 0 {
        say("nothing to change: it is set up already");
        return Ok(ExitCode::SUCCESS);
    }
    for (n_done, (record, plan)) in plans.iter().enumerate() {
        if let Err(error) = carry_out(order, record, plan) {
            for (record, plan) in plans[..n_done].iter().rev() {
                // The first error is the one to tell; what cannot be taken back stays in the record.
                let _ = record.take_back(&order.root, &plan.changes);
            }
            return Err(error);
        }
    }
    say(if order.dry_run {
        "then, by hand:"
    } else {
        "now, by hand:"
    });
    for step in plans
        .iter()
        .filter(|(_, plan)| !plan.changes.is_empty())
        .flat_map(|(_, plan)| &plan.afterwards)
    {
        say(&format!("  {step}"));
    }
    say("Containers that run keep the shim they were started with.");
    Ok(ExitCode::SUCCESS)
}

fn carry_out(order: &Order, record: &Record, plan: &Plan) -> Result<()> {
    if !order.dry_run {
        record.make(&order.root, &plan.changes)?;
    }
    for change in &plan.changes {
        say(&format!(
            "{} {}",
            if order.dry_run { "would change" } else { "changed" },
            change.describe()
        ));
    }
    Ok(())
}

/// How many changes there were to undo.
fn undo(order: &Order, record: &Record) -> Result<usize> {
    let changes = record.read()?;
    if order.dry_run {
        for change in changes.iter().rev() {
            say(&format!("would undo {}", change.describe()));
        }
        return Ok(changes.len());
    }
    for Undoing { change, left } in record.undo(&order.root)? {
        if left {
            say(&format!("left, as it was changed since: {}", change.describe()));
        } else {
            say(&format!("undone {}", change.describe()));
        }
    }
    if !changes.is_empty() {
        say("Restart the daemon whose configuration this was (after `systemctl daemon-reload`).");
    }
    Ok(changes.len())
}

fn shim(order: &Order) -> Result<PathBuf> {
    let path = match &order.shim {
        Some(path) => path.clone(),
        None => env::current_exe()
            .context("find this program")?
            .with_file_name(SHIM),
    };
    ensure!(
        path.is_absolute(),
        "the shim {} is no absolute path",
        path.display()
    );
    let file = change::below(&order.root, &path);
    ensure!(
        file.is_file(),
        "there is no {}: install the shim first, or say --shim PATH",
        file.display()
    );
    Ok(path)
}

/// A change that is made is made, whether or not anybody reads of it.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

fn on_system_path(shim: &Path) -> bool {
    shim.file_name().is_some_and(|name| name == SHIM)
        && plan::SYSTEM_PATH
            .split(':')
            .any(|directory| shim.parent() == Some(Path::new(directory)))
}
