//! Makes the image of a lazy dump say that it has all of its pages, and says where those are that it does not have yet.
//!
//! After [`make`] the image is as CRIU writes one whose pages are all in it, but for the files of pages themselves: each is put
//! together of what CRIU has written to it and of what is still in the tasks, which must stand still until that was read. An
//! image so changed can be restored from nowhere else.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use protobuf::CodedOutputStream;

use super::layout::{self, PE_LAZY, PE_PRESENT, Range};
use super::left_out;
use super::wire::PAGE_BYTES;
use crate::control::write_atomically;
use crate::image::Manifest;
use crate::image_file::{Field, MAGIC_BYTES, damaged, entries as entries_of, fields};

/// In a pagemap entry's flags: the pages are in another image, of an earlier dump.
const PE_PARENT: u64 = 1;

/// A file of pages, as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pages {
    /// Its name in the image.
    pub name: String,
    /// Its bytes, in order.
    pub pieces: Vec<Piece>,
}

/// A part of a file of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The next bytes of the file that CRIU has written.
    Written {
        /// How many.
        bytes: u64,
    },
    /// Memory of a task.
    Left {
        /// Its pid, as the images name it.
        pid: u32,
        /// Its pages.
        range: Range,
    },
}

impl Piece {
    /// How many bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Written { bytes } => *bytes,
            Self::Left { range, .. } => range.bytes(),
        }
    }
}

impl Pages {
    /// How many bytes the whole has.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(Piece::bytes).sum()
    }
}

/// Changes the image of a dump that is held. What comes back are all files of pages whose tasks have left some.
pub fn make(image: &Path) -> io::Result<Vec<Pages>> {
    left_out::list(image)?;
    let mut files = Vec::new();
    for pid in layout::pids(image)? {
        files.extend(make_task(image, pid)?);
    }
    let sizes: BTreeMap<String, u64> = files
        .iter()
        .map(|file: &Pages| (file.name.clone(), file.bytes()))
        .collect();
    Manifest::make_whole(image, &sizes)?;
    Ok(files)
}

/// `None` if the task has left no pages.
fn make_task(image: &Path, pid: u32) -> io::Result<Option<Pages>> {
    let path = image.join(format!("pagemap-{pid}.img"));
    if !path.exists() {
        return Ok(None);
    }
    let mut head: Option<Vec<u8>> = None;
    let mut id = None;
    let mut entries = Vec::new();
    let mut pieces: Vec<Piece> = Vec::new();
    entries_of(&path, |entry| {
        if head.is_none() {
            fields(entry, |number, value| {
                if let (1, Field::Number(value)) = (number, value) {
                    id = Some(value);
                }
            })?;
            head = Some(entry.to_vec());
            return Ok(());
        }
        let (range, flags) = layout::page_entry(entry)?;
        if flags & PE_PARENT != 0 {
            return Err(damaged("pages in an image of an earlier dump"));
        }
        let is_written = flags & PE_PRESENT != 0;
        if !is_written && flags & PE_LAZY == 0 {
            // Of pages that are neither CRIU wants nothing.
            entries.push(entry.to_vec());
            return Ok(());
        }
        match (is_written, pieces.last_mut()) {
            (true, Some(Piece::Written { bytes })) => *bytes += range.bytes(),
            (true, _) => pieces.push(Piece::Written { bytes: range.bytes() }),
            (false, _) => pieces.push(Piece::Left { pid, range }),
        }
        entries.push(present(range)?);
        Ok(())
    })?;
    if !pieces.iter().any(|piece| matches!(piece, Piece::Left { .. })) {
        // It is as it should be, or says of written pages that they could wait, which a restore that waits for none ignores.
        return Ok(None);
    }
    let (Some(head), Some(id)) = (head, id) else {
        return Err(damaged("a list of pages that does not say where they are"));
    };
    let old = fs::read(&path)?;
    let mut bytes = old.get(..MAGIC_BYTES).unwrap_or_default().to_vec();
    for entry in std::iter::once(&head).chain(&entries) {
        bytes.extend(
            u32::try_from(entry.len())
                .map_err(io::Error::other)?
                .to_le_bytes(),
        );
        bytes.extend(entry);
    }
    write_atomically(&path, &bytes)?;
    let name = format!("pages-{id}.img");
    let file = Pages { name, pieces };
    check_written(image, &file)?;
    Ok(Some(file))
}

/// What CRIU has written must be what its list says, to the byte: else everything behind it would be another page's.
fn check_written(image: &Path, file: &Pages) -> io::Result<()> {
    let listed: u64 = file
        .pieces
        .iter()
        .map(|piece| match piece {
            Piece::Written { bytes } => *bytes,
            Piece::Left { .. } => 0,
        })
        .sum();
    let written = match fs::metadata(image.join(&file.name)) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    if listed == written {
        return Ok(());
    }
    let name = &file.name;
    Err(damaged(&format!(
        "{name} has {written} bytes, and {listed} are listed"
    )))
}

/// An entry of a pagemap image (images/pagemap.proto) of pages that are in the image.
fn present(range: Range) -> io::Result<Vec<u8>> {
    let pages = range.bytes() / PAGE_BYTES as u64;
    let mut bytes = Vec::new();
    let mut output = CodedOutputStream::vec(&mut bytes);
    output.write_uint64(1, range.start)?;
    // Required. Readers that do not know the longer one go by it.
    output.write_uint32(2, u32::try_from(pages).unwrap_or(0))?;
    output.write_uint32(4, PE_PRESENT as u32)?;
    output.write_uint64(5, pages)?;
    output.flush()?;
    drop(output);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::NetworkOwner;
    use crate::options::Layer;
    use crate::pages::layout::tests::{pagemap, written};

    const LAZY: u32 = PE_LAZY as u32;
    const PRESENT: u32 = PE_PRESENT as u32;

    fn image(pagemaps: &[Vec<u8>]) -> tempfile::TempDir {
        let image = written(pagemaps);
        let mut manifest = Manifest::new("abc", NetworkOwner::Engine, false, Layer::default());
        manifest.lazy = true;
        manifest.write(image.path()).unwrap();
        image
    }

    #[test]
    fn pages_that_were_left_come_where_they_are_listed() {
        let image = image(&[
            pagemap(0x1000, 1, PRESENT),
            pagemap(0x2000, 1, PRESENT | LAZY),
            pagemap(0x3000, 2, LAZY),
            pagemap(0x9000, 1, PRESENT),
        ]);
        fs::write(image.path().join("pages-1.img"), vec![7; 3 * PAGE_BYTES]).unwrap();
        let files = make(image.path()).unwrap();
        let page = PAGE_BYTES as u64;
        let left = Range {
            start: 0x3000,
            end: 0x5000,
        };
        let pieces = [
            Piece::Written { bytes: 2 * page },
            Piece::Left { pid: 1, range: left },
            Piece::Written { bytes: page },
        ];
        assert_eq!(
            (files[0].name.as_str(), files[0].pieces.as_slice()),
            ("pages-1.img", &pieces[..])
        );
        assert!(layout::left_behind(image.path()).unwrap()[0].ranges.is_empty());
        let manifest = Manifest::read(image.path()).unwrap().unwrap();
        assert!(!manifest.lazy, "nobody is to fetch any");
        let error = manifest.check(image.path()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("pages-1.img has {} of {} bytes", 3 * page, 5 * page)),
            "{error}"
        );
        fs::write(image.path().join("pages-1.img"), vec![7; 5 * PAGE_BYTES]).unwrap();
        manifest.check(image.path()).unwrap();
    }

    #[test]
    fn a_list_that_does_not_fit_its_pages_is_refused() {
        let lists = [pagemap(0x1000, 1, PRESENT), pagemap(0x2000, 1, LAZY)];
        let image = image(&lists);
        fs::write(image.path().join("pages-1.img"), vec![7; 2 * PAGE_BYTES]).unwrap();
        let error = make(image.path()).unwrap_err().to_string();
        assert!(
            error.contains("pages-1.img has 8192 bytes, and 4096 are listed"),
            "{error}"
        );
    }
}
