//! Reads `/proc`, or a recorded tree like it: the processes of a container and what the kernel says of each.
//!
//! A process may end while it is looked at; what can no longer be read is passed over, since it will not be dumped.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Processes looked at when a container is measured; more than any container has.
const MAX_PROCESSES: usize = 100_000;

/// A `/proc`.
#[derive(Clone, Debug)]
pub struct Proc(PathBuf);

/// An open descriptor.
#[derive(Clone, Debug)]
pub struct Descriptor {
    /// Its number.
    pub number: String,
    /// What it leads to, in the kernel's words: a path, `socket:[4242]`, `anon_inode:[eventfd]`.
    pub target: String,
    /// The link itself; to follow it is to reach the very file.
    pub link: PathBuf,
}

impl Default for Proc {
    fn default() -> Self {
        Self::at("/proc")
    }
}

impl Proc {
    /// The tree at `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    /// A file of a process.
    pub fn of(&self, pid: u32, name: &str) -> PathBuf {
        self.0.join(pid.to_string()).join(name)
    }

    /// What a file of a process says; nothing if it cannot be read.
    pub fn read(&self, pid: u32, name: &str) -> String {
        let bytes = fs::read(self.of(pid, name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The process `pid` and all below it.
    pub fn processes(&self, pid: u32) -> BTreeSet<u32> {
        let mut seen = BTreeSet::new();
        let mut open = vec![pid];
        while let Some(pid) = open.pop() {
            if seen.len() >= MAX_PROCESSES || !seen.insert(pid) {
                continue;
            }
            for thread in entries(&self.of(pid, "task")) {
                let children = fs::read_to_string(thread.join("children")).unwrap_or_default();
                open.extend(
                    children
                        .split_whitespace()
                        .filter_map(|child| child.parse::<u32>().ok()),
                );
            }
        }
        seen
    }

    /// The open descriptors of a process.
    pub fn descriptors(&self, pid: u32) -> Vec<Descriptor> {
        let describe = |link: PathBuf| {
            Some(Descriptor {
                number: link.file_name()?.to_str()?.to_owned(),
                target: fs::read_link(&link).ok()?.to_string_lossy().into_owned(),
                link,
            })
        };
        let links = entries(&self.of(pid, "fd"));
        links.into_iter().filter_map(describe).collect()
    }

    /// A process for a person: `4242 (redis-server)`.
    pub fn shown(&self, pid: u32) -> String {
        format!("{pid} ({})", self.read(pid, "comm").trim_end())
    }

    /// Bytes of memory that the process `pid` and all below it hold and an image would have to carry: an estimate.
    pub fn memory(&self, pid: u32) -> u64 {
        let kilobytes_of = |pid| {
            let status = self.read(pid, "status");
            kilobytes(&status, "RssAnon:") + kilobytes(&status, "RssShmem:")
        };
        self.processes(pid).into_iter().map(kilobytes_of).sum::<u64>() * 1024
    }
}

/// The number behind `key` in a file of lines like `MemAvailable:  12 kB`; 0 if it is not there.
pub(crate) fn kilobytes(text: &str, key: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(found) = fs::read_dir(directory) else {
        return Vec::new();
    };
    found.flatten().map(|entry| entry.path()).collect()
}

/// A recorded tree for tests: processes with files and links.
#[cfg(test)]
pub(crate) mod recorded {
    use super::*;
    use std::os::unix::fs::symlink;

    pub(crate) struct Recorded {
        directory: tempfile::TempDir,
    }

    impl Recorded {
        /// Processes by their ids, each a child of the first.
        pub(crate) fn new(pids: &[u32]) -> Self {
            let recorded = Self {
                directory: tempfile::tempdir().unwrap(),
            };
            let children: Vec<String> = pids[1..].iter().map(ToString::to_string).collect();
            for pid in pids {
                recorded.file(*pid, "comm", &format!("program{pid}\n"));
                recorded.file(*pid, &format!("task/{pid}/children"), "");
            }
            recorded.file(
                pids[0],
                &format!("task/{}/children", pids[0]),
                &children.join(" "),
            );
            recorded
        }

        pub(crate) fn file(&self, pid: u32, name: &str, text: &str) {
            let path = self.proc().of(pid, name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        pub(crate) fn link(&self, pid: u32, name: &str, target: &str) {
            let path = self.proc().of(pid, name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(target, path).unwrap();
        }

        pub(crate) fn proc(&self) -> Proc {
            Proc::at(self.directory.path())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_and_its_children_have_memory() {
        assert!(Proc::default().memory(std::process::id()) > 0);
        assert_eq!(Proc::default().memory(0), 0);
    }

    #[test]
    fn children_descriptors_and_names_are_read() {
        let recorded = recorded::Recorded::new(&[10, 11, 12]);
        recorded.link(11, "fd/3", "anon_inode:[eventfd]");
        let proc = recorded.proc();
        assert_eq!(proc.processes(10).into_iter().collect::<Vec<_>>(), [10, 11, 12]);
        let [descriptor] = proc.descriptors(11).try_into().unwrap();
        assert_eq!(
            (descriptor.number.as_str(), descriptor.target.as_str()),
            ("3", "anon_inode:[eventfd]")
        );
        assert_eq!(proc.shown(12), "12 (program12)");
        assert!(proc.descriptors(99).is_empty());
    }
}
