//! An image's inventory, of which one word is changed: that CRIU need not lock the network in a restore.
//!
//! CRIU restores with the lock that it dumped with, which the inventory says, whatever its options are. Where a gate has
//! closed the network namespace (`gate`) that is a second lock on the same door, and to take it away costs the freeze
//! some 15 ms: to delete a table of nft the kernel waits for every processor.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use protobuf::CodedInputStream;

/// The name of CRIU's file.
pub(crate) const INVENTORY: &str = "inventory.img";

/// A magic number and the length of the one message that follows (CRIU's `inventory.proto`).
const HEAD_BYTES: usize = 8;

/// No inventory comes near it.
const LIMIT_BYTES: u64 = 1 << 20;

/// The number of the field `network_lock_method`, and its value for "none" (`NETWORK_LOCK_SKIP`).
const LOCK_FIELD: u32 = 11;
const NO_LOCK: u8 = 2;

/// Makes CRIU restore the image in `image_dir` without a lock of its own. The file keeps its length; where an older CRIU
/// has not said how it locks it stays as it is, and the restore is slower.
pub(crate) fn leave_lock_to_gate(image_dir: &Path) -> io::Result<()> {
    let file = File::options()
        .read(true)
        .write(true)
        .open(image_dir.join(INVENTORY))?;
    let length = file.metadata()?.len().min(LIMIT_BYTES);
    // It is below the limit.
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0)?;
    let message = bytes.get(HEAD_BYTES..).unwrap_or_default();
    match place_of_lock(message)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{INVENTORY}: {error}")))?
    {
        Some(place) => file.write_all_at(&[NO_LOCK], HEAD_BYTES as u64 + place),
        None => Ok(()),
    }
}

/// Where in the message the lock is said, which is a number of one byte.
fn place_of_lock(message: &[u8]) -> protobuf::Result<Option<u64>> {
    let mut input = CodedInputStream::from_bytes(message);
    let mut found = None;
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        match tag & 7 {
            0 => {
                let place = input.pos();
                input.read_uint64()?;
                if tag >> 3 == LOCK_FIELD && input.pos() == place + 1 {
                    found = Some(place);
                }
            }
            1 => input.skip_raw_bytes(8)?,
            2 => {
                let length = input.read_raw_varint32()?;
                input.skip_raw_bytes(length)?;
            }
            _ => input.skip_raw_bytes(4)?,
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What CRIU 4.2.1 writes of a task on its own, with a lock of nft.
    const OF_CRIU: &[u8] = &[
        0x16, 0x31, 0x31, 0x58, 0x28, 0, 0, 0, 8, 2, 0x10, 1, 0x1a, 0x18, 8, 1, 0x10, 1, 0x18, 1, 0x20, 1,
        0x28, 1, 0x30, 2, 0x38, 3, 0x40, 4, 0x48, 6, 0x50, 7, 0x58, 8, 0x60, 5, 0x20, 1, 0x28, 1, 0x30, 0,
        0x58, 1, 0x62, 0,
    ];

    fn changed(content: &[u8]) -> io::Result<Vec<u8>> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(INVENTORY);
        std::fs::write(&path, content).unwrap();
        leave_lock_to_gate(directory.path()).map(|()| std::fs::read(&path).unwrap())
    }

    #[test]
    fn only_the_lock_is_changed() {
        let found = changed(OF_CRIU).unwrap();
        let mut expected = OF_CRIU.to_vec();
        // Not the field of the same number in the message within.
        expected[45] = NO_LOCK;
        assert_eq!(found, expected);
    }

    #[test]
    fn what_says_nothing_of_a_lock_stays_as_it_is() {
        let without = &OF_CRIU[..44];
        assert_eq!(changed(without).unwrap(), without);
        assert_eq!(changed(&[]).unwrap(), [0; 0]);
    }

    #[test]
    fn what_is_no_inventory_is_an_error_that_names_it() {
        let error = changed(&OF_CRIU[..20]).unwrap_err();
        assert!(error.to_string().contains(INVENTORY), "{error}");
    }
}
