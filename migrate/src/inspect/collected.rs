//! The files of a checkpoint image that an inspection needs, out of a directory or of an archive's stream.
//!
//! Descriptions are kept, up to a limit; files of pages are read over and nothing of them is kept but one bit for each page:
//! whether it holds anything but zeros. Of all else there is the size.

use std::collections::BTreeMap;
use std::io::{self, Read};

use godwit_runtime::image_file::LIMIT_BYTES;

use super::budget::oversized;
use super::view::total;

/// Bytes of a page; CRIU's images of all machines that this runs on have pages of this size.
pub(super) const PAGE_BYTES: usize = 4096;

/// How much of a file of pages is looked at in one go.
const CHUNK_BYTES: usize = 1 << 20;

/// Sixteen terabytes of pages: 512 MB of bits, which nobody has.
const PAGES_LIMIT_BYTES: u64 = 1 << 44;

/// How the names of files of pages begin and end.
const PAGES: (&str, &str) = ("pages-", ".img");

/// The dump's log, where whoever dumped kept it with the image, and how much of it says on what it was made.
pub(super) const LOG: &str = "dump.log";
const LOG_HEAD_BYTES: u64 = 16 << 10;

/// More files than an image of a hundred thousand processes has.
const MAX_FILES: usize = 1_000_000;

/// What there is of an image.
#[derive(Debug, Default)]
pub struct Collected {
    /// Descriptions by name.
    files: BTreeMap<String, Vec<u8>>,
    /// Files of pages by their numbers.
    pages: BTreeMap<u32, Pages>,
    /// Sizes of all files by name.
    pub(super) sizes: BTreeMap<String, u64>,
    kept_bytes: u64,
}

/// A file of pages.
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// How long it is.
    pub(super) bytes: u64,
    /// A bit for each page that holds something.
    filled: Vec<u64>,
}

impl Collected {
    /// Takes a file of the image, of which `content` has `size` bytes or fewer.
    pub fn add(&mut self, name: &str, size: u64, content: &mut impl Read) -> io::Result<()> {
        if self.sizes.len() >= MAX_FILES {
            return Err(oversized("it has more files than an image has"));
        }
        self.sizes.insert(name.to_owned(), size);
        if let Some(number) = number_of(name, PAGES) {
            self.pages.insert(number, Pages::read(content)?);
        } else if name == LOG {
            let mut head = Vec::new();
            content.take(LOG_HEAD_BYTES).read_to_end(&mut head)?;
            self.files.insert(name.to_owned(), head);
        } else if is_wanted(name) {
            self.kept_bytes = self.kept_bytes.saturating_add(size);
            if self.kept_bytes > LIMIT_BYTES {
                return Err(oversized("its descriptions are larger than any"));
            }
            let mut bytes = Vec::new();
            content.take(size).read_to_end(&mut bytes)?;
            self.files.insert(name.to_owned(), bytes);
        }
        Ok(())
    }

    /// The content of a description, if it is there.
    pub(super) fn file(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name).map(Vec::as_slice)
    }

    /// The names of descriptions that begin so.
    pub(super) fn names(&self, prefix: &str) -> impl Iterator<Item = &str> {
        let prefix = prefix.to_owned();
        self.files
            .keys()
            .map(String::as_str)
            .filter(move |name| name.starts_with(&prefix))
    }

    /// A file of pages.
    pub(super) fn pages(&self, number: u32) -> Option<&Pages> {
        self.pages.get(&number)
    }

    /// Bytes of all files of pages, and of all others.
    pub(super) fn bytes(&self) -> (u64, u64) {
        let of_pages = total(self.pages.values().map(|pages| pages.bytes));
        (
            of_pages,
            total(self.sizes.values().copied()).saturating_sub(of_pages),
        )
    }
}

impl Pages {
    /// Reads over a file of pages.
    fn read(content: &mut impl Read) -> io::Result<Self> {
        let (mut pages, mut chunk) = (Self::default(), vec![0; CHUNK_BYTES]);
        let mut content = content.take(PAGES_LIMIT_BYTES);
        loop {
            let n_read = fill(&mut content, &mut chunk)?;
            for page in chunk[..n_read].chunks(PAGE_BYTES) {
                let place = usize::try_from(pages.bytes).unwrap_or(usize::MAX) / PAGE_BYTES;
                if place.is_multiple_of(64) {
                    pages.filled.push(0);
                }
                if let Some(bits) = pages.filled.last_mut()
                    && page.iter().any(|byte| *byte != 0)
                {
                    *bits |= 1 << (place % 64);
                }
                pages.bytes += page.len() as u64;
            }
            if n_read < chunk.len() {
                return Ok(pages);
            }
        }
    }

    /// How many of `count` pages from `first` hold nothing but zeros; none behind the end do.
    pub(super) fn zeros(&self, first: u64, count: u64) -> u64 {
        let n_pages = self.bytes / PAGE_BYTES as u64;
        let end = first.saturating_add(count).min(n_pages);
        let mut page = first;
        let mut zeros = 0;
        while page < end {
            // As many as one word has bits for.
            let word = usize::try_from(page / 64)
                .ok()
                .and_then(|place| self.filled.get(place));
            let n_bits = (64 - page % 64).min(end - page);
            let mask = (u64::MAX >> (64 - n_bits)) << (page % 64);
            zeros += u64::from((!word.copied().unwrap_or(u64::MAX) & mask).count_ones());
            page += n_bits;
        }
        zeros
    }
}

/// Reads until `chunk` is full or there is no more.
fn fill(content: &mut impl Read, chunk: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < chunk.len() {
        match content.read(&mut chunk[filled..]) {
            Ok(0) => break,
            Ok(n_read) => filled += n_read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The number in a name like `pages-7.img`.
pub(super) fn number_of(name: &str, (prefix, suffix): (&str, &str)) -> Option<u32> {
    name.strip_prefix(prefix)?.strip_suffix(suffix)?.parse().ok()
}

/// Whether a file describes something that is told.
fn is_wanted(name: &str) -> bool {
    const WHOLE: [&str; 4] = ["inventory.img", "pstree.img", "files.img", "godwit.json"];
    const BEGINS: [&str; 6] = ["core-", "ids-", "mm-", "pagemap-", "fdinfo-", "mountpoints-"];
    WHOLE.contains(&name)
        || BEGINS
            .iter()
            .any(|begin| name.starts_with(begin) && name.ends_with(".img"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_counted_in_a_file_of_pages_and_nothing_of_it_is_kept() {
        let mut content = vec![0; 70 * PAGE_BYTES];
        content[3 * PAGE_BYTES] = 1;
        content[66 * PAGE_BYTES - 1] = 1;
        let mut collected = Collected::default();
        let size = content.len() as u64;
        collected
            .add("pages-7.img", size, &mut content.as_slice())
            .unwrap();
        let pages = collected.pages(7).unwrap();
        assert_eq!(pages.bytes, size);
        assert_eq!(pages.zeros(0, 70), 68);
        assert_eq!(pages.zeros(3, 1), 0);
        assert_eq!(pages.zeros(4, 61), 61);
        assert_eq!(pages.zeros(69, u64::MAX), 1, "none behind the end");
        assert_eq!(collected.bytes(), (size, 0));
        assert!(collected.file("pages-7.img").is_none());
    }

    #[test]
    fn a_description_that_is_larger_than_any_is_refused_before_it_is_read() {
        let mut collected = Collected::default();
        let told = collected.add("core-1.img", LIMIT_BYTES + 1, &mut io::repeat(7));
        assert!(told.is_err());
        let mut collected = Collected::default();
        for number in 0..3 {
            let name = format!("core-{number}.img");
            let told = collected.add(&name, LIMIT_BYTES / 2, &mut io::empty());
            assert_eq!(told.is_err(), number == 2, "{number}: all of them count");
        }
    }
}
