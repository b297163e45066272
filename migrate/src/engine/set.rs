//! The engines that an agent serves, and which of them a container belongs to.
//!
//! A container that is named without its engine is looked for in one after the other, in the order of the set. An engine
//! that does not answer is passed over as long as another knows the container.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Container, Engine, EngineError, Listed};
use crate::finding::Finding;

/// The engine that a user names, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// Docker.
    Docker,
    /// containerd itself.
    Containerd,
    /// The first that knows the container.
    #[default]
    Auto,
}

/// The engines of one host.
#[derive(Clone)]
pub struct Engines(Vec<Arc<dyn Engine>>);

impl Engines {
    /// These engines, in the order in which they are asked.
    pub fn new(engines: Vec<Arc<dyn Engine>>) -> Self {
        Self(engines)
    }

    /// The engine of this name.
    pub fn of(&self, name: &str) -> Result<Arc<dyn Engine>, EngineError> {
        let found = self.0.iter().find(|engine| engine.name() == name);
        found
            .cloned()
            .ok_or_else(|| EngineError::Unknown(name.to_owned()))
    }

    /// Those among which somebody's choice leaves to look, in order.
    pub fn among(&self, choice: Choice) -> Result<Vec<Arc<dyn Engine>>, EngineError> {
        match choice {
            Choice::Auto => Ok(self.0.clone()),
            one => Ok(vec![self.of(&one.to_string())?]),
        }
    }

    /// How all of them are.
    pub async fn examine(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for engine in &self.0 {
            findings.extend(engine.examine().await);
        }
        findings
    }

    /// All containers of all engines, and why an engine's are not among them.
    pub async fn list(&self) -> (Vec<Listed>, Vec<EngineError>) {
        let (mut containers, mut silent) = (Vec::new(), Vec::new());
        for engine in &self.0 {
            match engine.list().await {
                Ok(listed) => containers.extend(listed),
                Err(error) => silent.push(error),
            }
        }
        (containers, silent)
    }

    /// Finds a container. `namespace` is containerd's and means nothing to Docker.
    pub async fn find(
        &self,
        choice: Choice,
        namespace: Option<&str>,
        container: &str,
    ) -> Result<Container, EngineError> {
        let (choice, container) = match namespace {
            Some(namespace) if choice != Choice::Docker => {
                (Choice::Containerd, format!("{namespace}/{container}"))
            }
            _ => (choice, container.to_owned()),
        };
        if choice != Choice::Auto {
            return self.of(&choice.to_string())?.inspect(&container).await;
        }
        let (mut unknown, mut silent) = (None, None);
        for engine in &self.0 {
            match engine.inspect(&container).await {
                // The last engine asked says most: it may know the container in another namespace.
                Err(EngineError::NoSuchContainer(said)) => unknown = Some(said),
                Err(error @ EngineError::Unreachable { .. }) => silent = Some(error),
                found => return found,
            }
        }
        Err(match (unknown, silent) {
            (None, Some(error)) => error,
            (Some(said), Some(error)) => EngineError::NoSuchContainer(format!("{said} ({error})")),
            (said, None) => EngineError::NoSuchContainer(said.unwrap_or(container)),
        })
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Docker => super::docker::NAME,
            Self::Containerd => super::containerd::NAME,
            Self::Auto => "auto",
        })
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Docker, Self::Containerd, Self::Auto]
            .into_iter()
            .find(|choice| choice.to_string() == text)
            .ok_or_else(|| "it is docker, containerd or auto".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::containerd::Containerd;
    use super::super::docker::Docker;
    use super::*;

    /// Neither daemon is there.
    fn engines() -> Engines {
        let nowhere = PathBuf::from("/nonexistent/engine.sock");
        Engines::new(vec![
            Arc::new(Docker::new(nowhere.clone())),
            Arc::new(Containerd::new(nowhere)),
        ])
    }

    async fn said(choice: Choice, namespace: Option<&str>, container: &str) -> String {
        let found = engines().find(choice, namespace, container).await;
        found.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn an_engine_is_found_by_the_name_that_containers_carry() {
        for name in ["docker", "containerd"] {
            assert_eq!(engines().of(name).unwrap().name(), name);
            assert_eq!(Choice::from_str(name).unwrap().to_string(), name);
        }
        assert!(matches!(engines().of("podman"), Err(EngineError::Unknown(_))));
        assert!(Choice::from_str("podman").is_err());
    }

    #[tokio::test]
    async fn where_nobody_answers_that_is_said_and_not_that_the_container_is_unknown() {
        assert!(
            said(Choice::Auto, None, "web")
                .await
                .starts_with("containerd does not answer")
        );
        assert!(
            said(Choice::Docker, None, "web")
                .await
                .starts_with("docker does not answer")
        );
        // No name of Docker's has a slash: it need not be asked to say so.
        let of_namespace = said(Choice::Auto, None, "birds/web").await;
        assert!(
            of_namespace.starts_with("no such container: birds/web (containerd does not"),
            "{of_namespace}"
        );
    }

    #[tokio::test]
    async fn a_namespace_means_containerd_and_that_of_docker_is_not_touched() {
        assert!(
            said(Choice::Auto, Some("birds"), "web")
                .await
                .starts_with("containerd does not answer")
        );
        let dockers = said(Choice::Containerd, Some("moby"), "web").await;
        assert!(
            dockers.contains("Docker's containers are moved by Docker"),
            "{dockers}"
        );
    }
}
