//! Lets the root of a user namespace read a checkpoint image for as long as a restore takes.
//!
//! CRIU opens image files from inside the namespaces it restores, where root is an ordinary user of the host. The files are
//! readable to all, and only their directory keeps others out. So the directory gets the group that the namespace's
//! root has on the host, which may then search it and nothing else; nobody else may, and all is as before at the end.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use log::warn;

use crate::spec::Spec;

/// Search for the group.
const GROUP_SEARCH: u32 = 0o010;

/// A directory that is open to a namespace's root until this is dropped.
#[derive(Debug)]
pub(super) struct Opened {
    directory: PathBuf,
    before: Metadata,
}

impl Opened {
    /// Opens `directory` if the container has a user namespace whose root is another user of the host.
    pub(super) fn to_root_of(spec: &Spec, directory: &Path) -> io::Result<Option<Self>> {
        let Some(gid) = spec.host_group_of_root().filter(|gid| *gid != 0) else {
            return Ok(None);
        };
        let before = fs::metadata(directory)?;
        let opened = Self {
            directory: directory.to_owned(),
            before,
        };
        chown(directory, None, Some(gid))?;
        let mode = opened.before.mode() | GROUP_SEARCH;
        fs::set_permissions(directory, Permissions::from_mode(mode))?;
        Ok(Some(opened))
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // The mode first: the group never has more than the namespace's root had.
        let undone = fs::set_permissions(&self.directory, self.before.permissions())
            .and_then(|()| chown(&self.directory, None, Some(self.before.gid())));
        match undone {
            // An engine removes its copy of an image as soon as it may.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!("{} keeps its group and mode: {error}", self.directory.display());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(mappings: &str) -> Spec {
        serde_json::from_str(&format!(r#"{{"ociVersion":"1.0.2","linux":{{{mappings}}}}}"#)).unwrap()
    }

    #[test]
    fn the_group_is_the_one_that_roots_group_is_mapped_to() {
        let mapped = spec(
            r#""gidMappings":[{"containerID":7,"hostID":1,"size":1},{"containerID":0,"hostID":100000,"size":7}]"#,
        );
        assert_eq!(mapped.host_group_of_root(), Some(100_000));
        assert_eq!(spec("").host_group_of_root(), None);
    }

    #[test]
    fn the_directory_is_as_before_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).unwrap();
        let state = || {
            let metadata = fs::metadata(directory.path()).unwrap();
            (metadata.mode() & 0o7777, metadata.gid())
        };
        let before = state();
        assert!(Opened::to_root_of(&spec(""), directory.path()).unwrap().is_none());
        // A group that this process may give the directory to, whoever runs the tests.
        let gid = if nix::unistd::geteuid().is_root() {
            100_000
        } else {
            before.1
        };
        let mapped = spec(&format!(
            r#""gidMappings":[{{"containerID":0,"hostID":{gid},"size":7}}]"#
        ));
        let opened = Opened::to_root_of(&mapped, directory.path()).unwrap();
        assert_eq!(state(), (0o710, gid));
        drop(opened);
        assert_eq!(state(), before);
    }
}
