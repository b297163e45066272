//! Reads the cgroup of a running container, version 1, 2 or both at once, and puts the shim into one.
//!
//! It finds the directories from `/proc/PID/cgroup` and the mounts, and reads single files of them. What is absent
//! is absent: a kernel without a controller or a counter gives `None`, never a zero. It makes no cgroup and sets no limit.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use procfs::process::Process;

/// The directories of one process's cgroups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    controllers: HashMap<String, PathBuf>,
    unified: Option<PathBuf>,
}

impl Cgroup {
    /// The cgroup of a process.
    pub fn of_pid(pid: i32) -> io::Result<Self> {
        let memberships = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let mounts = CgroupMount::all()?;
        Ok(Self::find(&memberships, &mounts))
    }

    fn find(memberships: &str, mounts: &[CgroupMount]) -> Self {
        let mut found = Self::default();
        for line in memberships.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(names), Some(path)) = (fields.next(), fields.next()) else {
                continue;
            };
            if names.is_empty() {
                let mount = mounts.iter().find(|mount| mount.controllers.is_none());
                found.unified = mount.and_then(|mount| mount.directory(path));
                continue;
            }
            for name in names.split(',') {
                let mut candidates = mounts.iter().filter(|mount| mount.has(name));
                if let Some(directory) = candidates.find_map(|mount| mount.directory(path)) {
                    found.controllers.insert(name.to_owned(), directory);
                }
            }
        }
        found
    }

    /// True if the host uses cgroup v2 alone.
    pub fn is_unified(&self) -> bool {
        self.controllers.is_empty() && self.unified.is_some()
    }

    /// The directory of a v1 controller.
    pub fn controller(&self, name: &str) -> Option<Files<'_>> {
        self.controllers.get(name).map(|directory| Files(directory))
    }

    #[cfg(test)]
    pub(crate) fn controller_at(name: &str, directory: &Path) -> Self {
        Self {
            controllers: HashMap::from([(name.to_owned(), directory.to_owned())]),
            unified: None,
        }
    }

    #[cfg(test)]
    pub(crate) fn unified_at(directory: &Path) -> Self {
        Self {
            controllers: HashMap::new(),
            unified: Some(directory.to_owned()),
        }
    }

    /// The directory in the v2 hierarchy.
    pub fn unified(&self) -> Option<Files<'_>> {
        self.unified.as_deref().map(Files)
    }
}

/// Moves a process into the cgroup at `path`, in each hierarchy that has it; it is an error if none has.
pub fn enter(path: &str, pid: u32) -> io::Result<()> {
    let mut is_found = false;
    for mount in CgroupMount::all()? {
        let directory = mount.point.join(path.trim_start_matches('/'));
        if directory.is_dir() {
            fs::write(directory.join("cgroup.procs"), pid.to_string())?;
            is_found = true;
        }
    }
    if !is_found {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("no cgroup {path}"),
        ));
    }
    Ok(())
}

struct CgroupMount {
    point: PathBuf,
    root: PathBuf,
    /// The names a v1 hierarchy is mounted with; none for v2.
    controllers: Option<Vec<String>>,
}

impl CgroupMount {
    fn all() -> io::Result<Vec<Self>> {
        let own = Process::myself().map_err(io::Error::other)?;
        let mut mounts = Vec::new();
        for mount in own.mountinfo().map_err(io::Error::other)? {
            let controllers: Vec<String> = mount.super_options.keys().cloned().collect();
            match mount.fs_type.as_str() {
                "cgroup" | "cgroup2" => mounts.push(Self {
                    point: mount.mount_point,
                    root: mount.root.into(),
                    controllers: (mount.fs_type == "cgroup").then_some(controllers),
                }),
                _ => {}
            }
        }
        Ok(mounts)
    }

    fn has(&self, name: &str) -> bool {
        self.controllers
            .iter()
            .flatten()
            .any(|controller| controller == name)
    }

    fn directory(&self, membership: &str) -> Option<PathBuf> {
        // In a cgroup namespace a mount's root is `/` and memberships are relative to it.
        let relative = Path::new(membership).strip_prefix(&self.root);
        Some(self.point.join(relative.ok()?)).filter(|directory| directory.is_dir())
    }
}

/// The files of one cgroup directory.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a>(&'a Path);

impl<'a> Files<'a> {
    /// Those of a directory.
    pub fn at(directory: &'a Path) -> Self {
        Self(directory)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.0
    }

    /// A file's text.
    pub fn text(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.0.join(name)).ok()
    }

    /// A file that holds one number; `max` is the largest one.
    pub fn number(&self, name: &str) -> Option<u64> {
        parse_number(self.text(name)?.trim())
    }

    /// A file of lines `key number`.
    pub fn table(&self, name: &str) -> Option<HashMap<String, u64>> {
        Some(parse_table(&self.text(name)?))
    }
}

fn parse_number(text: &str) -> Option<u64> {
    if text == "max" {
        return Some(u64::MAX);
    }
    text.parse().ok()
}

fn parse_table(text: &str) -> HashMap<String, u64> {
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs
        .filter_map(|(key, value)| Some((key.to_owned(), parse_number(value.trim())?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(point: &Path, root: &str, controllers: Option<&[&str]>) -> CgroupMount {
        CgroupMount {
            point: point.into(),
            root: root.into(),
            controllers: controllers.map(|names| names.iter().map(ToString::to_string).collect()),
        }
    }

    #[test]
    fn a_hybrid_host_has_both_and_is_not_unified() {
        let directory = tempfile::tempdir().unwrap();
        let (memory, unified) = (directory.path().join("memory"), directory.path().join("unified"));
        fs::create_dir_all(memory.join("a/b")).unwrap();
        fs::create_dir_all(&unified).unwrap();
        let mounts = [
            mount(&memory, "/", Some(&["rw", "memory"])),
            mount(&unified, "/", None),
        ];
        let cgroup = Cgroup::find("4:memory:/a/b\n3:pids:/a/b\n0::/\n", &mounts);
        assert!(!cgroup.is_unified());
        assert_eq!(cgroup.controller("memory").unwrap().path(), memory.join("a/b"));
        assert!(cgroup.controller("pids").is_none());
        assert!(Cgroup::find("0::/\n", &mounts).is_unified());
    }

    #[test]
    fn a_mount_of_a_part_of_the_hierarchy_shortens_the_path() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("b")).unwrap();
        let mounts = [mount(directory.path(), "/a", None)];
        assert_eq!(
            Cgroup::find("0::/a/b\n", &mounts).unified().unwrap().path(),
            directory.path().join("b")
        );
        assert!(Cgroup::find("0::/other\n", &mounts).unified().is_none());
    }

    #[test]
    fn absent_counters_stay_absent() {
        let table = parse_table("usage_usec 17\nnonsense\nlimit max\n");
        assert_eq!(table.get("usage_usec"), Some(&17));
        assert_eq!(table.get("limit"), Some(&u64::MAX));
        assert_eq!(table.get("nr_periods"), None);
    }
}
