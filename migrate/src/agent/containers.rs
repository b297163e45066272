//! The local API's answers about containers: which there are on this host, and which of them a move is at.
//!
//! Nothing is decided here; whether one can be moved is for a plan to say.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};

use super::Agent;
use super::api::Refusal;
use super::registry::Claims;
use crate::engine::set::Choice;
use crate::engine::{Listed, RUNTIME};
use crate::journal::Found;
use crate::phase::Role;

/// `GET /v1/containers`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerList {
    /// All containers of the engines that answer, running or not.
    pub containers: Vec<ContainerEntry>,
    /// Why an engine's containers are not among them, a sentence for each.
    pub silent: Vec<String>,
}

/// One container of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerEntry {
    /// Full id.
    pub id: String,
    /// The name by which it is moved.
    pub name: String,
    /// Whose it is: `docker` or `containerd`.
    pub engine: String,
    /// The name its image was asked for by; may be empty or an id.
    pub image: String,
    /// `running`, `paused`, `exited` and the like: Docker's words, whichever its engine.
    pub state: String,
    /// The runtime it is made for; `None` if its engine is too busy with it to say.
    pub runtime: Option<String>,
    /// Whether it is made for Godwit's runtime, or served by Godwit's shim in the place of another.
    pub under_godwit: bool,
    /// The move of it that is under way.
    pub migration: Option<String>,
}

/// `GET /v1/containers/NAME`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerView {
    /// Full id.
    pub id: String,
    /// Name.
    pub name: String,
    /// Whether it runs, unpaused.
    pub running: bool,
    /// The runtime it was started with.
    pub runtime: String,
    /// Whose it is: `docker` or `containerd`.
    pub engine: String,
    /// The shim's word for its state; `None` if it runs under no shim of Godwit.
    pub state: Option<String>,
}

/// Every container of this host.
pub(super) async fn list(State(agent): State<Arc<Agent>>) -> Json<ContainerList> {
    let (listed, silent) = agent.host.engines.list().await;
    let moves = moves(&agent);
    let mut containers = Vec::new();
    for container in listed {
        let shims = &agent.host.shims;
        let shim = shims.find(Role::Source, &container.namespace, &container.id);
        // One that does not answer is there all the same.
        let is_served = !matches!(shim.await, Ok(None));
        containers.push(entry(container, is_served, &moves));
    }
    Json(ContainerList {
        containers,
        silent: silent.iter().map(ToString::to_string).collect(),
    })
}

/// One container of this host.
pub(super) async fn show(
    State(agent): State<Arc<Agent>>,
    Path(name): Path<String>,
) -> Result<Json<ContainerView>, Refusal> {
    let engines = &agent.host.engines;
    let container = engines.find(Choice::Auto, None, &name).await?;
    let shims = &agent.host.shims;
    let found = shims
        .find(Role::Source, &container.namespace, &container.id)
        .await;
    let state = match found {
        Ok(Some(shim)) => shim.inspect().await.ok().map(|view| view.state),
        Ok(None) | Err(_) => None,
    };
    Ok(Json(ContainerView {
        id: container.id,
        name: container.name,
        running: container.running,
        runtime: container.runtime,
        engine: container.engine,
        state,
    }))
}

/// Which container of this host is in a move: by the registry, and by the journals of moves whose runner is gone.
pub(super) fn moves(agent: &Agent) -> Claims {
    let mut moves = agent.registry.claims();
    for found in Found::read_all(&agent.host.places).into_iter().flatten() {
        let opened = &found.opened;
        let here = match opened.role {
            Role::Source => Some((&opened.container.namespace, &opened.container.id)),
            Role::Destination => found.created().map(|created| (&created.namespace, &created.id)),
        };
        if let Some((namespace, id)) = here {
            moves.insert((namespace.clone(), id.clone()), opened.migration.clone());
        }
    }
    moves
}

fn entry(container: Listed, is_served: bool, moves: &Claims) -> ContainerEntry {
    let under_godwit = is_served || container.runtime.as_deref() == Some(RUNTIME);
    let migration = moves.get(&(container.namespace, container.id.clone()));
    ContainerEntry {
        migration: migration.map(ToString::to_string),
        id: container.id,
        name: container.name,
        engine: container.engine.to_owned(),
        image: container.image,
        state: container.state,
        runtime: container.runtime,
        under_godwit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::places::MigrationId;

    fn listed(namespace: &str, runtime: Option<&str>) -> Listed {
        Listed {
            engine: "containerd",
            id: "web".into(),
            name: "web".into(),
            namespace: namespace.into(),
            image: "loop:1".into(),
            state: "exited".into(),
            runtime: runtime.map(Into::into),
        }
    }

    #[test]
    fn a_container_is_under_godwit_by_its_runtime_or_by_its_shim() {
        let under =
            |runtime, is_served| entry(listed("default", runtime), is_served, &Claims::new()).under_godwit;
        assert!(under(Some(RUNTIME), false), "it need not run");
        assert!(
            under(Some("io.containerd.runc.v2"), true),
            "in the stock shim's place"
        );
        assert!(under(None, true));
        assert!(!under(Some("io.containerd.runc.v2"), false));
        assert!(!under(None, false));
    }

    #[test]
    fn a_move_is_told_of_the_container_it_is_at_and_of_no_namesake() {
        let migration = MigrationId::random().unwrap();
        let key = ("default".to_owned(), "web".to_owned());
        let moves = Claims::from([(key, migration.clone())]);
        let told = |namespace| entry(listed(namespace, None), false, &moves).migration;
        assert_eq!(told("default"), Some(migration.to_string()));
        assert_eq!(told("birds"), None);
    }
}
