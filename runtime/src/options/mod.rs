//! Options of a checkpoint or restore, and who may set them: request over annotations over the host's file over
//! defaults.
//!
//! At a restore there is one voice more, the image: what was chosen at the dump holds, because most of it must agree,
//! unless `io.godwit.restore.*` or the table `[restore]` say otherwise. The request is what the task API carries, which
//! under Docker is nothing. This module applies layers in order; it does not know where a request comes from.

mod layer;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::layer::{
    ANNOTATION_PREFIX, HOST_FILE, HostLayers, Layer, OptionsError, RESTORE_ANNOTATION_PREFIX, table,
};

/// What becomes of established TCP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tcp {
    /// They are dumped, and go on after a restore where their addresses exist.
    Established,
    /// They are closed; the programs see that.
    Close,
}

/// How CRIU keeps packets away from connections while it works on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkLock {
    /// By a table of nft, in one quick transaction.
    Nftables,
    /// By rules of iptables.
    Iptables,
    /// Not at all: somebody else keeps the packets away, or a lost connection does not matter.
    Skip,
}

/// What CRIU does about the properties of cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupsMode {
    /// Nothing: they are the engine's, and differ between hosts.
    #[default]
    Ignore,
    /// Restores those of cgroups that it has to make.
    Soft,
    /// Restores all of them.
    Full,
    /// Restores all of them, and refuses cgroups that are there already.
    Strict,
}

impl CgroupsMode {
    /// CRIU's and runC's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ignore => "ignore",
            Self::Soft => "soft",
            Self::Full => "full",
            Self::Strict => "strict",
        }
    }
}

/// Which namespaces are dumped without what is in them, for somebody else to fill at the restore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmptyNamespaces {
    /// That of the network, if an engine has put a device into it.
    #[default]
    Auto,
    /// That of the network.
    Network,
    /// None: CRIU dumps and restores the network's as well, devices included.
    None,
}

/// Which files of an image are protected by a digest. Sizes are always checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Digests {
    /// None.
    None,
    /// All but the pages of memory: some hundred kilobytes.
    #[default]
    Metadata,
    /// All: about a second for each gigabyte of memory, at the dump and at the restore.
    All,
}

/// All options, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointOptions {
    /// Whether the container runs on after the dump.
    pub leave_running: bool,
    /// Established TCP connections.
    pub tcp: Tcp,
    /// Whether connections that are not accepted yet are left out, instead of failing the dump.
    pub skip_in_flight: bool,
    /// Whether sockets connected to unix sockets outside the container are allowed.
    pub external_unix_sockets: bool,
    /// Whether held file locks are dumped.
    pub file_locks: bool,
    /// Whether a session that leads outside the container is allowed; if unsaid, where the container has a terminal.
    pub shell_job: Option<bool>,
    /// Namespaces that somebody else fills.
    pub empty_namespaces: EmptyNamespaces,
    /// The properties of cgroups.
    pub cgroups_mode: CgroupsMode,
    /// How packets are kept away; if unsaid, by nft where it is installed, else by iptables.
    pub network_lock: Option<NetworkLock>,
    /// Largest deleted but open file that is put into the image, in bytes.
    pub ghost_limit_bytes: u64,
    /// Whether a deleted file that has another name left may be linked back for the image's sake.
    pub link_remap: bool,
    /// Where in the container watched files are looked for that cannot be named by handles, as on an overlay.
    pub irmap_scan_path: Option<PathBuf>,
    /// How long CRIU may take to stop all tasks, in seconds.
    pub timeout_seconds: u32,
    /// Whether processes of exec are killed before a dump, instead of failing it.
    pub kill_execs: bool,
    /// What of the image is protected by digests.
    pub digests: Digests,
}

impl Default for CheckpointOptions {
    fn default() -> Self {
        Self {
            leave_running: false,
            tcp: Tcp::Established,
            skip_in_flight: false,
            external_unix_sockets: true,
            file_locks: true,
            shell_job: None,
            empty_namespaces: EmptyNamespaces::default(),
            cgroups_mode: CgroupsMode::default(),
            network_lock: None,
            // CRIU's own limit of 1 MiB fails programs that keep an unlinked temporary file.
            ghost_limit_bytes: 256 << 20,
            link_remap: true,
            irmap_scan_path: None,
            // CRIU's own.
            timeout_seconds: 10,
            kill_execs: false,
            digests: Digests::default(),
        }
    }
}

impl CheckpointOptions {
    /// The options that follow from `layers`, the strongest first, over the defaults.
    pub fn resolve(layers: &[&Layer]) -> Self {
        let merged = Layer::merged(layers);
        let default = Self::default();
        Self {
            leave_running: merged.leave_running.unwrap_or(default.leave_running),
            tcp: merged.tcp.unwrap_or(default.tcp),
            skip_in_flight: merged.skip_in_flight.unwrap_or(default.skip_in_flight),
            external_unix_sockets: merged
                .external_unix_sockets
                .unwrap_or(default.external_unix_sockets),
            file_locks: merged.file_locks.unwrap_or(default.file_locks),
            shell_job: merged.shell_job,
            empty_namespaces: merged.empty_namespaces.unwrap_or_default(),
            cgroups_mode: merged.cgroups_mode.unwrap_or_default(),
            network_lock: merged.network_lock,
            ghost_limit_bytes: merged.ghost_limit.unwrap_or(default.ghost_limit_bytes),
            link_remap: merged.link_remap.unwrap_or(default.link_remap),
            irmap_scan_path: merged.irmap_scan_path,
            timeout_seconds: merged.timeout.unwrap_or(default.timeout_seconds),
            kill_execs: merged.kill_execs.unwrap_or(default.kill_execs),
            digests: merged.digests.unwrap_or_default(),
        }
    }

    /// What a restore of the image must know of these options of its dump.
    pub fn remembered(&self) -> Layer {
        Layer {
            tcp: Some(self.tcp),
            external_unix_sockets: Some(self.external_unix_sockets),
            file_locks: Some(self.file_locks),
            shell_job: self.shell_job,
            cgroups_mode: Some(self.cgroups_mode),
            link_remap: Some(self.link_remap),
            ..Layer::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_layer_wins_over_all_that_are_weaker() {
        let saying = |seconds| Layer {
            timeout: Some(seconds),
            ..Layer::default()
        };
        let (request, container, host) = (saying(1), saying(2), saying(3));
        let silent = Layer::default();
        let timeout = |layers: &[&Layer]| CheckpointOptions::resolve(layers).timeout_seconds;
        assert_eq!(timeout(&[&request, &container, &host]), 1);
        assert_eq!(timeout(&[&silent, &container, &host]), 2);
        assert_eq!(timeout(&[&silent, &silent, &host]), 3);
        assert_eq!(timeout(&[&silent, &silent, &silent]), 10);
    }

    #[test]
    fn layers_are_asked_option_by_option() {
        let request = Layer {
            tcp: Some(Tcp::Close),
            ..Layer::default()
        };
        let container = Layer {
            tcp: Some(Tcp::Established),
            file_locks: Some(false),
            ..Layer::default()
        };
        let options = CheckpointOptions::resolve(&[&request, &container]);
        assert_eq!((options.tcp, options.file_locks), (Tcp::Close, false));
    }

    #[test]
    fn what_is_remembered_resolves_to_the_same_restore() {
        let dumped = CheckpointOptions {
            tcp: Tcp::Close,
            external_unix_sockets: false,
            file_locks: false,
            shell_job: Some(true),
            cgroups_mode: CgroupsMode::Soft,
            link_remap: false,
            ..CheckpointOptions::default()
        };
        assert_eq!(CheckpointOptions::resolve(&[&dumped.remembered()]), dumped);
    }
}
