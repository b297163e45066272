//! A layer goes over whole as a tar archive, to a reader of ours and to one that knows neither marks nor whiteouts; and what a
//! hostile archive may do.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use proptest::prelude::*;

use super::super::{Applied, DeltaError, Permitted, TarPlan, Tree, apply_tar, lower_dirs};
use super::acts::{Act, any_act, perform};
use super::overlay::Pair;
use crate::tar::{self, Kind, Member};

/// The archive of the source's layer, and the names it hides.
fn pack(pair: &Pair) -> (Vec<u8>, Vec<Vec<u8>>) {
    let lowers = lower_dirs(&pair.source.merged).unwrap();
    let plan = TarPlan::new(Tree::Layer(&pair.source.upper), &lowers).unwrap();
    let mut archive = Vec::new();
    plan.write(&mut archive).unwrap();
    assert_eq!(archive.len() as u64, plan.bytes(), "the size is known beforehand");
    let deleted = plan
        .deleted()
        .iter()
        .map(|path| path.as_os_str().as_bytes().to_vec());
    (archive, deleted.collect())
}

fn unpack(root: &Path, archive: &[u8], deleted: &[Vec<u8>]) -> Result<Applied, DeltaError> {
    apply_tar(Tree::Layer(root), deleted, Permitted::Devices, &mut &archive[..])
}

/// What a reader sees that does not know our mark.
fn without_marks(archive: &[u8]) -> Vec<u8> {
    let mut reader = tar::Reader::new(archive);
    let mut plain = Vec::new();
    while let Some(member) = reader.next_member().unwrap() {
        let member = Member {
            is_opaque: false,
            ..member
        };
        plain.extend(tar::head(&member).unwrap());
        std::io::copy(&mut reader, &mut plain).unwrap();
        plain.resize(plain.len() + tar::padding(member.size), 0);
    }
    plain.extend(tar::END);
    plain
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_container_did_arrives_by_an_archive(
        acts in prop::collection::vec(any_act(), 0..60), knows_marks in any::<bool>(),
    ) {
        let Some(pair) = Pair::new() else { return Ok(()) };
        for act in &acts {
            let _ = perform(&pair.source.merged, act);
        }
        let (archive, deleted) = pack(&pair);
        let archive = if knows_marks { archive } else { without_marks(&archive) };
        unpack(&pair.destination.merged, &archive, &deleted).unwrap();
        pair.assert_same();
    }
}

/// What podman 5.8 loses of each (`CRCreateRootFsDiffTar`): it asks the host's own files whether a changed one is there, and saves
/// no directory.
#[test]
fn what_podman_loses_arrives() {
    use Act::{Attribute, Directory, HardLink, Mode, Owner, Remove, Write};
    let Some(pair) = Pair::new() else { return };
    let at = std::path::PathBuf::from;
    let acts = [
        Mode(at("a/b"), 0o2750),
        Owner(at("c/a"), 4711),
        Write(at("etc"), 10),
        Write(at("a/b/a"), 12),
        HardLink(at("a/b/a"), at("second")),
        Attribute(at("a/b/a"), 1),
        Remove(at("c/b")),
        Remove(at("a/b/c")),
        Directory(at("a/b/c")),
        Write(at("a/b/c/new"), 3),
    ];
    for act in &acts {
        perform(&pair.source.merged, act).unwrap_or_else(|error| panic!("{act:?}: {error}"));
    }
    let (archive, deleted) = pack(&pair);
    let named = |name: &str| deleted.iter().any(|path| path == name.as_bytes());
    assert!(named("c/b"), "a whiteout");
    assert!(named("a/b/c/a"), "what a directory hides that was made again");
    unpack(&pair.destination.merged, &without_marks(&archive), &deleted).unwrap();
    pair.assert_same();
}

fn root() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("root")).unwrap();
    directory
}

fn of(members: &[Member]) -> Vec<u8> {
    let mut archive: Vec<u8> = members
        .iter()
        .flat_map(|member| {
            let mut blocks = tar::head(member).unwrap();
            blocks.extend(vec![7; member.size as usize]);
            blocks.resize(blocks.len() + tar::padding(member.size), 0);
            blocks
        })
        .collect();
    archive.extend(tar::END);
    archive
}

fn own(member: Member) -> Member {
    Member {
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        ..member
    }
}

#[test]
fn nothing_is_made_or_removed_outside_the_root() {
    let directory = root();
    fs::write(directory.path().join("outside"), "safe").unwrap();
    symlink("..", directory.path().join("root/up")).unwrap();
    let at = directory.path().join("root");
    let link = |target: &str| {
        own(Member {
            kind: Kind::HardLink,
            link: target.into(),
            ..Member::file("link", 0)
        })
    };
    for member in [
        own(Member::file("../outside", 3)),
        own(Member::file("up/outside", 3)),
        own(Member::file("a/../../outside", 3)),
        own(Member::file("//outside", 3)),
        link("../outside"),
        link("up/outside"),
        own(Member::directory("up/new/")),
    ] {
        let shown = String::from_utf8_lossy(&member.path).into_owned();
        assert!(unpack(&at, &of(&[member]), &[]).is_err(), "{shown}");
    }
    for deleted in ["../outside", "up/outside", "/up/../../outside"] {
        let _ = unpack(&at, &of(&[]), &[deleted.into()]);
    }
    assert_eq!(
        fs::read_to_string(directory.path().join("outside")).unwrap(),
        "safe"
    );
    let names = fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(names, 2, "something was made beside the root");
}

#[test]
fn a_link_made_by_the_archive_is_not_followed_by_it() {
    let directory = root();
    let at = directory.path().join("root");
    let link = own(Member {
        kind: Kind::SymbolicLink,
        link: b"..".into(),
        ..Member::file("way", 0)
    });
    let archive = of(&[link, own(Member::file("way/outside", 3))]);
    assert!(unpack(&at, &archive, &[]).is_err());
    assert!(!directory.path().join("outside").exists());
}

#[test]
fn a_device_comes_only_where_it_is_permitted() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: nodes of devices need root");
        return;
    }
    let directory = root();
    let at = directory.path().join("root");
    let disk = Member {
        kind: Kind::BlockDevice,
        device: (8, 0),
        ..Member::file("disk", 0)
    };
    let apply = |member: &Member, permitted| {
        apply_tar(
            Tree::Plain(&at),
            &[],
            permitted,
            &mut &of(std::slice::from_ref(member))[..],
        )
    };
    let error = apply(&disk, Permitted::NoDevices).unwrap_err().to_string();
    assert!(
        error.contains("disk is device 8:0, which the container could not make"),
        "{error}"
    );
    assert!(!at.join("disk").exists());
    let whiteout = Member {
        kind: Kind::CharacterDevice,
        device: (0, 0),
        ..Member::file("gone", 0)
    };
    apply(&whiteout, Permitted::NoDevices).unwrap();
    apply(&disk, Permitted::Devices).unwrap();
}

#[test]
fn a_tree_that_changes_under_the_writer_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "12345").unwrap();
    let plan = TarPlan::new(Tree::Plain(directory.path()), &[]).unwrap();
    fs::write(&file, "123").unwrap();
    // A shorter file has another head, and what is promised must come.
    let mut archive = Vec::new();
    let whole = plan.write(&mut archive).is_ok() && archive.len() as u64 == plan.bytes();
    assert!(whole, "as long as the blocks fit, a file may be shorter");
    fs::remove_file(&file).unwrap();
    assert!(plan.write(&mut Vec::new()).is_err());
}
