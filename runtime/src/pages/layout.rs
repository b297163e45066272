//! Which pages a lazy dump has left behind, read from CRIU's own images.
//!
//! Only the few fields that matter are decoded (CRIU's images/pagemap.proto, mm.proto, pstree.proto). An image may come from
//! another host: counts and addresses are checked.

use std::io;
use std::path::Path;

use super::wire::PAGE_BYTES;
use crate::image_file::{Field, damaged, entries, fields};

/// In a pagemap entry's flags: the pages can be restored lazily.
pub const PE_LAZY: u64 = 1 << 1;
/// The pages are in the image.
pub const PE_PRESENT: u64 = 1 << 2;

/// In a mapping's status: no mapping, but a part of one that nobody may touch (criu/include/image.h).
const VMA_AREA_GUARD: u64 = 1 << 16;

/// Flags of a mapping, as `mmap(2)` takes them.
const MAP_PRIVATE: u64 = 0x2;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_LOCKED: u64 = 0x2000;
const MAP_HUGETLB: u64 = 0x4_0000;

/// End of a process' address space on all supported machines (57 bits with five levels of page tables).
const ADDRESS_LIMIT: u64 = 1 << 57;

/// A range of pages of one task, as addresses: start inclusive, end exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Its first byte.
    pub start: u64,
    /// The first byte behind it.
    pub end: u64,
}

/// One task's pages that are not in the image, ascending, none across the border of a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its pid in the container's pid namespace, as the images name it.
    pub pid: u32,
    /// The pages.
    pub ranges: Vec<Range>,
}

impl Range {
    /// How many bytes.
    pub fn bytes(&self) -> u64 {
        self.end - self.start
    }
}

/// All tasks of an image with the pages that it leaves out, in the order of CRIU's tree of processes.
pub fn left_behind(image: &Path) -> io::Result<Vec<Task>> {
    pids(image)?
        .into_iter()
        .map(|pid| {
            let ranges = task_ranges(image, pid)?;
            Ok(Task { pid, ranges })
        })
        .collect()
}

/// The pids of an image's tree of processes.
pub fn pids(image: &Path) -> io::Result<Vec<u32>> {
    let mut pids = Vec::new();
    entries(&image.join("pstree.img"), |entry| {
        pids.push(tree_entry(entry)?.pid);
        Ok(())
    })?;
    Ok(pids)
}

/// A process, as the image of the tree has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeEntry {
    /// Its pid in the container's pid namespace.
    pub pid: u32,
    /// That of the process above it; 0 if there is none.
    pub parent: u32,
    /// How many threads it has.
    pub n_threads: usize,
}

/// An entry of the tree of processes.
pub fn tree_entry(entry: &[u8]) -> io::Result<TreeEntry> {
    let (mut pid, mut parent, mut n_threads) = (None, 0, 0);
    fields(entry, |number, value| match (number, value) {
        (1, Field::Number(value)) => pid = u32::try_from(value).ok(),
        (2, Field::Number(value)) => parent = value,
        (5, Field::Number(_)) => n_threads += 1,
        _ => {}
    })?;
    Ok(TreeEntry {
        pid: pid.ok_or_else(|| damaged("a process without a pid"))?,
        parent: u32::try_from(parent).map_err(|_| damaged("a process without a parent"))?,
        n_threads,
    })
}

/// A zombie has neither mappings nor pages, and no image of them.
fn task_ranges(image: &Path, pid: u32) -> io::Result<Vec<Range>> {
    let pagemap = image.join(format!("pagemap-{pid}.img"));
    if !pagemap.exists() {
        return Ok(Vec::new());
    }
    let mut lazy: Vec<Range> = Vec::new();
    let mut is_head = true;
    entries(&pagemap, |entry| {
        if std::mem::take(&mut is_head) {
            return Ok(());
        }
        let (range, flags) = page_entry(entry)?;
        if flags & PE_LAZY != 0 && flags & PE_PRESENT == 0 {
            if lazy.last().is_some_and(|last| last.end > range.start) {
                return Err(damaged("pages out of order"));
            }
            lazy.push(range);
        }
        Ok(())
    })?;
    let mappings: Vec<Range> = mappings(image, pid)?.iter().map(|one| one.range).collect();
    Ok(split(&lazy, &mappings))
}

/// The pages and the flags of an entry of a pagemap image.
pub fn page_entry(entry: &[u8]) -> io::Result<(Range, u64)> {
    let (mut address, mut compat, mut pages, mut flags) = (0, 0, None, 0);
    fields(entry, |number, value| match (number, value) {
        (1, Field::Number(value)) => address = value,
        (2, Field::Number(value)) => compat = value,
        (4, Field::Number(value)) => flags = value,
        (5, Field::Number(value)) => pages = Some(value),
        _ => {}
    })?;
    Ok((range(address, pages.unwrap_or(compat))?, flags))
}

fn range(start: u64, pages: u64) -> io::Result<Range> {
    let end = pages
        .checked_mul(PAGE_BYTES as u64)
        .and_then(|bytes| start.checked_add(bytes));
    match end {
        Some(end) if end > start && end <= ADDRESS_LIMIT && start.is_multiple_of(PAGE_BYTES as u64) => {
            Ok(Range { start, end })
        }
        _ => Err(damaged("pages at an address that cannot be")),
    }
}

/// A mapping of a task (CRIU's images/vma.proto).
#[derive(Clone, Debug)]
pub struct Mapping {
    /// Its addresses.
    pub range: Range,
    /// The file or the shared memory that is mapped, by CRIU's number of it.
    pub shared_id: u64,
    /// As `mmap(2)` takes it.
    pub protection: u64,
    /// As `mmap(2)` takes them.
    pub flags: u64,
    /// What it is (criu/include/image.h).
    pub status: u64,
}

impl Mapping {
    /// Whether CRIU restores its pages lazily, where they are not in the image (criu/include/vma.h).
    pub(super) fn can_wait(&self) -> bool {
        let needed = MAP_ANONYMOUS | MAP_PRIVATE;
        self.flags & (needed | MAP_LOCKED | MAP_HUGETLB) == needed
    }
}

/// The mappings of a task, ascending.
pub(super) fn mappings(image: &Path, pid: u32) -> io::Result<Vec<Mapping>> {
    let mut mappings = Vec::new();
    entries(&image.join(format!("mm-{pid}.img")), |entry| {
        mappings.extend(mm_entry(entry)?);
        Ok(())
    })?;
    Ok(mappings)
}

/// The mappings in the entry of a task's memory.
pub fn mm_entry(entry: &[u8]) -> io::Result<Vec<Mapping>> {
    let mut inner = Vec::new();
    fields(entry, |number, value| {
        if let (14, Field::Message(message)) = (number, value) {
            inner.push(message);
        }
    })?;
    let mut mappings = Vec::new();
    for message in inner {
        let (mut start, mut end, mut shared_id, mut protection, mut flags, mut status) = (0, 0, 0, 0, 0, 0);
        fields(&message, |number, value| match (number, value) {
            (1, Field::Number(value)) => start = value,
            (2, Field::Number(value)) => end = value,
            (4, Field::Number(value)) => shared_id = value,
            (5, Field::Number(value)) => protection = value,
            (6, Field::Number(value)) => flags = value,
            (7, Field::Number(value)) => status = value,
            _ => {}
        })?;
        if status & VMA_AREA_GUARD == 0 {
            mappings.push(Mapping {
                range: Range { start, end },
                shared_id,
                protection,
                flags,
                status,
            });
        }
    }
    Ok(mappings)
}

/// Cuts ranges at the borders of mappings: one entry may reach over several, and the kernel fills pages in only within
/// one.
fn split(ranges: &[Range], mappings: &[Range]) -> Vec<Range> {
    let mut pieces = Vec::with_capacity(ranges.len());
    for range in ranges {
        let mut start = range.start;
        let first = mappings.partition_point(|mapping| mapping.end <= start);
        for border in mappings[first..].iter().map(|mapping| mapping.end) {
            if border >= range.end {
                break;
            }
            if border > start {
                pieces.push(Range { start, end: border });
                start = border;
            }
        }
        pieces.push(Range {
            start,
            end: range.end,
        });
    }
    pieces
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::fs;

    use protobuf::CodedOutputStream;

    fn message(write: impl FnOnce(&mut CodedOutputStream<'_>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut output = CodedOutputStream::vec(&mut bytes);
        write(&mut output);
        output.flush().unwrap();
        drop(output);
        bytes
    }

    fn image(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![0; 8];
        for entry in entries {
            bytes.extend((entry.len() as u32).to_le_bytes());
            bytes.extend(entry);
        }
        bytes
    }

    pub(in crate::pages) fn pagemap(address: u64, pages: u64, flags: u32) -> Vec<u8> {
        message(|output| {
            output.write_uint64(1, address).unwrap();
            output.write_uint32(2, pages as u32).unwrap();
            output.write_uint32(4, flags).unwrap();
            output.write_uint64(5, pages).unwrap();
        })
    }

    /// An image of mappings with their flags.
    pub(in crate::pages) fn mm_with(mappings: &[(u64, u64, u64)]) -> Vec<u8> {
        let mm = message(|output| {
            output.write_uint64(1, 7).unwrap();
            for (start, end, flags) in mappings {
                let mapping = message(|output| {
                    output.write_uint64(1, *start).unwrap();
                    output.write_uint64(2, *end).unwrap();
                    output.write_uint64(6, *flags).unwrap();
                    output.write_sint64(8, -1).unwrap();
                });
                output.write_bytes(14, &mapping).unwrap();
            }
        });
        image(&[mm])
    }

    pub(in crate::pages) fn written(pagemaps: &[Vec<u8>]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, entries: &[Vec<u8>]| {
            fs::write(directory.path().join(name), image(entries)).unwrap();
        };
        let process = |pid: u32| message(|output| output.write_uint32(1, pid).unwrap());
        let head = message(|output| output.write_uint32(1, 1).unwrap());
        write("pstree.img", &[process(1), process(9)]);
        write("pagemap-1.img", &[&[head], pagemaps].concat());
        let mm = mm_with(&[(0x1000, 0x3000, 0), (0x3000, 0x8000, 0), (0x9000, 0xa000, 0)]);
        fs::write(directory.path().join("mm-1.img"), mm).unwrap();
        directory
    }

    #[test]
    fn what_is_lazy_is_left_behind_and_nothing_else() {
        let lazy = 2;
        let present = 4;
        let directory = written(&[
            pagemap(0x1000, 1, present),
            pagemap(0x2000, 3, lazy),
            pagemap(0x6000, 1, lazy | present),
            pagemap(0x9000, 1, lazy),
        ]);
        let range = |start, end| Range { start, end };
        let tasks = left_behind(directory.path()).unwrap();
        // 9 is a zombie
        assert_eq!(
            tasks[1],
            Task {
                pid: 9,
                ranges: Vec::new()
            }
        );
        let ranges = [
            range(0x2000, 0x3000),
            range(0x3000, 0x5000),
            range(0x9000, 0xa000),
        ];
        assert_eq!(
            tasks[0].ranges, ranges,
            "cut where one mapping ends and the next begins"
        );
    }

    #[test]
    fn images_that_cannot_be_are_refused() {
        for bad in [
            pagemap(0x1001, 1, 2),
            pagemap(0x1000, 0, 2),
            pagemap(u64::MAX - 0xfff, 1, 2),
            pagemap(0x1000, u64::MAX, 2),
        ] {
            assert!(left_behind(written(&[bad]).path()).is_err());
        }
        let twice = written(&[pagemap(0x1000, 2, 2), pagemap(0x2000, 1, 2)]);
        assert!(left_behind(twice.path()).is_err());
        let whole = written(&[pagemap(0x1000, 2, 2)]);
        let path = whole.path().join("pagemap-1.img");
        let bytes = fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            fs::write(&path, &bytes[..length]).unwrap();
            // Whole entries may be missing at the end; that is what the seal of an image is for.
            let _ = left_behind(whole.path());
        }
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(left_behind(whole.path()).is_err());
    }
}
