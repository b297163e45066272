//! The calls of containerd's API that a move makes, each within one namespace and with its deadline.
//!
//! `None` stands for what containerd does not have. What belongs together, and in which order, is the callers' matter.

use std::collections::HashMap;
use std::time::Duration;

use protobuf::{Message, MessageField};

use super::grpc::{Client, NOT_FOUND, Scope};
use super::proto::{
    ApplyDiff, BlobDigest, BlobInfo, BlobRef, CommitSnapshot, Container, ContainerFilters, ContainerId,
    Containers, CreateLease, CreateTask, Descriptor, DiffApplied, Empty, FieldMask, Image, ImageFilters,
    ImageName, Images, KillTask, LeaseId, Mount, Mounts, Namespaces, OneBlobInfo, OneContainer, OneImage,
    OneSnapshotInfo, PrepareSnapshot, Process, SnapshotInfo, SnapshotKey, TaskFilters, TaskId, TaskProcess,
    Tasks, UpdateBlob, UpdateContainer,
};
use crate::engine::EngineError;

/// Questions, and changes of containerd's database.
const QUERY_DEADLINE: Duration = Duration::from_secs(10);
/// Changes that reach a shim or a file system: a task's end waits for readers of its output, layers for a disk.
const CHANGE_DEADLINE: Duration = Duration::from_secs(90);
/// A layer of gigabytes is unpacked.
const APPLY_DEADLINE: Duration = Duration::from_secs(1800);
/// A start that waits for a checkpoint image ends by its ticket's lease; this only bounds what nobody ended.
const START_DEADLINE: Duration = Duration::from_secs(3600);

/// One namespace of one containerd.
#[derive(Clone, Copy, Debug)]
pub(super) struct Namespace<'a> {
    pub(super) client: &'a Client,
    pub(super) scope: Scope<'a>,
}

impl<'a> Namespace<'a> {
    pub(super) fn new(client: &'a Client, namespace: &'a str) -> Self {
        let scope = Scope {
            namespace,
            lease: None,
        };
        Self { client, scope }
    }

    /// The same; what is made through it is kept by a lease.
    pub(super) fn leased(self, lease: &'a str) -> Self {
        let scope = Scope {
            lease: Some(lease),
            ..self.scope
        };
        Self { scope, ..self }
    }

    async fn ask<A: Message>(&self, method: &str, request: &impl Message) -> Result<A, EngineError> {
        self.client
            .call(self.scope, method, request, QUERY_DEADLINE)
            .await
    }

    async fn change<A: Message>(&self, method: &str, request: &impl Message) -> Result<A, EngineError> {
        self.client
            .call(self.scope, method, request, CHANGE_DEADLINE)
            .await
    }

    // -- namespaces and leases -----------------------------------------------------------------------------------------

    /// All namespaces of this containerd.
    pub(super) async fn namespaces(&self) -> Result<Vec<String>, EngineError> {
        let listed: Namespaces = self.ask("namespaces.v1.Namespaces/List", &Empty::new()).await?;
        Ok(listed.namespaces.into_iter().map(|found| found.name).collect())
    }

    pub(super) async fn create_lease(
        &self,
        id: &str,
        labels: HashMap<String, String>,
    ) -> Result<(), EngineError> {
        let request = CreateLease {
            id: id.to_owned(),
            labels,
            ..Default::default()
        };
        self.ask::<Empty>("leases.v1.Leases/Create", &request)
            .await
            .map(drop)
    }

    pub(super) async fn delete_lease(&self, id: &str) -> Result<(), EngineError> {
        let request = LeaseId {
            id: id.to_owned(),
            ..Default::default()
        };
        absent_is_none(self.ask::<Empty>("leases.v1.Leases/Delete", &request).await).map(drop)
    }

    // -- containers ----------------------------------------------------------------------------------------------------

    pub(super) async fn container(&self, id: &str) -> Result<Option<Container>, EngineError> {
        let answer = self.ask("containers.v1.Containers/Get", &container_id(id)).await;
        let found: Option<OneContainer> = absent_is_none(answer)?;
        Ok(found.and_then(|found| found.container.into_option()))
    }

    /// All containers.
    pub(super) async fn containers(&self) -> Result<Vec<Container>, EngineError> {
        let all = ContainerFilters::new();
        let listed: Containers = self.ask("containers.v1.Containers/List", &all).await?;
        Ok(listed.containers)
    }

    pub(super) async fn create_container(&self, container: Container) -> Result<(), EngineError> {
        let request = OneContainer {
            container: MessageField::some(container),
            ..Default::default()
        };
        let made = self.ask::<OneContainer>("containers.v1.Containers/Create", &request);
        made.await.map(drop)
    }

    /// Sets one label of a container; an empty value removes it.
    pub(super) async fn set_label(&self, id: &str, key: &str, value: &str) -> Result<(), EngineError> {
        let container = Container {
            id: id.to_owned(),
            labels: HashMap::from([(key.to_owned(), value.to_owned())]),
            ..Default::default()
        };
        let request = UpdateContainer {
            container: MessageField::some(container),
            update_mask: mask(format!("labels.{key}")),
            ..Default::default()
        };
        match self
            .ask::<OneContainer>("containers.v1.Containers/Update", &request)
            .await
        {
            Err(EngineError::Refused {
                status: NOT_FOUND, ..
            }) => Err(EngineError::NoSuchContainer(id.to_owned())),
            other => other.map(drop),
        }
    }

    pub(super) async fn delete_container(&self, id: &str) -> Result<(), EngineError> {
        let request = container_id(id);
        let deleted = self.ask::<Empty>("containers.v1.Containers/Delete", &request);
        absent_is_none(deleted.await).map(drop)
    }

    // -- tasks ---------------------------------------------------------------------------------------------------------

    pub(super) async fn task(&self, id: &str) -> Result<Option<Process>, EngineError> {
        let found: Option<TaskProcess> = absent_is_none(self.ask("tasks.v1.Tasks/Get", &task_id(id)).await)?;
        Ok(found.and_then(|found| found.process.into_option()))
    }

    /// All tasks; containerd passes over those whose shim does not answer it.
    pub(super) async fn tasks(&self) -> Result<Vec<Process>, EngineError> {
        let all = TaskFilters::new();
        let listed: Tasks = self.ask("tasks.v1.Tasks/List", &all).await?;
        Ok(listed.tasks)
    }

    pub(super) async fn create_task(&self, request: &CreateTask) -> Result<(), EngineError> {
        let call = self
            .client
            .call::<Empty>(self.scope, "tasks.v1.Tasks/Create", request, START_DEADLINE);
        call.await.map(drop)
    }

    pub(super) async fn start_task(&self, id: &str) -> Result<(), EngineError> {
        let request = task_id(id);
        let call = self
            .client
            .call::<Empty>(self.scope, "tasks.v1.Tasks/Start", &request, START_DEADLINE);
        call.await.map(drop)
    }

    /// Sends a signal to all processes of a task; one that has ended takes none.
    pub(super) async fn kill_task(&self, id: &str, signal: u32) -> Result<(), EngineError> {
        let request = KillTask {
            container_id: id.to_owned(),
            signal,
            all: true,
            ..Default::default()
        };
        absent_is_none(self.change::<Empty>("tasks.v1.Tasks/Kill", &request).await).map(drop)
    }

    /// Deletes a task that has ended; absent is fine.
    pub(super) async fn delete_task(&self, id: &str) -> Result<(), EngineError> {
        absent_is_none(self.change::<Empty>("tasks.v1.Tasks/Delete", &task_id(id)).await).map(drop)
    }

    // -- images and content --------------------------------------------------------------------------------------------

    pub(super) async fn image(&self, name: &str) -> Result<Option<Image>, EngineError> {
        let request = ImageName {
            name: name.to_owned(),
            ..Default::default()
        };
        let found: Option<OneImage> = absent_is_none(self.ask("images.v1.Images/Get", &request).await)?;
        Ok(found.and_then(|found| found.image.into_option()))
    }

    /// An image, under whatever name, that means this digest.
    pub(super) async fn image_by_digest(&self, digest: &str) -> Result<Option<Image>, EngineError> {
        let request = ImageFilters {
            filters: vec![format!("target.digest=={digest}")],
            ..Default::default()
        };
        let listed: Images = self.ask("images.v1.Images/List", &request).await?;
        Ok(listed.images.into_iter().next())
    }

    pub(super) async fn create_image(&self, image: Image) -> Result<(), EngineError> {
        let request = OneImage {
            image: MessageField::some(image),
            ..Default::default()
        };
        let made = self.ask::<OneImage>("images.v1.Images/Create", &request);
        made.await.map(drop)
    }

    /// Absent is fine.
    pub(super) async fn delete_image(&self, name: &str) -> Result<(), EngineError> {
        let request = ImageName {
            name: name.to_owned(),
            ..Default::default()
        };
        absent_is_none(self.ask::<Empty>("images.v1.Images/Delete", &request).await).map(drop)
    }

    /// Throws an unfinished blob away; absent is fine.
    pub(super) async fn abort_blob(&self, name: &str) -> Result<(), EngineError> {
        let request = BlobRef {
            ref_: name.to_owned(),
            ..Default::default()
        };
        absent_is_none(self.change::<Empty>("content.v1.Content/Abort", &request).await).map(drop)
    }

    pub(super) async fn blob(&self, digest: &str) -> Result<Option<BlobInfo>, EngineError> {
        let request = BlobDigest {
            digest: digest.to_owned(),
            ..Default::default()
        };
        let found: Option<OneBlobInfo> = absent_is_none(self.ask("content.v1.Content/Info", &request).await)?;
        Ok(found.and_then(|found| found.info.into_option()))
    }

    /// Adds labels to a blob: they say what the garbage collector must keep because of it.
    pub(super) async fn label_blob(
        &self,
        digest: &str,
        labels: HashMap<String, String>,
    ) -> Result<(), EngineError> {
        if labels.is_empty() {
            return Ok(());
        }
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = BlobInfo {
            digest: digest.to_owned(),
            labels,
            ..Default::default()
        };
        let request = UpdateBlob {
            info: MessageField::some(info),
            update_mask: MessageField::some(FieldMask {
                paths,
                ..Default::default()
            }),
            ..Default::default()
        };
        let updated = self.ask::<OneBlobInfo>("content.v1.Content/Update", &request);
        updated.await.map(drop)
    }

    // -- snapshots -----------------------------------------------------------------------------------------------------

    pub(super) async fn snapshot(
        &self,
        snapshotter: &str,
        key: &str,
    ) -> Result<Option<SnapshotInfo>, EngineError> {
        let answer = self
            .ask("snapshots.v1.Snapshots/Stat", &snapshot_key(snapshotter, key))
            .await;
        let found: Option<OneSnapshotInfo> = absent_is_none(answer)?;
        Ok(found.and_then(|found| found.info.into_option()))
    }

    /// Makes a writable snapshot above `parent`; returns how it is mounted.
    pub(super) async fn prepare_snapshot(
        &self,
        snapshotter: &str,
        key: &str,
        parent: &str,
    ) -> Result<Vec<Mount>, EngineError> {
        let request = PrepareSnapshot {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            ..Default::default()
        };
        let prepared: Mounts = self.change("snapshots.v1.Snapshots/Prepare", &request).await?;
        Ok(prepared.mounts)
    }

    pub(super) async fn mounts(&self, snapshotter: &str, key: &str) -> Result<Vec<Mount>, EngineError> {
        let request = snapshot_key(snapshotter, key);
        let found: Mounts = self.ask("snapshots.v1.Snapshots/Mounts", &request).await?;
        Ok(found.mounts)
    }

    /// Makes a read-only snapshot called `name` of a writable one.
    pub(super) async fn commit_snapshot(
        &self,
        snapshotter: &str,
        name: &str,
        key: &str,
    ) -> Result<(), EngineError> {
        let request = CommitSnapshot {
            snapshotter: snapshotter.to_owned(),
            name: name.to_owned(),
            key: key.to_owned(),
            ..Default::default()
        };
        let committed = self.change::<Empty>("snapshots.v1.Snapshots/Commit", &request);
        committed.await.map(drop)
    }

    pub(super) async fn remove_snapshot(&self, snapshotter: &str, key: &str) -> Result<(), EngineError> {
        let request = snapshot_key(snapshotter, key);
        let removed = self.change::<Empty>("snapshots.v1.Snapshots/Remove", &request);
        absent_is_none(removed.await).map(drop)
    }

    /// Unpacks a layer into a mounted snapshot; returns the digest of what was unpacked.
    pub(super) async fn apply(&self, layer: Descriptor, mounts: Vec<Mount>) -> Result<String, EngineError> {
        let request = ApplyDiff {
            diff: MessageField::some(layer),
            mounts,
            ..Default::default()
        };
        let applied: DiffApplied = self
            .client
            .call(self.scope, "diff.v1.Diff/Apply", &request, APPLY_DEADLINE)
            .await?;
        Ok(applied.applied.unwrap_or_default().digest)
    }
}

pub(super) fn absent_is_none<T>(answer: Result<T, EngineError>) -> Result<Option<T>, EngineError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(EngineError::Refused {
            status: NOT_FOUND, ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn container_id(id: &str) -> ContainerId {
    ContainerId {
        id: id.to_owned(),
        ..Default::default()
    }
}

fn task_id(id: &str) -> TaskId {
    TaskId {
        container_id: id.to_owned(),
        ..Default::default()
    }
}

fn snapshot_key(snapshotter: &str, key: &str) -> SnapshotKey {
    SnapshotKey {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
        ..Default::default()
    }
}

fn mask(path: String) -> MessageField<FieldMask> {
    MessageField::some(FieldMask {
        paths: vec![path],
        ..Default::default()
    })
}
