//! What a host is, as far as another has to compare it with itself.
//!
//! Facts travel: in an offer, in its answer, and when a doctor asks. They hold no judgement; that is [`compare`]'s.

use std::collections::BTreeSet;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use libcgroups::common::{CgroupSetup, get_cgroup_setup};
use serde::{Deserialize, Serialize};

use super::cpu;
use super::tools::{LAZY_FEATURE, Versions, two_numbers};
use crate::finding::{Code, Finding, Level};

/// Clocks that differ by more than this make logs of two hosts hard to read together, and certificates fail early.
const MAX_SKEW_MILLIS: u64 = 2_000;

/// One host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// The kernel's release, as `uname -r` says it.
    pub kernel: String,
    /// `x86_64`, `aarch64` …
    pub architecture: String,
    /// The instruction sets that programs can choose by.
    pub cpu_flags: BTreeSet<String>,
    /// CRIU's version, `None` if there is none that says one.
    pub criu: Option<String>,
    /// What CRIU can do on this kernel, of what moves would use.
    pub criu_features: BTreeSet<String>,
    /// Whether the kernel tells which pages were written to, so that memory can be copied beforehand.
    pub soft_dirty: bool,
    /// runC's version.
    pub runc: Option<String>,
    /// 1 or 2.
    pub cgroup_version: u8,
    /// Milliseconds since 1970, when this was collected.
    pub clock_millis: u64,
}

impl Facts {
    /// Those of this host, whose programs have said these versions.
    pub fn of_this_host(versions: &Versions) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            kernel: kernel.trim_end().to_owned(),
            architecture: std::env::consts::ARCH.into(),
            cpu_flags: cpu::flags(&cpuinfo, std::env::consts::ARCH),
            criu: versions.criu.clone().ok(),
            criu_features: versions.features.clone(),
            soft_dirty: versions.soft_dirty,
            runc: versions.runc.clone().ok(),
            cgroup_version: cgroup_version(),
            clock_millis: clock_millis(),
        }
    }

    /// Modes of a move that a container can leave this host in and arrive at `there`.
    pub fn modes(&self, there: &Self) -> Vec<&'static str> {
        let is_lazy = |host: &Self| host.criu_features.contains(LAZY_FEATURE);
        match (is_lazy(self) && is_lazy(there), self.soft_dirty) {
            (true, true) => vec!["stop", "pre", "post"],
            (true, false) => vec!["stop", "post"],
            (false, _) => vec!["stop"],
        }
    }
}

/// Milliseconds since 1970.
pub fn clock_millis() -> u64 {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(clock.as_millis()).unwrap_or(u64::MAX)
}

/// Which cgroups containers of this host are given.
pub fn cgroup_version() -> u8 {
    match get_cgroup_setup() {
        Ok(CgroupSetup::Unified) => 2,
        Ok(CgroupSetup::Legacy | CgroupSetup::Hybrid) | Err(_) => 1,
    }
}

/// What keeps any container of `there` from being moved to `here`, or may surprise.
pub fn compare(there: &Facts, here: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if there.architecture != here.architecture {
        findings.push(Finding::problem(
            Code::Architecture,
            format!(
                "it is {}, the source is {}",
                here.architecture, there.architecture
            ),
            "choose a host of the same architecture",
        ));
    }
    if let (Some(theirs), Some(ours)) = (two_numbers(&there.kernel), two_numbers(&here.kernel))
        && ours < theirs
    {
        findings.push(Finding::warning(
            Code::Kernel,
            format!(
                "Linux {} is older than the source's {}: what a program has of the newer one cannot be restored",
                here.kernel, there.kernel
            ),
            "run the same kernel on both hosts",
        ));
    }
    for (code, what, theirs, ours) in [
        (Code::Criu, "CRIU", &there.criu, &here.criu),
        (Code::Runc, "runC", &there.runc, &here.runc),
    ] {
        if let (Some(theirs), Some(ours)) = (theirs, ours)
            && two_numbers(theirs) > two_numbers(ours)
        {
            findings.push(Finding::warning(
                code,
                format!("{what} {ours} is older than the source's {theirs}"),
                format!("install the same {what} on both hosts"),
            ));
        }
    }
    findings
}

/// What differs between this host and its peer, whichever way a container goes. `round_trip_millis` is how long the
/// peer's answer took to come.
pub fn differences(here: &Facts, there: &Facts, peer: &str, round_trip_millis: u64) -> Vec<Finding> {
    let mut findings = Vec::new();
    let compared = [
        (
            Code::Architecture,
            "architecture",
            &here.architecture,
            &there.architecture,
            Level::Problem,
        ),
        (
            Code::Kernel,
            "kernel",
            &here.kernel,
            &there.kernel,
            Level::Warning,
        ),
    ];
    for (code, what, ours, theirs, level) in compared {
        findings.push(difference(code, what, Some(ours), Some(theirs), peer, level));
    }
    let (criu, their_criu) = (here.criu.as_ref(), there.criu.as_ref());
    findings.push(difference(
        Code::Criu,
        "CRIU",
        criu,
        their_criu,
        peer,
        Level::Warning,
    ));
    let (runc, their_runc) = (here.runc.as_ref(), there.runc.as_ref());
    findings.push(difference(
        Code::Runc,
        "runC",
        runc,
        their_runc,
        peer,
        Level::Warning,
    ));
    let versions = [here, there].map(|host| format!("v{}", host.cgroup_version));
    let (ours, theirs) = (Some(&versions[0]), Some(&versions[1]));
    findings.push(difference(
        Code::Cgroups,
        "cgroups",
        ours,
        theirs,
        peer,
        Level::Warning,
    ));

    let lacking = |there: &BTreeSet<String>, here: &BTreeSet<String>| -> String {
        there.difference(here).cloned().collect::<Vec<_>>().join(" ")
    };
    let (only_here, only_there) = (
        lacking(&here.cpu_flags, &there.cpu_flags),
        lacking(&there.cpu_flags, &here.cpu_flags),
    );
    if only_here.is_empty() && only_there.is_empty() {
        findings.push(Finding::ok(
            Code::CpuFlags,
            format!("{peer} has the same instructions"),
        ));
    }
    let cannot_go = "containers cannot go there unless they say io.godwit.migrate.cpu=ignore";
    if !only_here.is_empty() {
        let text = format!("{peer}'s processor lacks what this host's has: {only_here}");
        findings.push(Finding::warning(Code::CpuFlags, text, cannot_go));
    }
    if !only_there.is_empty() {
        let text = format!("this host's processor lacks what {peer}'s has: {only_there}");
        findings.push(Finding::warning(
            Code::CpuFlags,
            text,
            cannot_go.replace("there", "here"),
        ));
    }

    let skew = here.clock_millis.abs_diff(there.clock_millis);
    findings.push(if skew > MAX_SKEW_MILLIS + round_trip_millis {
        Finding::warning(
            Code::Clock,
            format!(
                "its clock and {peer}'s differ by {}.{} s",
                skew / 1000,
                skew % 1000 / 100
            ),
            "let both follow the same time servers",
        )
    } else {
        Finding::ok(Code::Clock, format!("{peer} has the same time"))
    });
    findings
}

fn difference(
    code: Code,
    what: &str,
    ours: Option<&String>,
    theirs: Option<&String>,
    peer: &str,
    level: Level,
) -> Finding {
    let shown = |one: Option<&String>| one.cloned().unwrap_or_else(|| "none".into());
    if ours == theirs {
        return Finding::ok(code, format!("{peer} has the same {what}, {}", shown(theirs)));
    }
    let text = format!("{what}: {} here, {} on {peer}", shown(ours), shown(theirs));
    let mut finding = Finding::warning(code, text, "use the same on both hosts");
    finding.level = level;
    finding
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            kernel: "6.12.1-cloud".into(),
            architecture: "x86_64".into(),
            cpu_flags: ["avx2".to_owned()].into(),
            criu: Some("4.2.1".into()),
            criu_features: [LAZY_FEATURE.to_owned()].into(),
            soft_dirty: false,
            runc: Some("1.3.6".into()),
            cgroup_version: 2,
            clock_millis: 1_000_000,
        }
    }

    fn codes(findings: &[Finding], level: Level) -> Vec<Code> {
        findings
            .iter()
            .filter(|one| one.level == level)
            .map(|one| one.code)
            .collect()
    }

    #[test]
    fn this_host_has_facts() {
        let facts = Facts::of_this_host(&Versions::default());
        assert!(
            two_numbers(&facts.kernel).is_some_and(|version| version >= (2, 6)),
            "{facts:?}"
        );
        assert!(!facts.cpu_flags.is_empty());
    }

    #[test]
    fn equal_hosts_differ_in_nothing() {
        assert!(compare(&facts(), &facts()).is_empty());
        let told = differences(&facts(), &facts(), "hb", 5);
        assert_eq!(codes(&told, Level::Ok).len(), told.len(), "{told:?}");
    }

    #[test]
    fn an_older_destination_is_a_warning_and_another_architecture_an_objection() {
        let older = Facts {
            kernel: "6.1.0".into(),
            architecture: "aarch64".into(),
            criu: Some("4.1".into()),
            ..facts()
        };
        let told = compare(&facts(), &older);
        assert_eq!(codes(&told, Level::Problem), [Code::Architecture]);
        assert_eq!(codes(&told, Level::Warning), [Code::Kernel, Code::Criu]);
        assert_eq!(codes(&compare(&older, &facts()), Level::Warning), []);
    }

    #[test]
    fn a_doctor_tells_what_differs_in_each_direction() {
        let other = Facts {
            cpu_flags: ["avx2".to_owned(), "avx512f".to_owned()].into(),
            clock_millis: 1_003_500,
            cgroup_version: 1,
            ..facts()
        };
        let told = differences(&facts(), &other, "hb", 5);
        assert_eq!(
            codes(&told, Level::Warning),
            [Code::Cgroups, Code::CpuFlags, Code::Clock]
        );
        let text: Vec<_> = told.iter().map(ToString::to_string).collect();
        let text = text.join("\n");
        assert!(
            text.contains("this host's processor lacks what hb's has: avx512f; containers cannot go here"),
            "{text}"
        );
        assert!(text.contains("differ by 3.5 s"), "{text}");
    }

    #[test]
    fn a_mode_needs_what_it_rests_on() {
        assert_eq!(facts().modes(&facts()), ["stop", "post"]);
        assert_eq!(facts().modes(&Facts::default()), ["stop"]);
        let told = Facts {
            soft_dirty: true,
            ..facts()
        };
        assert_eq!(
            told.modes(&facts()),
            ["stop", "pre", "post"],
            "only the source looks at what is written"
        );
        assert_eq!(facts().modes(&told), ["stop", "post"]);
        assert_eq!(told.modes(&Facts::default()), ["stop"]);
    }
}
