//! Contents of an archive on their way to where they are kept, and their sum: one thread reads and sums up, another writes.
//!
//! Each takes about as long as the other, and whoever imports waits for both. What is small is not worth a thread: an image has
//! some files for each task.

use std::fs::File;
use std::io::{self, Read, Write};
use std::panic::resume_unwind;
use std::sync::mpsc::sync_channel;
use std::thread;

/// Bytes handed over at a time.
const BLOCK_BYTES: usize = 256 * 1024;

/// Blocks between the two: one is being read, one is being written, and two wait.
const N_BLOCKS: usize = 4;

/// Why contents are not where they should be.
#[derive(Debug)]
pub(super) enum CopyError {
    /// What they come from.
    Reading(io::Error),
    /// Where they go.
    Writing(io::Error),
}

/// Copies what there is, to its end, and tells `progress` of the bytes of each block; their BLAKE3 sum in hexadecimal.
pub(super) fn copy(from: &mut dyn Read, to: &mut File, progress: impl Fn(u64)) -> Result<String, CopyError> {
    let mut hasher = blake3::Hasher::new();
    let mut first = Vec::new();
    let length = (&mut *from).take(BLOCK_BYTES as u64).read_to_end(&mut first);
    let length = length.map_err(CopyError::Reading)?;
    hasher.update(&first);
    to.write_all(&first).map_err(CopyError::Writing)?;
    progress(length as u64);
    if length < BLOCK_BYTES {
        return Ok(hasher.finalize().to_hex().to_string());
    }
    let (full, to_write) = sync_channel::<(Vec<u8>, usize)>(N_BLOCKS);
    let (written, empty) = sync_channel(N_BLOCKS);
    let (been_read, been_written) = thread::scope(|scope| {
        let writer = scope.spawn(move || {
            for (block, length) in to_write {
                to.write_all(&block[..length])?;
                // At the end nobody wants it back.
                let _ = written.send(block);
            }
            io::Result::Ok(())
        });
        let read = || {
            let mut spare = vec![first];
            spare.resize(N_BLOCKS, vec![0; BLOCK_BYTES]);
            // A writer that has failed gives nothing back and takes nothing more; it says itself why.
            while let Some(mut block) = spare.pop().or_else(|| empty.recv().ok()) {
                let length = from.read(&mut block)?;
                hasher.update(&block[..length]);
                progress(length as u64);
                if length == 0 || full.send((block, length)).is_err() {
                    break;
                }
            }
            drop(full);
            io::Result::Ok(())
        };
        (read(), writer.join())
    });
    been_read.map_err(CopyError::Reading)?;
    been_written
        .unwrap_or_else(|panic| resume_unwind(panic))
        .map_err(CopyError::Writing)?;
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use std::io::Seek;

    use super::*;

    const MANY_BYTES: usize = 3 * N_BLOCKS * BLOCK_BYTES + 1;

    /// Fails after its bytes.
    struct Broken(usize);

    impl Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            let length = self.0.min(buffer.len());
            self.0 -= length;
            Ok(length)
        }
    }

    #[test]
    fn what_is_copied_is_whole_and_summed_up() {
        for n_bytes in [0, 1, BLOCK_BYTES, MANY_BYTES] {
            let content: Vec<u8> = (0..n_bytes).map(|at| at as u8 ^ (at >> 12) as u8).collect();
            let mut file = tempfile::tempfile().unwrap();
            let told = std::cell::Cell::new(0);
            let sum = copy(&mut &content[..], &mut file, |more| told.set(told.get() + more)).unwrap();
            let mut copied = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut copied).unwrap();
            assert!(copied == content, "{n_bytes}");
            assert_eq!(sum, blake3::hash(&content).to_hex().to_string());
            assert_eq!(told.get(), n_bytes as u64);
        }
    }

    #[test]
    fn whichever_side_fails_ends_both_and_is_told() {
        let mut full = File::options().write(true).open("/dev/full").unwrap();
        let error = copy(&mut &vec![1; MANY_BYTES][..], &mut full, |_| ()).unwrap_err();
        assert!(matches!(error, CopyError::Writing(error) if error.kind() == io::ErrorKind::StorageFull));
        // One that takes the first block, and some of the second.
        let (mut reader, writer) = io::pipe().unwrap();
        let taken = thread::spawn(move || reader.read_exact(&mut vec![0; BLOCK_BYTES + 1]));
        let mut pipe = File::from(std::os::fd::OwnedFd::from(writer));
        let error = copy(&mut &vec![1; MANY_BYTES][..], &mut pipe, |_| ()).unwrap_err();
        assert!(matches!(error, CopyError::Writing(error) if error.kind() == io::ErrorKind::BrokenPipe));
        taken.join().unwrap().unwrap();
        for n_bytes in [0, MANY_BYTES] {
            let mut file = tempfile::tempfile().unwrap();
            let error = copy(&mut Broken(n_bytes), &mut file, |_| ()).unwrap_err();
            assert!(
                matches!(error, CopyError::Reading(error) if error.kind() == io::ErrorKind::ConnectionReset)
            );
        }
    }
}
