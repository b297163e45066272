//! A stream of file operations, carried out beneath a directory that nothing may leave.
//!
//! The input lacks lengths and magic, which the target adds: otherwise almost nothing would get past them. Records
//! are cut at the byte sequence `\xffGW`, and one that begins with `c` is a chunk of contents.
#![no_main]

use std::fs;
use std::path::Path;

use godwit_fuzz::scratch;
use godwit_runtime::delta;
use libfuzzer_sys::fuzz_target;

const MAGIC: [u8; 8] = *b"GWDELTA\x01";
const SEPARATOR: &[u8] = b"\xffGW";

fuzz_target!(|input: &[u8]| {
    let around = scratch();
    let root = around.path().join("root");
    fs::create_dir(&root).expect("a directory in memory");
    fs::write(around.path().join("canary"), "unharmed").expect("a file in memory");
    // What a stream may try to go through.
    std::os::unix::fs::symlink("..", root.join("up")).expect("a link in memory");
    std::os::unix::fs::symlink(around.path(), root.join("out")).expect("a link in memory");
    let _ = delta::apply(delta::Tree::Layer(&root), &mut stream(input).as_slice());
    assert_eq!(
        fs::read(around.path().join("canary")).expect("the canary lives"),
        b"unharmed"
    );
    assert_eq!(names(around.path()), ["canary", "root"]);
});

fn stream(input: &[u8]) -> Vec<u8> {
    let mut stream = MAGIC.to_vec();
    let mut rest = input;
    while !rest.is_empty() {
        let end = rest
            .windows(SEPARATOR.len())
            .position(|window| window == SEPARATOR);
        let (record, behind) = end.map_or((rest, &[][..]), |at| (&rest[..at], &rest[at + SEPARATOR.len()..]));
        rest = behind;
        if let Some(contents) = record.strip_prefix(b"c") {
            let (offset, contents) = contents.split_at(contents.len().min(1));
            stream.extend(u64::from(offset.first().copied().unwrap_or_default()).to_le_bytes());
            stream.extend((contents.len() as u32).to_le_bytes());
            stream.extend(contents);
        } else {
            stream.extend((record.len() as u32).to_le_bytes());
            stream.extend(record);
        }
    }
    stream
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory in memory");
    let mut names: Vec<_> = entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}
