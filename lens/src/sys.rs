//! `ioctl` as CRIU calls it: everything goes on to the kernel, but for the scan that is answered here.
#![allow(unsafe_code)] // a symbol that is called from outside, and the call of the kernel behind it

use std::ffi::{c_int, c_long, c_ulong, c_void};

use nix::libc;

/// The page belongs to a file, or is shared.
const FILE: u64 = 1 << 2;
/// The page is in memory.
const PRESENT: u64 = 1 << 3;
/// The page is in swap space.
const SWAPPED: u64 = 1 << 4;
/// The page is the one page of zeros that all share.
const ZERO: u64 = 1 << 5;

/// The argument of `PAGEMAP_SCAN` (Linux 6.7), as `linux/fs.h` lays it out.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Scan {
    size: u64,
    flags: u64,
    pub(crate) start: u64,
    pub(crate) end: u64,
    walk_end: u64,
    regions: u64,
    n_regions: u64,
    max_pages: u64,
    inverted: u64,
    all_of: u64,
    any_of: u64,
    told: u64,
}

const PAGEMAP_SCAN: c_ulong = nix::request_code_readwrite!(b'f', 16, size_of::<Scan>());

impl Scan {
    /// Whether it is the question which pages there are to be dumped (`pmc_fill` in criu/pagemap-cache.c).
    pub(crate) fn is_for_dump(&self) -> bool {
        self.flags == 0
            && self.inverted == ZERO | FILE
            && self.all_of == ZERO | FILE
            && self.any_of == PRESENT | SWAPPED
    }
}

/// The C library's, which takes two arguments or three; the kernel looks at the third only where there is one.
///
/// # Safety
/// As `ioctl(2)`: `argument` is what `request` asks for.
#[expect(unreachable_pub, reason = "whoever calls the C library's reaches this one")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(descriptor: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    if request == PAGEMAP_SCAN && !argument.is_null() {
        // SAFETY: who asks for this hands over the kernel's structure, which nobody else uses during the call.
        let scan = unsafe { &mut *argument.cast::<Scan>() };
        if scan.size == size_of::<Scan>() as u64 && crate::hides(descriptor, scan) {
            scan.walk_end = scan.end;
            return 0;
        }
    }
    // SAFETY: the caller's arguments, as they came.
    let answer: c_long = unsafe { libc::syscall(libc::SYS_ioctl, descriptor, request, argument) };
    // The kernel's answers to this call have the size of an int.
    answer as c_int
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsRawFd;

    use super::*;

    const BYTES: usize = 8 << 20;

    fn scan_of(start: u64, end: u64, regions: &mut [[u64; 3]]) -> Scan {
        Scan {
            size: size_of::<Scan>() as u64,
            flags: 0,
            start,
            end,
            walk_end: 0,
            regions: regions.as_mut_ptr() as u64,
            n_regions: regions.len() as u64,
            max_pages: 0,
            inverted: ZERO | FILE,
            all_of: ZERO | FILE,
            any_of: PRESENT | SWAPPED,
            told: PRESENT | SWAPPED,
        }
    }

    /// One test, because it sets a variable of the whole process.
    #[test]
    fn a_large_mapping_is_hidden_and_written_down_where_that_is_asked_for() {
        let directory = std::env::temp_dir().join(format!("godwit-lens-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let record = directory.join("left-out");
        // SAFETY: a new mapping with a page of no access at each end, so that it is one by itself.
        let start = unsafe {
            let page = 4096;
            let around = libc::mmap(
                std::ptr::null_mut(),
                BYTES + 2 * page,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(around, libc::MAP_FAILED);
            let start = around.byte_add(page);
            assert_eq!(
                libc::mprotect(start, BYTES, libc::PROT_READ | libc::PROT_WRITE),
                0
            );
            start.cast::<u8>().write_volatile(1);
            start as u64
        };
        let pagemap = File::open(format!("/proc/{}/pagemap", std::process::id())).unwrap();
        let mut regions = [[0; 3]; 8];
        let ask = |scan: &mut Scan| {
            // SAFETY: the structure and its regions outlive the call.
            unsafe { ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, std::ptr::from_mut(scan).cast()) }
        };
        let end = start + BYTES as u64;
        let mut whole = scan_of(start, end, &mut regions);
        assert_eq!(ask(&mut whole), 1, "nobody has asked for it to be hidden");
        // SAFETY: the only thread of this test process that reads or writes variables.
        unsafe { std::env::set_var(crate::RECORD_VARIABLE, &record) };
        let mut part = scan_of(start, end - 4096, &mut regions);
        assert_eq!(ask(&mut part), 1, "not a whole mapping");
        let mut other = scan_of(start, end, &mut regions);
        other.all_of = 0;
        other.inverted = 0;
        assert_eq!(ask(&mut other), 1, "another question");
        assert!(!record.exists());
        let mut whole = scan_of(start, end, &mut regions);
        assert_eq!((ask(&mut whole), whole.walk_end), (0, end));
        let line = format!("{} {start:x} {end:x}\n", std::process::id());
        assert_eq!(fs::read_to_string(&record).unwrap(), line);
        // SAFETY: see above.
        unsafe { std::env::set_var(crate::RECORD_VARIABLE, directory.join("not/there")) };
        assert_eq!(ask(&mut whole), 1, "what cannot be written down is not hidden");
        fs::remove_dir_all(&directory).unwrap();
    }
}
