//! Finds the writable layer of a mounted overlay.
//!
//! It asks the kernel (`/proc/self/mountinfo`) and no engine. It does not say whether the layer is in use.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use procfs::process::{MountInfo, Process};

/// The upper directory of the overlay mounted at `rootfs`.
pub fn upper_dir(rootfs: &Path) -> io::Result<PathBuf> {
    let rootfs = rootfs.canonicalize()?;
    let mounts = Process::myself()
        .and_then(|process| process.mountinfo())
        .map_err(io::Error::other)?;
    find(&rootfs, &mounts.0)
}

fn find(rootfs: &Path, mounts: &[MountInfo]) -> io::Result<PathBuf> {
    let refuse = |reason: &str| io::Error::other(format!("{} {reason}", rootfs.display()));
    // Of mounts on one another the last in the list is the one that is seen.
    let mount = mounts
        .iter()
        .rfind(|mount| unescape(mount.mount_point.as_os_str()) == rootfs.as_os_str())
        .ok_or_else(|| refuse("is no mount point of this mount namespace"))?;
    if mount.fs_type != "overlay" {
        let reason = format!(
            "is a mount of {}, not an overlay: use the overlay2 storage driver",
            mount.fs_type
        );
        return Err(refuse(&reason));
    }
    let upper = mount
        .super_options
        .get("upperdir")
        .and_then(Option::as_ref)
        .map(|upper| PathBuf::from(unescape(OsStr::new(upper))))
        .ok_or_else(|| refuse("is an overlay without a writable layer"))?;
    if upper.is_absolute() {
        return Ok(upper);
    }
    // With many layers dockerd mounts from its own directory and names everything relative to that, to keep
    // the options within a page; the mount point lies beneath the same directory.
    rootfs
        .ancestors()
        .map(|ancestor| ancestor.join(&upper))
        .find(|candidate| candidate.is_dir())
        .ok_or_else(|| {
            refuse(&format!(
                "has its writable layer at {}, relative to nothing known",
                upper.display()
            ))
        })
}

/// Undoes the kernel's `\ooo` for blanks, commas and backslashes.
fn unescape(text: &OsStr) -> OsString {
    let text = text.as_bytes();
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        match rest {
            [
                b'\\',
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                tail @ ..,
            ] => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(lines: &[&str]) -> Vec<MountInfo> {
        lines
            .iter()
            .map(|line| MountInfo::from_line(line).unwrap())
            .collect()
    }

    #[test]
    fn the_topmost_mount_counts_and_escapes_are_undone() {
        let mounts = mounts(&[
            r"30 1 0:30 / /m\040x rw - overlay overlay rw,lowerdir=/l,upperdir=/old,workdir=/w",
            r"31 1 0:31 / /m\040x rw - overlay overlay rw,lowerdir=l/A:l/B,upperdir=/u\054a\134b=c,workdir=/w",
            "32 1 0:32 / /other rw - overlay overlay rw,lowerdir=/l,upperdir=/no,workdir=/w",
        ]);
        assert_eq!(find(Path::new("/m x"), &mounts).unwrap(), Path::new(r"/u,a\b=c"));
    }

    #[test]
    fn a_relative_layer_is_found_above_the_mount_point() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(home.path().join("id/diff")).unwrap();
        let merged = home.path().join("id/merged");
        let line = format!(
            "30 1 0:30 / {} rw - overlay overlay rw,upperdir=id/diff",
            merged.display()
        );
        assert_eq!(
            find(&merged, &mounts(&[&line])).unwrap(),
            home.path().join("id/diff")
        );
    }

    #[test]
    fn what_is_no_writable_overlay_is_named() {
        let mounts = mounts(&[
            "30 1 0:30 / /plain rw - ext4 /dev/sda rw",
            "31 1 0:31 / /readonly ro - overlay overlay ro,lowerdir=/l:/m",
        ]);
        for (path, reason) in [
            ("/plain", "ext4"),
            ("/readonly", "without a writable layer"),
            ("/no", "no mount point"),
        ] {
            let error = find(Path::new(path), &mounts).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        assert!(
            upper_dir(Path::new("/proc"))
                .unwrap_err()
                .to_string()
                .contains("mount of proc")
        );
    }
}
