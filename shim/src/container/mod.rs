//! Containers: the registry of those this shim serves, and the handle by which requests reach their owners.
//!
//! One task owns each container (`owner`); a handle only puts commands in its inbox and waits for the answer.
//! The registry's lock is held for a look-up, never for work.

mod command;
mod create;
mod exec;
mod identity;
pub(crate) mod lifecycle;
mod owner;
mod process;
mod restore;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use containerd_shim::api::CreateTaskRequest;
use godwit_runtime::reaper::Reaper;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::error::ShimError;
use crate::publisher::Publisher;
use crate::task;

pub(crate) use command::{Command, Delivery, DumpOrder, Finished, Reply};

/// Commands waiting for one owner, which takes each up at once; more means that a client runs wild.
const INBOX_BOUND: usize = 128;

/// What all containers of one shim share.
pub(crate) struct Shim {
    /// containerd's namespace.
    pub(crate) namespace: String,
    /// Where this shim listens.
    pub(crate) address: String,
    pub(crate) reaper: Reaper,
    pub(crate) publisher: Publisher,
    pub(crate) registry: Registry,
    /// The binary that CRIU and runC call back.
    pub(crate) program: PathBuf,
    /// It stands in for the stock shim, so that engines pass it every option.
    pub(crate) drop_in: bool,
    /// Ends the shim.
    pub(crate) shutdown: CancellationToken,
}

/// The containers of this shim by id.
#[derive(Default)]
pub(crate) struct Registry(Mutex<HashMap<String, Handle>>);

impl Registry {
    /// The container `id`.
    pub(crate) fn get(&self, id: &str) -> Result<Handle, ShimError> {
        let found = self.containers().get(id).cloned();
        found.ok_or_else(|| ShimError::NotFound(format!("container {id} is not known to this shim")))
    }

    /// True if there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.containers().is_empty()
    }

    /// Creates a container and returns the pid of its init. It has an owner from now on, whose answer this is.
    pub(crate) async fn create(shim: &Arc<Shim>, request: CreateTaskRequest) -> Result<u32, ShimError> {
        let (reply, answer) = oneshot::channel();
        {
            let mut containers = shim.registry.containers();
            if containers.contains_key(&request.id) {
                return Err(ShimError::AlreadyExists(format!(
                    "container {} exists",
                    request.id
                )));
            }
            let (inbox, commands) = mpsc::channel(INBOX_BOUND);
            containers.insert(request.id.clone(), Handle { inbox });
            let forgotten = ForgottenAtEnd {
                shim: shim.clone(),
                id: request.id.clone(),
            };
            let owner = owner::run(shim.clone(), request, reply, commands);
            task::spawn(async move {
                let _forgotten = forgotten;
                owner.await;
            });
        }
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Forgets a container.
    fn remove(&self, id: &str) {
        self.containers().remove(id);
    }

    /// Forgets a container that has no owner any more; there may be another by its name already.
    fn remove_orphan(&self, id: &str) {
        let mut containers = self.containers();
        if containers.get(id).is_some_and(|handle| handle.inbox.is_closed()) {
            containers.remove(id);
        }
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Handle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets a container when its owner ends, in whatever way: one that has panicked can no longer do so itself, and a
/// shim with a container in its registry would never end.
struct ForgottenAtEnd {
    shim: Arc<Shim>,
    id: String,
}

impl Drop for ForgottenAtEnd {
    fn drop(&mut self) {
        self.shim.registry.remove_orphan(&self.id);
    }
}

/// The way to one container's owner.
#[derive(Clone)]
pub(crate) struct Handle {
    inbox: mpsc::Sender<Command>,
}

impl Handle {
    /// Sends the command that `make` builds around a reply, and waits for the answer.
    pub(crate) async fn ask<T>(&self, make: impl FnOnce(Reply<T>) -> Command) -> Result<T, ShimError> {
        let (reply, answer) = oneshot::channel();
        self.inbox.send(make(reply)).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

fn gone() -> ShimError {
    ShimError::NotFound("the container is gone".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_container_without_an_owner_is_an_orphan() {
        let registry = Registry::default();
        let (inbox, commands) = mpsc::channel(INBOX_BOUND);
        registry.containers().insert("a".into(), Handle { inbox });
        registry.remove_orphan("a");
        assert!(!registry.is_empty());
        drop(commands);
        registry.remove_orphan("b");
        registry.remove_orphan("a");
        assert!(registry.is_empty());
    }
}
