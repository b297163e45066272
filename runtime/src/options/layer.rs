//! Layers of options, and the two places people write them: a container's annotations and the host's file.
//!
//! Both are read by the same rules, so that an option has one name and one set of values wherever it stands. Anything
//! misspelt is an error: an option that is passed over in silence shows only when a container is lost.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use super::{CgroupsMode, Digests, EmptyNamespaces, NetworkLock, Tcp};

/// Prefix of the container annotations that are options: `io.godwit.checkpoint.tcp=close`.
pub const ANNOTATION_PREFIX: &str = "io.godwit.checkpoint.";

/// Prefix of the annotations that hold for restores only, and there against the image itself.
pub const RESTORE_ANNOTATION_PREFIX: &str = "io.godwit.restore.";

/// The host's options.
pub const HOST_FILE: &str = "/etc/godwit/shim.toml";

/// One layer: what somebody has an opinion on. The fields are those of [`super::CheckpointOptions`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[expect(missing_docs, reason = "each is explained at the option it sets")]
pub struct Layer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leave_running: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<Tcp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_in_flight: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_unix_sockets: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_locks: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell_job: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub empty_namespaces: Option<EmptyNamespaces>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroups_mode: Option<CgroupsMode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_lock: Option<NetworkLock>,
    /// In bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ghost_limit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_remap: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub irmap_scan_path: Option<PathBuf>,
    /// In seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kill_execs: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digests: Option<Digests>,
}

/// Why options cannot be used.
#[derive(Debug, Error)]
pub enum OptionsError {
    /// An annotation is unknown or has a value it cannot have.
    #[error("annotation {name}={value}: {reason}")]
    Annotation {
        /// The annotation's full name.
        name: String,
        /// Its value.
        value: String,
        /// What is wrong.
        reason: String,
    },
    /// The host's file cannot be read or understood.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

/// The host's file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostLayers {
    /// Table `[checkpoint]`: for dumps, and for restores that know nothing better.
    pub checkpoint: Layer,
    /// Table `[restore]`: against what the image says.
    pub restore: Layer,
}

impl HostLayers {
    /// Reads the file at `path`; an absent file says nothing.
    pub fn read(path: &Path) -> Result<Self, OptionsError> {
        let fail = |reason: String| OptionsError::File {
            path: path.display().to_string(),
            reason,
        };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(fail(error.to_string())),
        };
        Self::parse(&text).map_err(fail)
    }

    /// What the text of the file says, or what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let table = Value::Object(table(text)?);
        let layers: Self = serde_json::from_value(table).map_err(|error| error.to_string())?;
        layers.checkpoint.check()?;
        let restore = layers
            .restore
            .check()
            .and_then(|()| layers.restore.check_restores());
        restore.map_err(|reason| format!("[restore]: {reason}"))?;
        Ok(layers)
    }
}

impl Layer {
    /// The layer in a container's annotations.
    pub fn from_annotations(annotations: &HashMap<String, String>) -> Result<Self, OptionsError> {
        read_annotations(annotations, ANNOTATION_PREFIX, |_| Ok(()))
    }

    /// The layer in a container's annotations that stands against an image.
    pub fn from_restore_annotations(annotations: &HashMap<String, String>) -> Result<Self, OptionsError> {
        read_annotations(annotations, RESTORE_ANNOTATION_PREFIX, Self::check_restores)
    }

    /// What `layers` say together, the strongest first.
    pub fn merged(layers: &[&Self]) -> Self {
        fn first<T>(layers: &[&Layer], field: impl Fn(&Layer) -> Option<T>) -> Option<T> {
            layers.iter().find_map(|layer| field(layer))
        }
        Self {
            leave_running: first(layers, |l| l.leave_running),
            tcp: first(layers, |l| l.tcp),
            skip_in_flight: first(layers, |l| l.skip_in_flight),
            external_unix_sockets: first(layers, |l| l.external_unix_sockets),
            file_locks: first(layers, |l| l.file_locks),
            shell_job: first(layers, |l| l.shell_job),
            empty_namespaces: first(layers, |l| l.empty_namespaces),
            cgroups_mode: first(layers, |l| l.cgroups_mode),
            network_lock: first(layers, |l| l.network_lock),
            ghost_limit: first(layers, |l| l.ghost_limit),
            link_remap: first(layers, |l| l.link_remap),
            irmap_scan_path: first(layers, |l| l.irmap_scan_path.clone()),
            timeout: first(layers, |l| l.timeout),
            kill_execs: first(layers, |l| l.kill_execs),
            digests: first(layers, |l| l.digests),
        }
    }

    /// Values that the types allow and CRIU does not.
    fn check(&self) -> Result<(), String> {
        if self.timeout == Some(0) {
            return Err("timeout must be at least 1 second".into());
        }
        // It becomes a line of CRIU's configuration, where a second line would be another option.
        let is_path = |path: &Path| {
            let text = path.to_str().unwrap_or_default();
            text.starts_with('/') && !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#')
        };
        if self.irmap_scan_path.as_deref().is_some_and(|path| !is_path(path)) {
            return Err("irmap-scan-path must be an absolute path without blanks".into());
        }
        Ok(())
    }

    /// Whether it says only what a restore can still heed.
    fn check_restores(&self) -> Result<(), String> {
        let heard = Self {
            tcp: self.tcp,
            external_unix_sockets: self.external_unix_sockets,
            file_locks: self.file_locks,
            shell_job: self.shell_job,
            cgroups_mode: self.cgroups_mode,
            link_remap: self.link_remap,
            ..Self::default()
        };
        if heard == *self {
            return Ok(());
        }
        Err(
            "it is decided at the dump; a restore can be told only tcp, external-unix-sockets, file-locks, \
             shell-job, cgroups-mode and link-remap"
                .into(),
        )
    }
}

fn read_annotations(
    annotations: &HashMap<String, String>,
    prefix: &str,
    check: impl Fn(&Layer) -> Result<(), String>,
) -> Result<Layer, OptionsError> {
    let mut said = Vec::new();
    for (name, value) in annotations {
        let Some(option) = name.strip_prefix(prefix) else {
            continue;
        };
        let layer = one(option, value).and_then(|layer| {
            layer.check()?;
            check(&layer)?;
            Ok(layer)
        });
        said.push(layer.map_err(|reason| OptionsError::Annotation {
            name: name.clone(),
            value: value.clone(),
            reason,
        })?);
    }
    // Names are unique, so that no order is needed among them.
    Ok(Layer::merged(&said.iter().collect::<Vec<_>>()))
}

/// The layer that says `option` only. Annotations have no types: what looks like a number or a truth value is one.
fn one(option: &str, value: &str) -> Result<Layer, String> {
    let value = match (value, value.parse::<i64>()) {
        ("true", _) => Value::Bool(true),
        ("false", _) => Value::Bool(false),
        (_, Ok(number)) => number.into(),
        _ => value.into(),
    };
    let layer = Value::Object(Map::from_iter([(option.to_owned(), value)]));
    serde_json::from_value(layer).map_err(|error| error.to_string())
}

/// The table that a TOML text is, or what is wrong with it. Dates are not understood: no option is one.
///
/// Every TOML that the shim reads goes this one way, into the values that it has in its memory anyway for JSON.
pub fn table(text: &str) -> Result<Map<String, Value>, String> {
    basic_toml::from_str(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    /// Each option with a value that is not its default.
    const EVERY: &[(&str, &str)] = &[
        ("leave-running", "true"),
        ("tcp", "close"),
        ("skip-in-flight", "true"),
        ("external-unix-sockets", "false"),
        ("file-locks", "false"),
        ("shell-job", "true"),
        ("empty-namespaces", "network"),
        ("cgroups-mode", "soft"),
        ("network-lock", "skip"),
        ("ghost-limit", "4096"),
        ("link-remap", "false"),
        ("irmap-scan-path", "/watched"),
        ("timeout", "30"),
        ("kill-execs", "true"),
        ("digests", "all"),
    ];

    #[test]
    fn every_option_can_stand_in_an_annotation_and_in_the_hosts_file_and_means_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shim.toml");
        for (option, value) in EVERY {
            let annotated = annotations(&[(&format!("{ANNOTATION_PREFIX}{option}"), value)]);
            let annotated = Layer::from_annotations(&annotated).unwrap();
            assert_ne!(annotated, Layer::default(), "{option}");
            let quoted = match value.parse::<u64>().is_ok() || matches!(*value, "true" | "false") {
                true => (*value).to_owned(),
                false => format!("{value:?}"),
            };
            fs::write(&path, format!("[checkpoint]\n{option} = {quoted}\n")).unwrap();
            assert_eq!(HostLayers::read(&path).unwrap().checkpoint, annotated, "{option}");
            let json = serde_json::to_string(&annotated).unwrap();
            assert_eq!(
                serde_json::from_str::<Layer>(&json).unwrap(),
                annotated,
                "{option}"
            );
            assert_eq!(
                Layer::merged(&[&Layer::default(), &annotated]),
                annotated,
                "{option}"
            );
        }
        // Whoever adds an option adds it here, or this fails.
        let all: HashMap<String, String> = EVERY
            .iter()
            .map(|(option, value)| (format!("{ANNOTATION_PREFIX}{option}"), (*value).to_owned()))
            .collect();
        let all = serde_json::to_value(Layer::from_annotations(&all).unwrap()).unwrap();
        assert_eq!(all.as_object().unwrap().len(), EVERY.len());
    }

    #[test]
    fn a_misspelt_annotation_is_an_error_not_a_silence() {
        for (name, value, why) in [
            ("io.godwit.checkpoint.tpc", "close", "unknown field `tpc`"),
            ("io.godwit.checkpoint.tcp", "keep", "`established`"),
            ("io.godwit.checkpoint.file-locks", "yes", "expected a boolean"),
            ("io.godwit.checkpoint.ghost-limit", "-1", "u64"),
            ("io.godwit.checkpoint.timeout", "0", "at least 1 second"),
            ("io.godwit.checkpoint.irmap-scan-path", "etc", "absolute path"),
            (
                "io.godwit.checkpoint.irmap-scan-path",
                "/a\naction-script /evil",
                "absolute path",
            ),
        ] {
            let error = Layer::from_annotations(&annotations(&[(name, value)])).unwrap_err();
            let text = error.to_string();
            assert!(
                text.starts_with(&format!("annotation {name}={value}: ")),
                "{text}"
            );
            assert!(text.contains(why), "{text}");
        }
    }

    #[test]
    fn a_restore_is_told_only_what_it_can_still_heed() {
        let told = |name: &str, value: &str| {
            Layer::from_restore_annotations(&annotations(&[(&format!("io.godwit.restore.{name}"), value)]))
        };
        assert_eq!(told("tcp", "close").unwrap().tcp, Some(Tcp::Close));
        assert!(
            told("leave-running", "true")
                .unwrap_err()
                .to_string()
                .contains("decided at the dump")
        );
        let elsewhere = annotations(&[("io.godwit.checkpoint.leave-running", "true")]);
        assert_eq!(
            Layer::from_restore_annotations(&elsewhere).unwrap(),
            Layer::default()
        );
    }

    #[test]
    fn the_hosts_file_is_read_strictly() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shim.toml");
        assert_eq!(HostLayers::read(&path).unwrap(), HostLayers::default());
        fs::write(&path, "[restore]\ntcp = \"close\"\n").unwrap();
        assert_eq!(HostLayers::read(&path).unwrap().restore.tcp, Some(Tcp::Close));
        for wrong in [
            "[checkpoint]\ntpc = \"close\"\n",
            "[chekpoint]\n",
            "[checkpoint]\ntimeout = 0\n",
            "[restore]\nghost-limit = 1\n",
            "[checkpoint]\ntcp = close\n",
        ] {
            fs::write(&path, wrong).unwrap();
            let error = HostLayers::read(&path).unwrap_err().to_string();
            assert!(error.starts_with(path.to_str().unwrap()), "{error}");
        }
    }
}
