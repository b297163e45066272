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

/// The lower directories of the overlay mounted at `rootfs`, uppermost first; none where the kernel does not tell them in one
/// piece.
pub fn lower_dirs(rootfs: &Path) -> io::Result<Vec<PathBuf>> {
    let rootfs = rootfs.canonicalize()?;
    let mounts = Process::myself()
        .and_then(|process| process.mountinfo())
        .map_err(io::Error::other)?;
    Ok(lowers(&rootfs, &mounts.0))
}

fn lowers(rootfs: &Path, mounts: &[MountInfo]) -> Vec<PathBuf> {
    let told = mount_at(rootfs, mounts)
        .and_then(|mount| mount.super_options.get("lowerdir"))
        .and_then(Option::as_deref)
        .map(|lower| unescape(OsStr::new(lower)))
        .unwrap_or_default();
    let named = split_at_colons(told.as_bytes());
    let found = named.into_iter().map(|lower| {
        let mut candidates = rootfs.ancestors().map(|ancestor| ancestor.join(&lower));
        candidates.find(|candidate| candidate.is_dir())
    });
    // A part of them would be wrong by what the others hold.
    found.collect::<Option<_>>().unwrap_or_default()
}

/// In a list of directories a colon of a name has a backslash before it, and so has a backslash.
fn split_at_colons(list: &[u8]) -> Vec<PathBuf> {
    let mut names = vec![Vec::new()];
    let mut bytes = list.iter();
    while let Some(byte) = bytes.next() {
        match (byte, names.last_mut()) {
            (b':', _) => names.push(Vec::new()),
            (b'\\', Some(name)) => name.extend(bytes.next()),
            (byte, Some(name)) => name.push(*byte),
            (_, None) => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
        .into_iter()
        .map(|name| OsString::from_vec(name).into())
        .collect()
}

/// Of mounts on one another the last in the list is the one that is seen.
fn mount_at<'a>(rootfs: &Path, mounts: &'a [MountInfo]) -> Option<&'a MountInfo> {
    mounts
        .iter()
        .rfind(|mount| unescape(mount.mount_point.as_os_str()) == rootfs.as_os_str())
}

fn find(rootfs: &Path, mounts: &[MountInfo]) -> io::Result<PathBuf> {
    let refuse = |reason: &str| io::Error::other(format!("{} {reason}", rootfs.display()));
    let mount =
        mount_at(rootfs, mounts).ok_or_else(|| refuse("is no mount point of this mount namespace"))?;
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
    fn lower_directories_are_told_all_or_none() {
        let home = tempfile::tempdir().unwrap();
        for name in ["l/A", "l/B", "id/merged"] {
            std::fs::create_dir_all(home.path().join(name)).unwrap();
        }
        let merged = home.path().join("id/merged");
        let told = |lower: &str| {
            let at = merged.display();
            let line = format!("30 1 0:30 / {at} rw - overlay overlay rw,lowerdir={lower},upperdir=id/diff");
            lowers(&merged, &mounts(&[&line]))
        };
        let (a, b) = (home.path().join("l/A"), home.path().join("l/B"));
        assert_eq!(told("l/B:l/A"), [b, a]);
        assert!(told("l/B:l/gone").is_empty());
        assert_eq!(
            split_at_colons(br"a\:b:c\\d"),
            [Path::new("a:b"), Path::new(r"c\d")]
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
