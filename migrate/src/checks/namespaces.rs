//! Namespaces that processes of a container have made for themselves. CRIU takes those of mounts and networks; of the
//! other kinds the whole container must share one.
//!
//! It compares links of `/proc`; it does not look into any namespace.

use std::collections::BTreeMap;
use std::fs;

use super::proc::Proc;
use crate::finding::{Code, Finding};

/// Kinds of which a container may have one only, with what makes them inside a container, for a person.
const SINGLE: [(&str, &str); 6] = [
    (
        "user",
        "switch it off in the program; the sandbox of a browser is one",
    ),
    ("pid", "end what runs in it, such as a container in the container"),
    ("uts", "end what runs in it"),
    ("ipc", "end what runs in it"),
    ("cgroup", "end what runs in it"),
    ("time", "end what runs in it"),
];

/// Namespaces below the container whose first process is `pid`.
pub fn nested(proc: &Proc, pid: u32) -> Vec<Finding> {
    let link = |pid, kind: &str| fs::read_link(proc.of(pid, &format!("ns/{kind}"))).ok();
    let mut found: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    for process in proc.processes(pid) {
        for (index, (kind, _)) in SINGLE.iter().enumerate() {
            let Some(own) = link(process, kind) else { continue };
            let is_nested = link(pid, kind).is_some_and(|first| first != own)
                || (*kind == "time" && link(process, "time_for_children").is_some_and(|next| next != own));
            if is_nested {
                found.entry(index).or_default().push(process);
            }
        }
    }
    let describe = |(index, processes): (usize, Vec<u32>)| {
        let (kind, remedy) = SINGLE[index];
        let text = format!(
            "a {kind} namespace was made inside the container, by process {}; CRIU cannot take it",
            proc.shown(processes[0])
        );
        Finding::problem(Code::NestedNamespace, text, remedy)
    };
    found.into_iter().map(describe).collect()
}

#[cfg(test)]
mod tests {
    use super::super::proc::recorded::Recorded;
    use super::*;

    fn recorded() -> Recorded {
        let recorded = Recorded::new(&[10, 11]);
        for pid in [10, 11] {
            for (kind, _) in SINGLE.iter().filter(|(kind, _)| *kind != "user") {
                recorded.link(pid, &format!("ns/{kind}"), &format!("{kind}:[1]"));
            }
            recorded.link(pid, "ns/mnt", &format!("mnt:[{pid}]"));
        }
        recorded.link(10, "ns/user", "user:[1]");
        recorded
    }

    #[test]
    fn one_namespace_of_each_kind_is_no_obstacle_and_mounts_may_differ() {
        let recorded = recorded();
        recorded.link(11, "ns/user", "user:[1]");
        assert!(nested(&recorded.proc(), 10).is_empty());
    }

    #[test]
    fn a_user_namespace_of_its_own_and_a_time_namespace_for_children_are_told() {
        let recorded = recorded();
        recorded.link(11, "ns/user", "user:[2]");
        recorded.link(11, "ns/time_for_children", "time:[2]");
        let found = nested(&recorded.proc(), 10);
        let text: String = found.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 2, "{text}");
        assert!(
            text.contains("a user namespace") && text.contains("by process 11 (program11)"),
            "{text}"
        );
        assert!(text.contains("a time namespace"), "{text}");
    }
}
