//! All containers that a Docker daemon has.
//!
//! It only reads; what Docker is too busy to tell of a container stays unknown, so that none is left out for it.

use std::time::Duration;

use hyper::Method;
use serde_json::Value;

use super::http::ENGINE;
use super::{Docker, NAMESPACE, container_path, text};
use crate::engine::{EngineError, Listed};

/// A description that is only listed: Docker gives none of a container it is starting, which may wait for its memory.
const DESCRIPTION_DEADLINE: Duration = Duration::from_secs(1);

impl Docker {
    /// The containers, the youngest first.
    pub(super) async fn all_containers(&self) -> Result<Vec<Listed>, EngineError> {
        let (entries, info) = tokio::try_join!(
            self.client.get("/containers/json?all=true"),
            self.client.get("/info")
        )?;
        let mut containers = Vec::new();
        for entry in entries.as_array().into_iter().flatten() {
            // The list does not say it.
            let runtime = self.runtime_of(text(&entry["Id"])).await;
            let runtime = runtime.map(|name| runtime_meant(&name, &info));
            containers.push(listed_of(entry, runtime));
        }
        Ok(containers)
    }

    /// The runtime that a container is made for, in Docker's words, if Docker tells it at once.
    async fn runtime_of(&self, id: &str) -> Option<String> {
        let path = format!("/containers/{}/json", container_path(id).ok()?);
        let description = self
            .client
            .call(Method::GET, &path, None, DESCRIPTION_DEADLINE)
            .await;
        let runtime = description.inspect_err(|error| log::debug!("{error}")).ok()?;
        Some(text(&runtime["HostConfig"]["Runtime"]).to_owned())
    }
}

/// The containerd runtime behind a runtime's name in Docker, by what `/info` says of the aliases in `daemon.json`.
pub(super) fn runtime_meant(runtime: &str, info: &Value) -> String {
    if runtime.contains(['.', '/']) {
        return runtime.to_owned();
    }
    let meant = info["Runtimes"][runtime]["runtimeType"].as_str();
    meant.unwrap_or("io.containerd.runc.v2").to_owned()
}

/// A container out of its entry in the list. A name with a slash inside is that of a link to it.
fn listed_of(entry: &Value, runtime: Option<String>) -> Listed {
    let mut names = entry["Names"].as_array().into_iter().flatten().map(text);
    let own = names.find_map(|name| name.strip_prefix('/').filter(|name| !name.contains('/')));
    Listed {
        engine: ENGINE,
        id: text(&entry["Id"]).to_owned(),
        name: own.unwrap_or_default().to_owned(),
        namespace: NAMESPACE.to_owned(),
        image: text(&entry["Image"]).to_owned(),
        state: text(&entry["State"]).to_owned(),
        runtime,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_entry_of_the_list_is_read_and_an_alias_is_the_runtime_it_means() {
        let info = json!({ "Runtimes": { "runc": { "path": "runc" }, "fly": { "runtimeType": "io.containerd.godwit.v2" } } });
        assert_eq!(runtime_meant("fly", &info), "io.containerd.godwit.v2");
        assert_eq!(runtime_meant("runc", &info), "io.containerd.runc.v2");
        assert_eq!(
            runtime_meant("io.containerd.other.v1", &info),
            "io.containerd.other.v1"
        );
        let entry =
            json!({ "Id": "ff6b", "Names": ["/front/db", "/web"], "Image": "loop:1", "State": "paused" });
        let listed = listed_of(&entry, None);
        assert_eq!((listed.name.as_str(), listed.state.as_str()), ("web", "paused"));
        assert_eq!((listed.id.as_str(), listed.image.as_str()), ("ff6b", "loop:1"));
        let nameless = listed_of(&json!({ "Id": "ff6b", "Names": null }), None);
        assert_eq!(nameless.name, "", "it is being removed");
    }
}
