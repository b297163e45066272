//! Which mappings of a task can wait, by what the kernel says of them without a walk over their pages.

use std::fs;
use std::io;
use std::sync::{Mutex, PoisonError};

/// What the kernel calls the ring of an asynchronous reader.
const ASYNCHRONOUS: &str = "/[aio]";

/// The task that was asked about last: CRIU takes one after the other, each with all its mappings, and holds it meanwhile.
static LAST: Mutex<Option<Seen>> = Mutex::new(None);

/// What is known of a task.
struct Seen {
    pid: u32,
    /// Its mappings in the kernel's words; none if it has something that must not wait.
    maps: String,
}

/// Whether what lies between the two addresses is one whole mapping that can wait.
pub(crate) fn can_wait(pid: u32, start: u64, end: u64) -> io::Result<bool> {
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if last.as_ref().is_none_or(|seen| seen.pid != pid) {
        *last = Some(Seen::read(pid)?);
    }
    let range = format!("{start:08x}-{end:08x}");
    Ok(last
        .as_ref()
        .is_some_and(|seen| seen.maps.lines().any(|line| is_private(line, &range))))
}

impl Seen {
    fn read(pid: u32) -> io::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mut maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        // CRIU does not restore locked memory lazily, and `maps` does not say which it is.
        if !has_nothing_locked(&status) || maps.contains(ASYNCHRONOUS) {
            maps.clear();
        }
        Ok(Self { pid, maps })
    }
}

fn has_nothing_locked(status: &str) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmLck:"))
        .is_some_and(|locked| locked.trim() == "0 kB")
}

/// Whether a line of `maps` tells of exactly the mapping at `range`, and that it is private and of no file.
fn is_private(line: &str, range: &str) -> bool {
    let mut fields = line.split_ascii_whitespace();
    let (Some(at), Some(permissions)) = (fields.next(), fields.next()) else {
        return false;
    };
    let inode = fields.nth(2);
    let name = fields.next().unwrap_or_default();
    at == range
        && permissions.starts_with("rw")
        && permissions.ends_with('p')
        && inode == Some("0")
        && (name.is_empty() || name == "[heap]" || name.starts_with("[anon:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_private_mapping_of_no_file_can_wait() {
        let range = "7f0000000000-7f0040000000";
        for (line, expected) in [
            ("7f0000000000-7f0040000000 rw-p 00000000 00:00 0", true),
            (
                "7f0000000000-7f0040000000 rw-p 00000000 00:00 0        [heap]",
                true,
            ),
            (
                "7f0000000000-7f0040000000 rw-p 00000000 00:00 0        [anon:jemalloc]",
                true,
            ),
            ("7f0000000000-7f0040001000 rw-p 00000000 00:00 0", false),
            ("7f0000000000-7f0040000000 r--p 00000000 00:00 0", false),
            (
                "7f0000000000-7f0040000000 rw-s 00000000 00:01 7        /dev/zero (deleted)",
                false,
            ),
            (
                "7f0000000000-7f0040000000 rw-p 00000000 fe:00 9        /var/lib/data",
                false,
            ),
            (
                "7f0000000000-7f0040000000 rw-p 00000000 00:00 0        [stack]",
                false,
            ),
            ("", false),
        ] {
            assert_eq!(is_private(line, range), expected, "{line}");
        }
        assert!(is_private(
            "00400000-00900000 rw-p 00000000 00:00 0",
            "00400000-00900000"
        ));
    }

    #[test]
    fn a_task_that_has_locked_memory_keeps_it() {
        assert!(has_nothing_locked(
            "Name:\tx\nVmLck:\t       0 kB\nVmPin:\t0 kB\n"
        ));
        assert!(!has_nothing_locked("VmLck:\t       8 kB\n"));
        assert!(!has_nothing_locked("Name:\ta kernel thread\n"));
    }
}
