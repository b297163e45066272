//! The agent's configuration, `/etc/godwit/agent.toml`: who this host is, where its agent listens, who its peers are.
//!
//! An unknown key is an error, because a misspelled one would silently mean its default. Nothing is looked up here:
//! whether a peer's address leads anywhere shows when it is called.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rustls::pki_types::DnsName;
use serde::Deserialize;

use crate::bandwidth::Bandwidth;
use crate::host::DEFAULT_HOLD;

/// What one agent is told by its operator.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// This host's name: the one in its certificate, by which its peers list it.
    pub name: String,
    /// Where other agents reach this one.
    pub listen: SocketAddr,
    /// Where Prometheus finds the agent's metrics; nowhere unless told. They name containers' fates, not containers.
    pub metrics_listen: Option<SocketAddr>,
    /// The directory of `ca.pem`, `host.pem` and `host.key`.
    #[serde(default = "default_tls")]
    pub tls: PathBuf,
    /// The hosts that containers may come from and go to; nobody else is spoken to.
    #[serde(default)]
    pub peers: BTreeMap<String, Peer>,
    /// Docker's socket, if not the usual one.
    pub docker_socket: Option<PathBuf>,
    /// containerd's socket, if not the usual one.
    pub containerd_socket: Option<PathBuf>,
    /// What must survive a reboot: journals and verdicts.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// What need not: tickets, images on their way, the local API's socket.
    #[serde(default = "default_run_dir")]
    pub run_dir: PathBuf,
    /// How long a container of this host is held still for a move before it runs on here by itself.
    #[serde(default = "default_hold_seconds")]
    pub hold_seconds: u64,
    /// What all moves from this host together send at most, if that is bounded.
    pub bandwidth: Option<Bandwidth>,
    /// What is asked of archives.
    #[serde(default)]
    pub archives: Archives,
}

/// What is asked of archives that are imported on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Archives {
    /// Each is signed by a host of this one's authority.
    pub require_signature: bool,
}

/// Another host.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Where its agent listens: `host:port`.
    pub address: String,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there or cannot be read.
    #[error("cannot read the configuration {}: {source}; {}", path.display(), remedy(source))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not TOML, or not the TOML that is expected.
    #[error("{}, line {line}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// Every key is well-formed, but a value cannot work.
    #[error("{}: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would be right.
        reason: String,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "read it as root, or name another by --config",
        _ => "write it, or name another by --config",
    }
}

impl AgentConfig {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<AgentConfig, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        let config = AgentConfig::parse(&text).map_err(|(line, reason)| ConfigError::Malformed {
            path: path.to_owned(),
            line,
            reason,
        })?;
        config.check().map_err(|reason| ConfigError::Unusable {
            path: path.to_owned(),
            reason,
        })?;
        Ok(config)
    }

    fn parse(text: &str) -> Result<AgentConfig, (usize, String)> {
        toml::from_str(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = 1 + text.as_bytes()[..offset]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count();
            (line, error.message().replace('\n', "; "))
        })
    }

    fn check(&self) -> Result<(), String> {
        check_name("name", &self.name)?;
        if self.listen.port() == 0 {
            return Err("listen has port 0; peers need a fixed one, such as 7433".into());
        }
        if self.hold_seconds == 0 {
            return Err("hold_seconds is 0; no container could be moved within that".into());
        }
        for (name, peer) in &self.peers {
            check_name(&format!("peers.{name}"), name)?;
            if *name == self.name {
                return Err(format!("peers.{name} is this host itself; list only the others"));
            }
            let port = peer
                .address
                .rsplit_once(':')
                .and_then(|(_, port)| port.parse::<u16>().ok());
            if port.is_none_or(|port| port == 0) {
                let address = &peer.address;
                return Err(format!(
                    "peers.{name}.address is {address:?}; write HOST:PORT, such as {name}:7433"
                ));
            }
        }
        Ok(())
    }
}

/// A host's name stands in its certificate as a DNS name, so it must be one.
fn check_name(key: &str, name: &str) -> Result<(), String> {
    DnsName::try_from(name)
        .map(drop)
        .map_err(|_| format!("{key}: {name:?} is no host name; use letters, digits, hyphens and dots"))
}

fn default_tls() -> PathBuf {
    "/etc/godwit/tls".into()
}

fn default_state_dir() -> PathBuf {
    "/var/lib/godwit".into()
}

fn default_run_dir() -> PathBuf {
    "/run/godwit".into()
}

fn default_hold_seconds() -> u64 {
    DEFAULT_HOLD.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
name = "ha"
listen = "10.77.0.11:7433"
tls = "/etc/godwit/tls"
docker_socket = "/run/docker.sock"

[peers.hb]
address = "10.77.0.12:7433"
"#;

    fn load(text: &str) -> Result<AgentConfig, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        AgentConfig::load(file.path()).map_err(|error| {
            let shown = error.to_string();
            assert!(shown.contains(file.path().to_str().unwrap()), "{shown}");
            shown.replace(file.path().to_str().unwrap(), "FILE")
        })
    }

    #[test]
    fn what_is_not_said_has_its_usual_place() {
        let config = load(WHOLE).unwrap();
        assert_eq!(config.peers["hb"].address, "10.77.0.12:7433");
        assert_eq!(config.state_dir, Path::new("/var/lib/godwit"));
        assert_eq!(config.run_dir, Path::new("/run/godwit"));
        assert_eq!(config.bandwidth, None);
        assert!(!config.archives.require_signature);
    }

    #[test]
    fn a_misspelled_key_is_named_with_its_line() {
        let error = load(&WHOLE.replace("docker_socket", "docker_sock")).unwrap_err();
        assert!(
            error.starts_with("FILE, line 5: unknown field `docker_sock`"),
            "{error}"
        );
    }

    #[test]
    fn a_bound_on_what_is_sent_is_a_rate() {
        let with = |rate: &str| load(&WHOLE.replace("[peers", &format!("bandwidth = {rate}\n[peers")));
        assert_eq!(with("\"1G\"").unwrap().bandwidth, Some("1G".parse().unwrap()));
        let error = with("\"fast\"").unwrap_err();
        assert!(
            error.contains("line 7") && error.contains("such as 100M"),
            "{error}"
        );
    }

    #[test]
    fn signatures_of_archives_are_required_where_that_is_said() {
        let config = load(&format!("{WHOLE}\n[archives]\nrequire_signature = true\n")).unwrap();
        assert!(config.archives.require_signature);
        let error = load(&format!("{WHOLE}\n[archives]\nrequire_signatures = true\n")).unwrap_err();
        assert!(error.contains("unknown field `require_signatures`"), "{error}");
    }

    #[test]
    fn a_missing_key_is_named() {
        let error = load("name = \"ha\"\n").unwrap_err();
        assert!(error.contains("missing field `listen`"), "{error}");
    }

    #[test]
    fn an_address_without_port_is_refused_with_an_example() {
        let error = load(&WHOLE.replace("10.77.0.12:7433", "10.77.0.12")).unwrap_err();
        assert!(error.ends_with("write HOST:PORT, such as hb:7433"), "{error}");
    }

    #[test]
    fn a_host_is_not_its_own_peer() {
        let error = load(&WHOLE.replace("peers.hb", "peers.ha")).unwrap_err();
        assert!(error.contains("is this host itself"), "{error}");
    }

    #[test]
    fn a_name_that_no_certificate_can_carry_is_refused() {
        let error = load(&WHOLE.replace("\"ha\"", "\"h a\"")).unwrap_err();
        assert!(error.contains("\"h a\" is no host name"), "{error}");
    }

    #[test]
    fn an_absent_file_is_named() {
        let error = AgentConfig::load(Path::new("/nonexistent/agent.toml"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("/nonexistent/agent.toml"), "{error}");
    }
}
