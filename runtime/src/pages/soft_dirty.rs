//! Which pages of a task exist, and which of them it has not written to since the last look: the kernel's soft-dirty bits.
//!
//! A look has two halves, [`scan`] and [`forget`], between which the task must stand still, and so must every other that
//! shares its memory: what is written between them would be lost. Only private anonymous memory is told of, which is what a
//! lazy dump leaves behind. Memory that a device writes to past the page tables is not seen; a task that can have such
//! memory at work while it stands still, by asynchronous reads, is told of as if it had no pages at all.

use std::fs::{self, File, OpenOptions};
use std::hint::black_box;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;

use super::extents::Extents;
use super::layout::Range;
use super::wire::PAGE_BYTES;
use crate::sys::pagemap::{self, SOFT_DIRTY, ZERO};

/// What `/proc/PID/maps` calls the ring of an asynchronous reader.
const ASYNCHRONOUS: &str = "/[aio]";

/// The pages of one task at one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Those that exist. A page of zeros that nobody has written to does not.
    pub present: Extents,
    /// Those of them that were not written to since they were last forgotten.
    pub clean: Extents,
}

/// Looks at the pages of a process.
pub fn scan(pid: u32) -> io::Result<Seen> {
    let private = private_mappings(&fs::read_to_string(format!("/proc/{pid}/maps"))?);
    let (Some(first), Some(last)) = (private.ranges().first(), private.ranges().last()) else {
        return Ok(Seen::default());
    };
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let mut seen = Seen::default();
    pagemap::scan(pagemap.as_fd(), first.start, last.end, |region| {
        let range = Range {
            start: region.start,
            end: region.end,
        };
        if region.categories & ZERO != 0 {
            return;
        }
        seen.present.append(range);
        if region.categories & SOFT_DIRTY == 0 {
            seen.clean.append(range);
        }
    })?;
    Ok(Seen {
        present: seen.present.both(&private),
        clean: seen.clean.both(&private),
    })
}

/// From now on pages are clean until they are written to.
pub fn forget(pid: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .open(format!("/proc/{pid}/clear_refs"))?;
    file.write_all(b"4")
}

/// Whether this kernel tells which pages were written to: tried on a page of our own.
pub fn is_told() -> bool {
    static TOLD: OnceLock<bool> = OnceLock::new();
    *TOLD.get_or_init(|| probe().unwrap_or(false))
}

fn probe() -> io::Result<bool> {
    let mut memory = vec![1_u8; 2 * PAGE_BYTES];
    let page = (memory.as_ptr() as u64).next_multiple_of(PAGE_BYTES as u64);
    let offset = usize::try_from(page - memory.as_ptr() as u64).unwrap_or(0);
    let pid = std::process::id();
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let is_dirty = || -> io::Result<bool> {
        let mut is_dirty = false;
        pagemap::scan(pagemap.as_fd(), page, page + PAGE_BYTES as u64, |region| {
            is_dirty = region.categories & SOFT_DIRTY != 0;
        })?;
        Ok(is_dirty)
    };
    memory[offset] = black_box(2);
    forget(pid)?;
    let is_clean = !is_dirty()?;
    memory[offset] = black_box(3);
    black_box(&memory);
    Ok(is_clean && is_dirty()?)
}

/// The private anonymous mappings in the text of a `/proc/PID/maps`; none for a task with asynchronous reads.
fn private_mappings(maps: &str) -> Extents {
    if maps.contains(ASYNCHRONOUS) {
        return Extents::default();
    }
    Extents::of(maps.lines().filter_map(private_mapping))
}

fn private_mapping(line: &str) -> Option<Range> {
    let mut fields = line.split_ascii_whitespace();
    let (range, permissions) = (fields.next()?, fields.next()?);
    let (_offset, _device, inode) = (fields.next()?, fields.next()?, fields.next()?);
    let name = fields.next().unwrap_or_default();
    let is_anonymous = inode == "0" && (name.is_empty() || name == "[heap]" || name.starts_with("[anon:"));
    if !permissions.ends_with('p') || !is_anonymous {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    Some(Range {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0c0000000-55d0c0001000 r-xp 00000000 fe:00 7 /usr/bin/program
55d0c1000000-55d0c1002000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0000004000 rw-p 00000000 00:00 0
7f0000004000-7f0000005000 ---p 00000000 00:00 0 [anon:guard]
7f0000008000-7f0000009000 rw-s 00000000 00:01 1024 /dev/zero (deleted)
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]
7ffc00100000-7ffc00102000 r-xp 00000000 00:00 0 [vdso]
";

    #[test]
    fn what_can_wait_is_private_and_anonymous_and_no_stack() {
        let range = |start, end| Range { start, end };
        let found = private_mappings(MAPS);
        assert_eq!(
            found.ranges(),
            [
                range(0x55d0_c100_0000, 0x55d0_c100_2000),
                range(0x7f00_0000_0000, 0x7f00_0000_5000)
            ]
        );
    }

    #[test]
    fn a_task_that_reads_asynchronously_has_nothing_that_can_be_looked_at() {
        let ring = "7f1000000000-7f1000001000 rw-s 00000000 00:0d 9 /[aio] (deleted)\n";
        assert!(private_mappings(&format!("{MAPS}{ring}")).is_empty());
    }

    #[test]
    fn pages_that_exist_are_found_and_those_of_zeros_that_nobody_wrote_are_not() {
        let length = 64 * PAGE_BYTES;
        // Fresh from the kernel, since it is large.
        let mut memory = vec![0_u8; 64 << 20];
        let first = (memory.as_ptr() as usize).next_multiple_of(PAGE_BYTES);
        let offset = first - memory.as_ptr() as usize;
        for page in memory[offset..offset + length].chunks_mut(PAGE_BYTES) {
            page[0] = black_box(1);
        }
        let only_read = first + (32 << 20);
        black_box(memory[only_read - memory.as_ptr() as usize]);
        let seen = scan(std::process::id()).unwrap();
        let all = |start: usize, bytes: usize| {
            Extents::of([Range {
                start: start as u64,
                end: (start + bytes) as u64,
            }])
        };
        let written = all(first, length);
        assert_eq!(seen.present.both(&written), written);
        let zeros = seen.present.both(&all(only_read, PAGE_BYTES));
        assert!(zeros.is_empty(), "{zeros:?}");
        let clean = seen.clean.without(&seen.present);
        assert!(clean.is_empty(), "{clean:?} is clean and does not exist");
    }

    #[test]
    fn the_probe_comes_to_an_answer() {
        assert_eq!(probe().unwrap(), is_told());
    }
}
