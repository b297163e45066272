//! Options of a checkpoint or restore, and who may set them: request over annotations over the host's file over
//! defaults.
//!
//! The request is what the task API carries, which under Docker is nothing. This module applies layers in order; it
//! does not know where a request comes from.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::Deserialize;
use thiserror::Error;

/// Prefix of the container annotations that are options: `io.godwit.checkpoint.tcp=close`.
pub const ANNOTATION_PREFIX: &str = "io.godwit.checkpoint.";

/// The host's options.
pub const HOST_FILE: &str = "/etc/godwit/shim.toml";

/// What becomes of established TCP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tcp {
    /// They are dumped, and go on after a restore where their addresses exist.
    Established,
    /// They are closed; the programs see that.
    Close,
}

/// All options, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointOptions {
    /// Whether the container runs on after the dump.
    pub leave_running: bool,
    /// Established TCP connections.
    pub tcp: Tcp,
    /// Whether sockets connected to unix sockets outside the container are allowed.
    pub external_unix_sockets: bool,
    /// Whether held file locks are dumped.
    pub file_locks: bool,
    /// Largest deleted but open file that is put into the image, in bytes.
    pub ghost_limit_bytes: u64,
}

impl Default for CheckpointOptions {
    fn default() -> Self {
        Self {
            leave_running: false,
            tcp: Tcp::Established,
            external_unix_sockets: true,
            file_locks: true,
            // CRIU's own limit of 1 MiB fails programs that keep an unlinked temporary file.
            ghost_limit_bytes: 256 << 20,
        }
    }
}

/// One layer: what somebody has an opinion on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Layer {
    /// See [`CheckpointOptions::leave_running`].
    pub leave_running: Option<bool>,
    /// See [`CheckpointOptions::tcp`].
    pub tcp: Option<Tcp>,
    /// See [`CheckpointOptions::external_unix_sockets`].
    pub external_unix_sockets: Option<bool>,
    /// See [`CheckpointOptions::file_locks`].
    pub file_locks: Option<bool>,
    /// See [`CheckpointOptions::ghost_limit_bytes`].
    pub ghost_limit: Option<u64>,
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

/// The host's file: one table so far.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostFile {
    #[serde(default)]
    checkpoint: Layer,
}

impl Layer {
    /// The layer in a container's annotations.
    pub fn from_annotations(annotations: &HashMap<String, String>) -> Result<Self, OptionsError> {
        let mut layer = Self::default();
        for (name, value) in annotations {
            let Some(option) = name.strip_prefix(ANNOTATION_PREFIX) else {
                continue;
            };
            layer
                .set(option, value)
                .map_err(|reason| OptionsError::Annotation {
                    name: name.clone(),
                    value: value.clone(),
                    reason,
                })?;
        }
        Ok(layer)
    }

    /// The layer in the host's file at `path`; an absent file says nothing.
    pub fn from_host_file(path: &Path) -> Result<Self, OptionsError> {
        let fail = |reason: String| OptionsError::File {
            path: path.display().to_string(),
            reason,
        };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(fail(error.to_string())),
        };
        Self::from_host_text(&text).map_err(fail)
    }

    /// The layer in the text of a host's file, or what is wrong with it.
    pub fn from_host_text(text: &str) -> Result<Self, String> {
        let file: HostFile = toml::from_str(text).map_err(|error| error.to_string())?;
        Ok(file.checkpoint)
    }

    fn set(&mut self, option: &str, value: &str) -> Result<(), String> {
        let boolean = || match value {
            "true" => Ok(Some(true)),
            "false" => Ok(Some(false)),
            _ => Err("it must be true or false".to_owned()),
        };
        match option {
            "leave-running" => self.leave_running = boolean()?,
            "external-unix-sockets" => self.external_unix_sockets = boolean()?,
            "file-locks" => self.file_locks = boolean()?,
            "tcp" => {
                self.tcp = Some(match value {
                    "established" => Tcp::Established,
                    "close" => Tcp::Close,
                    _ => return Err("it must be established or close".into()),
                });
            }
            "ghost-limit" => {
                self.ghost_limit = Some(
                    value
                        .parse()
                        .map_err(|_| "it must be a number of bytes".to_owned())?,
                );
            }
            _ => return Err("there is no such option".into()),
        }
        Ok(())
    }
}

impl CheckpointOptions {
    /// The options that follow from `layers`, the strongest first, over the defaults.
    pub fn resolve(layers: &[&Layer]) -> Self {
        fn first<T: Copy>(layers: &[&Layer], field: impl Fn(&Layer) -> Option<T>, default: T) -> T {
            layers.iter().find_map(|layer| field(layer)).unwrap_or(default)
        }
        let default = Self::default();
        Self {
            leave_running: first(layers, |l| l.leave_running, default.leave_running),
            tcp: first(layers, |l| l.tcp, default.tcp),
            external_unix_sockets: first(layers, |l| l.external_unix_sockets, default.external_unix_sockets),
            file_locks: first(layers, |l| l.file_locks, default.file_locks),
            ghost_limit_bytes: first(layers, |l| l.ghost_limit, default.ghost_limit_bytes),
        }
    }
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

    #[test]
    fn the_request_wins_over_the_annotation_over_the_file() {
        let request = Layer {
            leave_running: Some(true),
            ..Layer::default()
        };
        let container = Layer::from_annotations(&annotations(&[
            ("io.godwit.checkpoint.leave-running", "false"),
            ("io.godwit.checkpoint.tcp", "close"),
            ("some.other/annotation", "x"),
        ]))
        .unwrap();
        let host = Layer {
            tcp: Some(Tcp::Established),
            file_locks: Some(false),
            ..Layer::default()
        };
        let options = CheckpointOptions::resolve(&[&request, &container, &host]);
        assert!(options.leave_running);
        assert_eq!(options.tcp, Tcp::Close);
        assert!(!options.file_locks);
        assert!(options.external_unix_sockets);
    }

    #[test]
    fn a_misspelt_annotation_is_an_error_not_a_silence() {
        for (name, value) in [
            ("io.godwit.checkpoint.tpc", "close"),
            ("io.godwit.checkpoint.tcp", "keep"),
        ] {
            let error = Layer::from_annotations(&annotations(&[(name, value)])).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn the_hosts_file_is_read_strictly() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shim.toml");
        assert_eq!(Layer::from_host_file(&path).unwrap(), Layer::default());
        fs::write(&path, "[checkpoint]\ntcp = \"close\"\nleave-running = true\n").unwrap();
        let layer = Layer::from_host_file(&path).unwrap();
        assert_eq!((layer.tcp, layer.leave_running), (Some(Tcp::Close), Some(true)));
        fs::write(&path, "[checkpoint]\ntpc = \"close\"\n").unwrap();
        assert!(Layer::from_host_file(&path).is_err());
    }
}
