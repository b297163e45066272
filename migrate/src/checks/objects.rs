//! What processes of a container have open or mapped that CRIU cannot take.
//!
//! What CRIU knows is listed, all else is an objection: a kernel gains kinds of descriptors faster than CRIU learns them. It
//! looks at links, at what the kernel says beside them and at the kind of a file, and opens nothing: a descriptor of a
//! device may mean something to its driver.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, getxattr, statx};

use super::proc::{Descriptor, Proc};
use crate::finding::{Code, Finding};

/// Anonymous inodes that CRIU 4.2 dumps whatever is in them, besides those looked at one by one.
const ANONYMOUS: [&str; 5] = [
    "[eventfd]",
    "[eventpoll]",
    "[fanotify]",
    "[signalfd]",
    "[timerfd]",
];

/// Protocols, by the kernel's own names, whose sockets CRIU dumps.
const PROTOCOLS: [&str; 14] = [
    "NETLINK",
    "PACKET",
    "PING",
    "PINGv6",
    "RAW",
    "RAWv6",
    "TCP",
    "TCPv6",
    "UDP",
    "UDPv6",
    "UDP-Lite",
    "UDPLITEv6",
    "UNIX",
    "UNIX-STREAM",
];

/// The attribute by which the kernel names a socket's protocol; longer names than this do not exist.
const PROTOCOL_ATTRIBUTE: &str = "system.sockprotoname";
const MAX_PROTOCOL_BYTES: usize = 64;

/// Types of BPF maps that CRIU dumps: hash and array.
const BPF_MAPS: [&str; 2] = ["1", "2"];

/// The processes of one container, looked at for what cannot be dumped.
pub struct Look<'a> {
    proc: &'a Proc,
    first: u32,
    processes: BTreeSet<u32>,
    conditions: Conditions,
}

/// What decides besides the processes themselves.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// Watches on the container's own root can be dumped, because a path to search was named.
    pub finds_watches: bool,
    /// The version of this host's cgroups.
    pub cgroup_version: u8,
    /// Whoever dumps lacks `CAP_SYS_RESOURCE`.
    pub is_limited: bool,
}

/// What is wrong with something, and what to do; the processes that have it are added.
type Objection = (Code, String, String);

impl<'a> Look<'a> {
    /// The container whose first process is `first`.
    pub fn new(proc: &'a Proc, first: u32, conditions: Conditions) -> Self {
        Self {
            proc,
            first,
            processes: proc.processes(first),
            conditions,
        }
    }

    /// Everything that CRIU would refuse, each kind once.
    pub fn objections(&self) -> Vec<Finding> {
        let root = self.root_device();
        let mut found: BTreeMap<Objection, Vec<u32>> = BTreeMap::new();
        for pid in &self.processes {
            let mut objections: BTreeSet<Objection> = self
                .proc
                .descriptors(*pid)
                .iter()
                .filter_map(|descriptor| self.of_descriptor(*pid, descriptor, root))
                .collect();
            objections.extend(self.proc.read(*pid, "maps").lines().filter_map(of_mapping));
            objections.extend(self.of_state(*pid));
            objections.extend(self.of_user(*pid));
            for objection in objections {
                found.entry(objection).or_default().push(*pid);
            }
        }
        let describe = |((code, text, remedy), pids): (Objection, Vec<u32>)| {
            let more = match pids.len() {
                1 => String::new(),
                n => format!(" and {} more", n - 1),
            };
            let text = format!("{text}, in process {}{more}", self.proc.shown(pids[0]));
            Finding::problem(code, text, remedy)
        };
        found.into_iter().map(describe).collect()
    }

    fn of_descriptor(&self, pid: u32, descriptor: &Descriptor, root: Option<u64>) -> Option<Objection> {
        let info = || self.proc.read(pid, &format!("fdinfo/{}", descriptor.number));
        let target = descriptor.target.as_str();
        if target.starts_with("socket:") {
            return of_protocol(&protocol(&descriptor.link)?);
        }
        if target.starts_with('/') {
            let (kind, major, minor) = device(&descriptor.link)?;
            return of_device(kind, major, minor, target);
        }
        match target.strip_prefix("anon_inode:")? {
            "inotify" | "[inotify]" => of_watches(&info(), root.filter(|_| !self.conditions.finds_watches)?),
            "[pidfd]" => self.of_pidfd(&info()),
            "bpf-map" | "[bpf-map]" => of_bpf_map(&info()),
            kind => of_anonymous(kind),
        }
    }

    fn of_pidfd(&self, info: &str) -> Option<Objection> {
        let pid: i64 = value(info, "Pid:")?.parse().ok()?;
        // -1 is a process that has ended; CRIU makes another one that has.
        let inside = pid == -1 || u32::try_from(pid).is_ok_and(|pid| self.processes.contains(&pid));
        (!inside).then(|| {
            let text = "a pidfd of a process outside the container is open".to_owned();
            (Code::Pidfd, text, "close it".to_owned())
        })
    }

    /// CRIU freezes a container of cgroup v1 by its cgroup, and waits for ever for a process that is stopped in it.
    fn of_state(&self, pid: u32) -> Option<Objection> {
        let stat = self.proc.read(pid, "stat");
        let (_, behind_name) = stat.rsplit_once(") ")?;
        (self.conditions.cgroup_version == 1 && behind_name.starts_with('T')).then(|| {
            let text = "a signal has stopped a process, which CRIU waits for on cgroup v1".to_owned();
            (
                Code::StoppedProcess,
                text,
                "let it go on with kill -CONT".to_owned(),
            )
        })
    }

    /// CRIU asks for the limits of each process; of another user's they are told to `CAP_SYS_RESOURCE` alone, which root
    /// has over the users of a namespace below its own.
    fn of_user(&self, pid: u32) -> Option<Objection> {
        let theirs = fs::read_link(self.proc.of(pid, "ns/user")).ok();
        if theirs.is_some() && theirs != fs::read_link("/proc/self/ns/user").ok() {
            return None;
        }
        let status = self.proc.read(pid, "status");
        let is_other = |line: &str| {
            let ids = line.strip_prefix("Uid:").or_else(|| line.strip_prefix("Gid:"));
            ids.is_some_and(|ids| ids.split_whitespace().take(3).any(|id| id != "0"))
        };
        (self.conditions.is_limited && status.lines().any(is_other)).then(|| {
            let text = "a process has another user than root, and CAP_SYS_RESOURCE is missing".to_owned();
            let remedy =
                "give that to the engine and the agent, or let the engine map users (dockerd --userns-remap)";
            (Code::Capabilities, text, remedy.to_owned())
        })
    }

    /// The device number, as `fdinfo` writes one, of the container's root, if that is an overlay: its files have no
    /// handles by which CRIU could find them again.
    fn root_device(&self) -> Option<u64> {
        let root = self.proc.of(self.first, "root/");
        let kind = nix::sys::statfs::statfs(&root).ok()?.filesystem_type();
        if kind != nix::sys::statfs::OVERLAYFS_SUPER_MAGIC {
            return None;
        }
        let found = statx(CWD, &root, AtFlags::STATX_DONT_SYNC, StatxFlags::BASIC_STATS).ok()?;
        Some((u64::from(found.stx_dev_major) << 20) | u64::from(found.stx_dev_minor))
    }
}

/// The protocol of a socket, in the kernel's name.
fn protocol(link: &Path) -> Option<String> {
    let mut name = [0; MAX_PROTOCOL_BYTES];
    let length = getxattr(link, PROTOCOL_ATTRIBUTE, &mut name).ok()?;
    let name = name.get(..length)?;
    Some(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned())
}

fn of_protocol(protocol: &str) -> Option<Objection> {
    if PROTOCOLS.contains(&protocol) {
        return None;
    }
    let remedy = match protocol {
        "MPTCP" | "MPTCPv6" => "let the program use TCP; a program in Go does with GODEBUG=multipathtcp=0",
        _ => "let the program close it",
    };
    let text = format!("a socket of protocol {protocol} is open, which CRIU cannot take");
    Some((Code::Socket, text, remedy.to_owned()))
}

/// The kind and number of the file at the end of a link, without asking a server far away.
fn device(link: &Path) -> Option<(FileType, u32, u32)> {
    let found = statx(CWD, link, AtFlags::STATX_DONT_SYNC, StatxFlags::BASIC_STATS).ok()?;
    let kind = FileType::from_raw_mode(u32::from(found.stx_mode));
    Some((kind, found.stx_rdev_major, found.stx_rdev_minor))
}

/// CRIU knows memory's own devices (`/dev/null`), terminals, `/dev/net/tun` and autofs.
fn of_device(kind: FileType, major: u32, minor: u32, path: &str) -> Option<Objection> {
    let shape = match kind {
        FileType::CharacterDevice => match (major, minor) {
            (1 | 4 | 5 | 136..=143, _) | (10, 200 | 235) => return None,
            _ => "character",
        },
        FileType::BlockDevice => "block",
        _ => return None,
    };
    let text = format!("{path} is open, a {shape} device ({major}:{minor}) that CRIU cannot take");
    let remedy = "let the program close it; a program that lives on a device cannot be moved";
    Some((Code::OpenDevice, text, remedy.to_owned()))
}

fn of_anonymous(kind: &str) -> Option<Objection> {
    if ANONYMOUS.contains(&kind) {
        return None;
    }
    let kind = kind.trim_matches(['[', ']']);
    let remedy = match kind {
        "io_uring" => "switch io_uring off in the program",
        "perf_event" => "end the profiling",
        "seccomp notify" => "end what supervises its system calls",
        _ if kind.starts_with("kvm") => "a virtual machine has a migration of its own",
        _ => "let the program close it",
    };
    let text = format!("{kind} is open, a kernel object that CRIU cannot take");
    Some((Code::KernelObject, text, remedy.to_owned()))
}

fn of_bpf_map(info: &str) -> Option<Objection> {
    if value(info, "map_type:").is_some_and(|kind| BPF_MAPS.contains(&kind)) {
        return None;
    }
    of_anonymous("bpf-map of another type than hash and array")
}

/// Watches on the file system with this device number.
fn of_watches(info: &str, root: u64) -> Option<Objection> {
    let on_root = |line: &str| {
        let device = line
            .split_whitespace()
            .find_map(|field| field.strip_prefix("sdev:"));
        line.starts_with("inotify ")
            && device.and_then(|device| u64::from_str_radix(device, 16).ok()) == Some(root)
    };
    info.lines().any(on_root).then(|| {
        let remedy = "watch on a volume, a bind mount or a tmpfs, or name the directory by \
                      --annotation io.godwit.checkpoint.irmap-scan-path";
        let text = "inotify watches a file of the container's own root, which CRIU cannot find again";
        (Code::Inotify, text.to_owned(), remedy.to_owned())
    })
}

/// A line of `maps`: `7f00-7f01 rw-s 00000000 00:05 12   /dev/dri/card0`.
fn of_mapping(line: &str) -> Option<Objection> {
    let file = line.splitn(6, ' ').nth(5)?.trim_start();
    if let Some(kind) = file.strip_prefix("anon_inode:") {
        return of_anonymous(kind);
    }
    let is_device =
        file.starts_with("/dev/") && !file.starts_with("/dev/zero") && !file.starts_with("/dev/shm/");
    is_device.then(|| {
        let text = format!("memory of {file} is mapped, which CRIU cannot take");
        (
            Code::MappedDevice,
            text,
            "let the program close the device".to_owned(),
        )
    })
}

fn value<'a>(info: &'a str, key: &str) -> Option<&'a str> {
    info.lines()
        .find_map(|line| line.strip_prefix(key))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::super::proc::recorded::Recorded;
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    fn told(recorded: &Recorded) -> Vec<String> {
        let proc = recorded.proc();
        let conditions = Conditions {
            finds_watches: false,
            cgroup_version: 1,
            is_limited: true,
        };
        let found = Look::new(&proc, 10, conditions).objections();
        found
            .iter()
            .map(|finding| format!("{:?} {finding}", finding.code))
            .collect()
    }

    #[test]
    fn what_criu_knows_is_no_obstacle() {
        let recorded = Recorded::new(&[10, 11]);
        for (number, target) in [
            "anon_inode:[eventfd]",
            "anon_inode:[eventpoll]",
            "pipe:[12]",
            "anon_inode:[pidfd]",
            "anon_inode:bpf-map",
            "/nonexistent/file",
            "/memfd:x (deleted)",
        ]
        .iter()
        .enumerate()
        {
            recorded.link(10, &format!("fd/{number}"), target);
        }
        recorded.file(10, "fdinfo/3", "pos:\t0\nPid:\t11\nNSpid:\t11\t2\n");
        recorded.file(10, "fdinfo/4", "map_type:\t2\n");
        recorded.file(11, "stat", "11 (a) T) S 10 1\n");
        recorded.file(10, "status", "Uid:\t100000\t100000\t100000\t100000\n");
        recorded.link(10, "ns/user", "user:[1]");
        recorded.file(11, "status", "Name:\ta\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\n");
        recorded.file(10, "maps", "7f0000-7f0001 rw-s 00000000 00:01 12                         /dev/zero (deleted)\n\
                                   7f0001-7f0002 r-xp 00000000 08:01 99                         /lib/libc.so.6\n\
                                   7f0002-7f0003 rw-p 00000000 00:00 0 \n\
                                   7f0003-7f0004 r--p 00000000 00:00 0                          [vvar]\n");
        assert_eq!(told(&recorded), Vec::<String>::new());
    }

    #[test]
    fn each_kind_is_told_once_with_its_first_process() {
        let recorded = Recorded::new(&[10, 11, 12]);
        for pid in [11, 12] {
            recorded.link(pid, "fd/4", "anon_inode:[io_uring]");
            recorded.link(pid, "fd/5", "anon_inode:[io_uring]");
        }
        recorded.link(10, "fd/6", "anon_inode:[userfaultfd]");
        recorded.link(10, "fd/7", "anon_inode:[pidfd]");
        recorded.file(10, "fdinfo/7", "Pid:\t4711\n");
        recorded.link(10, "fd/8", "anon_inode:bpf-map");
        recorded.file(10, "fdinfo/8", "map_type:\t27\n");
        recorded.file(
            10,
            "maps",
            "7f0000-7f0001 rw-s 00000000 00:05 12                         /dev/dri/card0\n",
        );
        recorded.file(12, "stat", "12 (stopped one) T 10 1\n");
        recorded.file(12, "status", "Uid:\t0\t0\t0\t0\nGid:\t0\t999\t999\t999\n");
        let all = told(&recorded);
        for part in [
            "KernelObject io_uring is open, a kernel object that CRIU cannot take, in process 11 (program11) and 1 more; switch",
            "KernelObject userfaultfd is open",
            "KernelObject bpf-map of another type",
            "Pidfd a pidfd of a process outside",
            "MappedDevice memory of /dev/dri/card0 is mapped",
            "Capabilities a process has another user than root, and CAP_SYS_RESOURCE is missing, in process 12 (program12);",
            "StoppedProcess a signal has stopped a process, which CRIU waits for on cgroup v1, in process 12 (program12);",
        ] {
            assert_eq!(
                all.iter().filter(|one| one.starts_with(part)).count(),
                1,
                "{part} is not in {all:#?}"
            );
        }
        assert_eq!(all.len(), 7, "{all:#?}");
    }

    #[test]
    fn devices_are_known_by_their_numbers() {
        let refused = |kind, major, minor| of_device(kind, major, minor, "/dev/x").is_some();
        for (major, minor) in [(1, 3), (5, 0), (136, 7), (10, 200)] {
            assert!(
                !refused(FileType::CharacterDevice, major, minor),
                "{major}:{minor}"
            );
        }
        assert!(refused(FileType::CharacterDevice, 10, 229));
        assert!(refused(FileType::CharacterDevice, 226, 0));
        assert!(refused(FileType::BlockDevice, 7, 0));
        assert!(!refused(FileType::RegularFile, 0, 0));
        assert_eq!(
            device(Path::new("/dev/null")),
            Some((FileType::CharacterDevice, 1, 3))
        );
    }

    #[test]
    fn the_protocol_of_a_socket_is_the_kernels_name_of_it() {
        let (one, _other) = UnixStream::pair().unwrap();
        let link = format!("/proc/self/fd/{}", one.as_raw_fd());
        assert_eq!(protocol(Path::new(&link)).as_deref(), Some("UNIX-STREAM"));
        assert_eq!(of_protocol("UNIX-STREAM"), None);
        let (code, text, remedy) = of_protocol("MPTCP").unwrap();
        assert!(
            code == Code::Socket && text.contains("MPTCP") && remedy.contains("GODEBUG"),
            "{text}"
        );
    }

    #[test]
    fn a_watch_counts_on_the_containers_own_root_only() {
        let info = "pos:\t0\ninotify wd:1 ino:2f sdev:2b mask:100 ignored_mask:0 fhandle-bytes:8\n";
        assert!(of_watches(info, 0x2b).is_some());
        assert!(of_watches(info, 0x2c).is_none());
        assert!(of_watches("pos:\t0\n", 0x2b).is_none());
    }
}
