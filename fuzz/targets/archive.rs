//! A container's archive, taken into private places, and an archive of its files, carried out beneath a directory that nothing may
//! leave.
//!
//! `[0]` is followed by an archive as it is. Otherwise the input lacks headers with their sums, which the target adds: else almost
//! nothing would get past them. Members are cut at the byte sequence `\xffGW`, and each is `[kind][path]\0[link]\0[contents]`.
//! With `[1]` they are a container's archive, with anything else one of its files.
#![no_main]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use godwit_fuzz::scratch;
use godwit_migrate::archive::read::{Places, stage};
use godwit_runtime::delta::{Permitted, Tree, apply_tar};
use godwit_runtime::tar::{self, Kind, Member};
use libfuzzer_sys::fuzz_target;

const SEPARATOR: &[u8] = b"\xffGW";

/// What either place has room for; a container's archive is refused before it has more.
const ROOM: u64 = 1 << 20;

fuzz_target!(|input: &[u8]| {
    let around = scratch();
    for name in ["image", "files"] {
        fs::create_dir(around.path().join(name)).expect("a directory in memory");
    }
    fs::write(around.path().join("canary"), "unharmed").expect("a file in memory");
    let (image, files) = (around.path().join("image"), around.path().join("files"));
    match input.split_first() {
        Some((0, archive)) => take(archive, &image, &files),
        Some((1, members)) => take(&archive(members), &image, &files),
        Some((_, members)) => {
            std::os::unix::fs::symlink("..", image.join("up")).expect("a link in memory");
            let deleted = [b"/up/canary".to_vec(), b"../canary".to_vec()];
            let archive = archive(members);
            let tree = Tree::Layer(&image);
            let _ = apply_tar(tree, &deleted[..1], Permitted::NoDevices, &mut archive.as_slice());
            let _ = apply_tar(tree, &deleted[1..], Permitted::NoDevices, &mut archive.as_slice());
        }
        None => {}
    }
    let canary = fs::read(around.path().join("canary")).expect("the canary lives");
    assert_eq!(canary, b"unharmed");
    assert_eq!(fs::read_dir(around.path()).expect("a directory in memory").count(), 3);
});

fn take(archive: &[u8], image: &Path, files: &Path) {
    let places = Places {
        image,
        files,
        image_room: ROOM,
        files_room: ROOM,
    };
    let _ = stage(archive, places, &Arc::default());
    for place in [image, files] {
        let sizes = fs::read_dir(place).expect("a directory in memory");
        let sizes = sizes.map(|entry| entry.and_then(|entry| entry.metadata()).expect("an entry").len());
        assert!(sizes.sum::<u64>() <= ROOM, "more than there is room for");
    }
}

fn archive(members: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut rest = members;
    while !rest.is_empty() {
        let end = rest.windows(SEPARATOR.len()).position(|window| window == SEPARATOR);
        let (record, behind) = end.map_or((rest, &[][..]), |at| (&rest[..at], &rest[at + SEPARATOR.len()..]));
        rest = behind;
        let Some((kind, record)) = record.split_first() else {
            continue;
        };
        let mut parts = record.splitn(3, |byte| *byte == 0);
        let mut part = || parts.next().unwrap_or_default();
        let (path, link, contents) = (part(), part(), part());
        let kind = match kind % 7 {
            0 => Kind::File,
            1 => Kind::Directory,
            2 => Kind::SymbolicLink,
            3 => Kind::HardLink,
            4 => Kind::Fifo,
            5 => Kind::CharacterDevice,
            _ => Kind::BlockDevice,
        };
        let size = if kind == Kind::File { contents.len() as u64 } else { 0 };
        let member = Member {
            kind,
            link: link.to_vec(),
            ..Member::file(path, size)
        };
        archive.extend(tar::head(&member).expect("short records"));
        if kind == Kind::File {
            archive.extend(contents);
            archive.resize(archive.len() + tar::padding(size), 0);
        }
    }
    archive.extend(tar::END);
    archive
}
