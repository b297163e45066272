//! How findings are printed: one a line, its remedy below it.

use std::io::{self, Write};

use godwit_migrate::finding::{Finding, Level};

/// Prints findings in their order, each with its host where there are several.
pub(crate) fn print(out: &mut impl Write, findings: &[Finding], with_host: bool) -> io::Result<()> {
    for finding in findings {
        let level = match finding.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Problem => "problem",
        };
        let host = if with_host {
            format!("{}: ", finding.host)
        } else {
            String::new()
        };
        writeln!(out, "{level:<8} {host}{}", finding.text)?;
        if !finding.remedy.is_empty() {
            writeln!(out, "{:<8}   -> {}", "", finding.remedy)?;
        }
    }
    Ok(())
}
