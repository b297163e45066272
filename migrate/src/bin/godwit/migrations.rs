//! `godwit migrations`: the moves of this host, what is known of one, and how to give one up.
//!
//! All of it is the agent's: this module prints what it says.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::Subcommand;
use godwit_migrate::agent::migrations::MigrationDetail;
use godwit_migrate::agent::registry::MigrationView;
use godwit_migrate::agent::rescue::{Advice, Choice, RescueRequest};
use godwit_migrate::history::Ending;
use godwit_migrate::progress::PhaseState;
use hyper::Method;

use crate::{client, complete};

/// How often it is looked whether a move that was asked to give up has come to its end.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How long that may take: an engine gets 30 s to notice that its start has failed.
const ABORT_DEADLINE: Duration = Duration::from_secs(60);

/// `godwit migrations …`
#[derive(Debug, Subcommand)]
pub(crate) enum Order {
    /// List the moves under way and the last hundred that are over; the default.
    List,
    /// Say all that is known of one.
    Show {
        /// The move.
        #[arg(add = complete::migrations())]
        id: String,
        /// Draw its timeline into this file instead.
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
    /// Say what can be done about one that the agents cannot bring to its end, or do it.
    Recover {
        /// The move.
        #[arg(add = complete::migrations())]
        id: String,
        /// Start the container afresh here, from its files.
        #[arg(long, conflicts_with = "give_up")]
        run_here: bool,
        /// Give it up here; the other host starts it afresh.
        #[arg(long)]
        give_up: bool,
        /// At the source: the destination does not come back, or not with what is on its disk.
        #[arg(long, requires = "run_here")]
        destination_is_lost: bool,
    },
    /// Give one up, which is possible up to its commit, and wait for the end.
    Abort {
        /// The move.
        #[arg(add = complete::migrations())]
        id: String,
    },
}

pub(crate) async fn run(socket: &Path, order: Order, json: bool) -> anyhow::Result<ExitCode> {
    match order {
        Order::List => list(socket, json).await,
        Order::Show { id, svg: Some(file) } => draw(socket, &id, &file).await,
        Order::Show { id, svg: None } => show(socket, &id, json).await,
        Order::Recover {
            id,
            run_here,
            give_up,
            destination_is_lost,
        } => {
            let choice = match (run_here, give_up) {
                (true, _) => Choice::RunHere,
                (false, true) => Choice::GiveUp,
                (false, false) => return advise(socket, &id, json).await,
            };
            let request = RescueRequest {
                choice,
                destination_is_lost,
            };
            let path = format!("/v1/migrations/{id}/recover");
            let told: String = client::post(socket, &path, &request).await?;
            writeln!(std::io::stdout(), "{told}")?;
            Ok(ExitCode::SUCCESS)
        }
        Order::Abort { id } => abort(socket, &id).await,
    }
}

async fn list(socket: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let views: Vec<MigrationView> = client::get(socket, "/v1/migrations").await?;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(&views)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(
        out,
        "{:<16}  {:<11}  {:<20}  {:<12}  {:<11}  {:<8}  {:>8}  ENDED",
        "MIGRATION", "ROLE", "CONTAINER", "PEER", "STATE", "PHASE", "DOWNTIME"
    )?;
    for view in views {
        let phase = view.phase.map_or_else(String::new, |phase| phase.to_string());
        let downtime = view
            .downtime_micros
            .map_or_else(String::new, |micros| format!("{} ms", micros / 1000));
        writeln!(
            out,
            "{:<16}  {:<11}  {:<20}  {:<12}  {:<11}  {phase:<8}  {downtime:>8}  {}",
            view.migration,
            view.role.to_string(),
            view.container,
            view.peer,
            view.state,
            view.ended_unix_ms.map_or_else(String::new, ago)
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// How long ago something ended, in one unit.
fn ago(unix_ms: u64) -> String {
    let ended = SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms);
    let seconds = ended.elapsed().unwrap_or_default().as_secs();
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

async fn show(socket: &Path, id: &str, json: bool) -> anyhow::Result<ExitCode> {
    let detail: MigrationDetail = client::get(socket, &format!("/v1/migrations/{id}")).await?;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(&detail)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let view = &detail.migration;
    writeln!(
        out,
        "{} of {}, this host is the {}, the other is {}: {}",
        view.migration, view.container, view.role, view.peer, view.state
    )?;
    if let Some(journal) = &detail.journal {
        let marks = serde_json::to_string(&journal.marks)?;
        let verdict = journal.verdict.map_or("none yet", |verdict| verdict.as_str());
        writeln!(out, "journal: {marks}\nverdict: {verdict}")?;
    }
    let Some(record) = &detail.record else {
        return Ok(ExitCode::SUCCESS);
    };
    for span in &record.phases {
        writeln!(
            out,
            "  {:<8} {:>9.1} ms{}",
            span.phase.to_string(),
            span.micros as f64 / 1e3,
            if span.state == PhaseState::Failed {
                "  failed"
            } else {
                ""
            }
        )?;
    }
    if let Some(report) = &record.report {
        for step in &report.steps {
            writeln!(
                out,
                "    {:<24} {:>9.1} ms  {}",
                step.name,
                step.micros as f64 / 1e3,
                step.by
            )?;
        }
        for remark in &report.remarks {
            writeln!(out, "note: {remark}")?;
        }
    }
    if let Some(failure) = &record.failure {
        writeln!(out, "{failure}")?;
    }
    if let Some(note) = &record.note {
        writeln!(out, "recovered: {note}")?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn advise(socket: &Path, id: &str, json: bool) -> anyhow::Result<ExitCode> {
    let advice: Advice = client::get(socket, &format!("/v1/migrations/{id}/recover")).await?;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(&advice)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "{}\n{}", advice.here, advice.there)?;
    for remedy in &advice.remedies {
        let flag = match remedy.choice {
            Choice::RunHere => "--run-here",
            Choice::GiveUp => "--give-up",
        };
        writeln!(out, "  {flag}: {}", remedy.effect)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn draw(socket: &Path, id: &str, file: &Path) -> anyhow::Result<ExitCode> {
    let path = format!("/v1/migrations/{id}/timeline.svg");
    let drawn = client::get_bytes(socket, &path).await?;
    std::fs::write(file, drawn).with_context(|| format!("writing {}", file.display()))?;
    Ok(ExitCode::SUCCESS)
}

async fn abort(socket: &Path, id: &str) -> anyhow::Result<ExitCode> {
    let path = format!("/v1/migrations/{id}");
    client::send(socket, Method::DELETE, &path, None::<&()>).await?;
    let wait = async {
        loop {
            let detail: MigrationDetail = client::get(socket, &path).await?;
            if let Some(record) = detail.record {
                return anyhow::Ok(record.ending);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    let ending = tokio::time::timeout(ABORT_DEADLINE, wait)
        .await
        .with_context(|| format!("it has not come to its end within {} s", ABORT_DEADLINE.as_secs()))??;
    writeln!(std::io::stdout(), "{}", ending.as_str())?;
    Ok(match ending {
        Ending::Aborted | Ending::Failed | Ending::Refused => ExitCode::SUCCESS,
        Ending::Moved | Ending::Unconfirmed | Ending::Broken | Ending::Recovered => crate::EXIT_FAILED.into(),
    })
}
