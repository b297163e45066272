//! The local API's restore in place. It goes on if whoever asked goes away: an engine that is at a start cannot be called back.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::Agent;
use super::api::Refusal;
use super::containers::moves;
use crate::engine::set::Choice;
use crate::in_place::{self, Place, RestoreError, Restored};
use crate::places::MigrationId;

/// `POST /v1/restore`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// Name, id or unique prefix of the id.
    pub container: String,
    /// The absolute path of an image's directory; or the name of a checkpoint that Docker keeps of this container.
    pub checkpoint: String,
    /// The directory that Docker was told to keep it in (`docker checkpoint create --checkpoint-dir`).
    #[serde(default)]
    pub checkpoint_dir: Option<PathBuf>,
    /// `docker`, `containerd` or `auto`: whose container it is.
    #[serde(default)]
    pub engine: Choice,
    /// containerd's namespace, if not `default`; means containerd.
    #[serde(default)]
    pub namespace: Option<String>,
}

/// Restores a stopped container from an image on this host.
pub(super) async fn restore(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<RestoreRequest>,
) -> Result<Json<Restored>, Refusal> {
    let engines = &agent.host.engines;
    let container = engines
        .find(request.engine, request.namespace.as_deref(), &request.container)
        .await?;
    let internal = |error: String| Refusal(StatusCode::INTERNAL_SERVER_ERROR, error);
    let busy = |error: String| Refusal(StatusCode::CONFLICT, format!("{}: {error}", container.name));
    if agent.stop.is_cancelled() {
        return Err(Refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            "the agent is stopping".into(),
        ));
    }
    let key = (container.namespace.clone(), container.id.clone());
    if let Some(migration) = moves(&agent).get(&key) {
        return Err(busy(format!(
            "migration {migration} is at it: see `godwit migrations`"
        )));
    }
    let migration = MigrationId::random().map_err(|error| internal(error.to_string()))?;
    let claim = agent
        .registry
        .claim(&migration, &container.namespace, &container.id)
        .map_err(|error| busy(error.to_string()))?;
    let place = if request.checkpoint.starts_with('/') && request.checkpoint_dir.is_none() {
        Place::Directory(request.checkpoint.into())
    } else {
        Place::Named {
            name: request.checkpoint,
            parent: request.checkpoint_dir,
        }
    };
    let worker = Arc::clone(&agent);
    let name = container.name.clone();
    let work = agent.tasks.spawn(async move {
        let _claim = claim;
        let outcome = in_place::run(&worker.host, &migration, &container, &place).await;
        match &outcome {
            Ok(restored) => log::info!(
                "{} is restored in place from {}, {} us",
                restored.container,
                restored.image.display(),
                restored.micros
            ),
            Err(error) => log::error!("restore of {}: {error}", container.name),
        }
        outcome
    });
    match work.await {
        Ok(Ok(restored)) => Ok(Json(restored)),
        Ok(Err(error)) => Err(error.into()),
        Err(error) => Err(internal(format!("the restore of {name} broke off: {error}"))),
    }
}

impl From<RestoreError> for Refusal {
    fn from(error: RestoreError) -> Self {
        match error {
            RestoreError::Engine(error) => error.into(),
            RestoreError::Refused(_) => Self(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()),
            RestoreError::Overtaken(_) => Self(StatusCode::CONFLICT, error.to_string()),
            RestoreError::Failed { .. } => Self(StatusCode::BAD_GATEWAY, error.to_string()),
        }
    }
}
