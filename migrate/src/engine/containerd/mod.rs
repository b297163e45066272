//! containerd as an engine of a move, by its gRPC API: containers that `ctr` and programs like it make.
//!
//! Here stands what is asked of containerd and in which order; how to ask is `grpc` and `calls`, what a container is made
//! from is `record`, what speaks against one is `objections`, how its image travels is `transfer`, how an archive becomes
//! an image is `image_store`. Containers of Docker are none of its business: of the namespace `moby` it knows nothing. It
//! keeps no state of its own.

mod calls;
mod content;
mod grpc;
mod image;
mod image_store;
mod layout;
mod objections;
mod record;
mod streams;
mod transfer;

mod proto {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::pedantic,
        clippy::unwrap_used,
        rust_2018_idioms,
        unused_imports,
        dead_code
    )]
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
    pub(super) use containerd::*;
}

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use super::image_store::ImageStore;
use super::{Container, Created, Engine, EngineError, Listed, Source};
use crate::finding::{Code, Finding};
use calls::Namespace;
use grpc::{Client, ENGINE, FAILED_PRECONDITION, broken};
use image::{Descriptor, Image};
use record::{ImageState, RESTART_LABEL, Record};
use transfer::Lease;

/// Where containerd listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/containerd/containerd.sock";

/// This engine's name.
pub const NAME: &str = ENGINE;

/// The namespace that is meant where none is named, as `ctr` does.
const DEFAULT_NAMESPACE: &str = "default";

/// Docker's namespace.
const DOCKERS_NAMESPACE: &str = "moby";

/// The only snapshotter whose writable layers can be read and filled.
const SNAPSHOTTER: &str = "overlayfs";

/// How long a killed task may take to end, and how often to look.
const REMOVAL_DEADLINE: Duration = Duration::from_secs(60);
const REMOVAL_INTERVAL: Duration = Duration::from_millis(50);

/// One containerd daemon.
#[derive(Debug)]
pub struct Containerd {
    client: Arc<Client>,
}

impl Containerd {
    /// The daemon behind `socket`; asks nothing of it yet.
    pub fn new(socket: PathBuf) -> Self {
        Self {
            client: Arc::new(Client::new(socket)),
        }
    }

    /// A namespace in which containers may be touched.
    fn namespace<'a>(&'a self, name: &'a str) -> Result<Namespace<'a>, EngineError> {
        if name == DOCKERS_NAMESPACE || !is_identifier(name) {
            let reason = "Docker's containers are moved by Docker, and no other namespace is called so";
            return Err(broken(&format!("namespace {name:?}"), reason.into()));
        }
        Ok(Namespace::new(&self.client, name))
    }

    /// The one container that is meant by `text`: an id, or what only one id begins with.
    async fn find(
        &self,
        namespace: Namespace<'_>,
        text: &str,
    ) -> Result<Option<proto::Container>, EngineError> {
        if let Some(exact) = namespace.container(text).await? {
            return Ok(Some(exact));
        }
        let mut fitting = namespace.containers().await?;
        fitting.retain(|container| container.id.starts_with(text));
        if fitting.len() > 1 {
            let ids: Vec<&str> = fitting.iter().map(|container| container.id.as_str()).collect();
            let reason = format!("{text} may be any of {}: name one", ids.join(", "));
            return Err(EngineError::NoSuchContainer(reason));
        }
        Ok(fitting.pop())
    }

    /// In which other namespaces there is a container of this id.
    async fn elsewhere(&self, id: &str) -> Result<Vec<String>, EngineError> {
        let mut found = Vec::new();
        for name in Namespace::new(&self.client, DEFAULT_NAMESPACE)
            .namespaces()
            .await?
        {
            if let Ok(namespace) = self.namespace(&name)
                && namespace.container(id).await?.is_some()
            {
                found.push(format!("{name}/{id}"));
            }
        }
        Ok(found)
    }

    /// What the image of a container is now, and how much of it is here.
    async fn image_state(&self, namespace: Namespace<'_>, name: &str) -> Result<ImageState, EngineError> {
        let image = match name {
            "" => None,
            name => namespace.image(name).await?,
        };
        let Some(target) = image.map(|image| Descriptor::of(&image.target)) else {
            return Ok(ImageState::default());
        };
        let image = Image::read(namespace, &target).await?;
        let mut whole = image.is_some();
        for layer in image.iter().flat_map(|image| &image.layers) {
            whole &= namespace.blob(&layer.digest).await?.is_some();
        }
        Ok(ImageState {
            target: Some(target),
            chain: image.and_then(|image| image.chain_ids().pop()),
            whole,
        })
    }

    /// What this containerd calls the container's image: the name it has at the source, unless that means another here.
    async fn image_name(
        &self,
        namespace: Namespace<'_>,
        container: &Container,
    ) -> Result<String, EngineError> {
        let suffix = format!("@{}", container.image_id);
        let name = container
            .image_name
            .strip_suffix(&suffix)
            .unwrap_or(&container.image_name);
        let taken = namespace.image(name).await?;
        let is_another = taken.is_some_and(|image| image.target.digest != container.image_id);
        Ok(if is_another {
            format!("{name}{suffix}")
        } else {
            name.to_owned()
        })
    }

    /// The image with the container's digest, if it is whole enough to be unpacked.
    async fn image_here(
        &self,
        namespace: Namespace<'_>,
        container: &Container,
    ) -> Result<Option<Descriptor>, EngineError> {
        let Some(image) = namespace.image_by_digest(&container.image_id).await? else {
            return Ok(None);
        };
        let target = Descriptor::of(&image.target);
        let Some(image) = Image::read(namespace, &target).await? else {
            return Ok(None);
        };
        for (layer, chain) in image.layers.iter().zip(image.chain_ids()) {
            if namespace.snapshot(SNAPSHOTTER, &chain).await?.is_none()
                && namespace.blob(&layer.digest).await?.is_none()
            {
                return Ok(None);
            }
        }
        Ok(Some(target))
    }

    /// Ends a task, whatever it does, and deletes it.
    async fn remove_task(&self, namespace: Namespace<'_>, id: &str) -> Result<(), EngineError> {
        let give_up_at = Instant::now() + REMOVAL_DEADLINE;
        loop {
            match namespace.delete_task(id).await {
                Err(EngineError::Refused {
                    status: FAILED_PRECONDITION,
                    ..
                }) if Instant::now() < give_up_at => {}
                other => return other,
            }
            // One that has just ended, or that is being created, takes no signal; the next look tells.
            if let Err(error) = namespace.kill_task(id, Signal::SIGKILL as u32).await {
                log::debug!("{error}");
            }
            sleep(REMOVAL_INTERVAL).await;
        }
    }
}

#[async_trait]
impl Engine for Containerd {
    fn name(&self) -> &'static str {
        NAME
    }

    /// `ID` in the namespace `default`, or `NAMESPACE/ID`.
    async fn inspect(&self, container: &str) -> Result<Container, EngineError> {
        let (name, id) = container
            .split_once('/')
            .unwrap_or((DEFAULT_NAMESPACE, container));
        if !is_identifier(name) || !is_identifier(id) {
            return Err(EngineError::NoSuchContainer(container.to_owned()));
        }
        let namespace = self.namespace(name)?;
        let Some(found) = self.find(namespace, id).await? else {
            let elsewhere = self.elsewhere(id).await?;
            return Err(EngineError::NoSuchContainer(if elsewhere.is_empty() {
                container.to_owned()
            } else {
                format!("{container}; of that id there is {}", elsewhere.join(", "))
            }));
        };
        let task = namespace.task(&found.id).await?;
        let image = self.image_state(namespace, &found.image).await?;
        let snapshot = match found.snapshot_key.as_str() {
            "" => None,
            key => namespace.snapshot(&found.snapshotter, key).await?,
        };
        let parent = snapshot.unwrap_or_default().parent;
        Record::container(found, name, task.as_ref(), parent, image)
    }

    async fn list(&self) -> Result<Vec<Listed>, EngineError> {
        let mut listed = Vec::new();
        for name in Namespace::new(&self.client, DEFAULT_NAMESPACE)
            .namespaces()
            .await?
        {
            let Ok(namespace) = self.namespace(&name) else {
                continue;
            };
            let tasks = namespace.tasks().await?.into_iter();
            let tasks: HashMap<String, proto::Process> = tasks.map(|task| (task.id.clone(), task)).collect();
            for container in namespace.containers().await? {
                let task = tasks.get(&container.id);
                listed.push(record::listed(container, &name, task));
            }
        }
        Ok(listed)
    }

    async fn objections(&self, container: &Container) -> Result<Vec<Finding>, EngineError> {
        let namespace = self.namespace(&container.namespace)?;
        let record = Record::of(container)?;
        let mut reasons = objections::of_configuration(container, &record);
        reasons.extend(objections::of_host(container, &record));
        if namespace.container(&container.id).await?.is_some() {
            reasons.push(Finding::problem(
                Code::Name,
                format!(
                    "a container {} is there already in namespace {}",
                    container.id, container.namespace
                ),
                "remove it",
            ));
        }
        if record.snapshotter == SNAPSHOTTER {
            let key = &record.snapshot_key;
            match namespace.snapshot(SNAPSHOTTER, key).await {
                Ok(None) => {}
                Ok(Some(_)) => reasons.push(Finding::problem(
                    Code::Name,
                    format!(
                        "a snapshot {key} is there already in namespace {}",
                        container.namespace
                    ),
                    format!("remove it: ctr -n {} snapshots rm {key}", container.namespace),
                )),
                Err(EngineError::Refused { message, .. }) => reasons.push(Finding::problem(
                    Code::StorageDriver,
                    format!("snapshotter {SNAPSHOTTER} cannot be used ({message})"),
                    "enable it in containerd's configuration",
                )),
                Err(error) => return Err(error),
            }
        }
        if !container.image_name.is_empty() && !record.image.whole && !self.has_image(container).await? {
            let (image, namespace) = (&container.image_name, &container.namespace);
            reasons.push(Finding::problem(
                Code::Image,
                format!("image {image} is not here and not whole on the source"),
                format!("fetch it on either: ctr -n {namespace} images pull {image}"),
            ));
        }
        Ok(reasons)
    }

    async fn has_image(&self, container: &Container) -> Result<bool, EngineError> {
        if container.image_id.is_empty() {
            return Ok(false);
        }
        let namespace = self.namespace(&container.namespace)?;
        Ok(self.image_here(namespace, container).await?.is_some())
    }

    async fn export_image(&self, container: &Container) -> Result<Source, EngineError> {
        self.namespace(&container.namespace)?;
        let target = Record::of(container)?.image.target;
        let target =
            target.ok_or_else(|| broken("giving out an image", format!("{} has none", container.name)))?;
        let client = Arc::clone(&self.client);
        Ok(transfer::export(client, &container.namespace, target))
    }

    async fn import_image(&self, container: &Container, stream: Source) -> Result<(), EngineError> {
        let namespace = self.namespace(&container.namespace)?;
        let name = self.image_name(namespace, container).await?;
        transfer::import(namespace, &name, &container.image_id, stream).await
    }

    async fn create(&self, container: &Container) -> Result<Created, EngineError> {
        let namespace = self.namespace(&container.namespace)?;
        let record = Record::of(container)?;
        let target = self.image_here(namespace, container).await?.ok_or_else(|| {
            broken(
                "making a container",
                format!("image {} is gone", container.image_id),
            )
        })?;
        let name = self.image_name(namespace, container).await?;
        let created = Created {
            id: container.id.clone(),
            namespace: container.namespace.clone(),
        };
        let lease = Lease::begin(namespace).await?;
        let leased = namespace.leased(&lease.id);
        let making = async {
            transfer::put(leased, &name, &target).await?;
            let parent = transfer::unpack(leased, &lease.id, &target).await?;
            if parent != record.snapshot_parent {
                let reason = format!("image {name} has other layers than the container: {parent}");
                return Err(broken("making a container", reason));
            }
            leased.create_container(record.message(container, &name)?).await?;
            // From here on there is something to remove, and the id is known to be free.
            let prepared = leased
                .prepare_snapshot(SNAPSHOTTER, &record.snapshot_key, &parent)
                .await;
            if let Err(error) = prepared {
                leased.delete_container(&container.id).await?;
                return Err(error);
            }
            Ok(())
        };
        let made = making.await;
        lease.end(namespace).await;
        made.map(|()| created)
    }

    /// Its name is its id, so that what is made of the id is made of the new one: the snapshot's key and the cgroup.
    fn renamed(&self, container: &Container, name: &str) -> Result<Container, String> {
        if !is_identifier(name) {
            return Err(format!(
                "{name:?} is no id of a container: containerd takes letters and digits, with single separators . _ - \
                 between them"
            ));
        }
        let record = Record::of(container).map_err(|error| error.to_string())?;
        record.renamed(container, name).map_err(|error| error.to_string())
    }

    async fn retire(&self, container: &Container) -> Result<(), EngineError> {
        let namespace = self.namespace(&container.namespace)?;
        if let Some(task) = namespace.task(&container.id).await? {
            self.remove_task(namespace, &container.id).await?;
            streams::remove(&task.stdin, &task.stdout, &task.stderr);
        }
        streams::remove_made(&stream_key(&container.namespace, &container.id));
        Ok(())
    }

    async fn start(&self, created: &Created, container: &Container) -> Result<(), EngineError> {
        let namespace = self.namespace(&created.namespace)?;
        let record = Record::of(container)?;
        let streams = streams::make(&record.streams, &stream_key(&created.namespace, &created.id))
            .map_err(|error| broken("making fifos for the standard streams", error.to_string()))?;
        let request = proto::CreateTask {
            container_id: created.id.clone(),
            rootfs: namespace.mounts(SNAPSHOTTER, &record.snapshot_key).await?,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
            terminal: streams.terminal,
            ..Default::default()
        };
        namespace.create_task(&request).await?;
        namespace.start_task(&created.id).await?;
        // It runs: what is wrong with a label must not be taken for a start that failed.
        if let Err(error) = self.rearm_restart(container).await {
            log::error!(
                "{}: its label {RESTART_LABEL} is not set: {error}",
                container.name
            );
        }
        Ok(())
    }

    async fn clear_failed_start(&self, created: &Created) -> Result<(), EngineError> {
        let namespace = self.namespace(&created.namespace)?;
        if let Some(task) = namespace.task(&created.id).await? {
            namespace.delete_task(&created.id).await?;
            streams::remove(&task.stdin, &task.stdout, &task.stderr);
        }
        streams::remove_made(&stream_key(&created.namespace, &created.id));
        Ok(())
    }

    async fn remove(&self, namespace: &str, id: &str) -> Result<(), EngineError> {
        let key = stream_key(namespace, id);
        let namespace = self.namespace(namespace)?;
        if let Some(task) = namespace.task(id).await? {
            self.remove_task(namespace, id).await?;
            streams::remove(&task.stdin, &task.stdout, &task.stderr);
        }
        streams::remove_made(&key);
        let Some(found) = namespace.container(id).await? else {
            return Ok(());
        };
        namespace.delete_container(id).await?;
        if found.snapshot_key.is_empty() {
            return Ok(());
        }
        namespace
            .remove_snapshot(&found.snapshotter, &found.snapshot_key)
            .await
    }

    fn images(&self) -> Option<&dyn ImageStore> {
        Some(self)
    }

    /// Takes away what makes the restart monitor start the task again. Its other word, `stopped`, would have it end the
    /// task.
    async fn disarm_restart(&self, container: &Container) -> Result<(), EngineError> {
        match Record::of(container)?.restart_status() {
            Some(_) => {
                let namespace = self.namespace(&container.namespace)?;
                namespace.set_label(&container.id, RESTART_LABEL, "").await
            }
            None => Ok(()),
        }
    }

    async fn rearm_restart(&self, container: &Container) -> Result<(), EngineError> {
        match Record::of(container)?.restart_status() {
            Some(status) => {
                let namespace = self.namespace(&container.namespace)?;
                namespace.set_label(&container.id, RESTART_LABEL, status).await
            }
            None => Ok(()),
        }
    }

    /// Its restart monitor starts whatever it is to run and has no task.
    async fn rearm_stopped(&self, container: &Container) -> Result<(), EngineError> {
        match Record::of(container)?.restart_status() {
            Some(_) => {
                let namespace = self.namespace(&container.namespace)?;
                namespace.set_label(&container.id, RESTART_LABEL, "stopped").await
            }
            None => Ok(()),
        }
    }

    /// A log that the container's shim writes to a file stays where it is: unlike Docker's it is no part of the container,
    /// and is not removed with it.
    async fn log_path(&self, _created: &Created) -> Result<Option<PathBuf>, EngineError> {
        Ok(None)
    }
}

/// Whether containerd would call a namespace or a container so: letters and digits, with single separators between them.
fn is_identifier(text: &str) -> bool {
    text.split(['.', '_', '-'])
        .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// What tells the fifos of one container from those of another.
fn stream_key(namespace: &str, id: &str) -> String {
    format!("{namespace}-{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn text_that_is_no_identifier_names_no_container_and_containerd_is_not_asked() {
        let engine = Containerd::new("/nonexistent/containerd.sock".into());
        for text in [
            "",
            "..",
            "../images/json",
            "a b",
            "/web",
            "web/",
            "a/b/c",
            "-web",
            "web%2f",
            "wéb",
        ] {
            let error = engine.inspect(text).await.unwrap_err();
            assert!(
                matches!(&error, EngineError::NoSuchContainer(said) if said == text),
                "{text}: {error}"
            );
        }
        let error = engine.inspect("birds/web_1.2-x").await.unwrap_err();
        assert!(matches!(error, EngineError::Unreachable { .. }), "{error}");
    }
}
