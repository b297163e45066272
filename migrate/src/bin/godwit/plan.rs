//! `godwit plan`: asks the agent what would stop a move, and prints it.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use godwit_migrate::agent::api::MigrateRequest;
use godwit_migrate::plan::Plan;

use crate::migrate::{EXIT_REFUSED, size};
use crate::{client, findings};

/// Plans a move.
pub(crate) async fn run(socket: &Path, request: MigrateRequest, json: bool) -> anyhow::Result<ExitCode> {
    let plan: Plan = client::post(socket, "/v1/plan", &request).await?;
    let mut out = anstream::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(&plan)?)?;
    } else {
        print(&mut out, &plan)?;
    }
    Ok(if plan.possible {
        ExitCode::SUCCESS
    } else {
        EXIT_REFUSED.into()
    })
}

fn print(out: &mut impl Write, plan: &Plan) -> std::io::Result<()> {
    let can = if plan.possible { "can" } else { "cannot" };
    writeln!(
        out,
        "{} {can} move from {} to {}",
        plan.container, plan.from, plan.to
    )?;
    write!(
        out,
        "{} of memory, {} of files",
        size(plan.memory_bytes),
        size(plan.files_bytes)
    )?;
    if !plan.modes.is_empty() {
        write!(out, "; both hosts can do: {}", plan.modes.join(", "))?;
    }
    writeln!(out)?;
    findings::print(out, &plan.findings, true)
}
