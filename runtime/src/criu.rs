//! CRIU as runC drives it: the configuration file we add to runC's own options, and what its log says went wrong.
//!
//! runC has no flag for much that a checkpoint needs; CRIU reads it from the file named by the annotation
//! `org.criu.config` (runC's `checkpoint` and `restore` both honour it, and the file wins over runC's options).
//! Nothing here starts a process.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::options::{CheckpointOptions, NetworkLock, Tcp};

/// The OCI annotation by which runC finds a CRIU configuration file.
pub const CONFIG_ANNOTATION: &str = "org.criu.config";

/// The environment variable by which CRIU finds another, which it reads before runC's options come; those win.
pub const CONFIG_VARIABLE: &str = "CRIU_CONFIG_FILE";

/// CRIU's log of a dump and of a restore, in its work path.
pub const DUMP_LOG: &str = "dump.log";
/// See [`DUMP_LOG`].
pub const RESTORE_LOG: &str = "restore.log";

/// What a dump is told besides, so that it leaves the pages that can wait in the tasks.
///
/// CRIU would then serve them itself, to whoever connects first, who would read the memory of the container. So it is
/// given an address that is none: its server does not come up, CRIU fails after `post-dump` and resumes the tasks, and
/// since they are frozen that means nothing: [`crate::hold::HoldRecord::settle`] decides what becomes of them.
pub const LAZY_DUMP: &str = "lazy-pages\naddress none\nport 1\n";

/// Text of a CRIU configuration file for a dump or restore with `options`, run under the holder at `hold`.
///
/// `extra` is the content of a file the container's own `org.criu.config` named: its lines come last and win.
pub fn config(options: &CheckpointOptions, hold: &Path, extra: &str) -> String {
    let mut text = String::new();
    let mut line = |option: &str| {
        let _ = writeln!(text, "{option}");
    };
    line(match options.tcp {
        Tcp::Established => "tcp-established",
        Tcp::Close => "tcp-close",
    });
    // In the file, because runC's own option takes `ignore` from 1.2 on only.
    line(&format!("manage-cgroups={}", options.cgroups_mode.as_str()));
    line(&format!("ghost-limit {}", options.ghost_limit_bytes));
    line(&format!("timeout {}", options.timeout_seconds));
    for (name, wanted) in [
        ("link-remap", options.link_remap),
        ("skip-in-flight", options.skip_in_flight),
    ] {
        if wanted {
            line(name);
        }
    }
    if let Some(path) = &options.irmap_scan_path {
        line("force-irmap");
        line(&format!("irmap-scan-path {}", path.display()));
    }
    line(&format!("action-script {}", hold.display()));
    text.push_str(extra);
    text
}

/// Text of the file that [`CONFIG_VARIABLE`] names for a dump; a restore goes by what the image says.
///
/// CRIU 4.1 ends by a segmentation fault when the other file holds this option.
pub fn early_config(options: &CheckpointOptions) -> &'static str {
    // nft's one transaction is an order of magnitude quicker than iptables' several programs.
    let lock = options.network_lock.unwrap_or_else(|| match find_program("nft") {
        Some(_) => NetworkLock::Nftables,
        None => NetworkLock::Iptables,
    });
    match lock {
        NetworkLock::Nftables => "network-lock nftables\n",
        NetworkLock::Iptables => "network-lock iptables\n",
        NetworkLock::Skip => "network-lock skip\n",
    }
}

/// Looks for a program as the shell would.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

/// What a CRIU log says of a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// CRIU's own words, without file and line.
    pub text: String,
    /// What a person can do about it, if known.
    pub remedy: Option<&'static str>,
}

/// Errors that CRIU logs though nothing failed, or that only repeat that something did.
const NOISE: &[&str] = &[
    "RLIMIT_NOFILE",
    "Can't open sysctl",
    "Dumping FAILED",
    "Restoring FAILED",
    "One of more action scripts",
    "One of the action scripts",
    "exited, status=",
    "killed by signal",
    "unable to open file",
    "Can't read socket diag",
];

/// Words of a cause and the way out of it.
const REMEDIES: &[(&str, &str)] = &[
    // 1:16 is SO_PASSCRED of SOL_SOCKET.
    (
        "Can't get 1:16 opt",
        "this CRIU cannot dump network sockets on Linux 6.16 and later: install CRIU 4.2 or later",
    ),
    (
        "io_uring",
        "the program uses io_uring, which CRIU cannot dump: switch it off in the program's configuration",
    ),
    // Of all files the kernel refuses only those of io_uring to a process they are passed to; CRIU does not say more.
    (
        "send_fds failed (-22)",
        "the program uses io_uring, which CRIU cannot dump: switch it off in the program's configuration",
    ),
    (
        "consider using --tcp-established",
        "set the annotation io.godwit.checkpoint.tcp=established (to keep connections) or =close",
    ),
    (
        "Can't bind inet socket",
        "the address is not on this host: give the container the same address, or set io.godwit.checkpoint.tcp=close",
    ),
    (
        "Can't lookup mount",
        "a process holds a file from outside the container's mounts: close it or mount its directory",
    ),
    (
        "Can't dump that handle",
        "a file is watched (inotify) where the kernel gives no handles, as on the container's own overlay: watch it on a \
         volume or tmpfs, or name its directory by io.godwit.checkpoint.irmap-scan-path",
    ),
    (
        "Can't dump nested user namespace",
        "a process has made a user namespace of its own (a browser's sandbox does): switch that off",
    ),
    (
        "Can't create a temporary directory",
        "the root is read-only and has no /tmp: give the image an empty directory of that name, or the container a tmpfs",
    ),
    (
        "ghost",
        "a deleted file that is still open is too large: raise io.godwit.checkpoint.ghost-limit",
    ),
    (
        "Can't get rlimit",
        "processes of other users can be dumped only with CAP_SYS_RESOURCE, which the engine lacks: give it that, \
         or let the engine map users (dockerd --userns-remap)",
    ),
    (
        "Unable to mount cgroup",
        "CRIU cannot mount cgroup v2 in a user namespace: use a host with cgroup v1, or a daemon that does not map users",
    ),
    (
        "No space left on device",
        "make room in the memory-backed space that holds the image",
    ),
    (
        "is not a child of",
        "a process was put into the container from outside (exec): end it first",
    ),
    (
        "a process outside",
        "a process was put into the container from outside (exec): end it first",
    ),
    (
        "external session leader",
        "a process was put into the container from outside (exec): end it first",
    ),
];

/// How much of a log is read and kept: its end. CRIU writes some hundred kilobytes, and without bound when it goes
/// round in circles.
const LOG_LIMIT_BYTES: u64 = 8 << 20;

/// The end of the log at `path`.
pub fn end_of_log(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = fs::File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(LOG_LIMIT_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(LOG_LIMIT_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The cause of a failure in the log at `path`; `None` if the log is missing or tells nothing.
pub fn cause(path: &Path) -> Option<Cause> {
    cause_in(&String::from_utf8_lossy(&end_of_log(path).ok()?))
}

fn cause_in(log: &str) -> Option<Cause> {
    let errors: Vec<&str> = log
        .lines()
        .filter_map(|line| {
            line.split_once("Error (")
                .and_then(|(_, rest)| rest.split_once("): "))
        })
        .map(|(_, message)| message.trim())
        .filter(|message| !NOISE.iter().any(|noise| message.contains(noise)))
        .collect();
    // The first error is the cause; those after it are its consequences, of which the next often names the object.
    let first = errors.first()?;
    let text = match errors.get(1) {
        Some(second) if second != first => format!("{first}; {second}"),
        _ => (*first).to_owned(),
    };
    let remedy = REMEDIES
        .iter()
        .find(|(word, _)| errors.iter().any(|error| error.contains(word)))
        .map(|(_, remedy)| *remedy);
    Some(Cause { text, remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_that_matters_is_the_cause() {
        let log = "(00.01) Error (criu/rlimit.c:1): Can't setup RLIMIT_NOFILE for self\n\
                   (00.02) Error (criu/files-ext.c:98): Can't dump file 5 of that type [0] (anon anon_inode:[io_uring])\n\
                   (00.03) Error (criu/cr-dump.c:1684): Dump files (pid: 33) failed with -1\n\
                   (00.04) Error (criu/cr-dump.c:2128): Dumping FAILED.\n";
        let cause = cause_in(log).unwrap();
        assert!(cause.text.starts_with("Can't dump file 5"), "{cause:?}");
        assert!(cause.remedy.unwrap().contains("io_uring"));
    }

    #[test]
    fn of_a_log_without_bound_only_the_end_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("restore.log");
        let error = "\n(00.02) Error (a.c:1): it broke\n";
        let file = fs::File::create(&path).unwrap();
        file.set_len(1 << 40).unwrap();
        fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut file| io::Write::write_all(&mut file, error.as_bytes()))
            .unwrap();
        assert_eq!(end_of_log(&path).unwrap().len() as u64, LOG_LIMIT_BYTES);
        assert_eq!(cause(&path).unwrap().text, "it broke");
    }

    #[test]
    fn a_log_without_errors_has_no_cause() {
        assert_eq!(
            cause_in("(00.01) Warn  (x.c:1): odd\n(00.02) Error (a.c:1): Can't open sysctl x\n"),
            None
        );
    }

    #[test]
    fn what_the_container_asks_of_criu_comes_last() {
        let text = config(
            &CheckpointOptions::default(),
            Path::new("/run/x/hold"),
            "tcp-close\n",
        );
        assert!(text.starts_with("tcp-established\n"));
        assert!(text.ends_with("tcp-close\n"));
        assert!(text.contains("action-script /run/x/hold\n"));
    }
}
