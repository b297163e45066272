//! Every example of the help texts and of the documents is a command that this program takes. A test, and nothing else.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser};

use crate::Arguments;

/// Where an example ends and the shell, or the explanation beside it, begins.
const ENDS: [&str; 6] = ["#", "|", ">", "&&", "||", ";"];

fn parses(line: &str) -> Result<(), String> {
    // in help texts explanations stand behind several spaces
    let command = line.split("   ").next().unwrap_or(line);
    let words = command
        .split_whitespace()
        .take_while(|word| !ENDS.iter().any(|end| word.starts_with(end)));
    Arguments::try_parse_from(words)
        .map(|_| ())
        .map_err(|error| format!("{command}: {error}"))
}

#[test]
fn examples_of_help_texts_parse() {
    let mut n_examples = 0;
    let root = Arguments::command();
    for command in std::iter::once(&root).chain(root.get_subcommands()) {
        let text = command.get_after_help().map(ToString::to_string);
        for line in text.unwrap_or_default().lines() {
            if line.starts_with("  godwit ") {
                parses(line.trim_start()).unwrap();
                n_examples += 1;
            }
        }
    }
    assert!(n_examples >= root.get_subcommands().count(), "{n_examples}");
}

#[test]
fn examples_of_documents_parse() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut n_examples = 0;
    for document in documents(&repository) {
        let text = fs::read_to_string(&document).unwrap();
        let joined = text.replace("\\\n", " ");
        let mut is_shell = false;
        for line in joined.lines() {
            if line.starts_with("```") {
                is_shell = line == "```sh";
            } else if is_shell && line.starts_with("godwit ") {
                parses(line).unwrap_or_else(|error| panic!("{}: {error}", document.display()));
                n_examples += 1;
            }
        }
    }
    assert!(n_examples >= 10, "{n_examples}: are they marked ```sh?");
}

fn documents(repository: &Path) -> Vec<PathBuf> {
    let mut found = vec![repository.join("README.md")];
    for directory in ["docs", "docs/cli"] {
        let entries = fs::read_dir(repository.join(directory)).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        found.extend(paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    found
}
