//! What containerd knows of a container, as one JSON value that crosses the wire: the description from which another
//! containerd makes it again.
//!
//! Pure: it asks nobody. The record goes over whole (labels, specification, options, extensions); whether the other host
//! can serve it is judged by `objections`.

use std::collections::{BTreeMap, HashMap};

use protobuf::{EnumOrUnknown, MessageField};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::grpc::{ENGINE, broken};
use super::image::Descriptor;
use super::{DEFAULT_NAMESPACE, proto};
use crate::engine::{Container, EngineError, Listed, Mount};

/// The label by which containerd's restart monitor knows what state a task is to be in: with `running` it starts one
/// that has ended again.
pub(super) const RESTART_LABEL: &str = "containerd.io/restart.status";

/// A value of a type that only its reader knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Opaque {
    pub(super) type_url: String,
    pub(super) value: Vec<u8>,
}

/// Where the container's streams lead, as its task was created with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Streams {
    pub(super) stdin: String,
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) terminal: bool,
}

/// The container's image in the source's content store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImageState {
    /// What its name means there now; `None` if nothing.
    pub(super) target: Option<Descriptor>,
    /// The snapshot its layers make; `None` if documents of it are missing.
    pub(super) chain: Option<String>,
    /// Whether every blob of it is there, so that it can be brought along.
    pub(super) whole: bool,
}

/// A container's record, the state of its image and its task's streams.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) runtime_options: Option<Opaque>,
    pub(super) spec_type: String,
    /// OCI's runtime configuration.
    pub(super) spec: Value,
    pub(super) snapshotter: String,
    pub(super) snapshot_key: String,
    /// The snapshot below its writable layer.
    pub(super) snapshot_parent: String,
    pub(super) extensions: BTreeMap<String, Opaque>,
    /// The sandbox (pod) it belongs to, empty if none.
    pub(super) sandbox: String,
    pub(super) image: ImageState,
    pub(super) streams: Streams,
}

impl Opaque {
    fn of(any: proto::Any) -> Self {
        Self {
            type_url: any.type_url,
            value: any.value,
        }
    }

    fn message(&self) -> proto::Any {
        proto::Any {
            type_url: self.type_url.clone(),
            value: self.value.clone(),
            ..Default::default()
        }
    }
}

impl Record {
    /// The record that crossed the wire in a container's description.
    pub(super) fn of(container: &Container) -> Result<Self, EngineError> {
        serde_json::from_value(container.description.clone())
            .map_err(|error| broken("reading the container's description", error.to_string()))
    }

    /// The container as a move knows it.
    pub(super) fn container(
        found: proto::Container,
        namespace: &str,
        task: Option<&proto::Process>,
        snapshot_parent: String,
        image: ImageState,
    ) -> Result<Container, EngineError> {
        let unreadable = |reason: String| broken("containers.v1.Containers/Get", reason);
        let runtime = found.runtime.unwrap_or_default();
        let spec = found.spec.unwrap_or_default();
        let record = Record {
            labels: found.labels.into_iter().collect(),
            runtime_options: runtime.options.into_option().map(Opaque::of),
            spec: serde_json::from_slice(&spec.value)
                .map_err(|error| unreadable(format!("{}'s specification: {error}", found.id)))?,
            spec_type: spec.type_url,
            snapshotter: found.snapshotter,
            snapshot_key: found.snapshot_key,
            snapshot_parent,
            extensions: found
                .extensions
                .into_iter()
                .map(|(key, any)| (key, Opaque::of(any)))
                .collect(),
            sandbox: found.sandbox,
            streams: task.map(streams_of).unwrap_or_default(),
            image,
        };
        let name = name_in(namespace, &found.id);
        let target = record.image.target.as_ref();
        Ok(Container {
            engine: ENGINE.to_owned(),
            id: found.id,
            name,
            namespace: namespace.to_owned(),
            image_name: found.image,
            image_id: target.map(|target| target.digest.clone()).unwrap_or_default(),
            runtime: runtime.name,
            running: task.is_some_and(|task| task.status == EnumOrUnknown::new(proto::Status::RUNNING)),
            networks: Vec::new(),
            mounts: binds(&record.spec),
            description: serde_json::to_value(&record).map_err(|error| unreadable(error.to_string()))?,
        })
    }

    /// The container with another id, and with its own record made fit for it.
    pub(super) fn renamed(mut self, container: &Container, id: &str) -> serde_json::Result<Container> {
        if self.snapshot_key == container.id {
            id.clone_into(&mut self.snapshot_key);
        }
        let cgroup = &mut self.spec["linux"]["cgroupsPath"];
        if let Some(parent) = cgroup.as_str().and_then(|path| path.strip_suffix(&container.id)) {
            *cgroup = Value::String(format!("{parent}{id}"));
        }
        Ok(Container {
            id: id.to_owned(),
            name: name_in(&container.namespace, id),
            description: serde_json::to_value(&self)?,
            ..container.clone()
        })
    }

    /// The record to be made at the destination, where the image is called `image`.
    ///
    /// Nothing may start its task but the move: the restart label follows when it runs.
    pub(super) fn message(
        &self,
        container: &Container,
        image: &str,
    ) -> Result<proto::Container, EngineError> {
        let unwritable =
            |error: serde_json::Error| broken("containers.v1.Containers/Create", error.to_string());
        let mut labels: HashMap<_, _> = self.labels.clone().into_iter().collect();
        labels.remove(RESTART_LABEL);
        let runtime = proto::container::Runtime {
            name: container.runtime.clone(),
            options: self.runtime_options.as_ref().map(Opaque::message).into(),
            ..Default::default()
        };
        let spec = proto::Any {
            type_url: self.spec_type.clone(),
            value: serde_json::to_vec(&self.spec).map_err(unwritable)?,
            ..Default::default()
        };
        let extensions = self.extensions.iter();
        Ok(proto::Container {
            id: container.id.clone(),
            labels,
            image: image.to_owned(),
            runtime: MessageField::some(runtime),
            spec: MessageField::some(spec),
            snapshotter: self.snapshotter.clone(),
            snapshot_key: self.snapshot_key.clone(),
            extensions: extensions
                .map(|(key, any)| (key.clone(), any.message()))
                .collect(),
            ..Default::default()
        })
    }

    /// What containerd's restart monitor is told of it.
    pub(super) fn restart_status(&self) -> Option<&str> {
        self.labels.get(RESTART_LABEL).map(String::as_str)
    }
}

/// A container as it is listed. With no task it is called created, as containerd's other clients do: whether one has run
/// and been deleted is not known.
pub(super) fn listed(found: proto::Container, namespace: &str, task: Option<&proto::Process>) -> Listed {
    let status = task.map(|task| task.status.enum_value_or_default());
    let state = match status {
        None | Some(proto::Status::CREATED) => "created",
        Some(proto::Status::RUNNING) => "running",
        Some(proto::Status::PAUSED | proto::Status::PAUSING) => "paused",
        Some(proto::Status::STOPPED) => "exited",
        Some(proto::Status::UNKNOWN) => "unknown",
    };
    Listed {
        engine: ENGINE,
        name: name_in(namespace, &found.id),
        namespace: namespace.to_owned(),
        id: found.id,
        image: found.image,
        state: state.to_owned(),
        runtime: Some(found.runtime.unwrap_or_default().name),
    }
}

/// How a container is asked for.
fn name_in(namespace: &str, id: &str) -> String {
    match namespace {
        DEFAULT_NAMESPACE => id.to_owned(),
        other => format!("{other}/{id}"),
    }
}

fn streams_of(task: &proto::Process) -> Streams {
    Streams {
        stdin: task.stdin.clone(),
        stdout: task.stdout.clone(),
        stderr: task.stderr.clone(),
        terminal: task.terminal,
    }
}

/// The directories and files of the host that a container sees. All other mounts are made afresh, and filled by CRIU.
fn binds(spec: &Value) -> Vec<Mount> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let is_bind = |mount: &&Value| {
        let mut options = mount["options"].as_array().into_iter().flatten();
        mount["type"] == "bind" || options.any(|option| option == "bind" || option == "rbind")
    };
    let mounts = spec["mounts"].as_array().into_iter().flatten();
    mounts
        .filter(is_bind)
        .map(|mount| Mount {
            is_anonymous: false,
            kind: "bind".into(),
            source: text(&mount["source"]),
            target: text(&mount["destination"]),
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Recorded from containerd 2.1.9: `ctr container info`, and the parts of its answer.
    const BIND: &str = include_str!("../../../tests/fixtures/containerd-2.1-bind.json");

    pub(in crate::engine::containerd) fn digest(digit: char) -> String {
        format!("sha256:{}", digit.to_string().repeat(64))
    }

    /// The container of the recorded answer, running, with streams as `ctr run --detach` makes them.
    pub(in crate::engine::containerd) fn container() -> Container {
        let recorded: Value = serde_json::from_str(BIND).unwrap();
        let text = |key: &str| recorded[key].as_str().unwrap().to_owned();
        let labels = serde_json::from_value(recorded["Labels"].clone()).unwrap();
        let found = proto::Container {
            id: text("ID"),
            labels,
            image: text("Image"),
            runtime: MessageField::some(proto::container::Runtime {
                name: recorded["Runtime"]["Name"].as_str().unwrap().to_owned(),
                ..Default::default()
            }),
            spec: MessageField::some(proto::Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
                value: recorded["Spec"].to_string().into_bytes(),
                ..Default::default()
            }),
            snapshotter: text("Snapshotter"),
            snapshot_key: text("SnapshotKey"),
            ..Default::default()
        };
        let task = proto::Process {
            status: EnumOrUnknown::new(proto::Status::RUNNING),
            stdout: "/run/containerd/fifo/2297839634/web-stdout".into(),
            ..Default::default()
        };
        let image = ImageState {
            target: Some(Descriptor {
                media_type: "application/vnd.oci.image.manifest.v1+json".into(),
                digest: digest('0'),
                size: 400,
            }),
            chain: Some(digest('d')),
            whole: true,
        };
        Record::container(found, "default", Some(&task), digest('d'), image).unwrap()
    }

    #[test]
    fn a_container_is_read_from_its_record() {
        let container = container();
        assert_eq!(
            (container.name.as_str(), container.namespace.as_str()),
            ("web", "default")
        );
        assert_eq!(container.image_id, digest('0'));
        assert!(container.running);
        assert_eq!(container.mounts.len(), 1, "{:?}", container.mounts);
        assert_eq!(container.mounts[0].source, "/srv/data");
    }

    #[test]
    fn a_container_is_listed_with_the_state_of_its_task() {
        let state = |status: Option<proto::Status>| {
            let found = proto::Container {
                id: "web".into(),
                ..Default::default()
            };
            let task = status.map(|status| proto::Process {
                status: EnumOrUnknown::new(status),
                ..Default::default()
            });
            let listed = listed(found, "birds", task.as_ref());
            assert_eq!((listed.id.as_str(), listed.name.as_str()), ("web", "birds/web"));
            listed.state
        };
        assert_eq!(state(None), "created");
        assert_eq!(state(Some(proto::Status::RUNNING)), "running");
        assert_eq!(state(Some(proto::Status::PAUSING)), "paused");
        assert_eq!(state(Some(proto::Status::STOPPED)), "exited");
    }

    #[test]
    fn another_id_takes_its_snapshot_and_its_cgroup_along() {
        let before = container();
        let renamed = Record::of(&before).unwrap().renamed(&before, "web2").unwrap();
        assert_eq!((renamed.id.as_str(), renamed.name.as_str()), ("web2", "web2"));
        let (old, new) = (Record::of(&before).unwrap(), Record::of(&renamed).unwrap());
        assert_eq!(
            (old.snapshot_key.as_str(), new.snapshot_key.as_str()),
            ("web", "web2")
        );
        assert_eq!(old.spec["linux"]["cgroupsPath"], "/default/web");
        assert_eq!(new.spec["linux"]["cgroupsPath"], "/default/web2");
        assert_eq!(old.spec["hostname"], new.spec["hostname"]);
        let elsewhere = Container {
            namespace: "birds".into(),
            ..before
        };
        let renamed = old.renamed(&elsewhere, "web2").unwrap();
        assert_eq!(renamed.name, "birds/web2");
    }

    #[test]
    fn the_same_record_is_made_again_but_nothing_restarts_it_yet() {
        let container = container();
        let record = Record::of(&container).unwrap();
        assert_eq!(record.restart_status(), Some("running"));
        let made = record.message(&container, "there:1").unwrap();
        assert_eq!(made.labels.get(RESTART_LABEL), None);
        assert_eq!(made.labels.len() + 1, record.labels.len());
        assert_eq!((made.id.as_str(), made.image.as_str()), ("web", "there:1"));
        assert_eq!(made.runtime.name, "io.containerd.godwit.v2");
        let spec: Value = serde_json::from_slice(&made.spec.value).unwrap();
        assert_eq!(spec, record.spec);
    }
}
