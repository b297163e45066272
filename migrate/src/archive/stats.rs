//! CRIU's statistics of a dump, from what we have measured of it: CRIU writes its own only when it has been let go, and the archive
//! is written by then.

use std::io;

use protobuf::CodedOutputStream;

use crate::clock::Step;

/// What begins a file of statistics: that of all such files, and of this one (criu/include/magic.h).
const MAGIC: [u32; 2] = [0x5510_5940, 0x5709_3306];

/// How the shim calls what it measured, in the order of the fields `freezing_time`, `frozen_time`, `memdump_time` and
/// `memwrite_time` (images/stats.proto).
const STEPS: [&[&str]; 4] = [&["freeze"], &["dump"], &[], &[]];

/// The file, of a dump in these steps that has so many pages.
pub fn file(steps: &[Step], pages: u64) -> io::Result<Vec<u8>> {
    let micros = |names: &[&str]| -> u32 {
        let named = steps.iter().filter(|step| names.contains(&step.name.as_str()));
        u32::try_from(named.map(|step| step.micros).sum::<u64>()).unwrap_or(u32::MAX)
    };
    let mut dump = Vec::new();
    let mut output = CodedOutputStream::vec(&mut dump);
    for (number, names) in (1..).zip(STEPS) {
        output.write_uint32(number, micros(names))?;
    }
    // Scanned, found unchanged since an earlier dump, written.
    output.write_uint64(5, pages)?;
    output.write_uint64(6, 0)?;
    output.write_uint64(7, pages)?;
    output.write_uint32(8, 0)?;
    output.write_uint64(9, 0)?;
    output.flush()?;
    drop(output);

    let mut entry = Vec::new();
    let mut output = CodedOutputStream::vec(&mut entry);
    output.write_bytes(1, &dump)?;
    output.flush()?;
    drop(output);
    let mut bytes: Vec<u8> = MAGIC.iter().flat_map(|magic| magic.to_le_bytes()).collect();
    bytes.extend(
        u32::try_from(entry.len())
            .map_err(io::Error::other)?
            .to_le_bytes(),
    );
    bytes.extend(entry);
    Ok(bytes)
}
