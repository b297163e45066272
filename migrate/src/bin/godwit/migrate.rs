//! `godwit migrate`: asks the agent for a move and shows it.
//!
//! On a terminal a bar with phase, bytes and rate; elsewhere a line for each phase; with `--json` the agent's events as
//! they come. ^C asks the agent to abort and waits for the outcome; a second one leaves the move to the agent.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use godwit_migrate::agent::api::MigrateRequest;
use godwit_migrate::clock::{Outcome, Remains, Report};
use godwit_migrate::failure::{Cause, Failure};
use godwit_migrate::finding::Finding;
use godwit_migrate::mode::Mode;
use godwit_migrate::pages::rounds::Round;
use godwit_migrate::phase::Phase;
use godwit_migrate::progress::{Event, PhaseState};
use godwit_migrate::tcp::Account;
use godwit_migrate::volumes::Carried;
use godwit_migrate::volumes::policy::Policy;
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Incoming;
use indicatif::{ProgressBar, ProgressStyle};

use crate::client;

const EXIT_UNCONFIRMED: u8 = 3;
/// The plan says no.
pub(crate) const EXIT_REFUSED: u8 = 4;
const EXIT_ABORTED: u8 = 130;

/// Connections that a person is shown.
const MAX_CONNECTIONS_SHOWN: usize = 20;

/// An event has some kilobytes at most; a line beyond this is not the agent's.
const MAX_LINE_BYTES: usize = 1 << 20;

/// Moves a container and shows how.
pub(crate) async fn run(socket: &Path, request: MigrateRequest, json: bool) -> anyhow::Result<ExitCode> {
    let response = client::send(socket, Method::POST, "/v1/migrations", Some(&request)).await?;
    let mut lines = Lines::new(response.into_body());
    let view = View::new(json);
    let mut abort = Abort::new(socket);
    let mut is_past_commit = false;
    loop {
        let line = tokio::select! {
            line = lines.next() => match line {
                Ok(Some(line)) => line,
                Ok(None) | Err(_) if is_past_commit => {
                    view.clear();
                    eprintln!("godwit: {}", left_behind(&request));
                    return Ok(EXIT_UNCONFIRMED.into());
                }
                other => other?.context("the agent went away during the move: `godwit migrations` shows what it is doing")?,
            },
            asked = abort.asked() => {
                asked?;
                view.say("aborting");
                continue;
            }
        };
        let event: Event = serde_json::from_slice(&line).context("the agent said something unknown")?;
        view.show(&event, &line)?;
        is_past_commit |= may_have_committed(&event);
        match event {
            Event::Started { migration, .. } => abort.migration = Some(migration),
            Event::Report { report } => return Ok(exit_of_report(&report)),
            Event::Error { error, .. } => return Ok(exit_of_failure(&error)),
            Event::Phase { .. } | Event::Transfer { .. } | Event::Round { .. } | Event::Archive { .. } => {}
        }
    }
}

/// Whether from this event on the container may be the destination's.
fn may_have_committed(event: &Event) -> bool {
    matches!(
        event,
        Event::Phase {
            phase: Phase::Commit | Phase::Drain | Phase::Release,
            ..
        }
    )
}

fn left_behind(request: &MigrateRequest) -> String {
    let MigrateRequest {
        container,
        destination,
        ..
    } = request;
    format!(
        "the agent went away when the move was committed, or about to be: {container} belongs to {destination} then, \
         and must not be started here by hand. The agent finishes the move when it is started again; see \
         `godwit migrations` on both hosts"
    )
}

fn exit_of_report(report: &Report) -> ExitCode {
    match report.outcome {
        Outcome::Moved => ExitCode::SUCCESS,
        Outcome::CommittedUnconfirmed { .. } => EXIT_UNCONFIRMED.into(),
    }
}

pub(crate) fn exit_of_failure(failure: &Failure) -> ExitCode {
    match failure.cause {
        Cause::Refused(_) => EXIT_REFUSED,
        Cause::Aborted => EXIT_ABORTED,
        Cause::Lost(_) | Cause::Protocol(_) | Cause::Failed(_) => crate::EXIT_FAILED,
    }
    .into()
}

/// ^C, translated into a request to the agent.
pub(crate) struct Abort {
    socket: PathBuf,
    pub(crate) migration: Option<String>,
}

impl Abort {
    pub(crate) fn new(socket: &Path) -> Self {
        Self {
            socket: socket.into(),
            migration: None,
        }
    }

    /// Waits for ^C and passes it on.
    pub(crate) async fn asked(&mut self) -> anyhow::Result<()> {
        tokio::signal::ctrl_c().await?;
        let Some(migration) = self.migration.take() else {
            anyhow::bail!("left to the agent: `godwit migrations` shows what it is doing");
        };
        let path = format!("/v1/migrations/{migration}");
        client::send(&self.socket, Method::DELETE, &path, None::<&()>).await?;
        Ok(())
    }
}

/// The lines of a body.
pub(crate) struct Lines {
    body: Incoming,
    pending: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(body: Incoming) -> Self {
        Self {
            body,
            pending: Vec::new(),
        }
    }

    /// The next line without its end; `None` if there is none. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let rest = self.pending.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.pending, rest);
                line.pop();
                return Ok(Some(line));
            }
            anyhow::ensure!(self.pending.len() < MAX_LINE_BYTES, "the agent's line has no end");
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame.context("the agent went away during the move")?.into_data() {
                        self.pending.extend_from_slice(&data);
                    }
                }
                None => return Ok(None),
            }
        }
    }
}

/// The ways to show a move.
pub(crate) enum View {
    Json,
    Plain,
    Bar(ProgressBar),
}

impl View {
    pub(crate) fn new(json: bool) -> Self {
        if json {
            return Self::Json;
        }
        if !std::io::stderr().is_terminal() {
            return Self::Plain;
        }
        let bar = ProgressBar::no_length();
        bar.set_style(spinner());
        bar.enable_steady_tick(std::time::Duration::from_millis(100));
        Self::Bar(bar)
    }

    /// Says something that is no event.
    pub(crate) fn say(&self, text: &str) {
        match self {
            Self::Json => {}
            Self::Plain => eprintln!("{text}"),
            Self::Bar(bar) => bar.set_message(text.to_owned()),
        }
    }

    pub(crate) fn show(&self, event: &Event, line: &[u8]) -> anyhow::Result<()> {
        if let Self::Json = self {
            let mut out = std::io::stdout().lock();
            out.write_all(line)?;
            out.write_all(b"\n")?;
            return Ok(out.flush()?);
        }
        match event {
            Event::Started { .. } | Event::Archive { .. } => {}
            Event::Phase {
                phase,
                state: PhaseState::Begin,
                ..
            } => {
                if let Self::Bar(bar) = self {
                    bar.set_message(doing(*phase));
                }
            }
            Event::Phase {
                phase,
                state,
                ms,
                bytes,
                ..
            } => {
                let failed = if *state == PhaseState::Failed {
                    "  failed"
                } else {
                    ""
                };
                self.line(&format!(
                    "{phase:<8} {ms:>7} ms  {:>9} sent{failed}",
                    size(*bytes)
                ));
            }
            Event::Round {
                round,
                predicted_downtime_ms,
            } => self.line(&round_line(round, *predicted_downtime_ms)),
            Event::Transfer {
                transferred,
                expected,
            } => {
                if let Self::Bar(bar) = self {
                    if *expected > 0 {
                        bar.set_length(*expected);
                        bar.set_style(gauge());
                    }
                    bar.set_position(*transferred);
                }
            }
            Event::Report { report } => {
                self.clear();
                print_report(report)?;
            }
            Event::Error { error, message } => {
                self.clear();
                eprintln!("godwit: {}", sentence(error, message));
            }
        }
        Ok(())
    }

    /// Prints a line that stays.
    fn line(&self, text: &str) {
        match self {
            Self::Bar(bar) => bar.println(text),
            Self::Plain | Self::Json => eprintln!("{text}"),
        }
    }

    pub(crate) fn clear(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn round_line(round: &Round, predicted_downtime_ms: u64) -> String {
    format!(
        "round {:<2} {:>7} ms  {:>9} at {}/s, {}/s written to; frozen now it would be down {predicted_downtime_ms} ms",
        round.number,
        round.micros / 1000,
        size(round.bytes),
        size(round.bandwidth),
        size(round.dirty_rate)
    )
}

fn sentence(error: &Failure, message: &str) -> String {
    match &error.cause {
        Cause::Refused(found) => format!("refused, nothing was touched:{}", reasons(found)),
        Cause::Aborted | Cause::Lost(_) | Cause::Protocol(_) | Cause::Failed(_) => {
            format!("{message}\nthe container was not moved")
        }
    }
}

/// Objections, each on a line where there are several.
pub(crate) fn reasons(found: &[Finding]) -> String {
    match found {
        [one] => format!(" {one}"),
        several => several.iter().map(|reason| format!("\n  - {reason}")).collect(),
    }
}

fn print_report(report: &Report) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let bytes = &report.bytes;
    let sum = bytes.layers + bytes.files + bytes.volumes + bytes.log + bytes.memory + bytes.image;
    match &report.outcome {
        Outcome::Moved => {
            let renamed = report.renamed.as_ref().map(|name| format!(" as {name}"));
            let renamed = renamed.unwrap_or_default();
            let downtime = report.downtime_micros.unwrap_or_default() as f64 / 1000.0;
            writeln!(
                out,
                "{} runs on {}{renamed}: {downtime:.0} ms down, {} ms in all, {} sent",
                report.container,
                report.to,
                report.total_micros / 1000,
                size(sum)
            )?;
        }
        Outcome::CommittedUnconfirmed { reason } => writeln!(
            out,
            "{} belongs to {} and is stopped on {}; {} has not confirmed that it runs: {reason}\n\
             the agent keeps asking and removes it here then; see `godwit migrations` on both hosts",
            report.container, report.to, report.from, report.to
        )?,
    }
    if report.outcome == Outcome::Moved && report.source == Remains::Stopped {
        writeln!(
            out,
            "{} stays on {}, stopped, with restart policy `no`: started there it would be a second copy",
            report.container, report.from
        )?;
    }
    if let Some(pre_copy) = &report.pre_copy {
        writeln!(
            out,
            "{} rounds of memory while it ran, then {} {}: {}",
            pre_copy.rounds.len(),
            size(pre_copy.left),
            if report.mode == Mode::Pre {
                "in the freeze"
            } else {
                "after it"
            },
            pre_copy.ended
        )?;
    }
    print_connections(&mut out, &report.connections)?;
    for volume in &report.volumes {
        writeln!(out, "{}", fate(volume, report))?;
    }
    for remark in &report.remarks {
        writeln!(out, "note: {remark}")?;
    }
    Ok(())
}

/// Each connection on a line; `--json` has those that are too many for a person.
fn print_connections(out: &mut impl Write, connections: &Account) -> anyhow::Result<()> {
    let (kept, closed) = (connections.kept, connections.closed);
    if kept + closed == 0 {
        return Ok(());
    }
    writeln!(out, "TCP connections: {kept} kept, {closed} closed")?;
    for one in connections.list.iter().take(MAX_CONNECTIONS_SHOWN) {
        writeln!(out, "  {one}")?;
    }
    if kept + closed > MAX_CONNECTIONS_SHOWN {
        writeln!(out, "  and {} more", kept + closed - MAX_CONNECTIONS_SHOWN)?;
    }
    Ok(())
}

/// What became of a volume, and where it is now.
fn fate(volume: &Carried, report: &Report) -> String {
    let what = match volume.policy {
        Policy::Copy => format!("copied, {}", size(volume.bytes)),
        Policy::Shared => "shared, nothing copied".into(),
        Policy::Skip => "not copied".into(),
    };
    let here = if volume.stays_at_source {
        format!("stays on {} as well", report.from)
    } else {
        format!("is gone from {}", report.from)
    };
    format!("volume {} at {}: {what}; it {here}", volume.name, volume.target)
}

fn doing(phase: Phase) -> &'static str {
    match phase {
        Phase::Hello => "connecting",
        Phase::Plan => "planning",
        Phase::Prepare => "preparing",
        Phase::Freeze => "frozen, sending",
        Phase::Restore => "restoring",
        Phase::Commit => "committed",
        Phase::Drain => "running, fetching memory",
        Phase::Release => "releasing",
    }
}

fn spinner() -> ProgressStyle {
    style("{spinner} {msg}  {bytes} sent, {bytes_per_sec}")
}

fn gauge() -> ProgressStyle {
    style("{spinner} {msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec}").progress_chars("=> ")
}

fn style(template: &str) -> ProgressStyle {
    // Both templates are ours; one that is wrong costs the bar, not the move.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

pub(crate) fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(text: &str) -> Event {
        serde_json::from_str(&format!(
            r#"{{"phase":"{text}","state":"begin","ms":0,"bytes":0}}"#
        ))
        .unwrap()
    }

    #[test]
    fn whose_the_container_is_is_open_from_the_commits_begin_on() {
        for before in ["hello", "plan", "prepare", "freeze", "restore"] {
            assert!(!may_have_committed(&phase(before)), "{before}");
        }
        for from in ["commit", "drain", "release"] {
            assert!(may_have_committed(&phase(from)), "{from}");
        }
    }
}
