//! `containerd-shim-godwit-v2`: a containerd shim that runs containers by runC and moves them by CRIU.
//!
//! What it does is decided by Go-style flags and the action, as containerd gives them.

mod bootstrap;
mod checkpoint;
mod container;
mod create_options;
mod delete;
mod error;
mod info;
mod io;
mod metrics;
mod options;
mod publisher;
mod rootfs;
mod server;
mod service;
mod task;

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use godwit_runtime::pages::pager;
use godwit_runtime::{gate, hold};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Engines show the last line of it to their users.
            let _ = writeln!(std::io::stderr(), "{}: {error:#}", info::RUNTIME_NAME);
            ExitCode::FAILURE
        }
    }
}

/// The names under which CRIU and runC call this binary back come first, before any flag is looked at.
fn dispatch(arguments: &[OsString]) -> Result<()> {
    let called_as = Path::new(arguments.first().map_or(OsStr::new(""), OsString::as_os_str));
    match called_as.file_name().and_then(OsStr::to_str) {
        Some(gate::NAME) => gate::main(called_as).context("the gate"),
        Some(hold::NAME) => hold::main(called_as).context("the holder"),
        Some(pager::NAME) => pager::main(called_as).context("the pager"),
        Some(hold::THAWER_NAME) => thaw(called_as, arguments.get(1)),
        _ => shim(called_as, arguments.get(1..).unwrap_or_default()),
    }
}

fn thaw(called_as: &Path, argument: Option<&OsString>) -> Result<()> {
    let argument = argument
        .and_then(|argument| argument.to_str())
        .context("the thawer needs CRIU's pid")?;
    hold::thawer_main(called_as, argument).context("the thawer")
}

fn shim(called_as: &Path, arguments: &[OsString]) -> Result<()> {
    let flags = containerd_shim::parse(arguments)?;
    if flags.version {
        return info::version(called_as);
    }
    if flags.info {
        return info::info(called_as);
    }
    match flags.action.as_str() {
        "start" => bootstrap::start(&flags),
        "delete" => delete::delete(&flags),
        "" => server::serve(&flags),
        action => bail!("there is no action {action}: give start or delete"),
    }
}
