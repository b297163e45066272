//! What there is of a container on the host that is to take it over, while it is being made.

use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::engine::{Created, Engine, EngineError};
use crate::failure::Problem;
use crate::lease::Lease;

/// What there is of the container on this host.
#[derive(Default)]
pub struct Made {
    /// Who makes it.
    pub engine: Option<Arc<dyn Engine>>,
    /// The engine's answer to create, which is never dropped half-way: what it made must be known to be removed.
    pub creating: Option<JoinHandle<Result<Created, EngineError>>>,
    /// What it made.
    pub created: Option<Created>,
    /// The ticket for its start.
    pub lease: Option<Lease>,
    /// The engine's answer to start, which comes after the commit, or because the start failed.
    pub starting: Option<JoinHandle<Result<(), EngineError>>>,
}

impl Made {
    /// Waits for the engine's answer to create. May be dropped and called again.
    pub async fn finish_creating(&mut self) -> Result<Created, Problem> {
        let Some(creating) = self.creating.as_mut() else {
            return Err(Problem::failed("the container is not being made"));
        };
        let outcome = creating.await;
        self.creating = None;
        let created = outcome.map_err(|error| Problem::failed(error.to_string()))??;
        self.created = Some(created.clone());
        Ok(created)
    }
}

/// Waits for the end of a start that must not end yet: it has failed, whatever it says. May be dropped.
pub async fn start_ended(starting: &mut Option<JoinHandle<Result<(), EngineError>>>) -> Problem {
    let Some(handle) = starting.as_mut() else {
        return std::future::pending().await;
    };
    let outcome = handle.await;
    *starting = None;
    match outcome {
        Ok(Err(error)) => error.into(),
        Ok(Ok(())) => Problem::failed(
            "the engine started the container without Godwit's shim: check the runtime it was created with",
        ),
        Err(error) => Problem::failed(error.to_string()),
    }
}
