//! The security profile a container runs under: CRIU puts its processes under the same one again, so the destination
//! must have it.
//!
//! It looks at AppArmor and `SELinux`. A seccomp filter travels in the image and needs nothing.

use std::fs;
use std::path::Path;

use super::proc::Proc;
use crate::finding::{Code, Finding};

/// Where AppArmor lists what it knows.
const APPARMOR_PROFILES: &str = "/sys/kernel/security/apparmor/profiles";

/// Where `SELinux` has its switches, if it is there.
const SELINUX: &str = "/sys/fs/selinux/enforce";

/// The profile or label of a process, if it is under one.
pub fn profile_of(proc: &Proc, pid: u32) -> Option<String> {
    let apparmor = proc.read(pid, "attr/apparmor/current");
    let current = if apparmor.is_empty() {
        proc.read(pid, "attr/current")
    } else {
        apparmor
    };
    let current = current.trim_end_matches(['\n', '\0']);
    // AppArmor adds the mode: `docker-default (enforce)`.
    let name = current.rsplit_once(" (").map_or(current, |(name, _)| name);
    Some(name.to_owned()).filter(|name| !matches!(name.as_str(), "" | "unconfined" | "kernel"))
}

/// Why a container under `profile` cannot be restored on this host.
pub fn missing(profile: Option<&str>) -> Option<Finding> {
    let profiles = fs::read_to_string(APPARMOR_PROFILES).ok();
    missing_from(profile?, profiles.as_deref(), Path::new(SELINUX).exists())
}

fn missing_from(profile: &str, apparmor: Option<&str>, has_selinux: bool) -> Option<Finding> {
    // A label of SELinux is user:role:type:level; no profile of AppArmor's has three colons.
    if profile.matches(':').count() >= 3 {
        return (!has_selinux).then(|| {
            Finding::problem(
                Code::SecurityProfile,
                format!("it has the SELinux label {profile} and this host has no SELinux"),
                "start it with --security-opt label=disable",
            )
        });
    }
    let (text, remedy) = match apparmor {
        None => (
            format!("it is under the AppArmor profile {profile} and this host has no AppArmor"),
            "start it with --security-opt apparmor=unconfined".to_owned(),
        ),
        Some(known) => {
            let is_it = |line: &str| line.rsplit_once(" (").map_or(line, |(name, _)| name) == profile;
            if known.lines().any(is_it) {
                return None;
            }
            (
                format!("it is under the AppArmor profile {profile}, which is not loaded on this host"),
                "load it with apparmor_parser; the engine loads its own when it starts".to_owned(),
            )
        }
    };
    Some(Finding::problem(Code::SecurityProfile, text, remedy))
}

#[cfg(test)]
mod tests {
    use super::super::proc::recorded::Recorded;
    use super::*;

    #[test]
    fn the_profile_is_read_without_its_mode() {
        let recorded = Recorded::new(&[10, 11, 12]);
        recorded.file(10, "attr/apparmor/current", "docker-default (enforce)\n");
        recorded.file(11, "attr/current", "system_u:system_r:container_t:s0:c1,c2\0");
        recorded.file(12, "attr/current", "unconfined\n");
        let proc = recorded.proc();
        assert_eq!(profile_of(&proc, 10).as_deref(), Some("docker-default"));
        assert_eq!(
            profile_of(&proc, 11).as_deref(),
            Some("system_u:system_r:container_t:s0:c1,c2")
        );
        assert_eq!(profile_of(&proc, 12), None);
        assert_eq!(profile_of(&proc, 13), None);
    }

    #[test]
    fn a_profile_must_be_known_to_the_destination() {
        let loaded = "docker-default (enforce)\nother (complain)\n";
        assert_eq!(missing_from("docker-default", Some(loaded), false), None);
        let told = |profile, apparmor| missing_from(profile, apparmor, false).unwrap().to_string();
        assert!(told("own", Some(loaded)).contains("which is not loaded"));
        assert!(told("own", None).contains("has no AppArmor"));
        assert!(told("u:r:t:s0", None).contains("has no SELinux"));
        assert_eq!(missing_from("u:r:t:s0", None, true), None);
    }
}
