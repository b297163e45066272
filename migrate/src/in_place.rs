//! A restore in place: a stopped container of this host goes on from an image that lies on it, by a plain start and a ticket.
//!
//! Nothing of the image is copied, and the engine needs no restore of its own. Order: look at everything, leave the ticket, start,
//! see that it was the ticket's start. What is refused, and a restore that fails, leaves the container stopped and the image
//! as it was. There is never a fresh start in place of a restore: before the ticket lies there nothing is started, and a shim
//! that finds it restores or fails.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use godwit_runtime::image::{self, Manifest};
use godwit_runtime::pages::left_out;
use godwit_runtime::ticket;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::engine::{Container, Created, Engine, EngineError, RUNTIME, containerd, docker};
use crate::finding::{self, Code, Finding};
use crate::host::Host;
use crate::lease::Lease;
use crate::phase::Role;
use crate::places::MigrationId;
use crate::trusted;

/// States of a container that does not run, in Docker's words.
const STOPPED: [&str; 2] = ["created", "exited"];

/// Where a checkpoint is looked for.
#[derive(Clone, Debug)]
pub enum Place {
    /// In this directory.
    Directory(PathBuf),
    /// By the name that the engine gave it, among the container's own, or in the directory that it was told.
    Named {
        /// The checkpoint.
        name: String,
        /// Where, if not among the container's own.
        parent: Option<PathBuf>,
    },
}

/// A restore that went well.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Restored {
    /// The container's name.
    pub container: String,
    /// Its id.
    pub id: String,
    /// The image's directory.
    pub image: PathBuf,
    /// How large the image is.
    pub image_bytes: u64,
    /// How long the engine's start took.
    pub micros: u64,
    /// What may surprise.
    pub findings: Vec<Finding>,
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Nothing was touched.
    #[error("{0}")]
    Refused(Finding),
    /// The engine does not answer as it should.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// It was tried.
    #[error("{container} is not restored and stays stopped; the checkpoint is as it was: {reason}")]
    Failed {
        /// The container's name.
        container: String,
        /// In the engine's words, with CRIU's cause.
        reason: String,
    },
    /// The start was not the ticket's.
    #[error("somebody else has started {0} meanwhile, and it runs afresh; the checkpoint is as it was")]
    Overtaken(String),
}

/// Restores `container` from the image in `place`. Whoever calls has made sure that nobody else is at it.
pub async fn run(
    host: &Host,
    migration: &MigrationId,
    container: &Container,
    place: &Place,
) -> Result<Restored, RestoreError> {
    let engine = host.engines.of(&container.engine)?;
    stopped(engine.as_ref(), container).await?;
    let image = directory(engine.as_ref(), container, place).await?;
    let manifest = complete(&image).map_err(RestoreError::Refused)?;
    let findings = belongs(host, engine.as_ref(), container, &manifest).await?;
    let image_bytes = image::size_bytes(&image).unwrap_or(0);
    let created = Created {
        id: container.id.clone(),
        namespace: container.namespace.clone(),
    };
    let failed = |reason: String| RestoreError::Failed {
        container: container.name.clone(),
        reason,
    };
    // One that an agent left which died amid a restore; nobody else may leave any now.
    ticket::withdraw(&host.places.tickets(), &created.namespace, &created.id)
        .map_err(|error| failed(error.to_string()))?;
    let lease = Lease::issue(&host.places, &created, migration, Some(image.clone()))
        .map_err(|error| failed(error.to_string()))?;
    let began = Instant::now();
    let started = engine.start(&created, container).await;
    let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    let is_unused = lease.is_open();
    lease.withdraw();
    if let Err(error) = started {
        if let Err(left) = engine.clear_failed_start(&created).await {
            log::warn!("{}: what its failed start has left stays: {left}", container.name);
        }
        return Err(failed(error.to_string()));
    }
    if is_unused {
        return Err(RestoreError::Overtaken(container.name.clone()));
    }
    Ok(Restored {
        container: container.name.clone(),
        id: container.id.clone(),
        image,
        image_bytes,
        micros,
        findings,
    })
}

fn refused(code: Code, text: String, remedy: impl Into<String>) -> RestoreError {
    RestoreError::Refused(Finding::problem(code, text, remedy))
}

/// That it has no task, and that its next one is Godwit's.
async fn stopped(engine: &dyn Engine, container: &Container) -> Result<(), RestoreError> {
    let name = &container.name;
    if container.runtime != RUNTIME {
        let text = format!(
            "{name} is made for the runtime {}: a start of it would not be a restore but a fresh one",
            container.runtime
        );
        return Err(refused(
            Code::Runtime,
            text,
            format!("make it with --runtime {RUNTIME}"),
        ));
    }
    if container.engine == docker::NAME && container.description["HostConfig"]["AutoRemove"] == true {
        let text = format!("{name} is made with --rm: Docker would remove it where the restore fails");
        return Err(refused(Code::Engine, text, "make it without"));
    }
    let listed = engine.list().await?;
    let own = listed
        .iter()
        .find(|one| one.id == container.id && one.namespace == container.namespace);
    let state = own.map_or("gone", |own| own.state.as_str());
    if !STOPPED.contains(&state) {
        let text = format!("{name} is {state}, not stopped");
        return Err(refused(Code::NotRunning, text, "stop it first"));
    }
    if container.engine == containerd::NAME && state == "exited" {
        let text = format!("the task of {name} that has ended is still there");
        return Err(refused(Code::NotRunning, text, "remove it first: ctr tasks rm"));
    }
    Ok(())
}

/// The image's directory, which nobody but root can change.
async fn directory(
    engine: &dyn Engine,
    container: &Container,
    place: &Place,
) -> Result<PathBuf, RestoreError> {
    let path = match place {
        Place::Directory(path) => path.clone(),
        Place::Named { name, .. } if !is_plain(name) => {
            return Err(refused(
                Code::Checkpoint,
                format!("{name:?} is no name of a checkpoint"),
                "",
            ));
        }
        Place::Named {
            name,
            parent: Some(parent),
        } => parent.join(name),
        Place::Named { name, parent: None } if container.engine == docker::NAME => {
            let Some(root) = engine.storage().await? else {
                return Err(refused(
                    Code::Engine,
                    "Docker does not say where it keeps checkpoints".into(),
                    "",
                ));
            };
            // Docker's administrator may have put a link there.
            let root = root.canonicalize().unwrap_or(root);
            root.join("containers")
                .join(&container.id)
                .join("checkpoints")
                .join(name)
        }
        Place::Named { name, .. } => {
            let text = format!(
                "{name} is no directory, and {} keeps no checkpoints by name",
                containerd::NAME
            );
            return Err(refused(
                Code::Checkpoint,
                text,
                "name the image's directory, with a slash",
            ));
        }
    };
    if !path.exists() {
        let text = format!("there is no checkpoint {}", path.display());
        return Err(refused(Code::Checkpoint, text, "see `docker checkpoint ls`"));
    }
    trusted::check(&path, nix::unistd::geteuid().as_raw())
        .map_err(|error| RestoreError::Refused(Finding::of_sentence(Code::Checkpoint, &error.to_string())))?;
    Ok(path)
}

fn is_plain(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

/// What Godwit has written of the image, all of whose files must be there. What was changed in them the shim sees.
fn complete(image: &Path) -> Result<Manifest, Finding> {
    let damaged =
        |error: io::Error| Finding::problem(Code::Checkpoint, error.to_string(), "make the checkpoint again");
    let no = |text: &str, remedy: &str| {
        Finding::problem(Code::Checkpoint, format!("{} {text}", image.display()), remedy)
    };
    let Some(manifest) = Manifest::read(image).map_err(damaged)? else {
        return Err(no(
            "has no godwit.json: it holds no checkpoint, or another shim made it",
            "use the engine's own restore",
        ));
    };
    if !manifest.is_sealed() || image.join(left_out::RECORD).exists() {
        return Err(no(
            "is not complete: its dump has not ended well",
            "make the checkpoint again",
        ));
    }
    manifest
        .check_sizes(|name| match std::fs::metadata(image.join(name)) {
            Ok(found) => Ok(found.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        })
        .map_err(damaged)?;
    if manifest.lazy {
        return Err(no(
            "lacks most of its memory: it was dumped for a move, whose agents bring it",
            "",
        ));
    }
    Ok(manifest)
}

/// Whether the image is of this container, or of one like it as far as that can still be told.
async fn belongs(
    host: &Host,
    engine: &dyn Engine,
    container: &Container,
    manifest: &Manifest,
) -> Result<Vec<Finding>, RestoreError> {
    if manifest.id == container.id {
        return Ok(Vec::new());
    }
    let name = &container.name;
    let text = match engine.inspect(&manifest.id).await {
        Ok(other) => {
            let of = format!("the checkpoint is of {}", other.name);
            let objection = if other.image_id != container.image_id {
                Some((
                    format!("{of}, which has another image than {name}"),
                    "restore it there",
                ))
            } else if let Some(what) = different(&other.description, &container.description) {
                Some((
                    format!("{of}, which differs from {name} in {what}"),
                    "restore it there",
                ))
            } else if runs(host, &other).await {
                Some((
                    format!("{of}, which runs"),
                    "stop it first: a copy must not run beside it",
                ))
            } else {
                None
            };
            if let Some((text, remedy)) = objection {
                return Err(refused(Code::Checkpoint, text, remedy));
            }
            format!("{of}, which has the same image and configuration")
        }
        Err(EngineError::NoSuchContainer(_)) => format!(
            "the checkpoint is of a container that is gone, {:.12}: whether {name} is like it cannot be told",
            manifest.id
        ),
        Err(error) => return Err(error.into()),
    };
    Ok(finding::on(
        &host.name,
        [Finding::warning(Code::Checkpoint, text, "")],
    ))
}

/// Whether a shim of ours serves it, or cannot be asked.
async fn runs(host: &Host, container: &Container) -> bool {
    let shims = &host.shims;
    !matches!(
        shims
            .find(Role::Source, &container.namespace, &container.id)
            .await,
        Ok(None)
    )
}

/// In what two descriptions, Docker's or containerd's, differ that a program depends on.
fn different(one: &Value, other: &Value) -> Option<&'static str> {
    let parts: [(&[&str], &'static str); 9] = [
        (&["spec", "process", "args"], "its command"),
        (&["spec", "process", "user"], "its user"),
        (&["Config", "Cmd"], "its command"),
        (&["Config", "Entrypoint"], "its entry point"),
        (&["Config", "User"], "its user"),
        (&["Config", "Tty"], "its terminal"),
        (&["HostConfig", "Binds"], "its mounts"),
        (&["HostConfig", "Tmpfs"], "its mounts"),
        (&["HostConfig", "ReadonlyRootfs"], "its root file system"),
    ];
    let at = |value: &Value, keys: &[&str]| keys.iter().fold(value.clone(), |value, key| value[key].clone());
    parts
        .into_iter()
        .find(|(keys, _)| at(one, keys) != at(other, keys))
        .map(|(_, what)| what)
}

#[cfg(test)]
mod tests {
    use godwit_runtime::image::NetworkOwner;
    use godwit_runtime::options::{Digests, Layer};
    use serde_json::json;

    use super::*;

    #[test]
    fn only_an_image_that_is_whole_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path();
        let refusal = || complete(image).unwrap_err().to_string();
        assert!(refusal().contains("no godwit.json"));
        Manifest::new("abc", NetworkOwner::Engine, false, Layer::default())
            .write(image)
            .unwrap();
        assert!(refusal().contains("not complete"));
        std::fs::write(image.join("core-1.img"), "12345").unwrap();
        Manifest::seal(image, Digests::Metadata).unwrap();
        assert_eq!(complete(image).unwrap().id, "abc");
        std::fs::write(image.join("core-1.img"), "1234").unwrap();
        assert!(refusal().contains("core-1.img has 4 of 5 bytes"));
        std::fs::remove_file(image.join("core-1.img")).unwrap();
        assert!(refusal().contains("core-1.img has 0 of 5 bytes"));
        std::fs::write(image.join("core-1.img"), "12345").unwrap();
        std::fs::write(image.join(left_out::RECORD), "").unwrap();
        assert!(refusal().contains("not complete"));
    }

    #[test]
    fn an_image_that_lacks_its_memory_is_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let mut manifest = Manifest::new("abc", NetworkOwner::Engine, false, Layer::default());
        manifest.lazy = true;
        manifest.write(directory.path()).unwrap();
        std::fs::write(directory.path().join("core-1.img"), "12345").unwrap();
        Manifest::seal(directory.path(), Digests::None).unwrap();
        assert!(
            complete(directory.path())
                .unwrap_err()
                .to_string()
                .contains("lacks most of its memory")
        );
    }

    #[test]
    fn containers_are_alike_if_a_program_cannot_tell_them_apart() {
        let one =
            json!({"Name": "/a", "Config": {"Cmd": ["x"], "Tty": false}, "HostConfig": {"Binds": null}});
        let mut other =
            json!({"Name": "/b", "Config": {"Cmd": ["x"], "Tty": false}, "HostConfig": {"Binds": null}});
        assert_eq!(different(&one, &other), None);
        other["HostConfig"]["Binds"] = json!(["/data:/data"]);
        assert_eq!(different(&one, &other), Some("its mounts"));
        other["Config"]["Cmd"] = json!(["y"]);
        assert_eq!(different(&one, &other), Some("its command"));
    }
}
