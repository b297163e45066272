//! The bundle of one container: the directory an engine hands to the shim, and what the shim keeps in it.
//!
//! The engine owns `config.json` and `rootfs`; the shim adds the record that lets `delete` clean up after a shim
//! that died, and the exit status, written the moment it is known. The bundle is removed by the engine.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::control::write_atomically;
use crate::reaper::Exit;
use crate::runc::RuncSettings;
use crate::spec::Spec;

/// A bundle directory.
#[derive(Clone, Debug)]
pub struct Bundle(PathBuf);

/// The exit of a container's init as the bundle keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The init's pid in the host's pid namespace.
    pub pid: u32,
    /// Exit code, or 128 and the signal.
    pub status: u32,
    /// Nanoseconds since 1970.
    pub at_nanos: u64,
}

impl ExitRecord {
    /// When it was.
    pub fn at(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.at_nanos)
    }
}

impl From<Exit> for ExitRecord {
    fn from(exit: Exit) -> Self {
        let since_1970 = exit.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            pid: exit.pid.unsigned_abs(),
            status: exit.status(),
            at_nanos: since_1970.as_nanos().try_into().unwrap_or(u64::MAX),
        }
    }
}

impl Bundle {
    /// The bundle at an absolute path.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file of the bundle.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Reads `config.json`.
    pub fn spec(&self) -> io::Result<Spec> {
        let path = self.join("config.json");
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let content = fs::read(&path).map_err(named)?;
        serde_json::from_slice(&content)
            .map_err(|error| named(io::Error::new(io::ErrorKind::InvalidData, error)))
    }

    /// Where the root file system is mounted: `root.path` of the configuration, relative to the bundle.
    pub fn root_path(&self, spec: &Spec) -> PathBuf {
        self.0.join(spec.root_path().unwrap_or(Path::new("rootfs")))
    }

    /// The file that holds the init's pid; after `runc create` runC writes it.
    pub fn init_pid_file(&self) -> PathBuf {
        self.join("init.pid")
    }

    /// Keeps the init's pid, where it is not runC that does.
    pub fn write_init_pid(&self, pid: i32) -> io::Result<()> {
        write_atomically(&self.init_pid_file(), pid.to_string().as_bytes())
    }

    /// The init's pid, if it has been written.
    pub fn init_pid(&self) -> Option<i32> {
        read_pid(&self.init_pid_file()).ok()
    }

    /// Keeps how runC is called for this container.
    pub fn write_runc_settings(&self, settings: &RuncSettings) -> io::Result<()> {
        write_atomically(&self.join("godwit-runc.json"), &serde_json::to_vec(settings)?)
    }

    /// How runC is called for this container, if a shim has created it.
    pub fn runc_settings(&self) -> Option<RuncSettings> {
        serde_json::from_slice(&fs::read(self.join("godwit-runc.json")).ok()?).ok()
    }

    /// Keeps the exit of the init.
    pub fn write_exit(&self, exit: &ExitRecord) -> io::Result<()> {
        write_atomically(&self.join("godwit-exit.json"), &serde_json::to_vec(exit)?)
    }

    /// The exit of the init, if it has been seen.
    pub fn exit(&self) -> Option<ExitRecord> {
        serde_json::from_slice(&fs::read(self.join("godwit-exit.json")).ok()?).ok()
    }
}

/// Reads a pid file.
pub fn read_pid(path: &Path) -> io::Result<i32> {
    let content = fs::read_to_string(path)?;
    content.trim().parse().map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} holds no pid", path.display()),
        )
    })
}
