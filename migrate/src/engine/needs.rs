//! What a container needs of a host whichever its engine: the shim of its runtime, and the paths that it is given.
//!
//! It only looks.

use std::path::{Path, PathBuf};

use crate::engine::Container;
use crate::finding::{Code, Finding};

/// Where a shim is looked for besides the agent's own `PATH`: containerd's may be wider.
const SHIM_DIRECTORIES: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin";

/// The bind mounts whose sources this host does not have.
pub(super) fn missing_sources(container: &Container) -> Vec<Finding> {
    let binds = container.mounts.iter().filter(|mount| mount.kind == "bind");
    binds
        .filter(|mount| !Path::new(&mount.source).exists())
        .map(|mount| {
            let (source, target) = (&mount.source, &mount.target);
            Finding::problem(
                Code::BindSource,
                format!("bind mount {target}: {source} does not exist on this host"),
                "create it, with what is in it",
            )
        })
        .collect()
}

/// The program that serves a runtime, by containerd's rule: `io.containerd.godwit.v2` runs `containerd-shim-godwit-v2`;
/// an absolute path runs itself.
pub(super) fn shim_binary(runtime: &str) -> Option<PathBuf> {
    if runtime.starts_with('/') {
        return Some(PathBuf::from(runtime));
    }
    let mut parts = runtime.rsplit('.');
    let (version, name) = (parts.next()?, parts.next()?);
    Some(PathBuf::from(format!("containerd-shim-{name}-{version}")))
}

/// Why the shim of a runtime cannot be started here, if it cannot.
pub(super) fn missing_shim(runtime: &str, binary: &Path) -> Option<Finding> {
    let path = std::env::var("PATH").unwrap_or_default();
    let is_installed = std::env::split_paths(&path)
        .chain(std::env::split_paths(SHIM_DIRECTORIES))
        .any(|directory| directory.join(binary).is_file());
    (!is_installed).then(|| {
        let binary = binary.display();
        Finding::problem(
            Code::Runtime,
            format!("runtime {runtime} is not installed: there is no {binary} in the search path"),
            "install it",
        )
    })
}
