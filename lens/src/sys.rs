//! `ioctl` and `sendmsg` as CRIU calls them: everything goes on to the kernel, but for the scan that is answered here and the
//! question that another is asked in place of.
#![allow(unsafe_code)] // symbols that are called from outside, and the calls of the kernel behind them

use std::ffi::{c_int, c_long, c_ulong, c_void};

use nix::libc;

use crate::conntrack::Question;

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

/// The C library's.
///
/// # Safety
/// As `sendmsg(2)`: `message` is a whole one.
#[expect(unreachable_pub, reason = "whoever calls the C library's reaches this one")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmsg(descriptor: c_int, message: *const libc::msghdr, flags: c_int) -> isize {
    // SAFETY: the caller's message, which is not changed.
    let question = unsafe { message.as_ref().and_then(|message| question_in(message)) };
    let other = question
        .filter(|_| crate::conntrack::is_unwanted())
        .filter(|_| option_of(descriptor, libc::SO_DOMAIN) == Some(libc::AF_NETLINK))
        .filter(|_| option_of(descriptor, libc::SO_PROTOCOL) == Some(libc::NETLINK_NETFILTER))
        .and_then(|question| crate::conntrack::instead_of(&question));
    if let Some(mut question) = other {
        let mut part = libc::iovec {
            iov_base: question.as_mut_ptr().cast(),
            iov_len: question.len(),
        };
        // SAFETY: as above; `question_in` has seen that there is a message.
        let mut changed = unsafe { *message };
        changed.msg_iov = &raw mut part;
        // SAFETY: a whole message, which lives until the call returns.
        return unsafe { libc::syscall(libc::SYS_sendmsg, descriptor, &raw const changed, flags) } as isize;
    }
    // SAFETY: the caller's arguments, as they came.
    unsafe { libc::syscall(libc::SYS_sendmsg, descriptor, message, flags) as isize }
}

/// The bytes of a message in one piece that has the length of a question to the kernel's netfilter.
///
/// # Safety
/// The message's parts are where it says.
unsafe fn question_in(message: &libc::msghdr) -> Option<Question> {
    if message.msg_iovlen != 1 || message.msg_iov.is_null() || message.msg_controllen != 0 {
        return None;
    }
    // SAFETY: there is one part.
    let part = unsafe { &*message.msg_iov };
    if part.iov_len != size_of::<Question>() || part.iov_base.is_null() {
        return None;
    }
    // SAFETY: it has this length.
    Some(unsafe { part.iov_base.cast::<Question>().read() })
}

/// A number that the kernel tells of a socket.
fn option_of(descriptor: c_int, option: c_int) -> Option<c_int> {
    let (mut value, mut length): (c_int, libc::socklen_t) = (0, size_of::<c_int>() as libc::socklen_t);
    // SAFETY: both places live until the call returns, and the length is that of the first.
    let answer = unsafe {
        libc::getsockopt(
            descriptor,
            libc::SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    (answer == 0).then_some(value)
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

    #[test]
    fn what_is_no_question_to_the_kernel_passes_as_it_is() {
        use std::io::{IoSlice, Read};
        use std::os::unix::net::UnixStream;

        // SAFETY: no other test's outcome depends on it.
        unsafe { std::env::set_var(crate::conntrack::VARIABLE, "1") };
        // As much like the question as bytes can be.
        let mut bytes = [0_u8; 20];
        bytes[4..8].copy_from_slice(&[1, 1, 1, 3]);
        assert!(crate::conntrack::instead_of(&bytes).is_some());
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (parts, mut arrived) = ([IoSlice::new(&bytes)], [0_u8; 20]);
        // SAFETY: one of zeros is an empty one.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = parts.as_ptr().cast_mut().cast();
        message.msg_iovlen = 1;
        // SAFETY: a whole message.
        assert_eq!(unsafe { sendmsg(ours.as_raw_fd(), &raw const message, 0) }, 20);
        theirs.read_exact(&mut arrived).unwrap();
        assert_eq!(arrived, bytes);
        // SAFETY: as above; the descriptor is none, which the kernel says.
        assert_eq!(unsafe { sendmsg(-1, &raw const message, 0) }, -1);
    }
}
