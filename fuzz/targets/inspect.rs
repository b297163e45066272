//! A checkpoint image that `godwit inspect` reads: files one behind the other, as `[name][NUL][content]`, with the separator of
//! the deltas between them. Whatever they say must end, and be told and drawn.
#![no_main]

use godwit_migrate::inspect::collected::Collected;
use godwit_migrate::inspect::view::{Subject, SubjectKind};
use godwit_migrate::inspect::{Image, picture};
use libfuzzer_sys::fuzz_target;

const SEPARATOR: &[u8] = b"\xffGW";

fuzz_target!(|input: &[u8]| {
    let mut collected = Collected::default();
    let mut rest = input;
    while !rest.is_empty() {
        let end = rest.windows(SEPARATOR.len()).position(|window| window == SEPARATOR);
        let (file, behind) = match end {
            Some(end) => (&rest[..end], &rest[end + SEPARATOR.len()..]),
            None => (rest, &[][..]),
        };
        rest = behind;
        let Some(at) = file.iter().position(|byte| *byte == 0) else {
            continue;
        };
        let name = String::from_utf8_lossy(&file[..at]);
        let mut content = &file[at + 1..];
        if collected.add(&name, content.len() as u64, &mut content).is_err() {
            return;
        }
    }
    let subject = Subject {
        kind: SubjectKind::Directory,
        name: "image".into(),
        id: None,
        engine: None,
        image: None,
        state: None,
        signed_by: None,
    };
    if let Ok(image) = Image::read(subject, &collected) {
        let told = image.inspection;
        assert_eq!(told.depths().len(), told.processes.len());
        assert!(told.sizes.zero_bytes.unwrap_or(0) <= told.sizes.memory_bytes);
        assert!(picture::svg(&told).ends_with("</svg>\n"));
        assert!(serde_json::to_vec(&told).is_ok());
    }
});
