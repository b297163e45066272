//! Two mounted overlays over one lower layer, the source's and the destination's, and passes from one to the other.
//!
//! Mounting needs root: there is no pair without it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use super::super::index::Settling;
use super::super::write::write_settled;
use super::super::{Index, Tree, apply, write};
use super::description::{assert_as_sparse, describe};

/// Longer than a tick of any kernel's clock, so that the next change has another time.
pub(super) const TICK: Duration = Duration::from_millis(11);

/// Trusts every change time at once: the tests wait a tick instead, and map nothing.
const TRUSTING: Settling = Settling {
    clock: Duration::ZERO,
    mapping: Duration::ZERO,
};

/// One mounted overlay.
pub(super) struct Overlay {
    pub(super) merged: PathBuf,
    pub(super) upper: PathBuf,
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

/// Both overlays. The temporary directory goes last, when nothing is mounted in it.
pub(super) struct Pair {
    pub(super) source: Overlay,
    pub(super) destination: Overlay,
    _base: TempDir,
}

impl Pair {
    /// `None`, with the reason printed, where overlays cannot be mounted.
    pub(super) fn new() -> Option<Self> {
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

    /// A pass that sends no more than what has changed; returns its length, too.
    pub(super) fn pass(&self, since: Option<&Index>) -> (Index, usize) {
        thread::sleep(TICK);
        let mut stream = Vec::new();
        let index = write_settled(Tree::Layer(&self.source.upper), since, &mut stream, TRUSTING).unwrap();
        self.take(&stream);
        (index, stream.len())
    }

    /// A pass as moves make it, which sends again what is too young to be trusted: here, nearly all.
    pub(super) fn careful_pass(&self, since: Option<&Index>) -> Index {
        let mut stream = Vec::new();
        let index = write(Tree::Layer(&self.source.upper), since, &mut stream).unwrap();
        self.take(&stream);
        index
    }

    fn take(&self, stream: &[u8]) {
        let mut input = stream;
        apply(Tree::Layer(&self.destination.merged), &mut input).unwrap();
        assert!(input.is_empty());
    }

    /// Both trees are the same in everything that a program can see.
    pub(super) fn assert_same(&self) {
        let (source, destination) = (describe(&self.source.merged), describe(&self.destination.merged));
        for path in source.keys().chain(destination.keys()) {
            let (here, there) = (source.get(path), destination.get(path));
            assert_eq!(here, there, "{}", path.display());
            assert_as_sparse(path, here, there);
        }
    }
}

/// A little of each thing that an image may hold.
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
