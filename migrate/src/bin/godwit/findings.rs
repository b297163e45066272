//! How findings are printed: one a line, its remedy below it, its level in colour for the eye that runs down a list.
//!
//! Whether colours arrive is for the writer to say: `anstream` drops them off a terminal and under NO_COLOR.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use godwit_migrate::finding::{Finding, Level};

/// Prints findings in their order, each with its host where there are several.
pub(crate) fn print(out: &mut impl Write, findings: &[Finding], with_host: bool) -> io::Result<()> {
    for finding in findings {
        let (level, color) = match finding.level {
            Level::Ok => ("ok", AnsiColor::Green),
            Level::Warning => ("warning", AnsiColor::Yellow),
            Level::Problem => ("problem", AnsiColor::Red),
        };
        let host = if with_host {
            format!("{}: ", finding.host)
        } else {
            String::new()
        };
        let style = Style::new().fg_color(Some(color.into()));
        writeln!(out, "{style}{level:<8}{style:#} {host}{}", finding.text)?;
        if !finding.remedy.is_empty() {
            writeln!(out, "{:<8}   -> {}", "", finding.remedy)?;
        }
    }
    Ok(())
}
