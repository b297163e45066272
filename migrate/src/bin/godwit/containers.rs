//! `godwit containers`: the containers of this host, and which of them a move is at.
//!
//! All of it is the agent's: this module prints what it says.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use godwit_migrate::agent::containers::ContainerList;

use crate::client;

/// Lists them.
pub(crate) async fn run(socket: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let list: ContainerList = client::get(socket, "/v1/containers").await?;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(&list)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(
        out,
        "{:<12}  {:<20}  {:<10}  {:<10}  {:<6}  {:<25}  {:<16}  IMAGE",
        "ID", "NAME", "ENGINE", "STATE", "GODWIT", "RUNTIME", "MIGRATION"
    )?;
    for container in &list.containers {
        // An empty cell would shift the columns of whoever cuts them out.
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        writeln!(
            out,
            "{:<12.12}  {:<20}  {:<10}  {:<10}  {:<6}  {:<25}  {:<16}  {}",
            container.id,
            container.name,
            container.engine,
            container.state,
            if container.under_godwit { "yes" } else { "no" },
            or_dash(&container.runtime),
            or_dash(&container.migration),
            container.image
        )?;
    }
    for silent in &list.silent {
        eprintln!("godwit: not listed: {silent}");
    }
    Ok(ExitCode::SUCCESS)
}
