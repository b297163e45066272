//! What of a container can be told from its engine's description alone, without its processes.

use crate::engine::Container;
use crate::finding::{Code, Finding};

/// The name that many shims answer to.
const STOCK_RUNTIME: &str = "io.containerd.runc.v2";

/// Why a container that Godwit runs may be run by another shim at the destination, which would start it afresh in
/// place of restoring it: a second copy.
pub fn ambiguous_runtime(container: &Container) -> Option<Finding> {
    (container.runtime == STOCK_RUNTIME).then(|| {
        Finding::problem(
            Code::Runtime,
            format!(
                "{} runs under Godwit in the place of the stock shim, and which shim the other host has under that \
                 name cannot be told",
                container.name
            ),
            "start it with --runtime io.containerd.godwit.v2",
        )
    })
}

/// Why a container that sees its host's cgroups cannot go from one version of them to the other: CRIU finds nothing to
/// mount in their place.
pub fn cgroups(container: &Container, there: u8, here: u8) -> Option<Finding> {
    (there != here && container.sees_host_cgroups()).then(|| {
        Finding::problem(
            Code::Cgroups,
            format!(
                "it was started on cgroup v{there} and this host has v{here}: it sees its host's cgroups and cannot \
                 be restored here"
            ),
            "start it with --cgroupns=private",
        )
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A container with at most one annotation.
    pub(in crate::checks) fn container(annotation: Option<(&str, &str)>) -> Container {
        let annotations: std::collections::BTreeMap<_, _> = annotation.into_iter().collect();
        serde_json::from_value(serde_json::json!({
            "engine": "docker", "id": "a", "name": "web", "namespace": "moby", "image_name": "", "image_id": "",
            "runtime": "io.containerd.godwit.v2", "running": true, "networks": [], "mounts": [],
            "description": { "HostConfig": { "Annotations": annotations } }
        }))
        .unwrap()
    }

    #[test]
    fn a_runtime_that_another_shim_may_answer_to_is_refused() {
        let mut web = container(None);
        assert_eq!(ambiguous_runtime(&web), None);
        web.runtime = STOCK_RUNTIME.into();
        let refused = ambiguous_runtime(&web).unwrap();
        assert!(refused.text.starts_with("web runs under Godwit"), "{refused}");
    }

    #[test]
    fn a_container_with_its_own_view_of_cgroups_goes_to_either_version() {
        let mut web = container(None);
        assert_eq!(cgroups(&web, 1, 1), None);
        assert!(cgroups(&web, 1, 2).unwrap().remedy.contains("--cgroupns=private"));
        web.description["HostConfig"]["CgroupnsMode"] = "private".into();
        assert_eq!(cgroups(&web, 1, 2), None);
    }
}
