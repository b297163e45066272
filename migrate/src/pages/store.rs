//! The destination's store of pages that came before their container: files in the move's memory-backed directory.
//!
//! Each task has a sparse file in which a page lies at its own address, so that a page that comes again takes the place of
//! the old one, the file system knows which pages there are, and an agent that is started again finds all as it was. It
//! takes no more room than there is, and gives a page's room back when that page is where it belongs. It does not know
//! which pages will be needed.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use godwit_runtime::control::create_private_dir;
use godwit_runtime::pages::layout::Range;
use godwit_runtime::pages::wire::{Header, Kind, PAGE_BYTES};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

use super::codec::{self, Packing};
use crate::checks::room;

/// Tasks that a store takes at most; a container of more is moved in another way.
const MAX_TASKS: usize = 16_384;

/// Room that stays free on the file system: images of other moves, and what the system itself keeps there.
const RESERVE_BYTES: u64 = 16 << 20;

/// How much is taken in between two looks at the room.
const ROOM_INTERVAL_BYTES: u64 = 8 << 20;

/// Says that every page a restored task may need is here.
const COMPLETE: &str = "complete";

/// See the module.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    files: Mutex<BTreeMap<u32, Arc<File>>>,
}

impl Store {
    /// A new store in `directory`, which it makes.
    pub fn create(directory: &Path) -> io::Result<Self> {
        create_private_dir(directory)?;
        Ok(Self::at(directory))
    }

    /// The store that another agent has left in `directory`, if there is one.
    pub fn reopen(directory: &Path) -> io::Result<Option<Self>> {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let store = Self::at(directory);
        for entry in entries {
            let name = entry?.file_name();
            if let Some(task) = name.to_str().and_then(|name| name.parse().ok()) {
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(directory.join(name))?;
                store.files().insert(task, Arc::new(file));
            }
        }
        Ok(Some(store))
    }

    fn at(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            files: Mutex::default(),
        }
    }

    /// Whether nothing is needed from the source any more.
    pub fn is_complete(&self) -> bool {
        self.directory.join(COMPLETE).exists()
    }

    /// Takes in a stream of pages to its end. `all sent` at its end makes the store complete.
    pub fn take(&self, input: &mut impl Read) -> io::Result<()> {
        let (mut content, mut pages) = (Vec::new(), Vec::new());
        let mut room = 0;
        while let Some(header) = Header::read(input)? {
            match header.kind {
                Kind::Raw | Kind::Zero | Kind::Lz4 | Kind::Zstd => {}
                Kind::Stale => {
                    self.remove(header.task, range_of(&header))?;
                    continue;
                }
                Kind::AllSent => {
                    File::create(self.directory.join(COMPLETE))?;
                    continue;
                }
                other => {
                    return Err(invalid(format!(
                        "a record of kind {other:?} among pages to be kept"
                    )));
                }
            }
            content.resize(header.length as usize, 0);
            input.read_exact(&mut content)?;
            let bytes = header.end() - header.address;
            if room < bytes {
                room = self.room()?;
                if room < bytes {
                    return Err(io::Error::new(
                        io::ErrorKind::StorageFull,
                        format!("no room for more pages in {}", self.directory.display()),
                    ));
                }
            }
            room -= bytes;
            let page_bytes = match header.kind {
                Kind::Raw => &content,
                Kind::Zero => {
                    pages.clear();
                    pages.resize(bytes as usize, 0);
                    &pages
                }
                _ => {
                    codec::unpack(header, &content, &mut pages)?;
                    &pages
                }
            };
            self.file_of(header.task)?
                .write_all_at(page_bytes, header.address)?;
        }
        Ok(())
    }

    fn room(&self) -> io::Result<u64> {
        let free = room::free_bytes(&self.directory)?;
        Ok(free.saturating_sub(RESERVE_BYTES).min(ROOM_INTERVAL_BYTES))
    }

    /// Appends the pages of `task` from `address` on that are here, at most `pages` of them, as records to `out`; returns
    /// what they cover. `None`: the first is not here.
    pub fn find(&self, task: u32, address: u64, pages: u32, out: &mut Vec<u8>) -> io::Result<Option<Range>> {
        let Some(file) = self.files().get(&task).cloned() else {
            return Ok(None);
        };
        let offset = offset(address)?;
        match lseek(&*file, offset, Whence::SeekData) {
            Ok(data) if data == offset => {}
            // What is there lies further on, or nowhere.
            Ok(_) | Err(Errno::ENXIO) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let hole = lseek(&*file, offset, Whence::SeekHole)?.cast_unsigned();
        let end = hole.min(address + u64::from(pages) * PAGE_BYTES as u64);
        let mut content = vec![0; usize::try_from(end - address).unwrap_or(0)];
        file.read_exact_at(&mut content, address)?;
        codec::pack(task, address, &content, Packing::None, out)?;
        Ok(Some(Range { start: address, end }))
    }

    /// Gives the room of these pages back.
    pub fn remove(&self, task: u32, pages: Range) -> io::Result<()> {
        let Some(file) = self.files().get(&task).cloned() else {
            return Ok(());
        };
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        Ok(fallocate(
            &*file,
            flags,
            offset(pages.start)?,
            offset(pages.bytes())?,
        )?)
    }

    fn file_of(&self, task: u32) -> io::Result<Arc<File>> {
        let mut files = self.files();
        if let Some(file) = files.get(&task) {
            return Ok(Arc::clone(file));
        }
        if files.len() >= MAX_TASKS {
            return Err(invalid(format!("pages of more than {MAX_TASKS} tasks")));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.directory.join(task.to_string()))?;
        let file = Arc::new(file);
        files.insert(task, Arc::clone(&file));
        Ok(file)
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<File>>> {
        // Bookkeeping that a panic elsewhere cannot leave half-done.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn range_of(header: &Header) -> Range {
    Range {
        start: header.address,
        end: header.end(),
    }
}

fn offset(address: u64) -> io::Result<i64> {
    i64::try_from(address).map_err(|_| invalid("pages at an address that cannot be".into()))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where programs have their memory; no disk's file system has files that reach as far.
    const ADDRESS: u64 = 0x7fff_0000_0000;
    const PAGE: u64 = PAGE_BYTES as u64;

    fn memory_backed() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").unwrap()
    }

    fn store(directory: &tempfile::TempDir) -> Store {
        Store::create(&directory.path().join("kept")).unwrap()
    }

    /// Records of pages that hold these bytes each, from an address on.
    fn stream(task: u32, address: u64, pages: &[u8], packing: Packing) -> Vec<u8> {
        let content: Vec<u8> = pages.iter().flat_map(|byte| [*byte; PAGE_BYTES]).collect();
        let mut out = Vec::new();
        codec::pack(task, address, &content, packing, &mut out).unwrap();
        out
    }

    /// The first bytes of the pages that a store has from an address on.
    fn found(store: &Store, task: u32, address: u64, pages: u32) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let range = store.find(task, address, pages, &mut out).unwrap()?;
        let (mut rest, mut bytes, mut next) = (out.as_slice(), Vec::new(), address);
        while let Some(header) = Header::read(&mut rest).unwrap() {
            assert_eq!((header.task, header.address), (task, next));
            next = header.end();
            let (content, behind) = rest.split_at(header.length as usize);
            rest = behind;
            match header.kind {
                Kind::Zero => bytes.extend(vec![0; header.pages as usize]),
                _ => bytes.extend(content.chunks(PAGE_BYTES).map(|page| page[0])),
            }
        }
        assert_eq!(next, range.end);
        Some(bytes)
    }

    #[test]
    fn pages_lie_where_they_belong_and_the_last_that_came_counts() {
        let directory = memory_backed();
        let store = store(&directory);
        let first = stream(1, ADDRESS, &[1, 2, 0, 4], Packing::Zstd);
        let second = stream(1, ADDRESS + PAGE, &[7], Packing::None);
        let other = stream(2, ADDRESS + 2 * PAGE, &[9, 9], Packing::Lz4);
        store
            .take(&mut [first, second, other].concat().as_slice())
            .unwrap();
        assert_eq!(found(&store, 1, ADDRESS, 9), Some(vec![1, 7, 0, 4]));
        assert_eq!(found(&store, 1, ADDRESS + 2 * PAGE, 1), Some(vec![0]));
        assert_eq!(found(&store, 2, ADDRESS + 2 * PAGE, 9), Some(vec![9, 9]));
        assert_eq!(found(&store, 2, ADDRESS, 9), None, "it lies further on");
        assert_eq!(found(&store, 1, ADDRESS + 4 * PAGE, 1), None, "it ends before");
        assert_eq!(found(&store, 3, ADDRESS, 1), None, "there is no such task");
        assert!(!store.is_complete());
    }

    #[test]
    fn what_is_stale_or_given_back_is_gone_and_takes_no_room() {
        let directory = memory_backed();
        let store = store(&directory);
        let blocks = || {
            let path = directory.path().join("kept/1");
            std::os::unix::fs::MetadataExt::blocks(&fs::metadata(path).unwrap())
        };
        let came = stream(1, ADDRESS, &[1, 2, 3, 4], Packing::None);
        store.take(&mut came.as_slice()).unwrap();
        let before = blocks();
        let stale = Header::bare(Kind::Stale, 1, ADDRESS + PAGE, 1).to_bytes();
        let all_sent = Header::bare(Kind::AllSent, 0, 0, 0).to_bytes();
        store.take(&mut [stale, all_sent].concat().as_slice()).unwrap();
        assert_eq!(found(&store, 1, ADDRESS, 9), Some(vec![1]));
        assert_eq!(found(&store, 1, ADDRESS + PAGE, 9), None);
        let rest = Range {
            start: ADDRESS + 2 * PAGE,
            end: ADDRESS + 3 * PAGE,
        };
        store.remove(1, rest).unwrap();
        assert_eq!(found(&store, 1, ADDRESS + 3 * PAGE, 9), Some(vec![4]));
        assert_eq!(before - blocks(), 2 * PAGE / 512);
        assert!(store.is_complete());
    }

    #[test]
    fn an_agent_that_is_started_again_finds_all_of_it() {
        let directory = memory_backed();
        let path = directory.path().join("kept");
        assert!(Store::reopen(&path).unwrap().is_none());
        let came = stream(8, ADDRESS, &[5], Packing::None);
        let all_sent = Header::bare(Kind::AllSent, 0, 0, 0).to_bytes();
        let store = store(&directory);
        store
            .take(&mut [came, all_sent.to_vec()].concat().as_slice())
            .unwrap();
        drop(store);
        let again = Store::reopen(&path).unwrap().unwrap();
        assert_eq!(found(&again, 8, ADDRESS, 1), Some(vec![5]));
        assert!(again.is_complete());
    }

    #[test]
    fn what_is_no_page_is_refused() {
        let directory = memory_backed();
        let store = store(&directory);
        let wanted = Header::bare(Kind::Urgent, 1, ADDRESS, 1).to_bytes();
        assert!(store.take(&mut wanted.as_slice()).is_err());
        let cut = &stream(1, ADDRESS, &[1], Packing::None)[..100];
        assert!(store.take(&mut &cut[..]).is_err());
        let beyond = stream(1, 1 << 63, &[1], Packing::None);
        assert!(store.take(&mut beyond.as_slice()).is_err());
    }
}
