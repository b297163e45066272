//! `godwit man`: writes the manual pages of all commands, for whoever makes a package.
//!
//! A hidden command and no step of the build: the pages are then those of the very program that is packed, and a build
//! writes nothing beside what it is asked for. It refuses no directory, and overwrites pages that are there.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

const MANUAL: &str = "Godwit";

/// Writes the pages of a command and of all below it.
pub(crate) fn write(command: Command, dir: &Path) -> anyhow::Result<()> {
    let version = command.get_version().unwrap_or_default().to_owned();
    let mut command = command.disable_help_subcommand(true);
    command.build();
    write_tree(&command, dir, &version)
}

fn write_tree(command: &Command, dir: &Path, version: &str) -> anyhow::Result<()> {
    for below in command.get_subcommands().filter(|one| !one.is_hide_set()) {
        write_tree(below, dir, version)?;
    }
    let man = Man::new(command.clone())
        .manual(MANUAL)
        .source(format!("godwit {version}"));
    let mut page = Vec::new();
    render(&man, command, &mut page)?;
    let path = dir.join(man.get_filename());
    fs::write(&path, page).with_context(|| format!("writing {}", path.display()))
}

fn render(man: &Man, command: &Command, page: &mut impl Write) -> io::Result<()> {
    let page: &mut dyn Write = page;
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(page)?;
    }
    let below = command.get_after_help().map(ToString::to_string);
    sections(&below.unwrap_or_default()).to_writer(page)
}

/// The blocks of `help` as sections, each line as it is.
fn sections(text: &str) -> Roff {
    let mut roff = Roff::new();
    for block in text.split("\n\n").filter(|block| !block.is_empty()) {
        let (heading, lines) = block.split_once('\n').unwrap_or((block, ""));
        roff.control("SH", [heading.trim_end_matches(':').to_uppercase().as_str()]);
        roff.control("nf", []);
        for line in lines.lines() {
            roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
        }
        roff.control("fi", []);
    }
    roff
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_command_has_a_page_with_its_examples_and_exit_codes() {
        let dir = tempfile::tempdir().unwrap();
        write(crate::Arguments::command(), dir.path()).unwrap();
        for command in crate::Arguments::command().get_subcommands() {
            let page = dir.path().join(format!("godwit-{}.1", command.get_name()));
            assert_eq!(page.exists(), !command.is_hide_set(), "{}", page.display());
            if let Ok(text) = fs::read_to_string(&page) {
                assert!(text.contains(".SH EXAMPLES\n.nf\ngodwit "), "{text}");
                assert!(text.contains(".SH \"EXIT CODES\"\n.nf\n0 "), "{text}");
            }
        }
        assert!(dir.path().join("godwit-migrations-show.1").exists());
        assert!(dir.path().join("godwit.1").exists());
    }
}
