//! A delta of one overlay, applied to another over the same lower layer, makes the same tree: random trees by way
//! of real mounts, in one and in several passes. Needs root; says so and passes otherwise.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use proptest::prelude::*;
use rustix::fs::XattrFlags;
use tempfile::TempDir;

use super::index::Settling;
use super::write::write_settled;
use super::{DeltaError, Index, apply, upper_dir, write};

/// Longer than a tick of any kernel's clock, so that the next change has another time.
const TICK: Duration = Duration::from_millis(11);

/// Trusts every change time at once: the tests wait a tick instead, and map nothing.
const TRUSTING: Settling = Settling {
    clock: Duration::ZERO,
    mapping: Duration::ZERO,
};

struct Overlay {
    merged: PathBuf,
    upper: PathBuf,
}

impl Overlay {
    fn new(base: &Path, name: &str) -> Self {
        let at = |part: &str| base.join(name).join(part);
        for part in ["upper", "work", "merged"] {
            fs::create_dir_all(at(part)).unwrap();
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=off,metacopy=off,index=off,volatile",
            base.join("lower").display(),
            at("upper").display(),
            at("work").display()
        );
        let flags = MsFlags::empty();
        mount(
            Some("overlay"),
            &at("merged"),
            Some("overlay"),
            flags,
            Some(options.as_str()),
        )
        .unwrap();
        Self {
            merged: at("merged"),
            upper: at("upper"),
        }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = umount2(&self.merged, MntFlags::MNT_DETACH);
    }
}

/// Two overlays over one lower layer. The temporary directory goes last, when nothing is mounted in it.
struct Pair {
    source: Overlay,
    destination: Overlay,
    _base: TempDir,
}

impl Pair {
    /// `None`, with the reason printed, where overlays cannot be mounted.
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: mounting an overlay needs root");
            return None;
        }
        let base = tempfile::tempdir_in("/var/tmp").unwrap();
        fill_lower(&base.path().join("lower"));
        Some(Self {
            source: Overlay::new(base.path(), "source"),
            destination: Overlay::new(base.path(), "destination"),
            _base: base,
        })
    }

    fn pass(&self, since: Option<&Index>) -> (Index, usize) {
        thread::sleep(TICK);
        let mut stream = Vec::new();
        let index = write_settled(&self.source.upper, since, &mut stream, TRUSTING).unwrap();
        let mut input = stream.as_slice();
        apply(&self.destination.merged, &mut input).unwrap();
        assert!(input.is_empty());
        (index, stream.len())
    }

    fn assert_same(&self) {
        let (source, destination) = (describe(&self.source.merged), describe(&self.destination.merged));
        for path in source.keys().chain(destination.keys()) {
            assert_eq!(source.get(path), destination.get(path), "{}", path.display());
        }
    }
}

fn fill_lower(lower: &Path) {
    for directory in ["a/b/c", "b", "c/a"] {
        fs::create_dir_all(lower.join(directory)).unwrap();
    }
    for file in ["a/a", "a/b/a", "a/b/c/a", "b/a", "c/b"] {
        fs::write(lower.join(file), file.repeat(20)).unwrap();
    }
    fs::hard_link(lower.join("a/a"), lower.join("b/c")).unwrap();
    symlink("../a", lower.join("b/b")).unwrap();
    fs::create_dir(lower.join(OsStr::from_bytes(b"\xff"))).unwrap();
    fs::write(lower.join(OsStr::from_bytes(b"\xff/\xff")), "not UTF-8").unwrap();
}

#[derive(Debug, PartialEq)]
struct Description {
    mode: u32,
    owner: (u32, u32),
    device: u64,
    modified: (i64, i64),
    contents: Vec<u8>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// The first of all names of this file.
    linked_to: PathBuf,
    is_sparse: bool,
}

fn describe(root: &Path) -> BTreeMap<PathBuf, Description> {
    let mut found = BTreeMap::new();
    let mut first_names = HashMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let full = root.join(&path);
        let metadata = fs::symlink_metadata(&full).unwrap();
        if metadata.file_type().is_socket() {
            continue;
        }
        let mut contents = Vec::new();
        if metadata.is_dir() {
            for entry in fs::read_dir(&full).unwrap() {
                pending.push(path.join(entry.unwrap().file_name()));
            }
        } else if metadata.is_symlink() {
            contents = fs::read_link(&full)
                .unwrap()
                .into_os_string()
                .into_encoded_bytes();
        } else if metadata.is_file() {
            contents = fs::read(&full).unwrap();
        }
        if !metadata.is_dir() {
            let first: &mut PathBuf = first_names.entry(metadata.ino()).or_insert_with(|| path.clone());
            if path < *first {
                first.clone_from(&path);
            }
        }
        let description = Description {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            device: metadata.rdev(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            attributes: attributes(&full),
            contents,
            linked_to: path.clone(),
            is_sparse: metadata.is_file() && metadata.blocks() * 512 + 65536 < metadata.len(),
        };
        found.insert(path, description);
    }
    for (path, description) in &mut found {
        let metadata = fs::symlink_metadata(root.join(path)).unwrap();
        if let Some(first) = first_names.get(&metadata.ino()) {
            description.linked_to.clone_from(first);
        }
    }
    found
}

fn attributes(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap();
    let mut attributes: Vec<_> = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 65536];
            let length = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
            (name.to_vec(), value[..length].to_vec())
        })
        .collect();
    attributes.sort();
    attributes
}

/// Something a container does to its files. Most fail now and then, as in life.
#[derive(Clone, Debug)]
enum Act {
    Write(PathBuf, u16),
    Patch(PathBuf, u16),
    Hollow(PathBuf, u32),
    Directory(PathBuf),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
    HardLink(PathBuf, PathBuf),
    SymbolicLink(PathBuf),
    Fifo(PathBuf),
    Device(PathBuf, bool),
    Socket(PathBuf),
    Mode(PathBuf, u32),
    Owner(PathBuf, u32),
    Times(PathBuf, u32),
    Attribute(PathBuf, u8),
    Capability(PathBuf),
    DefaultAcl(PathBuf),
    NoAttribute(PathBuf),
}

const ACL_OF_TWO_USERS: [u8; 44] = [
    2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 6, 0, 210, 4, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255, 16,
    0, 7, 0, 255, 255, 255, 255, 32, 0, 1, 0, 255, 255, 255, 255,
];
const NET_BIND_SERVICE: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn perform(root: &Path, act: &Act) -> std::io::Result<()> {
    let node = |path: &Path, kind, device| {
        mknod(&root.join(path), kind, Mode::from_bits_truncate(0o640), device).map_err(Into::into)
    };
    let set = |path: &Path, name: &str, value: &[u8]| {
        rustix::fs::lsetxattr(root.join(path), name, value, XattrFlags::empty()).map_err(Into::into)
    };
    let can_open = |path: &Path| match fs::metadata(root.join(path)) {
        // A fifo would wait for its other end, and a device is not ours.
        Ok(metadata) if !metadata.is_file() && !metadata.is_dir() => {
            Err(std::io::ErrorKind::InvalidInput.into())
        }
        _ => Ok::<_, std::io::Error>(root.join(path)),
    };
    match act {
        Act::Write(path, length) => {
            fs::write(can_open(path)?, length.to_string().repeat(usize::from(*length)))
        }
        Act::Patch(path, at) => OpenOptions::new()
            .write(true)
            .open(can_open(path)?)?
            .write_all_at(b"patched", u64::from(*at)),
        Act::Hollow(path, size) => {
            let file = File::create(can_open(path)?)?;
            file.set_len(u64::from(*size) * 2 + 9)?;
            file.write_all_at(b"in the middle", u64::from(*size))
        }
        Act::Directory(path) => fs::create_dir(root.join(path)),
        Act::Remove(path) => {
            let path = root.join(path);
            if path.symlink_metadata()?.is_dir() {
                fs::remove_dir_all(path)
            } else {
                fs::remove_file(path)
            }
        }
        Act::Rename(from, to) => fs::rename(root.join(from), root.join(to)),
        Act::HardLink(from, to) => fs::hard_link(root.join(from), root.join(to)),
        Act::SymbolicLink(path) => symlink("some/where", root.join(path)),
        Act::Fifo(path) => node(path, SFlag::S_IFIFO, 0),
        Act::Device(path, true) => node(path, SFlag::S_IFCHR, makedev(1, 3)),
        Act::Device(path, false) => node(path, SFlag::S_IFBLK, makedev(7, 9)),
        Act::Socket(path) => UnixListener::bind(root.join(path)).map(|_| ()),
        Act::Mode(path, mode) if root.join(path).symlink_metadata()?.is_symlink() => {
            lchown(root.join(path), Some(*mode), None)
        }
        Act::Mode(path, mode) => fs::set_permissions(root.join(path), fs::Permissions::from_mode(*mode)),
        Act::Owner(path, owner) => lchown(root.join(path), Some(*owner), Some(owner + 1)),
        Act::Times(path, seconds) => File::open(can_open(path)?)?.set_modified(
            SystemTime::UNIX_EPOCH + Duration::new(u64::from(*seconds), seconds % 1_000_000_000),
        ),
        Act::Attribute(path, value) => {
            set(path, "user.some", &[*value; 3]).or_else(|_| set(path, "trusted.x", b""))
        }
        Act::Capability(path) => set(path, "security.capability", &NET_BIND_SERVICE),
        Act::DefaultAcl(path) => {
            set(path, "system.posix_acl_access", &ACL_OF_TWO_USERS)?;
            set(path, "system.posix_acl_default", &ACL_OF_TWO_USERS)
        }
        Act::NoAttribute(path) => rustix::fs::lremovexattr(root.join(path), "user.some").map_err(Into::into),
    }
}

fn any_path() -> impl Strategy<Value = PathBuf> {
    let name = prop::sample::select(vec![b"a".as_slice(), b"b", b"c", b"\xff"]);
    prop::collection::vec(name, 1..=3).prop_map(|names| names.into_iter().map(OsStr::from_bytes).collect())
}

fn any_act() -> impl Strategy<Value = Act> {
    let path = any_path;
    prop_oneof![
        4 => (path(), 0..3000_u16).prop_map(|(path, length)| Act::Write(path, length)),
        2 => (path(), 0..3000_u16).prop_map(|(path, at)| Act::Patch(path, at)),
        1 => (path(), 0..400_000_u32).prop_map(|(path, size)| Act::Hollow(path, size)),
        4 => path().prop_map(Act::Directory),
        5 => path().prop_map(Act::Remove),
        4 => (path(), path()).prop_map(|(from, to)| Act::Rename(from, to)),
        4 => (path(), path()).prop_map(|(from, to)| Act::HardLink(from, to)),
        2 => path().prop_map(Act::SymbolicLink),
        1 => path().prop_map(Act::Fifo),
        1 => (path(), any::<bool>()).prop_map(|(path, sort)| Act::Device(path, sort)),
        1 => path().prop_map(Act::Socket),
        2 => (path(), 0..0o10000_u32).prop_map(|(path, mode)| Act::Mode(path, mode)),
        2 => (path(), 0..70_000_u32).prop_map(|(path, owner)| Act::Owner(path, owner)),
        2 => (path(), any::<u32>()).prop_map(|(path, seconds)| Act::Times(path, seconds)),
        2 => (path(), any::<u8>()).prop_map(|(path, value)| Act::Attribute(path, value)),
        1 => path().prop_map(Act::Capability),
        1 => path().prop_map(Act::DefaultAcl),
        1 => path().prop_map(Act::NoAttribute),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_destination_has_the_same_tree_after_every_pass(
        passes in prop::collection::vec(prop::collection::vec(any_act(), 0..25), 1..=4)
    ) {
        let Some(pair) = Pair::new() else { return Ok(()) };
        let mut index = None;
        for acts in &passes {
            for act in acts {
                let _ = perform(&pair.source.merged, act);
            }
            index = Some(pair.pass(index.as_ref()).0);
            pair.assert_same();
        }
    }
}

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
    let index = write(&pair.source.upper, None, &mut stream).unwrap();
    stream.clear();
    write(&pair.source.upper, Some(&index), &mut stream).unwrap();
    assert!(stream.len() > 500_000);
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
    let error = write(&pair.source.upper, None, &mut Vec::new()).unwrap_err();
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
    write(&pair.source.upper, None, &mut stream).unwrap();
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
                SymbolicLink(at("l")),
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
    use proptest::strategy::ValueTree;
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
