//! The agent's log: lines on standard error with the priority in front that systemd's journal understands.

use std::io::Write;

use log::{Level, LevelFilter, Log, Metadata, Record};

struct Lines;

/// Sends this process's log to standard error; `GODWIT_LOG` names the level, `info` if it does not.
pub(crate) fn install() {
    let level = std::env::var("GODWIT_LOG")
        .ok()
        .and_then(|level| level.parse().ok());
    if log::set_logger(&Lines).is_ok() {
        log::set_max_level(level.unwrap_or(LevelFilter::Info));
    }
}

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries tell their own affairs at these levels, ours tell the move's.
        metadata.level() <= Level::Warn || metadata.target().starts_with("godwit")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let (priority, name) = match record.level() {
            Level::Error => (3, "error"),
            Level::Warn => (4, "warning"),
            Level::Info => (6, "info"),
            Level::Debug | Level::Trace => (7, "debug"),
        };
        // A log that cannot be written has nowhere to be complained of.
        let _ = writeln!(std::io::stderr(), "<{priority}>{name}: {}", record.args());
    }

    fn flush(&self) {}
}
