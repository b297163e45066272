//! Where an archive goes: to the client that asked for it, or into the container's engine as an image.
//!
//! Either takes bytes from a pipe and says when all of them are safe. An image is known by a mark that names its export, so that
//! one which is not to be is removed whatever became of the engine's answer, and nobody else's in its place.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::OPEN_DEADLINE;
use super::board::Outgoing;
use super::compress::Compression;
use super::pipe::{Stream, Whole, pipe};
use crate::engine::image_store::{ImageStore, NewImage, NewLayer, is_well_formed};
use crate::engine::{Container, Engine, EngineError};
use crate::failure::Problem;
use crate::finding::{Code, Finding};
use crate::places::MigrationId;

/// For the client, or the engine, to have on its disk what was written, and say so; or for the engine to come to an end with what is
/// not wanted any more.
const STORED_DEADLINE: Duration = Duration::from_secs(600);

/// The name of the container, as each of these looks for it. Podman's restore also wants the runtime to be its own.
const NAMES: [&str; 3] = [
    "io.podman.annotations.checkpoint.name",
    "io.kubernetes.cri-o.annotations.checkpoint.name",
    "org.criu.checkpoint.container.name",
];
const RUNTIME: (&str, &str) = ("io.podman.annotations.checkpoint.runtime.name", "runc");
/// Without which image the archive is of no use.
const ROOTFS_IMAGE: &str = "org.criu.checkpoint.rootfsImageName";
/// The export that an image is of: ours, and no other image has the same.
const MARK: &str = "io.godwit.export";

/// Where an archive goes.
pub enum Target {
    /// To the client.
    Client(Outgoing),
    /// Into the engine.
    Image(Image),
}

/// An archive on its way into an engine.
pub struct Image {
    name: String,
    bytes: Option<mpsc::Sender<Bytes>>,
    chunks: Option<mpsc::Receiver<Bytes>>,
    whole: Whole,
    storing: Option<AbortOnDropHandle<Result<(), EngineError>>>,
}

impl Target {
    /// Into the engine, under this name.
    pub fn image(name: String) -> Self {
        let (bytes, chunks) = pipe();
        Self::Image(Image {
            name,
            bytes: Some(bytes),
            chunks: Some(chunks),
            whole: Whole::default(),
            storing: None,
        })
    }

    /// How an archive is packed on its way there.
    pub fn compression(&self, engine: &dyn Engine, wanted: Compression) -> Compression {
        match (self, engine.images()) {
            (Self::Image(_), Some(images)) if !images.keeps_packed() => Compression::None,
            _ => wanted,
        }
    }

    /// Why it cannot go there, if it cannot. Changes nothing.
    pub async fn objection(
        &self,
        engine: &dyn Engine,
        container: &Container,
    ) -> Result<Option<Finding>, Problem> {
        let Self::Image(Image { name, .. }) = self else {
            return Ok(None);
        };
        let is_taken = images(engine)?.has(&container.namespace, name).await?;
        let objection = || {
            let text = format!("an image {name} is there already");
            Finding::problem(Code::Image, text, "remove it, or name another")
        };
        Ok(is_taken.then(objection))
    }

    /// Whoever is to have it takes from here on what is written.
    pub async fn open(
        &mut self,
        engine: Arc<dyn Engine>,
        container: &Container,
        migration: &MigrationId,
        compression: Compression,
    ) -> Result<(), Problem> {
        match self {
            Self::Client(outgoing) => {
                let nobody = || Problem::failed("nobody reads the archive");
                let opened = outgoing.opened.take().ok_or_else(nobody)?;
                match timeout(OPEN_DEADLINE, opened).await {
                    Ok(Ok(())) => Ok(()),
                    _ => Err(nobody()),
                }
            }
            Self::Image(image) => {
                let chunks = image.chunks.take();
                let chunks = chunks.ok_or_else(|| Problem::failed("the archive was opened already"))?;
                let layer = NewLayer {
                    bytes: Box::new(Stream::new(chunks, image.whole.clone())),
                    compression,
                    diff_id: Arc::clone(&image.whole.0),
                };
                let new = new_image(container, migration, &image.name);
                let storing = async move { images(engine.as_ref())?.make(&new, layer).await };
                image.storing = Some(AbortOnDropHandle::new(tokio::spawn(storing)));
                Ok(())
            }
        }
    }

    /// The pipe into which it is written, once, and by what its writer says that all was.
    pub fn pipe(&mut self) -> Option<(mpsc::Sender<Bytes>, Whole)> {
        match self {
            Self::Client(outgoing) => outgoing.bytes.take().zip(Some(outgoing.whole.clone())),
            Self::Image(image) => image.bytes.take().zip(Some(image.whole.clone())),
        }
    }

    /// Returns when all that was written is safe, or why it is not. For a client a container that is let run on does not wait.
    pub async fn stored(&mut self, leave_running: bool) -> Result<(), Problem> {
        let nobody = || Problem::failed("nobody has stored the archive");
        match self {
            Self::Client(_) if leave_running => Ok(()),
            Self::Client(outgoing) => {
                let stored = outgoing.stored.take().ok_or_else(nobody)?;
                match timeout(STORED_DEADLINE, stored).await {
                    Ok(Ok(())) => Ok(()),
                    _ => Err(nobody()),
                }
            }
            Self::Image(image) => match timeout(STORED_DEADLINE, image.end()).await {
                Ok(ended) => {
                    ended.map_err(|reason| Problem::failed(format!("image {}: {reason}", image.name)))
                }
                Err(_) => Err(nobody()),
            },
        }
    }

    /// What the engine says of the bytes that it does not take any more; `None` if it is not the engine's matter.
    pub async fn refusal(&mut self) -> Option<Problem> {
        match self {
            Self::Client(_) => None,
            Self::Image(_) => self.stored(false).await.err(),
        }
    }

    /// When this returns there is no image of it. Whoever writes must have been stopped.
    pub async fn undo(
        &mut self,
        engine: &dyn Engine,
        container: &Container,
        migration: &MigrationId,
    ) -> Result<(), String> {
        let Self::Image(image) = self else {
            return Ok(());
        };
        if image.chunks.is_some() {
            return Ok(());
        }
        image.bytes = None;
        // Only when the engine is through it is known what there is. What it says of that does not matter.
        let _ = timeout(STORED_DEADLINE, image.end()).await;
        image.storing = None;
        remove_image(engine, container, migration, &image.name).await
    }
}

impl Image {
    /// May be dropped and called again.
    async fn end(&mut self) -> Result<(), String> {
        let Some(storing) = &mut self.storing else {
            return Err("it was given up".into());
        };
        let ended = storing.await;
        self.storing = None;
        match ended {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Removes the image that an export has made, if it has.
pub async fn remove_image(
    engine: &dyn Engine,
    container: &Container,
    migration: &MigrationId,
    name: &str,
) -> Result<(), String> {
    let remove = async {
        images(engine)?
            .unmake(&new_image(container, migration, name))
            .await
    };
    remove
        .await
        .map_err(|error| format!("image {name} may be there, and is to be removed: {error}"))
}

fn images(engine: &dyn Engine) -> Result<&dyn ImageStore, EngineError> {
    engine.images().ok_or_else(|| EngineError::Broken {
        engine: engine.name(),
        request: "making an image".into(),
        reason: "it keeps no archives as images".into(),
    })
}

fn new_image(container: &Container, migration: &MigrationId, name: &str) -> NewImage {
    let mut notes: BTreeMap<&'static str, String> = NAMES
        .map(|key| (key, container.name.clone()))
        .into_iter()
        .collect();
    notes.insert(RUNTIME.0, RUNTIME.1.into());
    notes.insert(MARK, migration.to_string());
    if is_well_formed(&container.image_name) {
        notes.insert(ROOTFS_IMAGE, container.image_name.clone());
    }
    NewImage {
        namespace: container.namespace.clone(),
        name: name.into(),
        notes,
        mark: MARK,
    }
}
