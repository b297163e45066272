//! Adds to an image the pages that CRIU was kept from seeing: the lens of a lazy dump has written down which mappings it hid.
//!
//! After [`list`] the image is as CRIU would have made it: each page that exists is listed as one to be restored lazily. Every
//! mapping that was hidden must be one that CRIU restores so, by the image's own word; if one is not, the image is
//! worth nothing and the dump must be given up. The tasks must stand still.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::path::Path;

use protobuf::CodedOutputStream;

use super::extents::Extents;
use super::layout::{self, PE_LAZY, Range};
use super::wire::PAGE_BYTES;
use crate::control::write_atomically;
use crate::image::Manifest;
use crate::image_file;
use crate::options::Digests;
use crate::sys::pagemap::{self, ZERO};

/// The lens' record in the image directory. An image that has one does not list all of its pages.
pub const RECORD: &str = "left-out";

/// The environment variable by which the lens knows where its record is to be.
pub const RECORD_VARIABLE: &str = "GODWIT_LEFT_OUT";

/// A line for each large mapping.
const RECORD_LIMIT_BYTES: u64 = 16 << 20;

/// A mapping that was hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hidden {
    /// The task's pid on this host.
    pid: u32,
    range: Range,
}

/// Lists what was left out, if anything was, and seals the image anew. May be repeated.
pub fn list(image: &Path) -> io::Result<()> {
    let record = image.join(RECORD);
    let hidden = match fs::metadata(&record) {
        Ok(metadata) if metadata.len() > RECORD_LIMIT_BYTES => return Err(strange("larger than any")),
        Ok(_) => parse(&fs::read_to_string(&record)?)?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for of_one in hidden.chunk_by(|one, next| one.pid == next.pid) {
        let pid = of_one[0].pid;
        let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
        let mut present = Extents::default();
        for Hidden { range, .. } in of_one {
            pagemap::scan(pagemap.as_fd(), range.start, range.end, |region| {
                if region.categories & ZERO == 0 {
                    present.append(Range {
                        start: region.start,
                        end: region.end,
                    });
                }
            })?;
        }
        let hidden: Vec<Range> = of_one.iter().map(|one| one.range).collect();
        add(image, pid_in_image(pid)?, &hidden, &present)?;
    }
    fs::remove_file(&record)?;
    Manifest::seal(image, Digests::None)
}

/// The mappings of a record, by task and address; a mapping may have been hidden twice.
fn parse(record: &str) -> io::Result<Vec<Hidden>> {
    let hidden = |line: &str| {
        let mut fields = line.split(' ');
        let pid = fields.next()?.parse().ok()?;
        let mut address = || u64::from_str_radix(fields.next()?, 16).ok();
        let range = Range {
            start: address()?,
            end: address()?,
        };
        (range.start < range.end && fields.next().is_none()).then_some(Hidden { pid, range })
    };
    let mut found: Vec<Hidden> = record
        .lines()
        .map(|line| hidden(line).ok_or_else(|| strange(line)))
        .collect::<io::Result<_>>()?;
    found.sort_unstable_by_key(|one| (one.pid, one.range.start));
    found.dedup();
    Ok(found)
}

/// Adds pages in `hidden` mappings of a task to its list of pages.
fn add(image: &Path, pid: u32, hidden: &[Range], present: &Extents) -> io::Result<()> {
    let mappings = layout::mappings(image, pid)?;
    for range in hidden {
        let waits = |mapping: &layout::Mapping| {
            mapping.can_wait() && mapping.range.start <= range.start && range.end <= mapping.range.end
        };
        if !mappings.iter().any(waits) {
            let text = format!(
                "CRIU does not restore {:x}-{:x} of process {pid} lazily",
                range.start, range.end
            );
            return Err(io::Error::new(ErrorKind::InvalidData, text));
        }
    }
    let path = image.join(format!("pagemap-{pid}.img"));
    let mut entries: Vec<(Range, Vec<u8>)> = Vec::new();
    let mut head = None;
    image_file::entries(&path, |entry| {
        match head {
            None => head = Some(entry.to_vec()),
            Some(_) => entries.push((layout::page_entry(entry)?.0, entry.to_vec())),
        }
        Ok(())
    })?;
    let listed = Extents::of(entries.iter().map(|(range, _)| *range));
    for range in present.without(&listed).ranges() {
        entries.push((*range, entry_of(*range)?));
    }
    entries.sort_by_key(|(range, _)| range.start);
    let magic = fs::read(&path)?;
    let mut bytes = magic.get(..image_file::MAGIC_BYTES).unwrap_or_default().to_vec();
    for entry in head.iter().chain(entries.iter().map(|(_, entry)| entry)) {
        let length = u32::try_from(entry.len()).map_err(io::Error::other)?;
        bytes.extend(length.to_le_bytes());
        bytes.extend(entry);
    }
    write_atomically(&path, &bytes)
}

/// An entry of a pagemap image (images/pagemap.proto).
fn entry_of(range: Range) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut output = CodedOutputStream::vec(&mut bytes);
    output.write_uint64(1, range.start)?;
    // Required, and always zero since there is the longer one.
    output.write_uint32(2, 0)?;
    output.write_uint64(4, PE_LAZY)?;
    output.write_uint64(5, range.bytes() / PAGE_BYTES as u64)?;
    output.flush()?;
    drop(output);
    Ok(bytes)
}

/// What images call a process: its pid in its own namespace.
fn pid_in_image(pid: u32) -> io::Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    innermost_pid(&status).ok_or_else(|| strange("a process without a pid"))
}

/// A process' pid in its own namespace, from `/proc/PID/status`.
pub fn innermost_pid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok()
}

fn strange(what: &str) -> io::Error {
    let text = format!("the record of memory that was left out: {what:?}");
    io::Error::new(ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::layout::tests::{mm_with, pagemap, written};

    const LAZY: u32 = PE_LAZY as u32;
    /// Flags of a mapping: private and anonymous, and locked besides.
    const WAITS: u64 = 0x22;
    const LOCKED: u64 = 0x2022;

    fn range(start: u64, end: u64) -> Range {
        Range { start, end }
    }

    #[test]
    fn the_innermost_pid_is_the_last() {
        let status = "Name:\tx\nNSpid:\t310\t12\t1\nNSpgid:\t1\n";
        assert_eq!(innermost_pid(status), Some(1));
        assert_eq!(innermost_pid("Name:\tx\n"), None);
    }

    #[test]
    fn a_record_is_read_strictly() {
        let found = parse("7 2000 3000\n7 1000 2000\n7 2000 3000\n").unwrap();
        let ranges: Vec<Range> = found.iter().map(|one| one.range).collect();
        assert_eq!(ranges, [range(0x1000, 0x2000), range(0x2000, 0x3000)]);
        for bad in ["7 1000", "7 1000 1000", "x 1000 2000", "7 1000 2000 3", "\n"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn pages_that_are_there_are_listed_once_and_in_order() {
        let present = 4;
        let image = written(&[pagemap(0x1000, 1, present), pagemap(0x9000, 1, LAZY)]);
        let mappings = [
            (0x1000, 0x2000, WAITS),
            (0x2000, 0x9000, WAITS),
            (0x9000, 0xa000, WAITS),
        ];
        fs::write(image.path().join("mm-1.img"), mm_with(&mappings)).unwrap();
        let found = Extents::of([range(0x2000, 0x4000), range(0x6000, 0x7000)]);
        for _ in 0..2 {
            add(image.path(), 1, &[range(0x2000, 0x9000)], &found).unwrap();
            let tasks = layout::left_behind(image.path()).unwrap();
            let expected = [
                range(0x2000, 0x4000),
                range(0x6000, 0x7000),
                range(0x9000, 0xa000),
            ];
            assert_eq!(tasks[0].ranges, expected);
        }
    }

    #[test]
    fn what_criu_would_not_restore_lazily_must_not_have_been_left_out() {
        let image = written(&[]);
        fs::write(
            image.path().join("mm-1.img"),
            mm_with(&[(0x1000, 0x9000, LOCKED)]),
        )
        .unwrap();
        let error = add(image.path(), 1, &[range(0x1000, 0x9000)], &Extents::default()).unwrap_err();
        assert!(error.to_string().contains("1000-9000"), "{error}");
    }

    #[test]
    fn an_image_that_lists_all_is_left_alone() {
        let image = written(&[pagemap(0x1000, 1, LAZY)]);
        list(image.path()).unwrap();
        fs::write(image.path().join(RECORD), "1 1000 zz\n").unwrap();
        assert!(list(image.path()).is_err());
        assert!(image.path().join(RECORD).exists(), "it is still not whole");
    }

    #[test]
    fn pages_of_a_live_task_are_found() {
        let memory = vec![7_u8; 3 * PAGE_BYTES];
        let start = (memory.as_ptr() as u64).next_multiple_of(PAGE_BYTES as u64);
        let pid = std::process::id();
        let image = written(&[]);
        let there = pid_in_image(pid).unwrap();
        for (name, new) in [
            ("mm", mm_with(&[(start, start + 0x1000, WAITS)])),
            ("pagemap", fs::read(image.path().join("pagemap-1.img")).unwrap()),
        ] {
            fs::write(image.path().join(format!("{name}-{there}.img")), new).unwrap();
        }
        let record = format!("{pid} {start:x} {:x}\n", start + 0x1000);
        fs::write(image.path().join(RECORD), record).unwrap();
        list(image.path()).unwrap();
        assert!(!image.path().join(RECORD).exists());
        let mut listed = Vec::new();
        image_file::entries(&image.path().join(format!("pagemap-{there}.img")), |entry| {
            listed.push(layout::page_entry(entry).map(|(range, _)| range).ok());
            Ok(())
        })
        .unwrap();
        assert_eq!(listed.last(), Some(&Some(range(start, start + 0x1000))));
    }
}
