//! Passes whose story is known: what is sent again and what is not, what is refused, and each kind of change that a random
//! test meets too seldom. Needs root; says so and passes otherwise.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::XattrFlags;

use super::super::{DeltaError, Tree, upper_dir, write};
use super::acts::{Act, any_act, perform};
use super::overlay::{Pair, TICK};

#[test]
fn a_second_pass_sends_only_what_changed() {
    let Some(pair) = Pair::new() else { return };
    let root = &pair.source.merged;
    fs::write(root.join("large"), vec![7; 3_000_000]).unwrap();
    fs::write(root.join("small"), "one").unwrap();
    fs::hard_link(root.join("large"), root.join("a/large-too")).unwrap();
    let (index, first_bytes) = pair.pass(None);
    assert!(
        first_bytes > 3_000_000 && first_bytes < 3_100_000,
        "{first_bytes}"
    );
    fs::write(root.join("small"), "two").unwrap();
    fs::remove_file(root.join("c/b")).unwrap();
    fs::rename(root.join("a/large-too"), root.join("small-dir")).unwrap();
    fs::rename(root.join("small-dir"), root.join("a/large-too")).unwrap();
    thread::sleep(TICK);
    let (index, second_bytes) = pair.pass(Some(&index));
    pair.assert_same();
    assert!(
        second_bytes > 3_000_000,
        "a file that was renamed has a new change time, and is sent"
    );
    fs::write(root.join("small"), "three").unwrap();
    let (index, third_bytes) = pair.pass(Some(&index));
    pair.assert_same();
    assert!(third_bytes < 1000, "{third_bytes}");
    assert!(pair.pass(Some(&index)).1 < 300, "nothing changed");
}

#[test]
fn a_young_file_is_sent_again_because_its_time_may_stand_still() {
    let Some(pair) = Pair::new() else { return };
    fs::write(pair.source.merged.join("young"), vec![7; 500_000]).unwrap();
    let mut stream = Vec::new();
    let index = write(Tree::Layer(&pair.source.upper), None, &mut stream).unwrap();
    stream.clear();
    write(Tree::Layer(&pair.source.upper), Some(&index), &mut stream).unwrap();
    assert!(stream.len() > 500_000);
}

#[test]
fn a_file_that_is_a_moment_old_is_sent_once() {
    let Some(pair) = Pair::new() else { return };
    fs::write(pair.source.merged.join("settled"), vec![7; 500_000]).unwrap();
    thread::sleep(Duration::from_millis(150));
    let mut index = pair.careful_pass(None);
    for later in 0..3 {
        let mut stream = Vec::new();
        index = write(Tree::Layer(&pair.source.upper), Some(&index), &mut stream).unwrap();
        assert!(stream.len() < 1000, "{} bytes {later} passes later", stream.len());
    }
}

#[test]
fn the_layer_is_found_by_the_mount() {
    let Some(pair) = Pair::new() else { return };
    assert_eq!(upper_dir(&pair.source.merged).unwrap(), pair.source.upper);
}

#[test]
fn a_whiteout_kept_as_an_attribute_removes() {
    let Some(pair) = Pair::new() else { return };
    // The kernel writes this form only into layers it has under another overlay, so it is written by hand.
    let whiteout = pair.source.upper.join("b");
    fs::write(&whiteout, "").unwrap();
    rustix::fs::lsetxattr(&whiteout, "trusted.overlay.whiteout", b"y", XattrFlags::empty()).unwrap();
    pair.pass(None);
    assert!(!pair.destination.merged.join("b").exists());
    assert!(pair.destination.merged.join("a/b").exists());
}

#[test]
fn what_cannot_be_carried_is_an_error_and_no_silent_loss() {
    let Some(pair) = Pair::new() else { return };
    let path = pair.source.upper.join("renamed");
    fs::create_dir(&path).unwrap();
    rustix::fs::lsetxattr(&path, "trusted.overlay.redirect", b"/a", XattrFlags::empty()).unwrap();
    let error = write(Tree::Layer(&pair.source.upper), None, &mut Vec::new()).unwrap_err();
    assert!(
        matches!(&error, DeltaError::Unsupported { path, .. } if path == Path::new("renamed")),
        "{error}"
    );
    assert!(error.to_string().contains("redirect_dir"), "{error}");
}

#[test]
fn the_overlays_own_notes_are_not_sent() {
    let Some(pair) = Pair::new() else { return };
    fs::write(pair.source.merged.join("a/b/a"), "copied up").unwrap();
    let mut stream = Vec::new();
    write(Tree::Layer(&pair.source.upper), None, &mut stream).unwrap();
    assert!(!stream.windows(16).any(|bytes| bytes == b"trusted.overlay."));
}

/// Histories of two passes that a random test meets too seldom, each with the fear it stands for.
#[test]
fn every_kind_of_change_between_two_passes_arrives() {
    use Act::{
        Attribute, DefaultAcl, Directory, Fifo, HardLink, Hollow, Owner, Remove, Rename, Socket,
        SymbolicLink, Write,
    };
    let at = PathBuf::from;
    let histories: Vec<(&str, Vec<Act>, Vec<Act>)> = vec![
        (
            "a new file that is gone again stays over there",
            vec![Write(at("n"), 5), Directory(at("m")), Write(at("m/n"), 5)],
            vec![Remove(at("n")), Remove(at("m"))],
        ),
        (
            "a directory made again still shows what lower layers hold in it",
            vec![Remove(at("a")), Directory(at("a")), Write(at("a/new"), 3)],
            vec![Remove(at("a")), Directory(at("a")), Write(at("a/newer"), 3)],
        ),
        (
            "a directory replaced for the first time still shows what was in it",
            vec![Owner(at("a/b/a"), 7)],
            vec![Remove(at("a")), Directory(at("a"))],
        ),
        (
            "a file that is back in a directory made again is not sent",
            vec![Directory(at("c/s")), Write(at("c/s/f"), 9)],
            vec![
                Rename(at("c/s"), at("t")),
                Remove(at("c")),
                Directory(at("c")),
                Rename(at("t"), at("c/s")),
            ],
        ),
        (
            "a removed name comes back",
            vec![Remove(at("c/b"))],
            vec![Write(at("c/b"), 8)],
        ),
        (
            "a link whose other name did not change becomes a copy",
            vec![
                Directory(at("p")),
                Write(at("p/f"), 4),
                HardLink(at("p/f"), at("g")),
            ],
            vec![Rename(at("p"), at("q"))],
        ),
        (
            "a link that is cut stays a link",
            vec![
                Write(at("f"), 4),
                HardLink(at("f"), at("g")),
                HardLink(at("f"), at("h")),
            ],
            vec![Remove(at("g")), Write(at("g"), 6), Owner(at("f"), 3)],
        ),
        (
            "one sort of file does not replace another",
            vec![
                Write(at("x"), 4),
                Directory(at("y")),
                Write(at("y/z"), 2),
                SymbolicLink(at("l"), "some/where".into()),
            ],
            vec![
                Remove(at("x")),
                Directory(at("x")),
                Write(at("x/in"), 2),
                Remove(at("y")),
                Fifo(at("y")),
                Remove(at("l")),
                Hollow(at("l"), 300_000),
            ],
        ),
        (
            "a socket leaves what it replaced",
            vec![Write(at("s"), 4)],
            vec![
                Remove(at("s")),
                Socket(at("s")),
                Remove(at("b/a")),
                Socket(at("b/a")),
            ],
        ),
        (
            "new files inherit what the source's did not",
            vec![Write(at("c/n"), 4), DefaultAcl(at("c"))],
            vec![Owner(at("c/n"), 9), Attribute(at("c/b"), 1)],
        ),
    ];
    for (fear, first, second) in histories {
        let Some(pair) = Pair::new() else { return };
        for act in &first {
            perform(&pair.source.merged, act).unwrap_or_else(|error| panic!("{fear}: {act:?}: {error}"));
        }
        let index = pair.pass(None).0;
        println!("first pass of: {fear}");
        pair.assert_same();
        for act in &second {
            perform(&pair.source.merged, act).unwrap_or_else(|error| panic!("{fear}: {act:?}: {error}"));
        }
        println!("second pass of: {fear}");
        pair.pass(Some(&index));
        pair.assert_same();
    }
}

#[test]
fn passes_over_a_busy_layer_do_not_fail_and_the_last_one_is_true() {
    use proptest::strategy::{Strategy, ValueTree};
    use proptest::test_runner::TestRunner;

    let Some(pair) = Pair::new() else { return };
    let mut runner = TestRunner::deterministic();
    let acts: Vec<Act> = (0..6000)
        .map(|_| any_act().new_tree(&mut runner).unwrap().current())
        .collect();
    let root = pair.source.merged.clone();
    let mut index = None;
    thread::scope(|scope| {
        let busy = scope.spawn(move || {
            for act in &acts {
                let _ = perform(&root, act);
            }
        });
        while !busy.is_finished() {
            index = Some(pair.pass(index.as_ref()).0);
        }
    });
    pair.pass(index.as_ref());
    pair.assert_same();
}
