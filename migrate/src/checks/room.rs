//! Room for a container's memory and files.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use super::proc::kilobytes;
use crate::finding::{Code, Finding};

/// Room for what an image holds beside memory pages.
const IMAGE_SLACK_BYTES: u64 = 16 << 20;

/// Entries of a writable layer that are counted; a larger one is measured in part, and the plan says less than it could.
const MAX_ENTRIES: usize = 200_000;

/// Why an image of `memory_bytes` does not fit into this host's memory, or how much it needs. A restore needs it
/// twice (`copies`): as image and as memory.
pub fn memory(run: &Path, memory_bytes: u64, copies: u64) -> Vec<Finding> {
    let mut findings = Vec::new();
    let image = memory_bytes + IMAGE_SLACK_BYTES;
    match free_bytes(run) {
        Ok(free) if free < image => findings.push(Finding::problem(
            Code::ImageRoom,
            format!(
                "the image needs about {} MB in {} and {} MB are free",
                image >> 20,
                run.display(),
                free >> 20
            ),
            "make room there; it is kept in memory",
        )),
        Ok(_) => {}
        Err(error) => findings.push(Finding::problem(
            Code::ImageRoom,
            format!("{}: {error}", run.display()),
            "",
        )),
    }
    let needed = memory_bytes * copies + IMAGE_SLACK_BYTES;
    findings.push(match available_memory() {
        Some(available) if available < needed => Finding::problem(
            Code::Memory,
            format!(
                "it needs about {} MB of memory and {} MB are available",
                needed >> 20,
                available >> 20
            ),
            "free some, or choose another host",
        ),
        available => Finding::ok(
            Code::Memory,
            format!(
                "it needs about {} MB of memory while it is moved, of {} MB available",
                needed >> 20,
                available.unwrap_or_default() >> 20
            ),
        ),
    });
    findings
}

/// Why files of `bytes` do not fit where the engine keeps them.
pub fn disk(storage: &Path, bytes: u64) -> Option<Finding> {
    let free = free_bytes(storage).ok()?;
    (free < bytes).then(|| {
        Finding::problem(
            Code::Disk,
            format!(
                "its files need about {} MB in {} and {} MB are free",
                bytes >> 20,
                storage.display(),
                free >> 20
            ),
            "make room there",
        )
    })
}

/// Free bytes where `path` or its nearest existing parent lies.
pub fn free_bytes(path: &Path) -> nix::Result<u64> {
    let existing = path
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"));
    let stat = statvfs(existing)?;
    Ok(stat.blocks_available() * stat.fragment_size())
}

/// Bytes of the files below `directory`.
pub fn size_of_files(directory: &Path) -> u64 {
    let (mut bytes, mut n_entries) = (0, 0);
    let mut open: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            n_entries += 1;
            if n_entries > MAX_ENTRIES {
                return bytes;
            }
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => open.push(entry.path()),
                Ok(metadata) => bytes += metadata.len(),
                Err(_) => {}
            }
        }
    }
    bytes
}

/// Memory that programs can have.
pub fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    Some(kilobytes(&text, "MemAvailable:") * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_told_with_both_figures() {
        let directory = tempfile::tempdir().unwrap();
        assert!(
            memory(directory.path(), 0, 2)
                .iter()
                .all(|finding| !finding.is_problem())
        );
        let told = memory(directory.path(), 1 << 50, 2);
        let codes: Vec<_> = told
            .iter()
            .filter(|finding| finding.is_problem())
            .map(|finding| finding.code)
            .collect();
        assert_eq!(codes, [Code::ImageRoom, Code::Memory]);
        assert!(
            told[1].text.contains("it needs about 2147483664 MB of memory"),
            "{}",
            told[1]
        );
        assert_eq!(disk(directory.path(), 0), None);
        assert!(disk(directory.path(), 1 << 60).unwrap().is_problem());
    }

    #[test]
    fn files_are_measured_through_all_directories_and_no_links() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("below")).unwrap();
        fs::write(directory.path().join("below/file"), vec![0; 1000]).unwrap();
        std::os::unix::fs::symlink("/", directory.path().join("link")).unwrap();
        let bytes = size_of_files(directory.path());
        assert!((1000..1100).contains(&bytes), "{bytes}");
    }
}
