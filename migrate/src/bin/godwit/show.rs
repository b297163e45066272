//! `godwit migrations`: what is under way on this host.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use godwit_migrate::agent::registry::MigrationView;

use crate::client;

/// Lists the moves under way, and those that wait for the other host.
pub(crate) async fn migrations(socket: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let views: Vec<MigrationView> = client::get(socket, "/v1/migrations").await?;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(&views)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(
        out,
        "{:<16}  {:<11}  {:<20}  {:<12}  {:<10}  PHASE",
        "MIGRATION", "ROLE", "CONTAINER", "PEER", "STATE"
    )?;
    for view in views {
        let phase = view.phase.map_or_else(String::new, |phase| phase.to_string());
        writeln!(
            out,
            "{:<16}  {:<11}  {:<20}  {:<12}  {:<10}  {phase}",
            view.migration,
            view.role.to_string(),
            view.container,
            view.peer,
            view.state
        )?;
    }
    Ok(ExitCode::SUCCESS)
}
