//! Everything that a program can see of a tree, to compare two of them.
//!
//! Left out: times of last access, which a look changes; nodes of sockets, which do not travel; which blocks of a file
//! are allocated, of which only the number is compared.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What `st_blocks` counts in.
const BLOCK_BYTES: u64 = 512;

/// By how much a copy may be larger on disk: the ends of its parts, which file systems round to pages or more, and what
/// one notes of attributes and extents.
const SPARSE_SLACK_BYTES: u64 = 64 * 1024;

/// All that is compared of one name.
#[derive(Debug)]
pub(super) struct Description {
    mode: u32,
    owner: (u32, u32),
    device: u64,
    size: u64,
    modified: (i64, i64),
    contents: Vec<u8>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// The first of all names of this file.
    linked_to: PathBuf,
    allocated_bytes: u64,
}

impl PartialEq for Description {
    fn eq(&self, other: &Self) -> bool {
        let seen = |it: &Self| (it.mode, it.owner, it.device, it.size, it.modified);
        seen(self) == seen(other)
            && self.contents == other.contents
            && self.attributes == other.attributes
            && self.linked_to == other.linked_to
    }
}

/// All names below `root`, and the root itself under the empty one.
pub(super) fn describe(root: &Path) -> BTreeMap<PathBuf, Description> {
    let mut found = BTreeMap::new();
    let mut names = HashMap::<_, Vec<PathBuf>>::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let full = root.join(&path);
        let metadata = fs::symlink_metadata(&full).unwrap();
        if metadata.file_type().is_socket() {
            continue;
        }
        let mut contents = Vec::new();
        if metadata.is_dir() {
            for entry in fs::read_dir(&full).unwrap() {
                pending.push(path.join(entry.unwrap().file_name()));
            }
        } else if metadata.is_symlink() {
            contents = fs::read_link(&full)
                .unwrap()
                .into_os_string()
                .into_encoded_bytes();
        } else if metadata.is_file() {
            contents = fs::read(&full).unwrap();
        }
        if !metadata.is_dir() {
            let same_file = (metadata.dev(), metadata.ino());
            names.entry(same_file).or_default().push(path.clone());
        }
        let description = Description {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            device: metadata.rdev(),
            size: if metadata.is_dir() { 0 } else { metadata.size() },
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            attributes: attributes(&full),
            contents,
            linked_to: path.clone(),
            allocated_bytes: if metadata.is_file() {
                metadata.blocks() * BLOCK_BYTES
            } else {
                0
            },
        };
        found.insert(path, description);
    }
    for group in names.values() {
        let first = group.iter().min().unwrap();
        for name in group {
            found.get_mut(name).unwrap().linked_to.clone_from(first);
        }
    }
    found
}

/// The copy of a sparse file is as sparse, about.
pub(super) fn assert_as_sparse(path: &Path, original: Option<&Description>, copy: Option<&Description>) {
    let (Some(original), Some(copy)) = (original, copy) else {
        return;
    };
    assert!(
        copy.allocated_bytes <= original.allocated_bytes + SPARSE_SLACK_BYTES,
        "{} takes {} bytes on disk, its copy {}",
        path.display(),
        original.allocated_bytes,
        copy.allocated_bytes
    );
}

fn attributes(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap();
    let mut attributes: Vec<_> = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 65536];
            let length = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
            (name.to_vec(), value[..length].to_vec())
        })
        .collect();
    attributes.sort();
    attributes
}
