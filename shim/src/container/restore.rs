//! A container that is made from a checkpoint image instead of its configuration.
//!
//! The image is the engine's own (Create with a checkpoint), or a ticket's: there already, or still to come. This makes
//! the restore and brings it to its gate; the owner opens it at Start. It never falls back to a fresh start: whoever
//! asked for a restore would find an empty program in place of theirs.

use std::path::PathBuf;
use std::time::Duration;

use containerd_shim::api::CreateTaskRequest;
use containerd_shim::asynchronous::io::Stdio;
use godwit_runtime::checkpoint::CheckpointError;
use godwit_runtime::checkpoint::restore::{Restore, RestoreRequest};
use godwit_runtime::reaper::Departure;
use godwit_runtime::ticket::{self, Claimed, Ticket};
use tokio::sync::oneshot;
use tokio::time::interval;

use super::command::{Delivery, Held, Reply};
use super::identity::Identity;
use crate::error::{ShimError, failed};
use crate::io::{self, Pending};

/// How often a ticket is looked at while its image is to come: a move that is given up ends the wait this soon.
const TICKET_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// A restore whose image has come and whose gate is shut.
pub(super) struct PendingRestore {
    pub(super) restore: Restore,
    /// Its streams, connected when all is restored.
    pub(super) streams: Pending,
    /// Who delivered the image and waits for the hold; none if the engine itself brought it.
    pub(super) deliverer: Option<Reply<Held>>,
}

/// What the owner and a creation under way tell each other.
pub(super) struct Exchange {
    /// Tells the owner that the image must be waited for.
    pub(super) awaited: oneshot::Sender<()>,
    /// Brings the image.
    pub(super) delivery: oneshot::Receiver<Delivery>,
}

/// What a container is made from.
pub(super) enum Origin {
    /// Its configuration.
    Fresh,
    /// A checkpoint image.
    Image(Image),
}

pub(super) struct Image {
    directory: PathBuf,
    verdict: Option<PathBuf>,
    pages: Option<PathBuf>,
    deliverer: Option<Reply<Held>>,
}

/// Finds out what the container is to be made from; with a ticket whose image is to come, waits for it.
pub(super) async fn origin(
    identity: &Identity,
    request: &CreateTaskRequest,
    exchange: Exchange,
) -> Result<Origin, ShimError> {
    let here = |directory: PathBuf| {
        Origin::Image(Image {
            directory,
            verdict: None,
            pages: None,
            deliverer: None,
        })
    };
    let named = Some(PathBuf::from(&request.checkpoint)).filter(|path| !path.as_os_str().is_empty());
    if let Some(directory) = named.or_else(|| identity.criu_image_path.clone()) {
        return Ok(here(directory));
    }
    let claimed = Ticket::claim(&ticket::default_root(), &identity.namespace, &identity.id)
        .map_err(failed(format!("restore container {}", identity.id)))?;
    let Some(claimed) = claimed else {
        return Ok(Origin::Fresh);
    };
    let current = |claimed: &Claimed| {
        let what = format!("container {} of move {}", identity.id, claimed.ticket.migration);
        claimed.check().map_err(failed(what))
    };
    if let Some(directory) = claimed.ticket.image_dir.clone() {
        // One that a dead agent left says nothing of this start.
        current(&claimed)?;
        return Ok(here(directory));
    }
    let Exchange {
        awaited,
        mut delivery,
    } = exchange;
    let _ = awaited.send(());
    let mut check = interval(TICKET_CHECK_INTERVAL);
    loop {
        tokio::select! {
            delivered = &mut delivery => {
                let delivered = delivered.map_err(failed("wait for the checkpoint image"))?;
                return Ok(Origin::Image(Image {
                    directory: delivered.image_dir,
                    verdict: Some(delivered.verdict),
                    pages: delivered.pages,
                    deliverer: Some(delivered.reply),
                }));
            }
            _ = check.tick() => current(&claimed)?,
        }
    }
}

/// Starts the restore and returns when its namespaces stand and the gate is shut.
pub(super) async fn run(
    identity: &Identity,
    stdio: &Stdio,
    image: Image,
) -> Result<(i32, Departure, PendingRestore), ShimError> {
    let result = async {
        let (streams, pending) = io::open(stdio, identity.streams_of_init()).await?;
        let (told, usual) = identity.restore_layers()?;
        let request = RestoreRequest {
            image_dir: image.directory,
            work_dir: identity.criu_work_path.clone(),
            told,
            usual,
            terminal: stdio.terminal,
            no_pivot: identity.no_pivot,
            verdict: image.verdict,
            lazy: image.pages,
        };
        // The init is CRIU's child until CRIU has ended, and may end before we know its pid.
        let nursery = identity.runc.reaper().nursery();
        let broken = |error: CheckpointError| ShimError::Failed(error.to_string());
        let mut restore = Restore::begin(identity.site(), &request, streams).map_err(broken)?;
        let pid = restore.gated().await.map_err(broken)?;
        let departure = nursery.adopt(pid);
        Ok::<_, ShimError>((pid, departure, restore, pending))
    };
    match result.await {
        Ok((pid, departure, restore, pending)) => {
            let pending = PendingRestore {
                restore,
                streams: pending,
                deliverer: image.deliverer,
            };
            Ok((pid, departure, pending))
        }
        Err(error) => {
            if let Some(deliverer) = image.deliverer {
                let _ = deliverer.send(Err(ShimError::Failed(error.to_string())));
            }
            Err(error)
        }
    }
}
