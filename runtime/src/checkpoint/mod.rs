//! Dump and restore of one container by runC and CRIU, in steps that a caller can stop between.
//!
//! [`dump::Dump`] and [`restore::Restore`] are processes under way: each method waits for the next point that matters
//! (held, gated, ended) and can be dropped in favour of another. They change no lifecycle and publish nothing; the
//! shim does. A failed dump leaves the container running; a failed restore leaves nothing.

pub mod dump;
mod failure;
pub mod lazy;
mod lent;
mod network;
mod reports;
pub mod restore;
mod unrestorable;

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

pub use self::failure::CheckpointError;
pub use self::lent::take_back;
use crate::bundle::Bundle;
use crate::control::{ControlDir, write_atomically};
use crate::runc::Runc;
use crate::{criu, gate, hold, pages::pager};

/// A container as dump and restore see it.
#[derive(Clone)]
pub struct Site {
    /// containerd's namespace.
    pub namespace: String,
    /// The container's id.
    pub id: String,
    /// Its control directory.
    pub control: ControlDir,
    /// Its bundle.
    pub bundle: Bundle,
    /// runC, as it is called for this container.
    pub runc: Runc,
    /// The binary that is gate, holder, thawer and pager, by the names it is called by.
    pub program: PathBuf,
    /// The CRIU configuration the container brought itself, if any.
    pub own_criu_config: Option<PathBuf>,
}

/// One step of a dump or restore and what it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// `freeze`, `dump`, `restore` …
    pub name: &'static str,
    /// How long it took.
    pub took: Duration,
}

/// Measures steps, one after the other.
struct Clock {
    steps: Vec<Step>,
    last: Instant,
}

impl Clock {
    fn start() -> Self {
        Self {
            steps: Vec::new(),
            last: Instant::now(),
        }
    }

    /// The step that ends now.
    fn mark(&mut self, name: &'static str) {
        let now = Instant::now();
        self.steps.push(Step {
            name,
            took: now.duration_since(self.last),
        });
        self.last = now;
    }

    /// The steps that are not taken yet.
    fn take(&mut self) -> Vec<Step> {
        std::mem::take(&mut self.steps)
    }
}

/// Names our CRIU configuration in a bundle's `config.json`, so that runC remembers it for every later dump, and
/// returns the one the container had named itself.
///
/// To be called before runC reads the bundle. The file it names is written before each dump and restore.
pub fn name_criu_config(bundle: &Bundle, control: &ControlDir) -> io::Result<Option<PathBuf>> {
    let ours = control.join("criu.conf");
    let mut own = None;
    edit_config(bundle, |config| {
        let annotations = object(config, "annotations")?;
        let before = annotations.insert(
            criu::CONFIG_ANNOTATION.into(),
            Value::String(ours.display().to_string()),
        );
        own = before
            .as_ref()
            .and_then(Value::as_str)
            .map(PathBuf::from)
            .filter(|path| *path != ours);
        Ok(())
    })?;
    Ok(own)
}

/// Adds the gate to the hooks of a bundle's `config.json`, and names the sources of its bind mounts as CRIU needs them.
fn prepare_restore(bundle: &Bundle, control: &ControlDir) -> io::Result<()> {
    let path = control.join(gate::NAME).display().to_string();
    edit_config(bundle, |config| {
        for mount in config
            .get_mut("mounts")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            resolve_source(mount);
        }
        let hooks = object(config, "hooks")?
            .entry("createRuntime")
            .or_insert_with(|| Value::Array(Vec::new()))
            .as_array_mut()
            .ok_or_else(|| malformed("hooks.createRuntime"))?;
        // The last, so that whatever else makes the namespaces fit has been done when the engine gets them.
        hooks.push(serde_json::json!({ "path": path }));
        Ok(())
    })
}

/// A bind mount follows a symbolic link when runC makes it; CRIU, which makes it anew, would bind the link itself.
/// Debian's `docker-init` is one.
fn resolve_source(mount: &mut Value) {
    let is_link = |path: &Path| path.is_absolute() && path.is_symlink();
    let Some(source) = mount.get("source").and_then(Value::as_str).map(PathBuf::from) else {
        return;
    };
    if is_link(&source)
        && let Ok(real) = source.canonicalize()
    {
        mount["source"] = Value::String(real.display().to_string());
    }
}

/// Changes `config.json` as plain JSON: a typed round trip would drop what its types do not know.
fn edit_config(
    bundle: &Bundle,
    edit: impl FnOnce(&mut Map<String, Value>) -> io::Result<()>,
) -> io::Result<()> {
    let path = bundle.join("config.json");
    let mut config: Map<String, Value> = serde_json::from_slice(&fs::read(&path)?)?;
    edit(&mut config)?;
    write_atomically(&path, &serde_json::to_vec(&config)?)
}

fn object<'a>(config: &'a mut Map<String, Value>, name: &str) -> io::Result<&'a mut Map<String, Value>> {
    let value = config.entry(name).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().ok_or_else(|| malformed(name))
}

fn malformed(name: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("config.json: {name} has the wrong type"),
    )
}

/// Makes what CRIU and runC call by path, and an empty work directory, whose path is returned.
fn furnish(site: &Site, work: &str) -> io::Result<PathBuf> {
    site.control.create()?;
    for name in [gate::NAME, hold::NAME, hold::THAWER_NAME, pager::NAME] {
        let link = site.control.join(name);
        match symlink(&site.program, &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    let work = site.control.join(work);
    match fs::remove_dir_all(&work) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    crate::control::create_private_dir(&work)?;
    Ok(work)
}

/// Writes CRIU's configuration for what comes; `besides` are lines that nothing overrules.
fn write_criu_config(
    site: &Site,
    options: &crate::options::CheckpointOptions,
    besides: &str,
) -> io::Result<()> {
    let own = site
        .own_criu_config
        .as_deref()
        .map_or(Ok(String::new()), read_own_config)?;
    let text = criu::config(options, &site.control.join(hold::NAME), &own) + besides;
    write_atomically(&site.control.join("criu.conf"), text.as_bytes())
}

/// Writes what CRIU must read before that, for a dump; returns where.
fn write_early_criu_config(site: &Site, options: &crate::options::CheckpointOptions) -> io::Result<PathBuf> {
    let path = site.control.join("criu-early.conf");
    write_atomically(&path, criu::early_config(options).as_bytes())?;
    Ok(path)
}

fn read_own_config(path: &Path) -> io::Result<String> {
    fs::read_to_string(path).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("{}={}: {error}", criu::CONFIG_ANNOTATION, path.display()),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle_with(config: &str) -> (tempfile::TempDir, Bundle) {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("config.json"), config).unwrap();
        let bundle = Bundle::at(directory.path());
        (directory, bundle)
    }

    fn config_of(bundle: &Bundle) -> Value {
        serde_json::from_slice(&fs::read(bundle.join("config.json")).unwrap()).unwrap()
    }

    #[test]
    fn what_the_configuration_holds_besides_survives() {
        // A number that a float cannot hold and a careless reader rounds wrongly.
        let number = "7777757777777777777771e70";
        let text =
            format!(r#"{{"x-new":{{"a":[1,{number}]}},"hooks":{{"createRuntime":[{{"path":"/h"}}]}}}}"#);
        let (_directory, bundle) = bundle_with(&text);
        let control = ControlDir::at("/run/godwit/tasks/k");
        assert_eq!(name_criu_config(&bundle, &control).unwrap(), None);
        prepare_restore(&bundle, &control).unwrap();
        let config = config_of(&bundle);
        assert_eq!(config["x-new"]["a"][0], 1);
        assert_eq!(config["x-new"]["a"][1].as_f64(), number.parse().ok());
        assert_eq!(
            config["annotations"]["org.criu.config"],
            "/run/godwit/tasks/k/criu.conf"
        );
        let hooks = config["hooks"]["createRuntime"].as_array().unwrap();
        assert_eq!(hooks[0]["path"], "/h");
        assert_eq!(hooks[1]["path"], "/run/godwit/tasks/k/gate");
    }

    #[test]
    fn bind_mounts_of_links_name_what_the_links_lead_to() {
        let (directory, bundle) = bundle_with("{}");
        let at = |name: &str| directory.path().join(name);
        fs::write(at("real"), "").unwrap();
        symlink("real", at("link")).unwrap();
        let mounts = serde_json::json!([
            {"destination": "/init", "source": at("link"), "type": "bind"},
            {"destination": "/file", "source": at("real"), "type": "bind"},
            {"destination": "/proc", "source": "proc", "type": "proc"},
            {"destination": "/lost", "source": at("lost"), "type": "bind"},
        ]);
        let config = serde_json::json!({ "mounts": mounts });
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        prepare_restore(&bundle, &ControlDir::at("/run/godwit/tasks/k")).unwrap();
        let mounts = &config_of(&bundle)["mounts"];
        let real = at("real").canonicalize().unwrap().display().to_string();
        assert_eq!(mounts[0]["source"], real);
        assert_eq!(mounts[1]["source"], at("real").display().to_string());
        assert_eq!(mounts[2]["source"], "proc");
        assert_eq!(mounts[3]["source"], at("lost").display().to_string());
    }

    #[test]
    fn the_containers_own_criu_configuration_is_kept_in_mind() {
        let (_directory, bundle) =
            bundle_with(r#"{"annotations":{"org.criu.config":"/etc/mine"},"hooks":null}"#);
        let control = ControlDir::at("/run/godwit/tasks/k");
        assert_eq!(
            name_criu_config(&bundle, &control).unwrap(),
            Some("/etc/mine".into())
        );
        assert_eq!(
            name_criu_config(&bundle, &control).unwrap(),
            None,
            "ours is not the container's"
        );
    }
}
