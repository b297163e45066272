//! What `godwit export` and `godwit import` have in common: the agent's events beside the archive's bytes, and ^C.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use godwit_migrate::archive::Summary;
use godwit_migrate::failure::{Cause, Failure};
use godwit_migrate::progress::Event;
use hyper::Method;

use crate::client;
use crate::migrate::{Abort, Lines, View, exit_of_failure, reasons, size};

/// The agent's telling of an export or import.
pub(crate) struct Telling {
    lines: Lines,
    view: View,
    abort: Abort,
    json: bool,
}

/// How it ended.
pub(crate) enum End {
    Done(Summary),
    Failed(Failure),
}

impl Telling {
    /// Asks for it; its name comes with the first event.
    pub(crate) async fn begin(
        socket: &Path,
        path: &str,
        request: &impl serde::Serialize,
        json: bool,
    ) -> anyhow::Result<(Self, String)> {
        let response = client::send(socket, Method::POST, path, Some(request)).await?;
        let mut telling = Self {
            lines: Lines::new(response.into_body()),
            view: View::new(json),
            abort: Abort::new(socket),
            json,
        };
        match telling.next().await? {
            Event::Started { migration, .. } => {
                telling.abort.migration = Some(migration.clone());
                Ok((telling, migration))
            }
            _ => anyhow::bail!("the agent said something out of turn"),
        }
    }

    /// Shows events until the last. May be dropped and called again.
    pub(crate) async fn end(&mut self) -> anyhow::Result<End> {
        loop {
            match self.next().await? {
                Event::Archive { archive } => return Ok(End::Done(archive)),
                Event::Error { error, .. } => return Ok(End::Failed(error)),
                _ => {}
            }
        }
    }

    async fn next(&mut self) -> anyhow::Result<Event> {
        loop {
            let line = tokio::select! {
                line = self.lines.next() => line?.context("the agent went away: what it was asked for is undone when it is started again")?,
                asked = self.abort.asked() => {
                    asked?;
                    self.view.say("aborting");
                    continue;
                }
            };
            let event: Event = serde_json::from_slice(&line).context("the agent said something unknown")?;
            let is_last = matches!(event, Event::Archive { .. } | Event::Error { .. });
            if self.json || !is_last {
                self.view.show(&event, &line)?;
            }
            return Ok(event);
        }
    }

    /// Says how it failed, and where the container is now.
    pub(crate) fn fail(&self, failure: &Failure, now: &str) -> ExitCode {
        self.view.clear();
        if !self.json {
            match &failure.cause {
                Cause::Refused(found) => eprintln!("godwit: refused, nothing was touched:{}", reasons(found)),
                _ => eprintln!("godwit: {failure}\n{now}"),
            }
        }
        exit_of_failure(failure)
    }

    /// Says what it came to.
    pub(crate) fn succeed(&self, told: &str, summary: &Summary) -> anyhow::Result<()> {
        self.view.clear();
        if self.json {
            return Ok(());
        }
        // An archive may be on its way to standard output.
        let mut out = std::io::stderr().lock();
        writeln!(out, "{told}, {}", size(summary.bytes))?;
        let (kept, closed) = (summary.connections_kept, summary.connections_closed);
        if kept + closed > 0 {
            writeln!(out, "TCP connections: {kept} kept, {closed} closed")?;
        }
        if let Some(host) = &summary.signed_by {
            writeln!(out, "signed by {host}")?;
        }
        for remark in &summary.remarks {
            writeln!(out, "note: {remark}")?;
        }
        Ok(())
    }
}

/// A name beside `file` that nobody else takes: it has the number of this process.
pub(crate) fn beside(file: &Path) -> anyhow::Result<PathBuf> {
    let name = file.file_name().context("that is no name of a file")?;
    let name = format!(".{}.godwit-{}", name.to_string_lossy(), std::process::id());
    Ok(file.with_file_name(name))
}
