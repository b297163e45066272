//! A task's mappings in a checkpoint image, with the pages of each that lie in it.
//!
//! A list of pages (`pagemap-PID.img`) says where they belong; the pages lie one behind the other in a file of their own. Shared
//! memory has lists of its own, and counts where it is met first.

use std::collections::BTreeSet;
use std::io;

use godwit_runtime::image_file::damaged;
use godwit_runtime::pages::layout::{self, PE_LAZY, PE_PRESENT, Range, mm_entry, page_entry};

use super::budget::{Budget, oversized};
use super::collected::{Collected, PAGE_BYTES};
use super::files::Files;
use super::image::{each, number_within};
use super::view::{Mapping, MemoryKind};

/// What a mapping is, in its status (criu/include/image.h).
const STACK: u64 = 1 << 1;
const VSYSCALL: u64 = 1 << 2;
const VDSO: u64 = 1 << 3;
const HEAP: u64 = 1 << 5;
const FILE_PRIVATE: u64 = 1 << 6;
const FILE_SHARED: u64 = 1 << 7;
const ANONYMOUS_SHARED: u64 = 1 << 8;
const SYSTEM_V: u64 = 1 << 10;
const SOCKET: u64 = 1 << 11;
const VVAR: u64 = 1 << 12;
const AIO_RING: u64 = 1 << 13;
const MEMFD: u64 = 1 << 14;

/// `mmap(2)`.
const MAP_PRIVATE: u64 = 0x2;
const MAP_GROWSDOWN: u64 = 0x100;

/// Pages were in an image before this one, whose parent it is.
const IN_PARENT: u64 = 1 << 0;

/// All of an image's memory.
pub(super) struct Memory<'a> {
    collected: &'a Collected,
    files: &'a Files,
    /// Lists of pages that were counted.
    counted: BTreeSet<u32>,
    /// Shared memory that was counted.
    shared: BTreeSet<u64>,
    /// What is missing.
    pub(super) damage: Option<String>,
}

/// A run of pages of a list.
struct Run {
    range: Range,
    /// Its first page's place in the file of pages; `None` if it lies in none.
    place: Option<u64>,
}

impl<'a> Memory<'a> {
    pub(super) fn new(collected: &'a Collected, files: &'a Files) -> Self {
        Self {
            collected,
            files,
            counted: BTreeSet::new(),
            shared: BTreeSet::new(),
            damage: None,
        }
    }

    /// The mappings of a task. A zombie has none, and no image of them.
    pub(super) fn of(&mut self, pid: u32, budget: &mut Budget) -> io::Result<Vec<Mapping>> {
        let name = format!("mm-{pid}.img");
        let mut found: Vec<layout::Mapping> = Vec::new();
        if self.collected.file(&name).is_none() {
            return Ok(Vec::new());
        }
        each(self.collected, &name, |entry| {
            found.extend(mm_entry(entry)?);
            Ok(())
        })?;
        let (runs, pages) = self.runs(&format!("pagemap-{pid}.img"))?;
        let mut first = 0;
        let mut told = Vec::new();
        let mut end = 0;
        for mapping in &found {
            if mapping.range.start < end || mapping.range.end <= mapping.range.start {
                return Err(damaged(&format!("{name}: mappings that cannot be")));
            }
            end = mapping.range.end;
            while runs
                .get(first)
                .is_some_and(|run| run.range.end <= mapping.range.start)
            {
                first += 1;
            }
            let (mut memory, mut zeros) = (0, 0);
            for run in runs[first..].iter().take_while(|run| run.range.start < end) {
                let (from, to) = (run.range.start.max(mapping.range.start), run.range.end.min(end));
                memory += to - from;
                if let Some(place) = run.place {
                    let skipped = (from - run.range.start) / PAGE_BYTES as u64;
                    zeros += self.zeros(pages, place + skipped, to - from);
                }
            }
            let is_shared = mapping.status & (ANONYMOUS_SHARED | SYSTEM_V | MEMFD) != 0;
            if is_shared && self.shared.insert(mapping.shared_id) {
                let (of_it, zeros_of_it) = self.shared(mapping.shared_id)?;
                memory = of_it.saturating_add(memory);
                zeros = zeros_of_it.saturating_add(zeros);
            }
            told.push(Mapping {
                start: format!("{:x}", mapping.range.start),
                size_bytes: mapping.range.bytes(),
                access: access(mapping),
                kind: kind(mapping.status),
                name: budget.entry(self.name(mapping))?,
                memory_bytes: memory,
                zero_bytes: Some(zeros),
            });
        }
        Ok(told)
    }

    fn name(&self, mapping: &layout::Mapping) -> &[u8] {
        let status = mapping.status;
        if status & (FILE_PRIVATE | FILE_SHARED) != 0 && status & (SYSTEM_V | ANONYMOUS_SHARED) == 0 {
            return self.files.path(mapping.shared_id).unwrap_or_default();
        }
        let names: [(u64, &[u8]); 7] = [
            (VDSO, b"[vdso]"),
            (VVAR, b"[vvar]"),
            (VSYSCALL, b"[vsyscall]"),
            (HEAP, b"[heap]"),
            (STACK, b"[stack]"),
            (AIO_RING, b"/[aio]"),
            (SOCKET, b"socket"),
        ];
        let named = names.iter().find(|(bit, _)| status & bit != 0);
        match named {
            Some((_, name)) => name,
            // The first thread's; other stacks are memory like any.
            None if mapping.flags & MAP_GROWSDOWN != 0 => b"[stack]",
            None => b"",
        }
    }

    /// Bytes of shared memory in the image, and those of zeros.
    fn shared(&mut self, id: u64) -> io::Result<(u64, u64)> {
        let (runs, pages) = self.runs(&format!("pagemap-shmem-{id}.img"))?;
        let mut sum = (0, 0);
        for run in &runs {
            sum.0 += run.range.bytes();
            if let Some(place) = run.place {
                sum.1 += self.zeros(pages, place, run.range.bytes());
            }
        }
        Ok(sum)
    }

    /// The pages of a list that are or will be there, and the number of the file with them.
    fn runs(&mut self, name: &str) -> io::Result<(Vec<Run>, u32)> {
        let (mut runs, mut number, mut place, mut end) = (Vec::new(), None, 0, 0);
        if self.collected.file(name).is_none() {
            return Ok((runs, 0));
        }
        each(self.collected, name, |entry| {
            if number.is_none() {
                number = Some(
                    number_within(entry, 1)?
                        .and_then(|id| u32::try_from(id).ok())
                        .unwrap_or(0),
                );
                return Ok(());
            }
            let (range, flags) = page_entry(entry)?;
            if range.start < end {
                return Err(damaged("pages out of order"));
            }
            end = range.end;
            let is_here = flags & PE_PRESENT != 0 || flags & (PE_LAZY | IN_PARENT) == 0;
            let here = is_here.then_some(place);
            if is_here {
                place += range.bytes() / PAGE_BYTES as u64;
            }
            runs.push(Run { range, place: here });
            Ok(())
        })?;
        let number = number.unwrap_or(0);
        // Each list has a file of pages of its own; one that is named twice is counted without an end.
        if !self.counted.insert(number) {
            return Err(oversized(&format!("{name}: another list has its pages as well")));
        }
        let there = self.collected.pages(number).map_or(0, |pages| pages.bytes);
        if there < place.saturating_mul(PAGE_BYTES as u64) {
            let missing = format!("pages-{number}.img has {there} bytes of {place} pages");
            self.damage.get_or_insert(missing);
        }
        Ok((runs, number))
    }

    fn zeros(&self, pages: u32, place: u64, bytes: u64) -> u64 {
        let count = bytes / PAGE_BYTES as u64;
        let zeros = self
            .collected
            .pages(pages)
            .map_or(0, |pages| pages.zeros(place, count));
        zeros * PAGE_BYTES as u64
    }
}

fn kind(status: u64) -> MemoryKind {
    if status & (VDSO | VVAR | VSYSCALL) != 0 {
        MemoryKind::Kernel
    } else if status & (FILE_SHARED | ANONYMOUS_SHARED | SYSTEM_V) != 0 {
        MemoryKind::Shared
    } else if status & FILE_PRIVATE != 0 {
        MemoryKind::File
    } else {
        MemoryKind::Anonymous
    }
}

/// As `/proc/PID/maps` has it.
fn access(mapping: &layout::Mapping) -> String {
    let bits = [(1, 'r'), (2, 'w'), (4, 'x')];
    let may = |(bit, letter): (u64, char)| {
        if mapping.protection & bit != 0 {
            letter
        } else {
            '-'
        }
    };
    let is_private = mapping.flags & MAP_PRIVATE != 0;
    bits.map(may)
        .into_iter()
        .chain([if is_private { 'p' } else { 's' }])
        .collect()
}
