//! What the fuzz targets share: a directory that costs nothing.
//!
//! The shim is a program and no library, so targets take in the files of its parsers by their paths.

/// Scratch directories lie in memory: a target runs thousands of times a second.
pub const SCRATCH: &str = "/dev/shm";

/// An empty directory in memory that goes away with its value.
///
/// # Panics
///
/// If the machine cannot make one: there is nothing to fuzz then.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(SCRATCH).expect("a directory in memory")
}
