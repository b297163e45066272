//! Carries a tar archive out beneath one directory: the mounted root of a container that does not run yet, or a volume of it.
//!
//! The archive is taken for hostile, as the stream of a delta is, and goes the same way: every path is checked and resolved
//! beneath the root, no link is followed. Beside that it may come from anybody: which nodes of devices it may have its caller says.

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::makedev;

use super::apply::{Applied, Run};
use super::operation::{MAX_CHUNK_BYTES, Metadata, NodeKind, Operation, Times};
use super::{DeltaError, Tree};
use crate::tar::{Kind, Member, Reader};

/// Members at most: a layer has some ten thousand, and each costs its reader something.
const MAX_MEMBERS: u64 = 8_000_000;

/// Zeros become a hole in pieces of this size: a block of most file systems.
const HOLE_BYTES: usize = 4096;

/// What an archive may bring that reaches beyond its own files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permitted {
    /// Nodes of any device: whoever the files are for could make them as well.
    Devices,
    /// None but the one that is no device, 0:0, by which overlays hide names.
    NoDevices,
}

/// Removes what `deleted` names, in the root or anywhere below, and then makes what the archive has.
pub fn apply_tar(
    tree: Tree<'_>,
    deleted: &[Vec<u8>],
    permitted: Permitted,
    input: &mut dyn Read,
) -> Result<Applied, DeltaError> {
    let mut nothing = std::io::empty();
    let mut run = Run::new(tree, &mut nothing)?;
    for path in deleted {
        run.perform(&Operation::Remove { path: trimmed(path) })?;
        run.applied.n_operations += 1;
    }
    let mut archive = Reader::new(input);
    // What is made in a directory changes its times, so that these come last.
    let mut directories: Vec<(Vec<u8>, Times)> = Vec::new();
    let mut top = None;
    while let Some(member) = archive.next_member().map_err(|error| run.broken(error))? {
        if run.applied.n_operations == MAX_MEMBERS {
            return Err(run.malformed("it has more members than any layer"));
        }
        run.applied.n_operations += 1;
        let path = trimmed(&member.path);
        if path.is_empty() && member.kind == Kind::Directory {
            top = Some(member);
            continue;
        }
        if member.kind == Kind::Directory {
            directories.push((path.to_vec(), times(&member)));
        }
        make(&mut run, path, &member, permitted, &mut archive)?;
    }
    for (path, times) in directories.iter().rev() {
        run.perform(&Operation::DirectoryTimes { path, times: *times })?;
    }
    if let Some(top) = &top {
        run.describe(Path::new(""), &metadata(top), true)?;
    }
    Ok(run.applied)
}

fn make(
    run: &mut Run<'_>,
    path: &[u8],
    member: &Member,
    permitted: Permitted,
    archive: &mut Reader<&mut dyn Read>,
) -> Result<(), DeltaError> {
    let metadata = metadata(member);
    let node = |kind| Operation::Node {
        path,
        kind,
        device: match kind {
            NodeKind::Fifo => 0,
            _ => makedev(member.device.0, member.device.1),
        },
        metadata: self::metadata(member),
    };
    let operation = match member.kind {
        Kind::File => {
            let path = run.checked(path)?;
            fill(run, path, member.size, archive)?;
            return run.describe(path, &metadata, true);
        }
        Kind::Directory => Operation::Directory {
            path,
            empty: member.is_opaque,
            metadata,
        },
        Kind::SymbolicLink => Operation::SymbolicLink {
            path,
            target: &member.link,
            metadata,
        },
        Kind::HardLink => Operation::HardLink {
            path,
            target: trimmed(&member.link),
        },
        Kind::Fifo => node(NodeKind::Fifo),
        Kind::CharacterDevice | Kind::BlockDevice
            if permitted == Permitted::NoDevices && member.device != (0, 0) =>
        {
            let shown = String::from_utf8_lossy(path);
            let (major, minor) = member.device;
            return Err(run.malformed(format!(
                "{shown} is device {major}:{minor}, which the container could not make"
            )));
        }
        Kind::CharacterDevice => node(NodeKind::CharacterDevice),
        Kind::BlockDevice => node(NodeKind::BlockDevice),
    };
    run.perform(&operation)
}

/// Writes a file's contents, and leaves holes where there are only zeros.
fn fill(
    run: &mut Run<'_>,
    path: &Path,
    size: u64,
    archive: &mut Reader<&mut dyn Read>,
) -> Result<(), DeltaError> {
    let file = run.make_file(path, size)?;
    let mut buffer = vec![0; MAX_CHUNK_BYTES.min(usize::try_from(size).unwrap_or(usize::MAX))];
    let mut offset = 0;
    while offset < size {
        let wanted = buffer
            .len()
            .min(usize::try_from(size - offset).unwrap_or(usize::MAX));
        archive
            .read_exact(&mut buffer[..wanted])
            .map_err(|error| run.broken(error))?;
        let blocks = buffer[..wanted].chunks(HOLE_BYTES);
        let is_hole = |block: &&[u8]| block.iter().all(|byte| *byte == 0);
        let mut at = offset;
        for same in blocks
            .collect::<Vec<_>>()
            .chunk_by(|one, next| is_hole(one) == is_hole(next))
        {
            let n_bytes: usize = same.iter().map(|block| block.len()).sum();
            if !is_hole(&same[0]) {
                let from = usize::try_from(at - offset).unwrap_or(usize::MAX);
                file.write_all_at(&buffer[from..from + n_bytes], at)
                    .map_err(|source| DeltaError::File {
                        action: "write",
                        path: path.into(),
                        source,
                    })?;
                run.applied.content_bytes += n_bytes as u64;
            }
            at += n_bytes as u64;
        }
        offset += wanted as u64;
    }
    Ok(())
}

/// Without what says only that it is relative, or a directory.
fn trimmed(path: &[u8]) -> &[u8] {
    let mut path = path;
    while let Some(rest) = path.strip_prefix(b"./") {
        path = rest;
    }
    // podman's list of removed files has them from the root on.
    let path = path.strip_prefix(b"/").unwrap_or(path);
    let path = path.strip_suffix(b"/").unwrap_or(path);
    if path == b"." { b"" } else { path }
}

fn times(member: &Member) -> Times {
    Times {
        accessed: member.accessed.unwrap_or(member.modified),
        modified: member.modified,
    }
}

fn metadata(member: &Member) -> Metadata<'_> {
    Metadata {
        mode: member.mode,
        uid: member.uid,
        gid: member.gid,
        times: times(member),
        attributes: member
            .attributes
            .iter()
            .map(|(name, value)| (name.as_slice(), value.as_slice()))
            .collect(),
    }
}
