//! What is mounted in a container, in a checkpoint image: `mountpoints-NAMESPACE.img`.

use std::io;

use godwit_runtime::image_file::{Field, fields};

use super::budget::Budget;
use super::collected::Collected;
use super::image::{each, numbers};
use super::view::Mount;

/// `mount(2)`.
const MS_RDONLY: u64 = 1;

/// File systems by CRIU's numbers (images/mnt.proto); others are called by their own names.
const FILE_SYSTEMS: [(u64, &str); 19] = [
    (1, "proc"),
    (2, "sysfs"),
    (3, "devtmpfs"),
    (4, "binfmt_misc"),
    (5, "tmpfs"),
    (6, "devpts"),
    (7, "simfs"),
    (8, "pstore"),
    (9, "securityfs"),
    (10, "fusectl"),
    (11, "debugfs"),
    (12, "cgroup"),
    (13, "aufs"),
    (14, "mqueue"),
    (15, "fuse"),
    (17, "overlay"),
    (18, "autofs"),
    (19, "tracefs"),
    (23, "cgroup2"),
];

/// All mounts, by their paths, and the version of the cgroups among them.
pub(super) fn of_image(collected: &Collected, budget: &mut Budget) -> io::Result<(Vec<Mount>, Option<u8>)> {
    let mut mounts = Vec::new();
    for namespace in numbers(collected, "mountpoints-") {
        each(collected, &format!("mountpoints-{namespace}.img"), |entry| {
            mounts.push(mount(entry, budget)?);
            Ok(())
        })?;
    }
    sort(&mut mounts);
    let version = cgroup_version(&mounts);
    Ok((mounts, version))
}

/// Puts mounts into the order in which they are told.
pub(super) fn sort(mounts: &mut [Mount]) {
    mounts.sort_by(|one, other| one.path.cmp(&other.path));
}

fn cgroup_version(mounts: &[Mount]) -> Option<u8> {
    let has = |kind: &str| mounts.iter().any(|mount| mount.kind == kind);
    // A host that has both uses the first version.
    match (has("cgroup"), has("cgroup2")) {
        (true, _) => Some(1),
        (false, true) => Some(2),
        (false, false) => None,
    }
}

fn mount(entry: &[u8], budget: &mut Budget) -> io::Result<Mount> {
    let (mut number, mut flags) = (0, 0);
    let mut texts: [Vec<u8>; 4] = Default::default();
    let [root, path, source, own_name] = &mut texts;
    fields(entry, |field, value| match (field, value) {
        (1, Field::Number(value)) => number = value,
        (5, Field::Number(value)) => flags = value,
        (6, Field::Message(text)) => *root = text,
        (7, Field::Message(text)) => *path = text,
        (8, Field::Message(text)) => *source = text,
        (14, Field::Message(text)) => *own_name = text,
        _ => {}
    })?;
    let known = FILE_SYSTEMS.iter().find(|(known, _)| *known == number);
    let kind = known.map_or(own_name.as_slice(), |(_, name)| name.as_bytes());
    Ok(Mount {
        kind: budget.entry(kind)?,
        path: budget.entry(path)?,
        root: budget.entry(root)?,
        source: budget.entry(source)?,
        read_only: flags & MS_RDONLY != 0,
    })
}
