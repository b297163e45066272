//! Every reason why the containerd of this host cannot take a container, as far as its record and this host's files tell.
//!
//! Pure but for a look at files. What containerd must be asked for stands in `Containerd::objections`.

use std::path::Path;

use serde_json::Value;

use super::record::Record;
use super::{SNAPSHOTTER, streams};
use crate::engine::Container;
use crate::engine::needs;
use crate::finding::{Code, Finding};

/// A key of labels and annotations by which Kubernetes' containers are known.
const CRI_PREFIXES: [&str; 2] = ["io.cri-containerd.", "io.kubernetes."];

/// What in the container's own configuration cannot be moved to any host.
pub(super) fn of_configuration(container: &Container, record: &Record) -> Vec<Finding> {
    let mut reasons = Vec::new();
    if belongs_to_pod(record) {
        reasons.push(Finding::problem(
            Code::SharedWithContainer,
            "it belongs to a pod, whose other containers and network would stay behind",
            "",
        ));
    }
    if record.snapshot_key.is_empty() || container.image_name.is_empty() {
        reasons.push(Finding::problem(
            Code::Image,
            "it has no image but a directory as its root (ctr run --rootfs)",
            "start it from an image",
        ));
    } else if record.snapshotter != SNAPSHOTTER {
        reasons.push(Finding::problem(
            Code::StorageDriver,
            format!("its files are in snapshotter {}", record.snapshotter),
            format!("only those of {SNAPSHOTTER} can be moved"),
        ));
    } else if record
        .image
        .chain
        .as_ref()
        .is_some_and(|chain| *chain != record.snapshot_parent)
    {
        reasons.push(Finding::problem(
            Code::Image,
            format!(
                "image {} is another now than when the container was made: its layers are not those of the container",
                container.image_name
            ),
            "",
        ));
    }
    reasons.extend(of_namespaces(&record.spec));
    let devices = record.spec["linux"]["devices"].as_array();
    if let Some(devices) = devices.filter(|devices| !devices.is_empty()) {
        let first = devices[0]["path"].as_str().unwrap_or("one");
        reasons.push(Finding::problem(
            Code::Device,
            format!("it was given {} devices of its host ({first})", devices.len()),
            "start it without --device and --privileged",
        ));
    }
    let hooks = record.spec["hooks"].as_object();
    if hooks.is_some_and(|hooks| {
        hooks
            .values()
            .any(|of_kind| of_kind.as_array().is_some_and(|of_kind| !of_kind.is_empty()))
    }) {
        reasons.push(Finding::problem(
            Code::Engine,
            "hooks of its creator (nerdctl has some) would look for what stays on the source",
            "",
        ));
    }
    reasons
}

/// What the container needs of this host.
pub(super) fn of_host(container: &Container, record: &Record) -> Vec<Finding> {
    let mut reasons = needs::missing_sources(container);
    match needs::shim_binary(&container.runtime) {
        Some(binary) => reasons.extend(needs::missing_shim(&container.runtime, &binary)),
        None => reasons.push(Finding::problem(
            Code::Runtime,
            format!("{} is no name of a runtime", container.runtime),
            "",
        )),
    }
    let streams = [
        &record.streams.stdin,
        &record.streams.stdout,
        &record.streams.stderr,
    ];
    let files = streams.into_iter().filter_map(|stream| streams::file_of(stream));
    reasons.extend(files.filter(|file| !file.exists()).map(|file| {
        let file = file.display();
        Finding::problem(
            Code::BindSource,
            format!("a stream of it leads to {file}, which does not exist on this host"),
            "create it",
        )
    }));
    if let Some(logger) = logger_of(&record.streams.stdout).filter(|logger| !Path::new(logger).exists()) {
        reasons.push(Finding::problem(
            Code::BindSource,
            format!("its logger {logger} does not exist on this host"),
            "install it",
        ));
    }
    reasons
}

fn belongs_to_pod(record: &Record) -> bool {
    let annotations = record.spec["annotations"].as_object().into_iter().flatten();
    let keys = annotations.map(|(key, _)| key).chain(record.labels.keys());
    let mut marked = keys.filter(|key| CRI_PREFIXES.iter().any(|prefix| key.starts_with(prefix)));
    !record.sandbox.is_empty() || marked.next().is_some()
}

fn of_namespaces(spec: &Value) -> Vec<Finding> {
    let listed = spec["linux"]["namespaces"].as_array();
    let mut reasons: Vec<Finding> = listed
        .into_iter()
        .flatten()
        .filter_map(|namespace| {
            let path = namespace["path"].as_str().filter(|path| !path.is_empty())?;
            let kind = namespace["type"].as_str().unwrap_or_default();
            Some(Finding::problem(
                Code::SharedWithContainer,
                format!(
                    "its {kind} namespace ({path}) was made by another, who would have to make it on this host too"
                ),
                "",
            ))
        })
        .collect();
    let has_network =
        listed.is_some_and(|listed| listed.iter().any(|namespace| namespace["type"] == "network"));
    if !has_network {
        reasons.push(Finding::problem(
            Code::Network,
            "it uses the network of its host, whose addresses stay behind",
            "start it without --net-host",
        ));
    }
    reasons
}

/// The program of `binary:///PROGRAM?…`.
fn logger_of(stdout: &str) -> Option<&str> {
    let (scheme, rest) = stdout.split_once("://")?;
    let program = rest.split_once('?').map_or(rest, |(program, _)| program);
    scheme.starts_with("binary").then_some(program)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::record::tests::{container, digest};
    use super::*;

    fn told(change: impl FnOnce(&mut Record)) -> String {
        let container = container();
        let mut record = Record::of(&container).unwrap();
        change(&mut record);
        lines(&of_configuration(&container, &record))
    }

    fn lines(findings: &[Finding]) -> String {
        let lines: Vec<String> = findings.iter().map(Finding::to_string).collect();
        lines.join("\n")
    }

    #[test]
    fn a_container_of_ctr_run_can_be_moved() {
        assert_eq!(told(|_| {}), "");
    }

    #[test]
    fn whatever_would_stay_behind_is_told() {
        let namespaces =
            |namespaces: Value| move |record: &mut Record| record.spec["linux"]["namespaces"] = namespaces;
        let cases: [(String, &str); 9] = [
            (told(|record| record.sandbox = "pod".into()), "belongs to a pod"),
            (
                told(|record| record.spec["annotations"] = json!({ "io.kubernetes.cri.sandbox-id": "x" })),
                "belongs to a pod",
            ),
            (
                told(|record| record.snapshot_key.clear()),
                "a directory as its root",
            ),
            (
                told(|record| record.snapshotter = "native".into()),
                "in snapshotter native",
            ),
            (
                told(|record| record.image.chain = Some(digest('e'))),
                "is another now",
            ),
            (told(namespaces(json!([{ "type": "pid" }]))), "without --net-host"),
            (
                told(namespaces(
                    json!([{ "type": "network", "path": "/run/netns/cni" }]),
                )),
                "network namespace (/run/netns/cni)",
            ),
            (
                told(|record| record.spec["linux"]["devices"] = json!([{ "path": "/dev/kvm" }])),
                "1 devices of its host (/dev/kvm)",
            ),
            (
                told(|record| record.spec["hooks"] = json!({ "createRuntime": [{ "path": "/bin/x" }] })),
                "hooks of its creator",
            ),
        ];
        for (said, wanted) in cases {
            assert!(
                said.contains(wanted) && !said.contains('\n'),
                "{said:?} for {wanted:?}"
            );
        }
    }

    #[test]
    fn what_this_host_lacks_is_told_with_its_path() {
        let container = container();
        let mut record = Record::of(&container).unwrap();
        record.streams.stdout = "binary:///nonexistent/logger?key=value".into();
        let reasons = lines(&of_host(&container, &record));
        assert!(
            reasons.contains("/srv/data does not exist on this host"),
            "{reasons}"
        );
        assert!(reasons.contains("its logger /nonexistent/logger"), "{reasons}");
    }
}
