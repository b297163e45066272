//! The lens: CRIU loads it for the dump of a move, and through it does not see what the move does without.
//!
//! That is the memory which stays in the tasks. CRIU takes a reference to every page, lists it and puts it into a pipe, also
//! where a lazy dump then leaves the pages where they are: a tenth of a second for each GB, for which the container stands
//! still. No option of its own spares it that. So the lens answers CRIU's scan of a mapping that can wait as if there
//! were no page in it, and writes the mapping down in the file that `GODWIT_LEFT_OUT` names; the agent adds the pages to
//! the image (`godwit_runtime::pages::left_out`), and checks against the image itself that each could wait.
//!
//! The same goes for the connections that the kernel tracks ([`conntrack`]) in a network that is not restored from the image.
//!
//! It refuses to hide what it could not write down, and whatever it is not sure of it leaves to the kernel: then the dump is as
//! CRIU makes it, and slower.

mod conntrack;
mod mappings;
mod sys;

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;

use crate::sys::Scan;

/// Names the file to which one line is written for each mapping that is hidden: the task's pid, start and end.
const RECORD_VARIABLE: &str = "GODWIT_LEFT_OUT";

/// CRIU reads mappings of less than 2 MiB several at a time, and there is little to be won with them.
const LEAST_BYTES: u64 = 4 << 20;

/// Whether CRIU is to be told that there is nothing in what it scans. If so, that is written down.
fn hides(descriptor: RawFd, scan: &Scan) -> bool {
    let Some(record) = std::env::var_os(RECORD_VARIABLE) else {
        return false;
    };
    if !scan.is_for_dump() || scan.end.saturating_sub(scan.start) < LEAST_BYTES {
        return false;
    }
    let hide = || -> io::Result<bool> {
        let Some(pid) = task_of(descriptor)? else {
            return Ok(false);
        };
        if !mappings::can_wait(pid, scan.start, scan.end)? {
            return Ok(false);
        }
        let mut record = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&record)?;
        let line = format!("{pid} {:x} {:x}\n", scan.start, scan.end);
        record.write_all(line.as_bytes())?;
        Ok(true)
    };
    hide().unwrap_or(false)
}

/// The task whose pages a descriptor tells of.
fn task_of(descriptor: RawFd) -> io::Result<Option<u32>> {
    let path = fs::read_link(format!("/proc/self/fd/{descriptor}"))?;
    let pid = path.to_str().and_then(|path| {
        path.strip_prefix("/proc/")?
            .strip_suffix("/pagemap")?
            .parse()
            .ok()
    });
    Ok(pid)
}
