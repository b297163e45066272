//! Writing a file's pages back without the rest of a sync: no journal is committed and no disk's cache is flushed.
//!
//! Nothing is made durable by it. What counts is that a page which is written back is write-protected again in every mapping,
//! so that the next store to it goes through the kernel, which notes the time.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;

/// Writes back what is dirty of a file; returns when that is on its way to the disk and back.
pub(crate) fn write_back(file: &File) -> io::Result<()> {
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: the call takes no memory of this process, and the descriptor is open as long as `file` is borrowed.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// Longer than a tick of any kernel's clock.
    const TICK: Duration = Duration::from_millis(20);

    /// More than anybody writes back in a row.
    const ATTEMPTS: usize = 20;

    #[test]
    fn a_store_to_a_mapping_is_noted_again_after_a_write_back() {
        let file = tempfile::tempfile_in("/var/tmp").unwrap();
        file.set_len(4096).unwrap();
        let changed_at = || {
            let metadata = file.metadata().unwrap();
            (metadata.ctime(), metadata.ctime_nsec())
        };
        // SAFETY: a new mapping at a place of the kernel's choice; its one byte is only touched here, and only by
        // volatile stores while the mapping stands.
        let page = unsafe {
            let (protection, descriptor) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
            let page = libc::mmap(
                std::ptr::null_mut(),
                4096,
                protection,
                libc::MAP_SHARED,
                descriptor,
                0,
            );
            assert_ne!(page, libc::MAP_FAILED);
            page.cast::<u8>()
        };
        let store = |byte| {
            thread::sleep(TICK);
            // SAFETY: see above.
            unsafe { page.write_volatile(byte) };
        };
        // The kernel may write the page back at any time by itself, when others fill the disk.
        let is_unnoticed = || {
            store(1);
            let dirtied_at = changed_at();
            store(2);
            changed_at() == dirtied_at
        };
        assert!(
            (0..ATTEMPTS).any(|_| is_unnoticed()),
            "a page that is dirty changes unnoticed"
        );
        write_back(&file).unwrap();
        let dirtied_at = changed_at();
        store(3);
        assert_ne!(changed_at(), dirtied_at);
        // SAFETY: the mapping made above, which nobody uses any more.
        assert_eq!(unsafe { libc::munmap(page.cast(), 4096) }, 0);
    }
}
