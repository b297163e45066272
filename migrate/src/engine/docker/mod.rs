//! Docker as an engine of a move, by its HTTP API on the unix socket.
//!
//! Here stands what is asked of Docker and in which order; how to ask is `http`, what a create request looks like is
//! `create`, what speaks against one is `objections`, which there are is `list`, how the daemon is `examine`, what images are called is
//! `image`, how an archive becomes one is `image_store`. It starts and removes containers only as told and keeps no state of
//! its own.

mod create;
mod examine;
mod http;
mod image;
mod image_store;
mod list;
mod objections;
mod volumes;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use hyper::Method;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::image_store::{ImageStore, is_well_formed};
use super::volume::VolumeStore;
use super::{Container, Created, Engine, EngineError, Listed, Mount, Network, Source};
use crate::finding::{Code, Finding};
use create::Addresses;
use http::{Client, ENGINE, broken};

/// This engine's name.
pub const NAME: &str = ENGINE;

/// Where Docker listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/var/run/docker.sock";

/// containerd's namespace for Docker's containers, unless its administrator chose another.
pub const NAMESPACE: &str = "moby";
/// Changes wait for Docker's lock on the container; a start that is being given up holds it for 15 s (a ticket's
/// lease), and layers take their time to be removed.
const CHANGE_DEADLINE: Duration = Duration::from_secs(60);
/// A start that waits for a checkpoint image ends by its ticket's lease; this only bounds what nobody ended.
const START_DEADLINE: Duration = Duration::from_secs(3600);
/// An image of tens of gigabytes over a slow link; a broken link ends it earlier.
const IMPORT_DEADLINE: Duration = Duration::from_secs(3600);
/// How long another's removal of the same container may take, and how often to look whether it is done.
const REMOVAL_DEADLINE: Duration = Duration::from_secs(60);
const REMOVAL_INTERVAL: Duration = Duration::from_millis(100);

/// One Docker daemon.
#[derive(Debug)]
pub struct Docker {
    client: Client,
}

impl Docker {
    /// The daemon behind `socket`; asks nothing of it yet.
    pub fn new(socket: PathBuf) -> Self {
        Docker {
            client: Client::new(socket),
        }
    }

    async fn describe(&self, container: &str) -> Result<Value, EngineError> {
        let path = format!("/containers/{}/json", container_path(container)?);
        self.client
            .get(&path)
            .await
            .map_err(|error| absent_container(container, error))
    }

    /// The list's entries for containers with names like this one. Unlike a description, the list also comes while
    /// Docker is busy starting one of them.
    async fn named(&self, name: &str) -> Result<Value, EngineError> {
        // {"name":["^/NAME$"]}
        let filter = format!("%7B%22name%22:%5B%22%5E/{}$%22%5D%7D", container_path(name)?);
        self.client
            .get(&format!("/containers/json?all=true&filters={filter}"))
            .await
    }

    /// A network by its id; `None` where this daemon has none, as for a container without network.
    async fn network(&self, id: &str) -> Result<Option<Value>, EngineError> {
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Ok(None);
        }
        absent_is_none(self.client.get(&format!("/networks/{id}")).await)
    }

    /// The description of an image, by a name or an id that this daemon knows.
    async fn image(&self, image: &str) -> Result<Option<Value>, EngineError> {
        if !is_well_formed(image) {
            return Ok(None);
        }
        absent_is_none(self.client.get(&format!("/images/{image}/json")).await)
    }

    /// What this daemon calls the container's image: the name it was asked for by, if that still means the same
    /// image here, otherwise the id.
    async fn image_reference(&self, container: &Container) -> Result<String, EngineError> {
        if let Some(name) = image::portable_name(&container.image_name)
            && let Some(found) = self.image(&name).await?
            && found["Id"].as_str() == Some(&container.image_id)
        {
            return Ok(name);
        }
        Ok(container.image_id.clone())
    }

    /// Gives an image that is here the name that its container knows it by, unless that means another image here: one that
    /// came to this host by another name is not sent again, and brings none along.
    async fn name_image(&self, container: &Container) -> Result<(), EngineError> {
        let Some(name) = image::portable_name(&container.image_name) else {
            return Ok(());
        };
        let Some((repository, tag)) = name.rsplit_once(':') else {
            return Ok(());
        };
        if !is_well_formed(&container.image_id) || self.image(&name).await?.is_some() {
            return Ok(());
        }
        let path = format!("/images/{}/tag?repo={repository}&tag={tag}", container.image_id);
        self.client
            .call(Method::POST, &path, None, CHANGE_DEADLINE)
            .await
            .map(drop)
    }

    /// The containerd runtime behind a runtime's name in Docker, which may be an alias from `daemon.json`.
    async fn containerd_runtime(&self, runtime: &str) -> Result<String, EngineError> {
        if runtime.contains(['.', '/']) {
            return Ok(runtime.to_owned());
        }
        Ok(list::runtime_meant(runtime, &self.client.get("/info").await?))
    }

    /// Removes a container, and with it `with_volumes` its anonymous volumes.
    async fn remove_container(&self, id: &str, with_volumes: bool) -> Result<(), EngineError> {
        let path = format!("/containers/{}?force=true&v={with_volumes}", container_path(id)?);
        let give_up_at = Instant::now() + REMOVAL_DEADLINE;
        loop {
            match self
                .client
                .call(Method::DELETE, &path, None, CHANGE_DEADLINE)
                .await
            {
                Ok(_) | Err(EngineError::Refused { status: 404, .. }) => return Ok(()),
                // Someone else removes it (`--rm`): wait until it is gone.
                Err(EngineError::Refused {
                    status: 409, message, ..
                }) if message.contains("already in progress") && Instant::now() < give_up_at => {
                    tokio::time::sleep(REMOVAL_INTERVAL).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn set_restart_policy(&self, container: &Container, policy: &Value) -> Result<(), EngineError> {
        let path = format!("/containers/{}/update", container_path(&container.id)?);
        let body = json!({ "RestartPolicy": policy });
        let answer = self
            .client
            .call(Method::POST, &path, Some(&body), CHANGE_DEADLINE)
            .await;
        answer
            .map(drop)
            .map_err(|error| absent_container(&container.id, error))
    }
}

#[async_trait]
impl Engine for Docker {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn inspect(&self, container: &str) -> Result<Container, EngineError> {
        let description = self.describe(container).await?;
        let mut networks = Vec::new();
        let endpoints = &description["NetworkSettings"]["Networks"];
        for (name, endpoint) in endpoints.as_object().into_iter().flatten() {
            let network = self
                .network(text(&endpoint["NetworkID"]))
                .await?
                .unwrap_or_default();
            networks.push(network_of(name, endpoint, &network));
        }
        let runtime = self
            .containerd_runtime(text(&description["HostConfig"]["Runtime"]))
            .await?;
        Ok(container_of(description, runtime, networks))
    }

    async fn list(&self) -> Result<Vec<Listed>, EngineError> {
        self.all_containers().await
    }

    async fn objections(&self, container: &Container) -> Result<Vec<Finding>, EngineError> {
        let mut reasons = objections::of_configuration(container);
        let bearers = self.named(&container.name).await?;
        reasons.extend(objections::of_name(container, &bearers));
        let listed = self.client.get("/networks").await?;
        for wanted in &container.networks {
            let found = listed
                .as_array()
                .into_iter()
                .flatten()
                .find(|network| network["Name"] == *wanted.name);
            // The list does not say who is attached; the single answer does.
            let found = match found {
                Some(network) => self.network(text(&network["Id"])).await?,
                None => None,
            };
            reasons.extend(objections::of_network(wanted, found.as_ref()));
        }

        let runtime = text(&container.description["HostConfig"]["Runtime"]);
        let info = self.client.get("/info").await?;
        reasons.extend(objections::of_runtime(runtime, &info["Runtimes"]));
        reasons.extend(objections::of_host(container).await);
        Ok(reasons)
    }

    async fn has_image(&self, container: &Container) -> Result<bool, EngineError> {
        let found = self.image(&container.image_id).await?;
        Ok(found.is_some_and(|image| image["Id"] == *container.image_id))
    }

    async fn find_image(&self, name: &str) -> Result<Option<String>, EngineError> {
        let found = self.image(name).await?;
        Ok(found.and_then(|image| image["Id"].as_str().map(str::to_owned)))
    }

    async fn image_bytes(&self, container: &Container) -> Result<Option<u64>, EngineError> {
        let found = self.image(&container.image_id).await?;
        Ok(found.and_then(|image| image["Size"].as_u64()))
    }

    async fn storage(&self) -> Result<Option<PathBuf>, EngineError> {
        let info = self.client.get("/info").await?;
        Ok(info["DockerRootDir"].as_str().map(PathBuf::from))
    }

    async fn examine(&self) -> Vec<Finding> {
        match tokio::try_join!(self.client.get("/version"), self.client.get("/info")) {
            Ok((version, info)) => examine::judge(&version, &info),
            Err(error) => vec![Finding::problem(Code::Engine, error.to_string(), "start Docker")],
        }
    }

    async fn export_image(&self, container: &Container) -> Result<Source, EngineError> {
        let image = self.image_reference(container).await?;
        if !is_well_formed(&image) {
            let reason = format!(
                "container {} has an image without a usable name or id",
                container.name
            );
            return Err(broken("GET /images/get", reason));
        }
        self.client.download(&format!("/images/{image}/get")).await
    }

    async fn import_image(&self, _container: &Container, stream: Source) -> Result<(), EngineError> {
        const PATH: &str = "/images/load?quiet=1";
        let answer = self.client.upload(PATH, stream, IMPORT_DEADLINE).await?;
        image::check_loaded(&answer).map_err(|reason| broken(&format!("POST {PATH}"), reason))
    }

    async fn create(&self, container: &Container) -> Result<Created, EngineError> {
        self.name_image(container).await?;
        let image = self.image_reference(container).await?;
        let path = format!("/containers/create?name={}", container_path(&container.name)?);
        let attempt = async |addresses| {
            let body = create::create_request(container, &image, addresses);
            self.client
                .call(Method::POST, &path, Some(&body), CHANGE_DEADLINE)
                .await
        };
        let answer = match attempt(Addresses::AsTheyAre).await {
            Err(EngineError::Refused { message, .. }) if message.contains("user configured subnets") => {
                attempt(Addresses::AsAskedFor).await?
            }
            other => other?,
        };
        match answer["Id"].as_str() {
            Some(id) => Ok(Created {
                id: id.to_owned(),
                namespace: NAMESPACE.to_owned(),
            }),
            None => Err(broken(&format!("POST {path}"), "no id in the answer".into())),
        }
    }

    fn renamed(&self, container: &Container, name: &str) -> Result<Container, String> {
        if !is_name(name) {
            return Err(format!(
                "{name:?} is no name of a container: Docker takes letters, digits and _.- after the first"
            ));
        }
        Ok(Container {
            name: name.to_owned(),
            ..container.clone()
        })
    }

    fn why_not_kept(&self, container: &Container) -> Option<Finding> {
        let is_removed = container.description["HostConfig"]["AutoRemove"] == true;
        is_removed.then(|| {
            Finding::problem(
                Code::KeepSource,
                format!(
                    "{} was started with --rm: Docker removes it when it stops",
                    container.name
                ),
                "leave --keep-source away",
            )
        })
    }

    async fn retire(&self, container: &Container) -> Result<(), EngineError> {
        let id = &container.id;
        let path = format!("/containers/{}/wait?condition=not-running", container_path(id)?);
        let answer = self.client.call(Method::POST, &path, None, CHANGE_DEADLINE).await;
        answer.map(drop).map_err(|error| absent_container(id, error))
    }

    async fn start(&self, created: &Created, _container: &Container) -> Result<(), EngineError> {
        let id = created.id.as_str();
        let path = format!("/containers/{}/start", container_path(id)?);
        let answer = self.client.call(Method::POST, &path, None, START_DEADLINE).await;
        answer.map(drop).map_err(|error| absent_container(id, error))
    }

    async fn remove(&self, _namespace: &str, id: &str) -> Result<(), EngineError> {
        self.remove_container(id, false).await
    }

    async fn unmake(&self, _namespace: &str, id: &str) -> Result<(), EngineError> {
        self.remove_container(id, true).await
    }

    fn volumes(&self) -> Option<&dyn VolumeStore> {
        Some(self)
    }

    fn images(&self) -> Option<&dyn ImageStore> {
        Some(self)
    }

    async fn disarm_restart(&self, container: &Container) -> Result<(), EngineError> {
        if restart_policy(container).is_none() {
            return Ok(());
        }
        self.set_restart_policy(container, &json!({ "Name": "no" })).await
    }

    async fn rearm_restart(&self, container: &Container) -> Result<(), EngineError> {
        let Some(policy) = restart_policy(container) else {
            return Ok(());
        };
        self.set_restart_policy(container, policy).await?;
        // Had it not been told otherwise meanwhile, Docker would have started it again.
        if has_crashed(&self.describe(&container.id).await?["State"]) {
            log::warn!("{} has crashed and is started again", container.name);
            let itself = Created {
                id: container.id.clone(),
                namespace: container.namespace.clone(),
            };
            self.start(&itself, container).await?;
        }
        Ok(())
    }

    async fn log_path(&self, created: &Created) -> Result<Option<PathBuf>, EngineError> {
        let description = self.describe(&created.id).await?;
        if description["HostConfig"]["LogConfig"]["Type"] != "json-file" {
            return Ok(None);
        }
        let reported = text(&description["LogPath"]);
        if !reported.is_empty() {
            return Ok(Some(reported.into()));
        }
        // Docker reports the path only once the container has been started; it is always this one.
        let info = self.client.get("/info").await?;
        let full_id = text(&description["Id"]);
        let directory = PathBuf::from(text(&info["DockerRootDir"]))
            .join("containers")
            .join(full_id);
        Ok(Some(directory.join(format!("{full_id}-json.log"))))
    }
}

/// The restart policy the container was described with, if Docker would restart it at all.
fn restart_policy(container: &Container) -> Option<&Value> {
    let policy = &container.description["HostConfig"]["RestartPolicy"];
    Some(policy).filter(|policy| !matches!(text(&policy["Name"]), "" | "no"))
}

/// Whether a container has ended by what a killed CRIU leaves in a task that it was at work on: a breakpoint, or registers
/// that mean nothing there. An end by anybody's wish is another one.
fn has_crashed(state: &Value) -> bool {
    let faults = [Signal::SIGILL, Signal::SIGTRAP, Signal::SIGBUS, Signal::SIGSEGV];
    let by = |signal: Signal| state["ExitCode"] == 128 + signal as i32;
    state["Status"] == "exited" && faults.into_iter().any(by)
}

/// A container out of its description.
fn container_of(description: Value, runtime: String, networks: Vec<Network>) -> Container {
    let state = &description["State"];
    let stands_still = ["Paused", "Restarting", "Dead"]
        .iter()
        .any(|key| state[key] == true);
    Container {
        engine: ENGINE.to_owned(),
        id: text(&description["Id"]).to_owned(),
        name: text(&description["Name"]).trim_start_matches('/').to_owned(),
        namespace: NAMESPACE.to_owned(),
        image_name: text(&description["Config"]["Image"]).to_owned(),
        image_id: text(&description["Image"]).to_owned(),
        runtime,
        running: state["Running"] == true && !stands_still,
        networks,
        mounts: mounts(&description),
        description,
    }
}

/// The container's end of a network (`endpoint`), and what the network's own description adds to it.
fn network_of(name: &str, endpoint: &Value, network: &Value) -> Network {
    let subnets = objections::subnets(network);
    Network {
        name: name.to_owned(),
        driver: text(&network["Driver"]).to_owned(),
        address: text(&endpoint["IPAddress"]).to_owned(),
        mac: text(&endpoint["MacAddress"]).to_owned(),
        address_moves: !create::is_predefined(name) && !subnets.is_empty(),
        subnets,
    }
}

fn mounts(description: &Value) -> Vec<Mount> {
    let described = description["Mounts"].as_array().into_iter().flatten();
    described
        .map(|mount| {
            let kind = text(&mount["Type"]);
            let source = if kind == "volume" {
                &mount["Name"]
            } else {
                &mount["Source"]
            };
            Mount {
                kind: kind.to_owned(),
                source: text(source).to_owned(),
                target: text(&mount["Destination"]).to_owned(),
                is_anonymous: kind == "volume" && volumes::is_anonymous(description, text(source)),
            }
        })
        .collect()
}

/// Whether Docker would call a container so.
fn is_name(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    text.len() > 1 && text.as_bytes()[0].is_ascii_alphanumeric() && text.bytes().all(fits)
}

/// A container's name or id, fit to stand in a path. Any other text names no container.
fn container_path(container: &str) -> Result<&str, EngineError> {
    let name = container.trim_start_matches('/');
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if name.bytes().all(fits) && name.bytes().any(|byte| byte.is_ascii_alphanumeric()) {
        Ok(name)
    } else {
        Err(EngineError::NoSuchContainer(container.to_owned()))
    }
}

fn absent_container(container: &str, error: EngineError) -> EngineError {
    match error {
        EngineError::Refused {
            status: 404, message, ..
        } if message.contains("No such container") => EngineError::NoSuchContainer(container.to_owned()),
        other => other,
    }
}

fn absent_is_none(answer: Result<Value, EngineError>) -> Result<Option<Value>, EngineError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(EngineError::Refused { status: 404, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const MACVLAN: &str = include_str!("../../../tests/fixtures/docker-28-macvlan.json");
    pub(super) const DEFAULT_BRIDGE: &str =
        include_str!("../../../tests/fixtures/docker-28-default-bridge.json");
    pub(super) const OWN_BRIDGE: &str = include_str!("../../../tests/fixtures/docker-28-own-bridge.json");
    pub(super) const TWO_NETWORKS: &str = include_str!("../../../tests/fixtures/docker-28-two-networks.json");

    /// A container as `inspect` would give it, from an answer recorded from Docker 28.5.2. Its networks have one
    /// subnet, 10.78.9.0/24.
    pub(super) fn container(recorded: &str) -> Container {
        let description: Value = serde_json::from_str(recorded).unwrap();
        let network = json!({ "Driver": "bridge", "IPAM": { "Config": [{ "Subnet": "10.78.9.0/24" }] } });
        let endpoints = description["NetworkSettings"]["Networks"].as_object().unwrap();
        let networks = endpoints
            .iter()
            .map(|(name, endpoint)| network_of(name, endpoint, &network))
            .collect();
        container_of(description, "io.containerd.runc.v2".into(), networks)
    }

    #[test]
    fn a_container_is_read_from_its_description() {
        let container = container(MACVLAN);
        assert_eq!(container.name, "web");
        assert_eq!(container.image_name, "loop:1");
        assert!(container.image_id.starts_with("sha256:16031d20"));
        assert!(container.running);
        assert_eq!(container.networks[0].address, "10.78.9.50");
        assert!(container.networks[0].address_moves);
        assert_eq!(container.mounts[0].source, "/var/log");
    }

    #[test]
    fn a_crash_is_an_end_that_nobody_wished_for() {
        let state = |status: &str, code: i64| json!({ "Status": status, "ExitCode": code });
        assert!(has_crashed(&state("exited", 133)));
        assert!(has_crashed(&state("exited", 139)));
        for (status, code) in [
            ("running", 133),
            ("exited", 0),
            ("exited", 1),
            ("exited", 5),
            ("exited", 137),
            ("exited", 143),
        ] {
            assert!(!has_crashed(&state(status, code)), "{status} {code}");
        }
    }

    #[test]
    fn the_address_on_the_default_bridge_does_not_move() {
        assert!(!container(DEFAULT_BRIDGE).networks[0].address_moves);
    }

    #[test]
    fn a_paused_container_does_not_count_as_running() {
        let mut description = container(MACVLAN).description;
        description["State"]["Paused"] = true.into();
        assert!(!container_of(description, String::new(), Vec::new()).running);
    }

    #[test]
    fn only_a_policy_that_restarts_is_put_back() {
        assert_eq!(restart_policy(&container(MACVLAN)).unwrap()["Name"], "always");
        assert_eq!(restart_policy(&container(DEFAULT_BRIDGE)), None);
    }

    #[test]
    fn another_name_changes_the_name_only() {
        let docker = Docker::new("/nonexistent".into());
        let before = container(MACVLAN);
        let renamed = docker.renamed(&before, "web-2").unwrap();
        assert_eq!(renamed.name, "web-2");
        assert_eq!(renamed.description, before.description, "with the host name");
        for name in ["", "x", "-web", "a/b", "a b", "/web", "wéb"] {
            assert!(docker.renamed(&before, name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_container_that_docker_removes_by_itself_cannot_be_kept() {
        let docker = Docker::new("/nonexistent".into());
        let mut kept = container(MACVLAN);
        assert_eq!(docker.why_not_kept(&kept), None);
        kept.description["HostConfig"]["AutoRemove"] = true.into();
        assert!(docker.why_not_kept(&kept).unwrap().is_problem());
    }

    #[test]
    fn text_that_is_no_name_reaches_no_path() {
        for name in ["", "/", "..", "a/b", "../images", "a?force=1", "a b", "a%2f", "ä"] {
            assert!(container_path(name).is_err(), "{name}");
        }
        assert_eq!(container_path("/web_1.2-x").unwrap(), "web_1.2-x");
    }
}
