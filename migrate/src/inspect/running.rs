//! A running container, out of `/proc`. It is not frozen: what is told of one process may be older than of the next, and
//! what has ended meanwhile is left out. Nothing in the container is written to, opened or asked.
//!
//! The kernel walks a process' pages to say how much of each mapping is there, some 30 ms for each gigabyte, and the process
//! waits meanwhile if it maps or unmaps something.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;

use super::budget::Budget;
use super::files::{shown, tcp_state};
use super::mounts;
use super::view::{
    Inspection, Mapping, MemoryKind, Mount, OpenFile, Process, Socket, State, Subject, in_tree_order,
};
use crate::checks::connections::parse_endpoint;
use crate::checks::proc::{Descriptor, Proc, kilobytes};

/// More processes than this fill no screen, and no container.
const MAX_PROCESSES: usize = 10_000;

/// A command line is shown, not run.
const COMMAND_BYTES: usize = 4096;

/// Sockets that wait for connections, in the kernel's table of unix sockets (`__SO_ACCEPTCON`).
const ACCEPTS: u64 = 1 << 16;

/// Looks at the container whose first process is `first` on this host.
pub fn look(proc: &Proc, subject: Subject, first: u32) -> io::Result<Inspection> {
    let pids = proc.processes(first);
    if pids.len() > MAX_PROCESSES {
        let text = format!(
            "it has {} processes: more than {MAX_PROCESSES} are not told",
            pids.len()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut budget = Budget::default();
    let level = levels(&proc.read(first, "status")).saturating_sub(1);
    let sockets = sockets(proc, first);
    let (mut processes, mut inside) = (Vec::new(), HashMap::new());
    for pid in pids {
        let status = proc.read(pid, "status");
        let Some(own) = pid_inside(&status, level) else {
            continue;
        };
        inside.insert(pid, own);
        let parent = number(&status, "PPid:").unwrap_or(0);
        let (files, open_sockets) = open(proc, pid, &sockets, &mut budget)?;
        processes.push(Process {
            pid: own,
            host_pid: Some(pid),
            parent,
            name: budget.entry(proc.read(pid, "comm").trim_end().as_bytes())?,
            command: command(proc, pid, &mut budget)?,
            state: state(&status),
            threads: number(&status, "Threads:").unwrap_or(1) as usize,
            memory: memory(&proc.read(pid, "smaps"), &mut budget)?,
            files,
            sockets: open_sockets,
        });
    }
    for process in &mut processes {
        process.parent = inside.get(&process.parent).copied().unwrap_or(0);
    }
    // Two lines of one table at two times: a process that has gone to another parent between them.
    let processes = in_tree_order(processes)
        .ok_or_else(|| io::Error::other("its processes have changed meanwhile: ask again"))?;
    let mut mounts = mounted(&proc.read(first, "mountinfo"), &mut budget)?;
    mounts::sort(&mut mounts);
    Ok(Inspection::new(subject, processes, mounts))
}

fn number(status: &str, key: &str) -> Option<u32> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}

/// In how many pid namespaces a process has a number.
fn levels(status: &str) -> usize {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.map_or(0, |line| line.split_whitespace().count())
}

/// Its number in the namespace of that level.
fn pid_inside(status: &str, level: usize) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().nth(level)?.parse().ok()
}

fn state(status: &str) -> State {
    let line = status.lines().find_map(|line| line.strip_prefix("State:"));
    match line.and_then(|line| line.trim_start().chars().next()) {
        Some('T') => State::Stopped,
        Some('Z' | 'X') => State::Zombie,
        _ => State::Alive,
    }
}

fn command(proc: &Proc, pid: u32, budget: &mut Budget) -> io::Result<Option<String>> {
    let mut words = fs::read(proc.of(pid, "cmdline")).unwrap_or_default();
    words.truncate(COMMAND_BYTES);
    while words.last() == Some(&0) {
        words.pop();
    }
    if words.is_empty() {
        return Ok(None);
    }
    let words: Vec<u8> = words
        .iter()
        .map(|byte| if *byte == 0 { b' ' } else { *byte })
        .collect();
    budget.entry(&words).map(Some)
}

/// The mappings of `smaps`: a line as in `maps` for each, and lines of sizes behind it.
fn memory(smaps: &str, budget: &mut Budget) -> io::Result<Vec<Mapping>> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        if line.starts_with(|letter: char| letter.is_ascii_uppercase()) {
            if let Some(mapping) = mappings.last_mut() {
                // A page of swap space that several share counts so as well.
                let share = kilobytes(line, "Pss:") + kilobytes(line, "SwapPss:");
                mapping.memory_bytes += share * 1024;
            }
        } else if let Some((addresses, access, name)) = mapping_line(line) {
            mappings.push(Mapping {
                start: format!("{:x}", addresses.0),
                size_bytes: addresses.1.saturating_sub(addresses.0),
                access: access.to_owned(),
                kind: kind(access, name),
                // What memory without a file is called that several share.
                name: budget.entry(
                    name.strip_prefix("/dev/zero (deleted)")
                        .unwrap_or(name)
                        .as_bytes(),
                )?,
                memory_bytes: 0,
                zero_bytes: None,
            });
        }
    }
    Ok(mappings)
}

/// Addresses, access and name of a line like `7f00-7f01 rw-p 00000000 00:05 12   /dev/zero`.
fn mapping_line(line: &str) -> Option<((u64, u64), &str, &str)> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let access = fields.next()?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    let name = fields.nth(3).unwrap_or_default().trim_start();
    Some(((address(start)?, address(end)?), access, name))
}

fn kind(access: &str, name: &str) -> MemoryKind {
    const KERNEL: [&str; 4] = ["[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]"];
    if KERNEL.contains(&name) {
        MemoryKind::Kernel
    } else if access.ends_with('s') {
        MemoryKind::Shared
    } else if name.starts_with('/') {
        MemoryKind::File
    } else {
        MemoryKind::Anonymous
    }
}

/// What a process has open.
fn open(
    proc: &Proc,
    pid: u32,
    known: &BTreeMap<u64, Socket>,
    budget: &mut Budget,
) -> io::Result<(Vec<OpenFile>, Vec<Socket>)> {
    let (mut files, mut sockets) = (Vec::new(), Vec::new());
    for descriptor in proc.descriptors(pid) {
        let Ok(number) = descriptor.number.parse() else {
            continue;
        };
        budget.entry(descriptor.target.as_bytes())?;
        if let Some(inode) = inode(&descriptor.target) {
            let mut socket = known
                .get(&inode)
                .cloned()
                .unwrap_or_else(|| Socket::plain(0, "socket"));
            socket.descriptor = number;
            sockets.push(socket);
        } else {
            files.push(file(proc, pid, number, &descriptor));
        }
    }
    files.sort_by_key(|file| file.descriptor);
    sockets.sort_by_key(|socket| socket.descriptor);
    Ok((files, sockets))
}

fn inode(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn file(proc: &Proc, pid: u32, number: u32, descriptor: &Descriptor) -> OpenFile {
    let target = descriptor.target.as_str();
    let kind = match target.strip_prefix("anon_inode:") {
        Some(kind) => match kind.trim_matches(['[', ']']) {
            "eventpoll" => "epoll",
            "bpf-map" => "bpf",
            kind => kind,
        },
        None if target.starts_with("pipe:") => "pipe",
        None if target.starts_with("/memfd:") => "memfd",
        None if target.starts_with("/dev/pts/") || target == "/dev/console" => "terminal",
        None if !target.starts_with('/') => "namespace",
        None => "file",
    };
    let position = || {
        let info = proc.read(pid, &format!("fdinfo/{}", descriptor.number));
        info.lines()
            .find_map(|line| line.strip_prefix("pos:")?.trim().parse().ok())
    };
    OpenFile {
        descriptor: number,
        kind: kind.into(),
        name: if target.starts_with("anon_inode:") {
            String::new()
        } else {
            target.into()
        },
        position: if kind == "file" { position() } else { None },
    }
}

/// The sockets in the network namespace of a process, by their inodes.
fn sockets(proc: &Proc, pid: u32) -> BTreeMap<u64, Socket> {
    let mut found = BTreeMap::new();
    for (table, protocol) in [("tcp", "tcp"), ("tcp6", "tcp"), ("udp", "udp"), ("udp6", "udp")] {
        let table = proc.read(pid, &format!("net/{table}"));
        found.extend(table.lines().skip(1).filter_map(|line| internet(line, protocol)));
    }
    found.extend(proc.read(pid, "net/unix").lines().skip(1).filter_map(unix));
    for (table, place) in [("netlink", 9), ("packet", 8)] {
        let text = proc.read(pid, &format!("net/{table}"));
        let inodes = text
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().nth(place)?.parse().ok());
        found.extend(inodes.map(|inode: u64| (inode, Socket::plain(0, table))));
    }
    found
}

fn internet(line: &str, protocol: &str) -> Option<(u64, Socket)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let mut socket = Socket::plain(0, protocol);
    socket.local = shown(parse_endpoint(fields.get(1)?)?);
    socket.remote = shown(parse_endpoint(fields.get(2)?)?);
    if protocol == "tcp" {
        socket.state = tcp_state(u64::from_str_radix(fields.get(3)?, 16).ok()?).into();
    }
    Some((fields.get(9)?.parse().ok()?, socket))
}

/// A line like `ffff8880: 00000002 00000000 00010000 0001 01  4242 /run/socket`.
fn unix(line: &str) -> Option<(u64, Socket)> {
    let (mut fields, mut rest) = ([""; 7], line);
    for field in &mut fields {
        (*field, rest) = rest
            .trim_start()
            .split_once(' ')
            .unwrap_or((rest.trim_start(), ""));
    }
    let [_, _, _, flags, _, state, inode] = fields;
    let flags = u64::from_str_radix(flags, 16).ok()?;
    let mut socket = Socket::plain(0, "unix");
    socket.state = match state {
        _ if flags & ACCEPTS != 0 => "listen",
        "03" => "established",
        _ => "",
    }
    .into();
    rest.clone_into(&mut socket.local);
    Some((inode.parse().ok()?, socket))
}

/// Lines like `36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/root rw`.
fn mounted(mountinfo: &str, budget: &mut Budget) -> io::Result<Vec<Mount>> {
    let mut mounts = Vec::new();
    for line in mountinfo.lines() {
        let Some((before, behind)) = line.split_once(" - ") else {
            continue;
        };
        let before: Vec<&str> = before.split(' ').collect();
        let behind: Vec<&str> = behind.split(' ').collect();
        let (Some(root), Some(path), Some(options)) = (before.get(3), before.get(4), before.get(5)) else {
            continue;
        };
        let mut text = |text: &str| budget.entry(unescaped(text).as_bytes());
        mounts.push(Mount {
            path: text(path)?,
            kind: text(behind.first().unwrap_or(&""))?,
            root: text(root)?,
            source: text(behind.get(1).unwrap_or(&""))?,
            read_only: options.split(',').any(|option| option == "ro"),
        });
    }
    Ok(mounts)
}

/// The kernel writes what would end a field as `\040`.
fn unescaped(text: &str) -> String {
    let letters = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    letters.iter().fold(text.to_owned(), |text, (escape, letter)| {
        text.replace(escape, letter)
    })
}
