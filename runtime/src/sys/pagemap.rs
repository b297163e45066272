//! The scan of a process' page tables (`PAGEMAP_SCAN`, Linux 6.7), as the kernel's `linux/fs.h` lays it out.
//!
//! A read of `/proc/PID/pagemap` costs eight bytes for each page of a range, whether or not there is one: a runtime that
//! reserves a terabyte of addresses would take seconds. The scan passes over what is not there.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// The page is in memory.
pub(crate) const PRESENT: u64 = 1 << 3;
/// The page is in swap space.
pub(crate) const SWAPPED: u64 = 1 << 4;
/// The page is the one page of zeros that all share.
pub(crate) const ZERO: u64 = 1 << 5;
/// The page was written to since `4` was written to `clear_refs`, or its mapping is younger.
pub(crate) const SOFT_DIRTY: u64 = 1 << 7;

/// Nothing may be touched there (`MADV_GUARD_INSTALL`); the kernel keeps that in place of a page, and tells of it since 6.15.
const GUARD: u64 = 1 << 8;

/// Regions taken by one call.
const REGIONS: usize = 1024;

#[repr(C)]
struct Arguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    n_regions: u64,
    max_pages: u64,
    inverted: u64,
    all_of: u64,
    any_of: u64,
    told: u64,
}

/// Pages that follow each other and of which the same is to be said.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Region {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) categories: u64,
}

nix::ioctl_readwrite!(pagemap_scan, b'f', 16, Arguments);

/// Calls `each` with the pages that exist between `start` and `end`, whosever they are, in ascending order.
pub(crate) fn scan(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    mut each: impl FnMut(Region),
) -> io::Result<()> {
    let mut regions = [Region::default(); REGIONS];
    let mut told = PRESENT | SWAPPED | ZERO | SOFT_DIRTY | GUARD;
    let mut from = start;
    while from < end {
        let mut arguments = Arguments {
            size: size_of::<Arguments>() as u64,
            flags: 0,
            start: from,
            end,
            walk_end: 0,
            regions: regions.as_mut_ptr() as u64,
            n_regions: REGIONS as u64,
            max_pages: 0,
            // Not asked: which pages are a file's. The kernel would look at each page by itself, for ten times as long.
            inverted: 0,
            all_of: 0,
            any_of: PRESENT | SWAPPED,
            told,
        };
        // SAFETY: `arguments` is the kernel's structure and says its size; `regions` holds as many entries of the
        // kernel's layout as it says, and both outlive the call.
        let n_found = match unsafe { pagemap_scan(pagemap.as_raw_fd(), &raw mut arguments) } {
            Ok(n_found) => usize::try_from(n_found).unwrap_or(0).min(REGIONS),
            Err(Errno::EINVAL) if told & GUARD != 0 => {
                told &= !GUARD;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let found = regions[..n_found].iter().copied();
        found
            .filter(|region| region.categories & GUARD == 0)
            .for_each(&mut each);
        if arguments.walk_end <= from {
            return Err(io::Error::other("the kernel's scan of pages does not advance"));
        }
        from = arguments.walk_end;
    }
    Ok(())
}
