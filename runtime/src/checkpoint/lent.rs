//! What a restore changes outside its container for as long as it takes, and how that is taken back.
//!
//! CRIU opens image files from inside the namespaces it restores. Where users are mapped, root is an ordinary user of the
//! host there. The files are readable to all, and only their directory keeps others out. So the directory gets the group
//! that the namespace's root has on the host, which may then search it and nothing else.
//!
//! CRIU leaves the host's root by way of `/tmp`, or else of a directory that it makes. In a root that is read-only it
//! cannot make one; from outside the root can still be written, unless its very mount is read-only. So `/tmp` is made.
//!
//! Both are written down in the control directory before they are done: whoever cleans up after a shim that was killed
//! meanwhile takes them back.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use log::warn;
use serde::{Deserialize, Serialize};

use crate::bundle::Bundle;
use crate::control::{ControlDir, write_atomically};
use crate::spec::Spec;

/// Search for the group.
const GROUP_SEARCH: u32 = 0o010;

/// Where it is written down.
const RECORD: &str = "lent.json";

/// What is lent until this is dropped.
#[derive(Debug)]
pub(super) struct Lent {
    record: PathBuf,
    things: Things,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Things {
    /// The image's directory, open to the namespace's root.
    opened: Option<Opened>,
    /// A directory made in the container's root.
    made: Option<PathBuf>,
}

/// A directory, and what it was before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Opened {
    directory: PathBuf,
    mode: u32,
    gid: u32,
}

impl Lent {
    /// Lends what the restore of `image_dir` needs. On an error nothing is lent.
    pub(super) fn lend(
        control: &ControlDir,
        bundle: &Bundle,
        spec: &Spec,
        image_dir: &Path,
    ) -> io::Result<Self> {
        let group = spec.host_group_of_root().filter(|gid| *gid != 0);
        let opened = group.map(|_| Opened::as_it_is(image_dir)).transpose()?;
        let tmp = bundle.root_path(spec).join("tmp");
        let mut lent = Self {
            record: control.join(RECORD),
            things: Things {
                opened,
                // What is there is somebody else's.
                made: (spec.root_is_read_only() && fs::symlink_metadata(&tmp).is_err()).then_some(tmp),
            },
        };
        if lent.things != Things::default() {
            write_atomically(&lent.record, &serde_json::to_vec(&lent.things)?)?;
        }
        // From here on an error drops `lent`.
        if let (Some(gid), Some(opened)) = (group, &lent.things.opened) {
            chown(&opened.directory, None, Some(gid))?;
            fs::set_permissions(
                &opened.directory,
                Permissions::from_mode(opened.mode | GROUP_SEARCH),
            )?;
        }
        if lent
            .things
            .made
            .as_ref()
            .is_some_and(|tmp| fs::create_dir(tmp).is_err())
        {
            // CRIU may find another way, or say what is wrong.
            lent.things.made = None;
        }
        Ok(lent)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Err(error) = self.things.take_back() {
            warn!("{error}");
        }
        if self.things != Things::default() {
            // The control directory may be gone already.
            let _ = fs::remove_file(&self.record);
        }
    }
}

/// Takes back what a restore under `control` has lent and its shim, which is no more, has not. On an error all that
/// could be is taken back.
pub fn take_back(control: &ControlDir) -> io::Result<()> {
    match fs::read(control.join(RECORD)) {
        Ok(text) => serde_json::from_slice::<Things>(&text)?.take_back(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

impl Things {
    fn take_back(&self) -> io::Result<()> {
        let closed = self.opened.as_ref().map_or(Ok(()), Opened::close);
        let removed = self
            .made
            .as_ref()
            .map_or(Ok(()), |made| gone_is_fine(fs::remove_dir(made), "stays", made));
        closed.and(removed)
    }
}

/// An engine removes its copy of an image, and a root, as soon as it may.
fn gone_is_fine(done: io::Result<()>, what: &str, path: &Path) -> io::Result<()> {
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let text = format!("{} {what}: {error}", path.display());
            Err(io::Error::new(error.kind(), text))
        }
        _ => Ok(()),
    }
}

impl Opened {
    fn as_it_is(directory: &Path) -> io::Result<Self> {
        let before = fs::metadata(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            mode: before.mode() & 0o7777,
            gid: before.gid(),
        })
    }

    fn close(&self) -> io::Result<()> {
        // The mode first: the group never has more than the namespace's root had.
        let closed = fs::set_permissions(&self.directory, Permissions::from_mode(self.mode))
            .and_then(|()| chown(&self.directory, None, Some(self.gid)));
        gone_is_fine(closed, "keeps its group and mode", &self.directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A control directory, a bundle with a root, and an image.
    struct Place {
        _directory: tempfile::TempDir,
        control: ControlDir,
        bundle: Bundle,
        image: PathBuf,
    }

    impl Place {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let at = |name: &str| directory.path().join(name);
            for name in ["control", "bundle", "bundle/rootfs", "image"] {
                fs::create_dir(at(name)).unwrap();
            }
            fs::set_permissions(at("image"), Permissions::from_mode(0o700)).unwrap();
            Self {
                control: ControlDir::at(at("control")),
                bundle: Bundle::at(at("bundle")),
                image: at("image"),
                _directory: directory,
            }
        }

        fn lend(&self, spec: &Spec) -> Lent {
            Lent::lend(&self.control, &self.bundle, spec, &self.image).unwrap()
        }

        fn tmp(&self) -> PathBuf {
            self.bundle.join("rootfs/tmp")
        }

        /// Mode and group of the image's directory.
        fn image_is(&self) -> (u32, u32) {
            let metadata = fs::metadata(&self.image).unwrap();
            (metadata.mode() & 0o7777, metadata.gid())
        }

        /// A group that this process may give the directory to, whoever runs the tests.
        fn other_group(&self) -> u32 {
            match nix::unistd::geteuid().is_root() {
                true => 100_000,
                false => self.image_is().1,
            }
        }
    }

    fn spec(gid: Option<u32>, readonly: bool) -> Spec {
        let mappings = gid.map(|gid| serde_json::json!([{"containerID": 0, "hostID": gid, "size": 7}]));
        let config = serde_json::json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs", "readonly": readonly},
            "linux": {"gidMappings": mappings},
        });
        serde_json::from_value(config).unwrap()
    }

    #[test]
    fn the_group_is_the_one_that_roots_group_is_mapped_to() {
        let text = r#"{"linux":{"gidMappings":[
            {"containerID":7,"hostID":1,"size":1},{"containerID":0,"hostID":100000,"size":7}]}}"#;
        let mapped: Spec = serde_json::from_str(text).unwrap();
        assert_eq!(mapped.host_group_of_root(), Some(100_000));
        assert_eq!(spec(None, false).host_group_of_root(), None);
    }

    #[test]
    fn the_images_directory_is_as_before_at_the_end() {
        let place = Place::new();
        let before = place.image_is();
        drop(place.lend(&spec(None, false)));
        let gid = place.other_group();
        let lent = place.lend(&spec(Some(gid), false));
        assert_eq!(place.image_is(), (0o710, gid));
        drop(lent);
        assert_eq!(place.image_is(), before);
    }

    #[test]
    fn a_read_only_root_has_a_tmp_while_it_is_restored() {
        let place = Place::new();
        drop(place.lend(&spec(None, false)));
        let lent = place.lend(&spec(None, true));
        assert!(place.tmp().is_dir());
        drop(place.lend(&spec(None, true)));
        assert!(place.tmp().is_dir(), "it is somebody else's");
        drop(lent);
        assert!(!place.tmp().exists());
    }

    #[test]
    fn what_a_killed_shim_has_lent_is_taken_back_once() {
        let place = Place::new();
        let before = place.image_is();
        std::mem::forget(place.lend(&spec(Some(place.other_group()), true)));
        assert!(place.tmp().exists());
        take_back(&place.control).unwrap();
        assert_eq!(place.image_is(), before);
        assert!(!place.tmp().exists());
        // After a restore that has ended there is nothing to take back, whatever has become of the directories.
        drop(place.lend(&spec(Some(place.other_group()), true)));
        fs::set_permissions(&place.image, Permissions::from_mode(0o750)).unwrap();
        fs::create_dir(place.tmp()).unwrap();
        take_back(&place.control).unwrap();
        assert_eq!(place.image_is().0, 0o750);
        assert!(place.tmp().exists());
    }
}
