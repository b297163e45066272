//! A directory in its own right, as a volume is: what would be notes in an overlay's layer is content there.
//!
//! Devices and attributes that only root may make need root; says so and passes otherwise.

use std::fs;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, mknod};
use proptest::prelude::*;
use rustix::fs::XattrFlags;

use super::super::{DeltaError, Index, Tree, apply, write};
use super::acts::{any_act, perform};
use super::description::{assert_as_sparse, describe};

/// Two directories: the source's and the destination's.
struct Volumes {
    source: tempfile::TempDir,
    destination: tempfile::TempDir,
}

impl Volumes {
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: making devices needs root");
            return None;
        }
        let [source, destination] = ["s", "d"].map(|_| tempfile::tempdir_in("/var/tmp").unwrap());
        Some(Self { source, destination })
    }

    fn pass(&self, since: Option<&Index>) -> Result<Index, DeltaError> {
        let mut stream = Vec::new();
        let index = write(Tree::Plain(self.source.path()), since, &mut stream)?;
        apply(Tree::Plain(self.destination.path()), &mut stream.as_slice())?;
        Ok(index)
    }

    fn assert_same(&self) {
        let (source, destination) = (describe(self.source.path()), describe(self.destination.path()));
        for path in source.keys().chain(destination.keys()) {
            let (here, there) = (source.get(path), destination.get(path));
            assert_eq!(here, there, "{}", path.display());
            assert_as_sparse(path, here, there);
        }
    }
}

/// An engine in the container may keep its own layers in a volume.
#[test]
fn the_layers_of_an_overlay_are_content() {
    let Some(volumes) = Volumes::new() else { return };
    let at = |name: &str| volumes.source.path().join(name);
    let note = |name: &str, note: &str| {
        let attribute = format!("trusted.overlay.{note}");
        rustix::fs::lsetxattr(at(name), attribute, b"y", XattrFlags::empty()).unwrap();
    };
    fs::create_dir(at("opaque")).unwrap();
    fs::write(at("opaque/in"), "seen").unwrap();
    fs::write(at("empty"), "").unwrap();
    mknod(&at("whiteout"), SFlag::S_IFCHR, Mode::S_IRUSR, 0).unwrap();
    for (name, kind) in [
        ("opaque", "opaque"),
        ("opaque", "redirect"),
        ("empty", "whiteout"),
    ] {
        note(name, kind);
    }
    let index = volumes.pass(None).unwrap();
    volumes.assert_same();
    rustix::fs::lremovexattr(at("opaque"), "trusted.overlay.opaque").unwrap();
    fs::remove_file(at("whiteout")).unwrap();
    volumes.pass(Some(&index)).unwrap();
    volumes.assert_same();
}

#[test]
fn only_a_plain_directory_takes_what_is_the_overlays_own() {
    let Some(volumes) = Volumes::new() else { return };
    let file = volumes.source.path().join("file");
    fs::write(&file, "").unwrap();
    rustix::fs::lsetxattr(&file, "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    let mut stream = Vec::new();
    write(Tree::Plain(volumes.source.path()), None, &mut stream).unwrap();
    let error = apply(Tree::Layer(volumes.destination.path()), &mut stream.as_slice()).unwrap_err();
    assert!(error.to_string().contains("only the overlay may set"), "{error}");
}

#[test]
fn a_directory_on_which_something_is_mounted_is_an_error() {
    let Some(volumes) = Volumes::new() else { return };
    let mounted = volumes.source.path().join("mounted");
    fs::create_dir(&mounted).unwrap();
    let (tmpfs, options) = (Some("tmpfs"), None::<&str>);
    mount(tmpfs, &mounted, tmpfs, MsFlags::empty(), options).unwrap();
    let outcome = volumes.pass(None);
    umount2(&mounted, MntFlags::MNT_DETACH).unwrap();
    let error = outcome.unwrap_err();
    assert!(
        matches!(&error, DeltaError::File { path, .. } if path == Path::new("mounted")),
        "{error}"
    );
}

proptest! {
    #![proptest_config(super::random::config())]

    #[test]
    fn both_directories_are_the_same_after_every_pass(
        rounds in prop::collection::vec(prop::collection::vec(any_act(), 0..25), 1..=3)
    ) {
        let Some(volumes) = Volumes::new() else { return Ok(()) };
        let mut index = None;
        for acts in &rounds {
            for act in acts {
                let _ = perform(volumes.source.path(), act);
            }
            index = Some(volumes.pass(index.as_ref()).unwrap());
            volumes.assert_same();
        }
    }
}
