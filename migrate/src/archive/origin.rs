//! Where an archive comes from: from the client that asked for the import, or out of an image of an engine's.
//!
//! Whatever it is, it is read by a thread, and believed as little as the other.

use std::io::{self, Read};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::OPEN_DEADLINE;
use super::board::{Brought, Incoming};
use super::pipe::Inlet;
use crate::engine::EngineError;
use crate::engine::image_store::Layer;
use crate::engine::set::{Choice, Engines};
use crate::failure::Problem;

/// Where an archive comes from.
pub enum Origin {
    /// From the client.
    Client(Incoming),
    /// Out of an image.
    Image {
        /// What it is called.
        name: String,
        /// Whose it is.
        engine: Choice,
        /// containerd's namespace; means containerd.
        namespace: Option<String>,
    },
}

impl Origin {
    /// The archive's bytes, or why there are none.
    pub async fn open(&mut self, engines: &Engines) -> Result<Result<Box<dyn Read + Send>, String>, Problem> {
        match self {
            Self::Client(incoming) => {
                let brought = incoming.brought.take();
                let brought = brought.ok_or_else(|| Problem::failed("the archive was read already"))?;
                match timeout(OPEN_DEADLINE, brought).await {
                    Ok(Ok(Brought::Pieces(bytes))) => Ok(Ok(Box::new(Inlet::new(bytes)))),
                    Ok(Ok(Brought::File(file))) => Ok(Ok(Box::new(file))),
                    Ok(Err(_)) | Err(_) => Err(Problem::failed("nobody has brought an archive")),
                }
            }
            Self::Image {
                name,
                engine,
                namespace,
            } => {
                let engine = match namespace {
                    Some(_) => Choice::Containerd,
                    None => *engine,
                };
                Ok(layer(engines, engine, namespace.as_deref(), name).await?)
            }
        }
    }
}

/// Of the engines chosen, the first that has the image gives its layer. One that does not answer is passed over as long as another
/// has it.
async fn layer(
    engines: &Engines,
    choice: Choice,
    namespace: Option<&str>,
    name: &str,
) -> Result<Result<Box<dyn Read + Send>, String>, EngineError> {
    let mut silent = None;
    for engine in engines.among(choice)? {
        let Some(images) = engine.images() else {
            continue;
        };
        match images.layer(namespace, name).await {
            Ok(Layer::Absent) => {}
            Ok(Layer::NotOne(layers)) => {
                let told =
                    format!("image {name} is no archive of a container: it has {layers} layers, not one");
                return Ok(Err(told));
            }
            Ok(Layer::Here(bytes)) => return Ok(Ok(bytes)),
            Err(error @ EngineError::Unreachable { .. }) => silent = Some(error),
            Err(error) => return Err(error),
        }
    }
    match silent {
        Some(error) => Err(error),
        None => Ok(Err(format!("no engine of this host has an image {name}"))),
    }
}

/// Reads until it is told to stop: whoever reads an image would otherwise do so to its end.
pub(super) struct Until<R> {
    input: R,
    stop: CancellationToken,
}

impl<R> Until<R> {
    pub(super) fn new(input: R, stop: CancellationToken) -> Self {
        Self { input, stop }
    }
}

impl<R: Read> Read for Until<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.is_cancelled() {
            return Err(io::Error::other("given up"));
        }
        self.input.read(buffer)
    }
}
