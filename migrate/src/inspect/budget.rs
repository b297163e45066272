//! How much one inspection may say: whoever wrote an image, or runs in a container, decides how long its lists and names are,
//! and a name that is written once can be meant by a million mappings.

use std::io;

/// A thousand processes of a hundred mappings and files each take 20 MB.
const LIMIT_BYTES: usize = 128 << 20;

/// What an entry takes besides its names.
const ENTRY_BYTES: usize = 96;

/// A name is shown, not used: longer ones than a path can have are cut.
const NAME_BYTES: usize = 4096;

/// What is left.
#[derive(Debug)]
pub(super) struct Budget(usize);

impl Default for Budget {
    fn default() -> Self {
        Self(LIMIT_BYTES)
    }
}

impl Budget {
    /// Room for one more entry with this name, which it gives back as text.
    pub(super) fn entry(&mut self, name: &[u8]) -> io::Result<String> {
        let name = String::from_utf8_lossy(&name[..name.len().min(NAME_BYTES)]).into_owned();
        self.0 = self
            .0
            .checked_sub(ENTRY_BYTES + name.len())
            .ok_or_else(|| oversized("more is in it than can be told"))?;
        Ok(name)
    }
}

/// That there is too much of something.
pub(super) fn oversized(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_an_end_are_cut_and_lists_without_an_end_refused() {
        let mut budget = Budget::default();
        let long = vec![b'x'; 1 << 20];
        let mut n_entries = 0;
        while let Ok(name) = budget.entry(&long) {
            assert_eq!(name.len(), NAME_BYTES);
            n_entries += 1;
        }
        assert_eq!(n_entries, LIMIT_BYTES / (NAME_BYTES + ENTRY_BYTES));
    }
}
