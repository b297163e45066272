//! What a host must have before a container is moved to or from it; each check answers in words that name the remedy.
//!
//! Nothing here changes anything. What the engine must have is the engine's own answer (`Engine::objections`).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::sys::statvfs::statvfs;
use tokio::process::Command;
use tokio::time::timeout;

use crate::engine::Container;
use crate::host::{Host, Tools};

/// The oldest CRIU that dumps TCP sockets on today's kernels: since Linux 6.16 older ones are refused SO_PASSCRED.
const MIN_CRIU: (u32, u32) = (4, 2);

/// A program that cannot say its version in this time hangs; a user waits for the answer.
const VERSION_DEADLINE: Duration = Duration::from_secs(2);

/// Room for what an image holds beside memory pages.
const IMAGE_SLACK_BYTES: u64 = 16 << 20;

/// The name that many shims answer to.
const STOCK_RUNTIME: &str = "io.containerd.runc.v2";

/// Processes looked at when a container is measured; more than any container has.
const MAX_PROCESSES: usize = 100_000;

/// Why a container that Godwit runs may be run by another shim at the destination, which would start it afresh in
/// place of restoring it: a second copy.
pub fn ambiguous_runtime(container: &Container) -> Option<String> {
    (container.runtime == STOCK_RUNTIME).then(|| {
        format!(
            "{} runs under Godwit in the place of the stock shim, and which shim the other host has under that name \
             cannot be told: start it with --runtime io.containerd.godwit.v2",
            container.name
        )
    })
}

/// Why this host cannot dump or restore at all.
pub async fn tools(tools: &Tools) -> Vec<String> {
    let mut objections = Vec::new();
    match version_of(&tools.criu).await {
        Ok(text) => match criu_version(&text) {
            Some(found) if found >= MIN_CRIU => {}
            Some((major, minor)) => objections.push(format!(
                "CRIU {major}.{minor} is too old: {}.{} or newer is needed, older ones cannot keep TCP connections",
                MIN_CRIU.0, MIN_CRIU.1
            )),
            None => objections.push(format!("CRIU does not say its version but {:?}", text.trim())),
        },
        Err(reason) => objections.push(format!("CRIU is missing ({reason}): install criu 4.2 or newer")),
    }
    if let Err(reason) = version_of(&tools.runc).await {
        objections.push(format!("runC is missing ({reason}): install runc"));
    }
    objections
}

/// Why an image of `memory_bytes` does not fit into this host's memory. A restore needs it twice: as image and as memory.
pub fn room(host: &Host, memory_bytes: u64, copies: u64) -> Vec<String> {
    let mut objections = Vec::new();
    let image = memory_bytes + IMAGE_SLACK_BYTES;
    match free_bytes(&host.places.run) {
        Ok(free) if free < image => objections.push(format!(
            "the image needs about {} MB in {} and {} MB are free",
            image >> 20,
            host.places.run.display(),
            free >> 20
        )),
        Ok(_) => {}
        Err(error) => objections.push(format!("{}: {error}", host.places.run.display())),
    }
    let needed = memory_bytes * copies + IMAGE_SLACK_BYTES;
    if let Some(available) = available_memory().filter(|available| *available < needed) {
        objections.push(format!(
            "it needs about {} MB of memory and {} MB are available",
            needed >> 20,
            available >> 20
        ));
    }
    objections
}

/// Which cgroups containers of this host are given.
pub fn cgroup_version() -> u8 {
    let unified = statfs("/sys/fs/cgroup").is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC);
    if unified { 2 } else { 1 }
}

/// Why a container that sees its host's cgroups cannot go from one version of them to the other: CRIU finds nothing to
/// mount in their place.
pub fn cgroups(container: &Container, there: u8, here: u8) -> Option<String> {
    (there != here && container.sees_host_cgroups()).then(|| {
        format!(
            "it was started on cgroup v{there} and this host has v{here}: it sees its host's cgroups and cannot be \
             restored here; start it with --cgroupns=private"
        )
    })
}

/// Free bytes where `path` or its nearest existing parent lies.
pub fn free_bytes(path: &Path) -> nix::Result<u64> {
    let existing = path
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"));
    let stat = statvfs(existing)?;
    Ok(stat.blocks_available() * stat.fragment_size())
}

/// Memory that the process `pid` and all below it hold and an image would have to carry: an estimate.
pub fn memory_of(pid: u32) -> u64 {
    let kilobytes_of = |pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        kilobytes(&status, "RssAnon:") + kilobytes(&status, "RssShmem:")
    };
    processes_of(pid).into_iter().map(kilobytes_of).sum::<u64>() * 1024
}

/// The process `pid` and all below it.
pub fn processes_of(pid: u32) -> BTreeSet<u32> {
    let mut seen = BTreeSet::new();
    let mut open = vec![pid];
    while let Some(pid) = open.pop() {
        if seen.len() >= MAX_PROCESSES || !seen.insert(pid) {
            continue;
        }
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
            continue;
        };
        for thread in threads.flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            open.extend(
                children
                    .split_whitespace()
                    .filter_map(|child| child.parse::<u32>().ok()),
            );
        }
    }
    seen
}

fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    Some(kilobytes(&text, "MemAvailable:") * 1024)
}

fn kilobytes(text: &str, key: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

async fn version_of(program: &Path) -> Result<String, String> {
    let run = Command::new(program).arg("--version").kill_on_drop(true).output();
    match timeout(VERSION_DEADLINE, run).await {
        Ok(Ok(output)) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(Ok(output)) => Err(format!(
            "`{} --version` ended with {}",
            program.display(),
            output.status
        )),
        Ok(Err(error)) => Err(format!("{}: {error}", program.display())),
        Err(_) => Err(format!("`{} --version` hangs", program.display())),
    }
}

fn criu_version(text: &str) -> Option<(u32, u32)> {
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("Version:"))?
        .trim();
    let mut numbers = version.split('.').map(|part| {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    });
    Some((numbers.next()??, numbers.next().flatten().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn criu_versions_are_understood() {
        assert_eq!(criu_version("Version: 4.2.1\nGitID: v4.2.1\n"), Some((4, 2)));
        assert_eq!(criu_version("Version: 4.2-rc1\n"), Some((4, 2)));
        assert_eq!(criu_version("Version: 5\n"), Some((5, 0)));
        assert_eq!(criu_version("no such thing"), None);
    }

    #[test]
    fn a_runtime_that_another_shim_may_answer_to_is_refused() {
        let container = |runtime: &str| -> Container {
            serde_json::from_value(serde_json::json!({
                "engine": "docker", "id": "a", "name": "web", "namespace": "moby", "image_name": "", "image_id": "",
                "runtime": runtime, "running": true, "networks": [], "mounts": [], "description": null
            }))
            .unwrap()
        };
        let refused = ambiguous_runtime(&container("io.containerd.runc.v2")).unwrap();
        assert!(refused.starts_with("web runs under Godwit"), "{refused}");
        assert_eq!(ambiguous_runtime(&container("io.containerd.godwit.v2")), None);
    }

    #[test]
    fn a_process_and_its_children_have_memory() {
        assert!(memory_of(std::process::id()) > 0);
        assert_eq!(memory_of(0), 0);
    }

    #[tokio::test]
    async fn a_missing_criu_is_said_so() {
        let tools = Tools {
            criu: "/nonexistent/criu".into(),
            runc: "/bin/true".into(),
        };
        let objections = super::tools(&tools).await;
        assert_eq!(objections.len(), 1);
        assert!(objections[0].contains("CRIU is missing"), "{objections:?}");
    }
}
