//! The examples of the documents that show what is printed, and the cases beside this file, run as they stand.
//!
//! Each ```` ```console ```` block of a document runs in an empty directory of the document's own. None may need an engine or
//! an agent, and none may reach one that is there: those that speak to an agent name a socket that is nobody's. What does
//! need them is run by `integration/tests/test_examples.py` and `integration/test-package`.

use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn commands_print_what_the_documents_and_cases_show() {
    let scratch = tempfile::tempdir().unwrap();
    let cases = trycmd::TestCases::new();
    cases.register_bin("godwit", Path::new(env!("CARGO_BIN_EXE_godwit")));
    let mut n_documents = 0;
    for document in documents() {
        let examples = examples(&fs::read_to_string(&document).unwrap());
        if !examples.trim().is_empty() {
            let name = document.file_stem().unwrap().to_str().unwrap();
            // the directory that trycmd runs the document's commands in
            fs::create_dir(scratch.path().join(format!("{name}.in"))).unwrap();
            let copy = scratch.path().join(format!("{name}.md"));
            fs::write(&copy, examples).unwrap();
            cases.case(copy);
            n_documents += 1;
        }
    }
    assert!(
        n_documents >= 4,
        "{n_documents}: are their examples marked ```console?"
    );
    cases.case("tests/cases/*.trycmd");
}

/// The blocks alone, in their lines: trycmd takes a block that says nothing of itself for one of its own.
fn examples(document: &str) -> String {
    let mut is_example = false;
    let mut kept = String::new();
    for line in document.lines() {
        is_example |= line == "```console";
        if is_example {
            kept.push_str(line);
        }
        kept.push('\n');
        is_example &= line != "```";
    }
    kept
}

fn documents() -> Vec<PathBuf> {
    let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli");
    let entries = fs::read_dir(pages).expect("docs/cli is there");
    entries.flatten().map(|entry| entry.path()).collect()
}
