//! `containerd-shim-godwit-v2`: a containerd shim that runs containers by runC and moves them by CRIU.
//!
//! What it does is decided by Go-style flags and the action, as containerd gives them.

mod bootstrap;
mod checkpoint;
mod container;
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

use std::env;
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use anyhow::{Result, bail};

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
    shim(arguments.get(1..).unwrap_or_default())
}

fn shim(arguments: &[OsString]) -> Result<()> {
    let flags = containerd_shim::parse(arguments)?;
    if flags.version {
        return info::version();
    }
    if flags.info {
        return info::info();
    }
    match flags.action.as_str() {
        "start" => bootstrap::start(&flags),
        "delete" => delete::delete(&flags),
        "" => server::serve(&flags),
        action => bail!("there is no action {action}: give start or delete"),
    }
}
