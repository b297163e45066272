//! What comes with a checkpoint image or a move as JSON: `[0][godwit.json]`, else `[any][a ticket]`.
#![no_main]

use std::sync::LazyLock;

use godwit_fuzz::scratch;
use godwit_runtime::image::Manifest;
use godwit_runtime::ticket::Ticket;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

static EMPTY: LazyLock<TempDir> = LazyLock::new(scratch);

fuzz_target!(|input: &[u8]| {
    match input.split_first() {
        Some((0, text)) => manifest(text),
        Some((_, text)) => ticket(text),
        None => {}
    }
});

fn manifest(text: &[u8]) {
    let Ok(manifest) = Manifest::parse(text) else {
        return;
    };
    let written = serde_json::to_vec(&manifest).expect("a manifest can be written");
    assert_eq!(Manifest::parse(&written).expect("and read again"), manifest);
    // In an empty directory no file has a size: one that is there lies elsewhere.
    if manifest.check(EMPTY.path()).is_ok() {
        let json: serde_json::Value = serde_json::from_slice(&written).expect("JSON");
        let sizes = json["files"].as_object().expect("an object").values();
        assert!(
            sizes.into_iter().all(|size| *size == 0),
            "a file outside the image was looked at"
        );
    }
}

fn ticket(text: &[u8]) {
    if let Ok(ticket) = Ticket::parse(text) {
        let written = serde_json::to_vec(&ticket).expect("a ticket can be written");
        assert_eq!(Ticket::parse(&written).expect("and read again"), ticket);
    }
}
