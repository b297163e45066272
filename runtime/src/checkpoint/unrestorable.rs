//! What CRIU dumps without a word and cannot restore, so that the container would be lost.
//!
//! It is found before anything is touched, from the container's first process. Also a dump that leaves the container
//! running is refused: an image that cannot be restored would be found out the day it is needed.

use std::fs;
use std::io;
use std::path::Path;

/// Why a restore of the container of `pid` would fail, and what to do about it; `None` if nothing is known to be in its
/// way.
pub(super) fn reason(pid: i32) -> io::Result<Option<&'static str>> {
    let process = Path::new("/proc").join(pid.to_string());
    let has_own_users = fs::read_link(process.join("ns/user"))? != fs::read_link("/proc/self/ns/user")?;
    if has_own_users && mounts_cgroup_v2(&fs::read_to_string(process.join("mountinfo"))?) {
        return Ok(Some(
            "it could not be restored, because CRIU cannot mount cgroup v2 in a user namespace: run it on a host with \
             cgroup v1, or by a daemon that does not map users (for Docker, start the container with --userns host)",
        ));
    }
    Ok(None)
}

/// Whether one of the mounts of a `/proc/PID/mountinfo` is of cgroup v2: the type follows the lone dash.
fn mounts_cgroup_v2(mountinfo: &str) -> bool {
    mountinfo
        .lines()
        .filter_map(|line| line.split_once(" - "))
        .any(|(_, rest)| rest.split(' ').next() == Some("cgroup2"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_of_cgroup_v2_is_told_from_one_of_v1() {
        let v1 = "31 30 0:26 / /sys/fs/cgroup/cpu rw,nosuid shared:9 - cgroup cgroup rw,cpu\n";
        let v2 = "32 30 0:27 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n";
        let other = "33 30 0:28 /cgroup2 /cgroup2 rw - tmpfs cgroup2 rw\n";
        assert!(mounts_cgroup_v2(&format!("{other}{v2}")));
        assert!(!mounts_cgroup_v2(&format!("{other}{v1}")));
    }

    #[test]
    fn the_users_of_the_host_are_in_nobodys_way() {
        assert_eq!(reason(std::process::id().cast_signed()).unwrap(), None);
    }
}
