//! `containerd-shim-godwit-v2`: a containerd shim that runs containers by runC and moves them by CRIU.
//!
//! What it does is decided by the name it is called by, then by Go-style flags and the action.

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
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().collect();
    let name = arguments
        .first()
        .and_then(|name| Path::new(name).file_name()?.to_str());
    let result = match name {
        // The names under which CRIU and runC call this binary back belong here, before any flag is looked at.
        _ => shim(arguments.get(1..).unwrap_or_default()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Engines show the last line of it to their users.
            let _ = writeln!(std::io::stderr(), "{}: {error:#}", info::RUNTIME_NAME);
            ExitCode::FAILURE
        }
    }
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
