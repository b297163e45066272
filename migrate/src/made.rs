//! What there is of a container on the host that is to take it over, while it is being made.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::clock::Step;
use crate::deadlines;
use crate::engine::{Container, Created, Engine, EngineError};
use crate::failure::Problem;
use crate::host::Host;
use crate::lease::Lease;
use crate::phase::Role;
use crate::places::MigrationId;
use crate::shim::{SHIM_PROTOCOL, ShimClient};

/// The state in which a shim waits for an image.
const AWAITING_IMAGE: &str = "awaiting-image";

/// How long to wait for the reason why a start failed, from whoever knows it better than the engine.
const REASON_DEADLINE: Duration = Duration::from_secs(2);

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
    /// The shim that waits for its image.
    pub shim: Option<Arc<dyn ShimClient>>,
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

    /// Leaves a ticket and asks the engine for the start, which then waits for the image.
    pub fn start(
        &mut self,
        host: &Host,
        migration: &MigrationId,
        created: &Created,
        container: Arc<Container>,
    ) -> Result<(), Problem> {
        let engine = self.engine.clone();
        let engine = engine.ok_or_else(|| Problem::failed("the container is not being made"))?;
        self.lease = Some(
            Lease::issue(&host.places, created, migration, None)
                .map_err(|error| Problem::failed(error.to_string()))?,
        );
        let started = created.clone();
        self.starting = Some(tokio::spawn(
            async move { engine.start(&started, &container).await },
        ));
        Ok(())
    }

    /// Waits until the engine's start has come to the point where the shim waits for its image; the mounted root. May be
    /// dropped.
    pub async fn await_shim(&mut self, host: &Host, created: &Created) -> Result<PathBuf, Problem> {
        let Self { starting, lease, .. } = self;
        let look = async {
            loop {
                let lease_taken = lease.as_ref().is_some_and(|lease| lease.is_claimed());
                if lease_taken
                    && let Some(shim) = host
                        .shims
                        .find(Role::Destination, &created.namespace, &created.id)
                        .await?
                {
                    let view = shim.inspect().await?;
                    if view.protocol != SHIM_PROTOCOL {
                        return Err(Problem::failed(format!(
                            "the shim speaks version {} of godwit.v1.Container and this agent {SHIM_PROTOCOL}",
                            view.protocol
                        )));
                    }
                    if view.state == AWAITING_IMAGE {
                        return Ok((shim, view.rootfs));
                    }
                }
                sleep(deadlines::LOOK_AGAIN).await;
            }
        };
        let (shim, rootfs) = tokio::select! {
            found = look => found?,
            problem = start_ended(starting) => return Err(problem),
            () = sleep(deadlines::AWAITING_IMAGE) => return Err(Problem::failed(format!(
                "no shim of Godwit waits for the image after {} s: is containerd-shim-godwit-v2 installed?",
                deadlines::AWAITING_IMAGE.as_secs()
            ))),
        };
        self.shim = Some(shim);
        Ok(rootfs)
    }

    /// Hands the image over, and returns when the container is held a step before it runs. May be dropped.
    pub async fn restore(
        &mut self,
        image: &Path,
        verdict: &Path,
        pages: Option<&Path>,
    ) -> Result<Vec<Step>, Problem> {
        let shim = self.shim.clone();
        let shim = shim.ok_or_else(|| Problem::failed("no shim waits for the image"))?;
        let mut restore = std::pin::pin!(shim.restore(image, verdict, pages));
        tokio::select! {
            steps = &mut restore => Ok(steps?),
            // Both fail when a restore fails, and the shim tells more of it than the engine.
            problem = start_ended(&mut self.starting) => match timeout(REASON_DEADLINE, restore).await {
                Ok(Err(error)) => Err(error.into()),
                Ok(Ok(_)) | Err(_) => Err(problem),
            },
        }
    }

    /// Removes the container again, with what its engine has made along with it.
    pub async fn remove_all(&mut self) -> Result<(), String> {
        if self.creating.is_some() {
            // A create that failed has left nothing; the failure itself is told already.
            let _ = self.finish_creating().await;
        }
        if let Some(lease) = self.lease.take() {
            lease.withdraw();
        }
        if let Some(shim) = &self.shim {
            // What the shim has to say of a restore that failed by itself is known already.
            if let Err(error) = shim.finish_restore().await {
                log::debug!("{error}");
            }
        }
        if let Some(starting) = self.starting.take() {
            let _ = timeout(deadlines::START_FAILED, starting).await;
        }
        if let Some(created) = self.created.take()
            && let Some(engine) = &self.engine
        {
            engine
                .unmake(&created.namespace, &created.id)
                .await
                .map_err(|error| error.to_string())?;
        }
        Ok(())
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
