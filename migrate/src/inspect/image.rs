//! A checkpoint image as an inspection: the tree of processes, and what each of them has, out of CRIU's files.
//!
//! A file that is missing where CRIU always writes one is damage; what only says more may be away.

use std::collections::BTreeSet;
use std::io;

use godwit_runtime::image::Manifest;
use godwit_runtime::image_file::{Field, damaged, entries_in, fields};
use godwit_runtime::pages::layout::tree_entry;

use super::budget::Budget;
use super::collected::{Collected, LOG, number_of};
use super::files::Files;
use super::memory::Memory;
use super::mounts;
use super::view::{Inspection, Origin, Process, State, Subject, in_tree_order};

/// The states of a task (criu/include/image.h).
const STOPPED: u64 = 3;
const DEAD: [u64; 2] = [2, 6];

/// Machines of CRIU's `core.proto`, as `uname -m` calls them.
const MACHINES: [(u64, &str); 8] = [
    (1, "x86_64"),
    (2, "arm"),
    (3, "aarch64"),
    (4, "ppc64le"),
    (5, "s390x"),
    (6, "mips64"),
    (7, "loongarch64"),
    (8, "riscv64"),
];

/// Parts of a task's registers (`user_x86_xsave_entry`) that only a processor with these instructions has.
const REGISTERS: [(u32, &str); 5] = [
    (2, "avx"),
    (5, "avx512f"),
    (6, "avx512f"),
    (7, "avx512f"),
    (8, "pku"),
];

/// An image, looked at.
#[derive(Debug)]
pub struct Image {
    /// What was found, without any judgement.
    pub inspection: Inspection,
    /// Godwit's own description of it, if it has one.
    pub manifest: Option<Manifest>,
    /// What is missing of it, or damaged.
    pub damage: Option<String>,
}

impl Image {
    /// Reads what was collected of an image.
    pub fn read(subject: Subject, collected: &Collected) -> io::Result<Self> {
        let mut budget = Budget::default();
        file(collected, "inventory.img")?;
        let files = Files::read(collected)?;
        let mut memory = Memory::new(collected, &files);
        let (mut processes, mut origin, mut flags) = (Vec::new(), Origin::default(), BTreeSet::new());
        each(collected, "pstree.img", |entry| {
            let entry = tree_entry(entry)?;
            let core = Core::read(collected, entry.pid)?;
            origin.architecture = core.architecture.map(str::to_owned);
            flags.extend(core.flags);
            let (open, sockets) = files.of(collected, core.files_id, entry.pid, &mut budget)?;
            processes.push(Process {
                pid: entry.pid,
                host_pid: None,
                parent: entry.parent,
                name: budget.entry(&core.name)?,
                command: None,
                state: core.state,
                threads: entry.n_threads,
                memory: memory.of(entry.pid, &mut budget)?,
                files: open,
                sockets,
            });
            Ok(())
        })?;
        let processes = in_tree_order(processes).ok_or_else(|| damaged("its processes are no tree"))?;
        let (mounts, cgroup_version) = mounts::of_image(collected, &mut budget)?;
        origin.cgroup_version = cgroup_version;
        origin.cpu_flags = flags.into_iter().map(str::to_owned).collect();
        (origin.criu, origin.kernel) = logged(collected);
        let (manifest, damage) = seal(collected);
        let damage = damage.or(memory.damage);
        origin.sealed = damage.is_none() && manifest.as_ref().is_some_and(Manifest::is_sealed);
        let mut inspection = Inspection::new(subject, processes, mounts);
        inspection.subject.id = inspection
            .subject
            .id
            .or_else(|| manifest.as_ref().map(|one| one.id.clone()));
        let (pages, metadata) = collected.bytes();
        inspection.sizes.pages_bytes = Some(pages);
        inspection.sizes.metadata_bytes = Some(metadata);
        inspection.origin = Some(origin);
        Ok(Self {
            inspection,
            manifest,
            damage,
        })
    }
}

/// The versions of CRIU and of the kernel that a log of the dump begins with.
fn logged(collected: &Collected) -> (Option<String>, Option<String>) {
    let log = String::from_utf8_lossy(collected.file(LOG).unwrap_or_default());
    // `(00.000021) Version: 4.2.1 (gitid 0)`, `(00.000035) Running on ha Linux 6.12.1 #1 SMP … x86_64`
    let behind = |key: &str, n_words| {
        let line = log.lines().find_map(|line| line.split_once(key))?.1;
        line.split_whitespace().nth(n_words).map(str::to_owned)
    };
    (behind(") Version: ", 0), behind(") Running on ", 2))
}

/// Godwit's description, and what of what it says is not so.
fn seal(collected: &Collected) -> (Option<Manifest>, Option<String>) {
    let Some(text) = collected.file(godwit_runtime::image::MANIFEST) else {
        return (None, None);
    };
    match Manifest::parse(text) {
        Err(error) => (None, Some(error.to_string())),
        Ok(manifest) => {
            let damage = manifest
                .check_sizes(|name| Ok(collected.sizes.get(name).copied().unwrap_or(0)))
                .err();
            (Some(manifest), damage.map(|error| error.to_string()))
        }
    }
}

/// What is read of a task's image, which has its registers.
struct Core {
    name: Vec<u8>,
    state: State,
    architecture: Option<&'static str>,
    flags: Vec<&'static str>,
    files_id: Option<u64>,
}

impl Core {
    fn read(collected: &Collected, pid: u32) -> io::Result<Self> {
        let mut core = Self {
            name: Vec::new(),
            state: State::Alive,
            architecture: None,
            flags: Vec::new(),
            files_id: None,
        };
        each(collected, &format!("core-{pid}.img"), |entry| {
            let machine = number_within(entry, 1)?;
            let known = MACHINES.iter().find(|(number, _)| Some(*number) == machine);
            core.architecture = known.map(|(_, name)| *name);
            if let Some(task) = within(entry, 3)? {
                fields(&task, |number, value| match (number, value) {
                    (1, Field::Number(STOPPED)) => core.state = State::Stopped,
                    (1, Field::Number(state)) if DEAD.contains(&state) => core.state = State::Zombie,
                    (6, Field::Message(name)) => core.name = name,
                    _ => {}
                })?;
            }
            if let Some(ids) = within(entry, 4)? {
                core.files_id = number_within(&ids, 2)?;
            }
            let registers = within(entry, 2)?
                .map(|all| within(&all, 3))
                .transpose()?
                .flatten();
            if let Some(extended) = registers.map(|all| within(&all, 13)).transpose()?.flatten() {
                fields(&extended, |number, _| {
                    let known = REGISTERS.iter().filter(|(part, _)| *part == number);
                    core.flags.extend(known.map(|(_, flag)| *flag));
                })?;
                core.flags.dedup();
            }
            Ok(())
        })?;
        let ids = format!("ids-{pid}.img");
        if core.files_id.is_none() && collected.file(&ids).is_some() {
            each(collected, &ids, |entry| {
                core.files_id = number_within(entry, 2)?;
                Ok(())
            })?;
        }
        Ok(core)
    }
}

/// Calls `each` with the entries of a file that must be there.
pub(super) fn each(
    collected: &Collected,
    name: &str,
    each: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    entries_in(file(collected, name)?, each)
        .map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))
}

fn file<'a>(collected: &'a Collected, name: &str) -> io::Result<&'a [u8]> {
    collected
        .file(name)
        .ok_or_else(|| damaged(&format!("it has no {name}")))
}

/// The last message in the field `wanted` of another.
pub(super) fn within(message: &[u8], wanted: u32) -> io::Result<Option<Vec<u8>>> {
    let mut found = None;
    fields(message, |number, value| {
        if let Field::Message(inner) = value
            && number == wanted
        {
            found = Some(inner);
        }
    })?;
    Ok(found)
}

/// The last number in the field `wanted` of a message.
pub(super) fn number_within(message: &[u8], wanted: u32) -> io::Result<Option<u64>> {
    let mut found = None;
    fields(message, |number, value| {
        if let Field::Number(value) = value
            && number == wanted
        {
            found = Some(value);
        }
    })?;
    Ok(found)
}

/// The numbers in the names of files that begin with `prefix`.
pub(super) fn numbers(collected: &Collected, prefix: &str) -> Vec<u32> {
    let names = collected.names(prefix);
    names
        .filter_map(|name| number_of(name, (prefix, ".img")))
        .collect()
}
