//! What the host itself must be like: kernel, privileges, settings, and programs besides CRIU and runC.
//!
//! It reads files and asks programs for their versions. It does not look at any container.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};

use super::room::{available_memory, free_bytes};
use super::tools::{output_of, two_numbers};
use crate::finding::{Code, Finding};

/// The shim's program.
const SHIM: &str = "containerd-shim-godwit-v2";

/// Where containerd looks for shims, as far as its own environment cannot be read.
const SHIM_DIRECTORIES: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `openat2`, by which files are written below a root, came with this kernel.
const MIN_KERNEL: (u32, u32) = (5, 6);

/// Bits of a set of capabilities.
const SYS_ADMIN: u32 = 21;
const SYS_RESOURCE: u32 = 24;

/// Less free memory than this holds no image worth moving.
const MIN_ROOM_BYTES: u64 = 64 << 20;

/// A file system in memory that is no tmpfs.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// The kernel.
pub fn kernel(release: &str, architecture: &str) -> Finding {
    match two_numbers(release) {
        Some(version) if version < MIN_KERNEL => Finding::problem(
            Code::Kernel,
            format!(
                "Linux {release} is too old: {}.{} or newer is needed",
                MIN_KERNEL.0, MIN_KERNEL.1
            ),
            "install a newer kernel",
        ),
        _ => Finding::ok(Code::Kernel, format!("Linux {release} on {architecture}")),
    }
}

/// Whether nftables is there: it locks the network while a container is dumped or restored.
pub async fn nft() -> Finding {
    match output_of(Path::new("nft"), &["--version"]).await {
        Ok(text) => Finding::ok(Code::Nft, text.trim().to_owned()),
        Err(reason) => Finding::problem(
            Code::Nft,
            format!("nft is missing ({reason}): a restored container's network cannot be kept closed"),
            "install nftables",
        ),
    }
}

/// What this process may do; the agent's children may do the same.
pub fn capabilities() -> Vec<Finding> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    judge_capabilities(effective(&status))
}

fn effective(status: &str) -> u64 {
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .unwrap_or(0)
}

fn judge_capabilities(effective: u64) -> Vec<Finding> {
    let has = |bit: u32| effective & (1 << bit) != 0;
    if !has(SYS_ADMIN) {
        return vec![Finding::problem(
            Code::Capabilities,
            "CAP_SYS_ADMIN is missing: nothing can be dumped or restored",
            "run it as root",
        )];
    }
    if !has(SYS_RESOURCE) {
        return vec![Finding::warning(
            Code::Capabilities,
            "CAP_SYS_RESOURCE is missing: containers whose processes have other users than root cannot be dumped",
            "give it to the engine and the agent, or let the engine map users (dockerd --userns-remap)",
        )];
    }
    vec![Finding::ok(Code::Capabilities, "all that is needed is allowed")]
}

/// Whether this process lacks `CAP_SYS_RESOURCE`.
pub fn is_limited() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective(&status) & (1 << SYS_RESOURCE) == 0
}

/// Settings of the kernel that stand in the way.
pub fn sysctls() -> Vec<Finding> {
    judge_sysctls(|name| {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        fs::read_to_string(path).ok()?.trim().parse().ok()
    })
}

fn judge_sysctls(value: impl Fn(&str) -> Option<u64>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if value("kernel.yama.ptrace_scope") == Some(3) {
        findings.push(Finding::problem(
            Code::Sysctl,
            "kernel.yama.ptrace_scope is 3: no process can be looked into, until the next boot",
            "set it to 2 or less and boot",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            Code::Sysctl,
            "no setting of the kernel stands in the way",
        ));
    }
    findings
}

/// Whether the kernel tells which pages were written to.
pub fn soft_dirty(is_told: bool) -> Finding {
    if is_told {
        return Finding::ok(
            Code::Kernel,
            "the kernel tells which pages were written to (mode pre)",
        );
    }
    Finding::warning(
        Code::Kernel,
        "the kernel does not tell which pages were written to: memory cannot be copied beforehand (mode pre)",
        "it takes Linux 6.7 or newer with CONFIG_MEM_SOFT_DIRTY; moves in mode post need neither",
    )
}

/// Whether images on their way lie in memory, and how much there is.
pub fn image_room(run: &Path) -> Vec<Finding> {
    let existing = run
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let kind = statfs(existing).map(|found| found.filesystem_type());
    let mut findings = Vec::new();
    if !kind.is_ok_and(|kind| kind == TMPFS_MAGIC || kind == RAMFS_MAGIC) {
        findings.push(Finding::warning(
            Code::ImageRoom,
            format!(
                "{} is not in memory: images, which hold secrets, would be written to a disk",
                run.display()
            ),
            "mount a tmpfs there",
        ));
    }
    let free = free_bytes(run).unwrap_or(0);
    findings.push(if free < MIN_ROOM_BYTES {
        Finding::problem(
            Code::ImageRoom,
            format!(
                "{} MB are free in {}: images on their way lie there",
                free >> 20,
                run.display()
            ),
            "make room there",
        )
    } else {
        Finding::ok(
            Code::ImageRoom,
            format!("{} MB are free in {}", free >> 20, run.display()),
        )
    });
    let available = available_memory().unwrap_or(0);
    findings.push(Finding::ok(
        Code::Memory,
        format!("{} MB of memory are available", available >> 20),
    ));
    findings
}

/// Whether containerd finds our shim: on the `PATH` of the daemon itself where one runs.
pub fn shim() -> Finding {
    let (path, whose) = containerd_path().map_or_else(
        || (SHIM_DIRECTORIES.to_owned(), "the usual PATH"),
        |path| (path, "containerd's PATH"),
    );
    judge_shim(&path, whose)
}

fn judge_shim(path: &str, whose: &str) -> Finding {
    let found = std::env::split_paths(path)
        .map(|directory| directory.join(SHIM))
        .find(|program| nix::unistd::access(program, nix::unistd::AccessFlags::X_OK).is_ok());
    match found {
        Some(program) => Finding::ok(Code::Shim, format!("containerd finds {}", program.display())),
        None => Finding::problem(
            Code::Shim,
            format!("there is no {SHIM} on {whose}, {path}"),
            "install it to /usr/local/bin",
        ),
    }
}

/// The `PATH` that a running containerd has.
fn containerd_path() -> Option<String> {
    let is_containerd = |directory: &PathBuf| {
        let comm = fs::read_to_string(directory.join("comm"));
        comm.is_ok_and(|comm| comm.trim_end() == "containerd")
    };
    let processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    let containerd = processes.into_iter().find(is_containerd)?;
    let environment = fs::read(containerd.join("environ")).ok()?;
    let path = environment
        .split(|byte| *byte == 0)
        .find_map(|one| one.strip_prefix(b"PATH="))?;
    Some(String::from_utf8_lossy(path).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Level;

    #[test]
    fn an_old_kernel_is_told() {
        assert!(kernel("5.4.0-generic", "x86_64").is_problem());
        assert_eq!(kernel("6.18.44", "x86_64").to_string(), "Linux 6.18.44 on x86_64");
    }

    #[test]
    fn capabilities_are_bits_of_the_effective_set() {
        let set = effective("Name:\tx\nCapEff:\t000001fffeffffff\n");
        assert_eq!(judge_capabilities(set)[0].level, Level::Warning);
        assert_eq!(judge_capabilities(0x1ff_ffff_ffff)[0].level, Level::Ok);
        assert!(judge_capabilities(0)[0].is_problem());
    }

    #[test]
    fn a_setting_that_forbids_looking_into_processes_is_told() {
        assert!(judge_sysctls(|_| Some(3))[0].is_problem());
        assert_eq!(judge_sysctls(|_| Some(1))[0].level, Level::Ok);
    }

    #[test]
    fn the_shim_is_looked_for_on_the_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = format!("/nonexistent:{}", directory.path().display());
        let missing = judge_shim(&path, "containerd's PATH");
        assert!(
            missing.is_problem() && missing.text.contains("on containerd's PATH, /nonexistent:"),
            "{missing}"
        );
        let program = directory.path().join(SHIM);
        fs::write(&program, "").unwrap();
        assert!(judge_shim(&path, "").is_problem(), "it is not executable");
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(judge_shim(&path, "").level, Level::Ok);
    }
}
