//! What an inspection says, as the local API and `--json` give it: documented in `docs/cli/inspect.md`, and stable. Fields may
//! be added; none is taken away or changes its meaning without another [`SCHEMA`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::finding::Finding;

/// The form of this release.
pub const SCHEMA: u32 = 1;

/// All that is told of one container, image or archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What was looked at.
    pub subject: Subject,
    /// Where it was dumped, as far as that is told; nothing of a running container.
    pub origin: Option<Origin>,
    /// In the order of their tree: each behind the one above it, with all of its own before the next.
    pub processes: Vec<Process>,
    /// What is mounted in the container, by path.
    pub mounts: Vec<Mount>,
    /// Sums.
    pub sizes: Sizes,
    /// What would hinder a checkpoint and a restore on this host, and what would not; problems first.
    pub findings: Vec<Finding>,
    /// Whether no finding is a problem.
    pub restorable: bool,
}

/// What was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// Which sort of thing.
    pub kind: SubjectKind,
    /// The container's name, or the path as it was given.
    pub name: String,
    /// The container's id, as far as it is told.
    pub id: Option<String>,
    /// The container's engine; nothing of an image.
    pub engine: Option<String>,
    /// The name that the container's own image was asked for by, as far as it is told.
    pub image: Option<String>,
    /// The state of a container, in its engine's words.
    pub state: Option<String>,
    /// The host that an archive says has signed it, which was not checked.
    #[serde(default)]
    pub signed_by: Option<String>,
}

/// The sorts of things that can be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SubjectKind {
    /// A running container.
    Container,
    /// A directory with a checkpoint image.
    Directory,
    /// A file with an image and what belongs to it.
    Archive,
}

/// The host of a dump. An image says little of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// As in `uname -m`.
    pub architecture: Option<String>,
    /// The kernel's release.
    pub kernel: Option<String>,
    /// CRIU's version.
    pub criu: Option<String>,
    /// runC's version.
    pub runc: Option<String>,
    /// The version of the cgroups that the container sees: 1 or 2.
    pub cgroup_version: Option<u8>,
    /// Instruction sets that were in use in the processes' registers.
    pub cpu_flags: Vec<String>,
    /// Whether Godwit has sealed the image: it lists its files, and all of them are there.
    pub sealed: bool,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// In the container's pid namespace.
    pub pid: u32,
    /// On this host, of a running container.
    pub host_pid: Option<u32>,
    /// The process above it, in the container's pid namespace; 0 if that is outside.
    pub parent: u32,
    /// What the kernel calls it: 15 letters of its program's name.
    pub name: String,
    /// Its command line, of a running container.
    pub command: Option<String>,
    /// How it is.
    pub state: State,
    /// How many threads it has.
    pub threads: usize,
    /// Its mappings, ascending.
    pub memory: Vec<Mapping>,
    /// What it has open, without sockets.
    pub files: Vec<OpenFile>,
    /// The sockets it has open.
    pub sockets: Vec<Socket>,
}

/// How a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It runs, or waits for something.
    Alive,
    /// A signal has stopped it.
    Stopped,
    /// It has ended, and nobody has asked how.
    Zombie,
}

/// One mapping of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// Its first byte, in hexadecimal: an address is more than many readers of JSON take for a number.
    pub start: String,
    /// How far it reaches.
    pub size_bytes: u64,
    /// As in `/proc/PID/maps`: `rw-p`.
    pub access: String,
    /// What it is.
    pub kind: MemoryKind,
    /// The file, or the kernel's name such as `[heap]`; empty of anonymous memory.
    pub name: String,
    /// What of it is memory. Of a running container its share, in memory and in swap space: a page that N processes share
    /// counts as its Nth part. Of an image what lies in it, of shared memory with the first process that maps it.
    pub memory_bytes: u64,
    /// How much of that is pages of nothing but zeros; nothing where that was not looked at.
    pub zero_bytes: Option<u64>,
}

/// What a mapping is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryKind {
    /// The process' own, of no file.
    Anonymous,
    /// Of a file; what was written to is the process' own.
    File,
    /// Shared: written by one, seen by all; of a file, or of none.
    Shared,
    /// The kernel's: `[vdso]` and the like.
    Kernel,
}

/// Something open that is no socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFile {
    /// The descriptor.
    pub descriptor: u32,
    /// `file`, `pipe`, `fifo`, `terminal`, `eventfd`, `epoll`, `signalfd`, `timerfd`, `inotify`, `fanotify`, `memfd`, `pidfd`,
    /// `bpf`, `namespace`, `tun`, or the kernel's word.
    pub kind: String,
    /// The path in the container of what has one.
    pub name: String,
    /// Where the next byte is read or written, of a file.
    pub position: Option<u64>,
}

/// An open socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// The descriptor.
    pub descriptor: u32,
    /// `tcp`, `udp`, `unix`, `netlink`, `packet`, or `socket` of what is none of these.
    pub protocol: String,
    /// `established`, `listen` and the like; empty where the protocol has none.
    pub state: String,
    /// Its own address: `10.0.0.2:80`, or a path.
    pub local: String,
    /// The other end's, if there is one.
    pub remote: String,
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where, in the container.
    pub path: String,
    /// The kind of its file system.
    pub kind: String,
    /// What of that file system is mounted: a path in it.
    pub root: String,
    /// What the kernel calls its source.
    pub source: String,
    /// Whether nobody may write to it.
    pub read_only: bool,
}

/// Sums over all processes, and over the files of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Memory by its kind, zeros included: a name of [`MemoryKind`], and bytes.
    pub memory: BTreeMap<String, u64>,
    /// All of it.
    pub memory_bytes: u64,
    /// Pages of zeros among it; nothing where that was not looked at.
    pub zero_bytes: Option<u64>,
    /// The image's files of pages.
    pub pages_bytes: Option<u64>,
    /// All other files of the image.
    pub metadata_bytes: Option<u64>,
    /// What an archive holds besides the image, by its names there.
    pub parts: BTreeMap<String, u64>,
}

impl MemoryKind {
    /// All, in the order in which they are told.
    pub const ALL: [Self; 4] = [Self::Anonymous, Self::File, Self::Shared, Self::Kernel];

    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::File => "file",
            Self::Shared => "shared",
            Self::Kernel => "kernel",
        }
    }
}

impl Process {
    /// The sum of its mappings.
    pub fn memory_bytes(&self) -> u64 {
        total(self.memory.iter().map(|mapping| mapping.memory_bytes))
    }
}

impl Inspection {
    /// Of what was found in `subject`, with no finding yet.
    pub fn new(subject: Subject, processes: Vec<Process>, mounts: Vec<Mount>) -> Self {
        let mut sizes = Sizes::default();
        for mapping in processes.iter().flat_map(|process| &process.memory) {
            let kind = mapping.kind.as_str().to_owned();
            let of_kind = sizes.memory.entry(kind).or_default();
            *of_kind = of_kind.saturating_add(mapping.memory_bytes);
            sizes.memory_bytes = sizes.memory_bytes.saturating_add(mapping.memory_bytes);
            if let Some(zeros) = mapping.zero_bytes {
                sizes.zero_bytes = Some(sizes.zero_bytes.unwrap_or(0).saturating_add(zeros));
            }
        }
        Self {
            schema: SCHEMA,
            subject,
            origin: None,
            processes,
            mounts,
            sizes,
            findings: Vec::new(),
            restorable: true,
        }
    }

    /// Adds what was found, problems first.
    pub fn find(&mut self, findings: Vec<Finding>) {
        self.findings.extend(findings);
        self.findings
            .sort_by_key(|finding| std::cmp::Reverse(finding.level));
        self.restorable = !self.findings.iter().any(Finding::is_problem);
    }

    /// Above how many others each process stands, in the order of the processes.
    pub fn depths(&self) -> Vec<usize> {
        let mut depths: BTreeMap<u32, usize> = BTreeMap::new();
        self.processes
            .iter()
            .map(|process| {
                let depth = depths.get(&process.parent).map_or(0, |above| above + 1);
                depths.insert(process.pid, depth);
                depth
            })
            .collect()
    }
}

/// Puts processes into the order of their tree; or says that they are none. What goes in a circle has no place in it.
pub(super) fn in_tree_order(processes: Vec<Process>) -> Option<Vec<Process>> {
    let n_processes = processes.len();
    let mut by_pid: BTreeMap<u32, Process> = BTreeMap::new();
    let mut below: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for process in processes {
        below.entry(process.parent).or_default().push(process.pid);
        by_pid.insert(process.pid, process);
    }
    if by_pid.len() < n_processes {
        return None;
    }
    let mut open: Vec<u32> = by_pid
        .values()
        .filter(|process| !by_pid.contains_key(&process.parent))
        .map(|process| process.pid)
        .collect();
    open.reverse();
    let mut ordered = Vec::with_capacity(n_processes);
    while let Some(pid) = open.pop() {
        let mut children = below.remove(&pid).unwrap_or_default();
        children.sort_unstable_by(|one, other| other.cmp(one));
        open.extend(children);
        ordered.extend(by_pid.remove(&pid));
    }
    (ordered.len() == n_processes).then_some(ordered)
}

/// A text that somebody else wrote, for a terminal or a picture: without what would steer either.
pub fn printable(text: &str) -> String {
    let steers = |letter: char| {
        letter.is_control()
            || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.replace(steers, "\u{fffd}")
}

/// A sum of sizes, of which somebody else may have said that each is the largest there is.
pub fn total(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(0, u64::saturating_add)
}

/// A number of bytes for a person.
pub fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}
