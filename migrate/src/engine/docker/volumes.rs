//! Docker's volumes.
//!
//! What Docker calls anonymous is decided by how the container asks for a volume: without a name. So does `docker rm --volumes`.

use std::collections::HashMap;
use std::path::PathBuf;

use async_trait::async_trait;
use hyper::Method;
use serde_json::{Value, json};

use super::http::broken;
use super::{CHANGE_DEADLINE, Docker, absent_is_none, mounts, text};
use crate::engine::volume::{Used, Volume, VolumeStore};
use crate::engine::{Container, Created, EngineError};

/// Hex digits in a name that Docker makes up.
const MADE_UP_LENGTH: usize = 64;

#[async_trait]
impl VolumeStore for Docker {
    async fn used_by(&self, container: &Container) -> Result<Vec<Used>, EngineError> {
        let mut used: Vec<Used> = Vec::new();
        for mount in container.mounts.iter().filter(|mount| mount.kind == "volume") {
            let name = &mount.source;
            if used.iter().any(|used| used.volume.name == *name) {
                continue;
            }
            let volume = self.find(name).await?.ok_or_else(|| {
                let reason = format!("container {} has a volume that does not exist", container.name);
                broken(&format!("GET /volumes/{name}"), reason)
            })?;
            let mut users = self.users(name).await?;
            users.retain(|user| *user != container.name);
            used.push(Used {
                volume,
                target: mount.target.clone(),
                is_anonymous: mount.is_anonymous,
                users,
            });
        }
        Ok(used)
    }

    async fn find(&self, name: &str) -> Result<Option<Volume>, EngineError> {
        let path = volume_path(name)?;
        Ok(absent_is_none(self.client.get(&path).await)?.map(|described| volume_of(&described)))
    }

    async fn users(&self, name: &str) -> Result<Vec<String>, EngineError> {
        volume_path(name)?;
        // {"volume":["NAME"]}
        let path = format!("/containers/json?filters=%7B%22volume%22:%5B%22{name}%22%5D%7D");
        let listed = self.client.get(&path).await?;
        let name_of = |container: &Value| text(&container["Names"][0]).trim_start_matches('/').to_owned();
        Ok(listed.as_array().into_iter().flatten().map(name_of).collect())
    }

    async fn make(&self, volume: &Volume) -> Result<(), EngineError> {
        volume_path(&volume.name)?;
        let body = json!({
            "Name": volume.name, "Driver": volume.driver, "DriverOpts": volume.options, "Labels": volume.labels,
        });
        let made = self
            .client
            .call(Method::POST, "/volumes/create", Some(&body), CHANGE_DEADLINE);
        made.await.map(drop)
    }

    async fn discard(&self, name: &str) -> Result<bool, EngineError> {
        let path = volume_path(name)?;
        match self
            .client
            .call(Method::DELETE, &path, None, CHANGE_DEADLINE)
            .await
        {
            Ok(_) | Err(EngineError::Refused { status: 404, .. }) => Ok(true),
            Err(EngineError::Refused { status: 409, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn paths(&self, created: &Created) -> Result<HashMap<String, PathBuf>, EngineError> {
        let description = self.describe(&created.id).await?;
        let mut paths = HashMap::new();
        for mount in mounts(&description)
            .into_iter()
            .filter(|mount| mount.kind == "volume")
        {
            if let Some(volume) = self.find(&mount.source).await? {
                paths.insert(mount.target, volume.path);
            }
        }
        Ok(paths)
    }
}

/// Whether a container asks for the volume `name` without that name. What is anonymous may be emptied and removed, so whatever
/// has a name that Docker does not make up is not.
pub(super) fn is_anonymous(description: &Value, name: &str) -> bool {
    let is_made_up = name.len() == MADE_UP_LENGTH && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let host = &description["HostConfig"];
    let list = |key: &str| host[key].as_array().into_iter().flatten();
    // NAME:TARGET, or NAME:TARGET:OPTIONS
    let is_bound = list("Binds").any(|bind| text(bind).split(':').next() == Some(name));
    let is_mounted = list("Mounts").any(|mount| text(&mount["Source"]) == name);
    is_made_up && !is_bound && !is_mounted
}

fn volume_of(described: &Value) -> Volume {
    let map = |value: &Value| serde_json::from_value(value.clone()).unwrap_or_default();
    Volume {
        name: text(&described["Name"]).to_owned(),
        driver: text(&described["Driver"]).to_owned(),
        options: map(&described["Options"]),
        labels: map(&described["Labels"]),
        path: text(&described["Mountpoint"]).into(),
    }
}

/// The path of a volume in the API. A text that is no name of one reaches no path.
fn volume_path(name: &str) -> Result<String, EngineError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if name.bytes().all(fits)
        && name
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric())
    {
        Ok(format!("/volumes/{name}"))
    } else {
        Err(broken("GET /volumes", format!("{name:?} is no name of a volume")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_anonymous_if_it_was_asked_for_without_a_name() {
        let (made_up, kept, asked) = ("0f".repeat(32), "1e".repeat(32), "2d".repeat(32));
        let description = json!({ "HostConfig": {
            "Binds": ["data:/named/", "cache:/options:ro,nocopy", "/srv:/bound", format!("{kept}:/kept")],
            "Mounts": [
                { "Type": "volume", "Source": "logs", "Target": "/mounted" },
                { "Type": "volume", "Source": asked, "Target": "/asked" },
                { "Type": "volume", "Target": "/nameless" },
            ],
        }});
        for (name, expected) in [
            (made_up.as_str(), true),
            ("data", false),
            ("cache", false),
            ("logs", false),
            ("nobody-knows", false),
            (&kept, false),
            (&asked, false),
        ] {
            assert_eq!(is_anonymous(&description, name), expected, "{name}");
        }
        assert!(is_anonymous(
            &json!({ "HostConfig": { "Binds": null } }),
            &made_up
        ));
    }

    #[test]
    fn a_volume_is_read_from_its_description() {
        let described = json!({
            "CreatedAt": "2026-11-25T20:00:00Z", "Driver": "local", "Labels": { "tier": "db" }, "Name": "data",
            "Mountpoint": "/var/lib/docker/volumes/data/_data", "Options": null, "Scope": "local",
        });
        let volume = volume_of(&described);
        assert_eq!((volume.name.as_str(), volume.driver.as_str()), ("data", "local"));
        assert_eq!(volume.labels["tier"], "db");
        assert!(volume.options.is_empty());
        assert_eq!(volume.path, PathBuf::from("/var/lib/docker/volumes/data/_data"));
    }

    #[test]
    fn text_that_is_no_name_reaches_no_path() {
        for name in ["", ".", "..", "../images", "a/b", "a?force=1", "-a", "a b", "ä"] {
            assert!(volume_path(name).is_err(), "{name}");
        }
        assert_eq!(volume_path("web_data.1-x").unwrap(), "/volumes/web_data.1-x");
    }
}
