//! The memory of one restored task, or of a child it has forked: what is missing, what its kernel tells, how it is filled.
//!
//! One rule makes it right: once a message is read that says that memory is lost, moved or shared with a child, nothing
//! is filled by what was known before. The kernel does its part: from before the change until its message is read it
//! refuses to fill anything.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::layout::Range;
use super::ranges::{Missing, Ranges};
use super::wire::PAGE_BYTES;
use crate::sys::userfault::{self, Filled, Message};

/// How long the host or the container's cgroup may be out of memory before the pager gives up. The kernel has killed
/// somebody by then, if killing helps.
const MEMORY_DEADLINE: Duration = Duration::from_secs(30);

/// Between two attempts then.
const MEMORY_INTERVAL: Duration = Duration::from_millis(10);

const PAGE: u64 = PAGE_BYTES as u64;

/// What pages are to hold.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content<'a> {
    /// This.
    Raw(&'a [u8]),
    /// Zeros.
    Zero,
}

/// How far a filling came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing of it is missing any more.
    Complete,
    /// The task is changing its mappings: take its messages, then go on.
    Changing,
}

/// One address space.
#[derive(Debug)]
pub(super) struct Context {
    /// Its number, of this pager's own making.
    pub(super) number: u32,
    /// The task whose pages it has, by its pid in the image: its own, or the one it descends from.
    pub(super) task: u32,
    /// What is missing.
    pub(super) missing: Ranges,
    uffd: OwnedFd,
    /// Addresses of pages that threads wait for, told and not looked at yet.
    faults: Vec<u64>,
    is_gone: bool,
}

impl Context {
    pub(super) fn new(number: u32, task: u32, uffd: OwnedFd, missing: Ranges) -> Self {
        Self {
            number,
            task,
            missing,
            uffd,
            faults: Vec::new(),
            is_gone: false,
        }
    }

    /// True once nothing can be missing: all is there, or the address space is no more.
    pub(super) fn is_complete(&self) -> bool {
        self.is_gone || self.missing.is_empty()
    }

    /// True if threads wait that could not be answered: the kernel does not tell of them again.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.faults.is_empty()
    }

    /// Takes the next messages in. Returns how many there were, and the address spaces of children.
    pub(super) fn take_messages(&mut self) -> io::Result<(usize, Vec<(OwnedFd, Ranges)>)> {
        let messages = userfault::messages(self.uffd.as_fd())?;
        let n_messages = messages.len();
        let mut children = Vec::new();
        for message in messages {
            match message {
                Message::Fault(address) => self.faults.push(address & !(PAGE - 1)),
                Message::Fork(uffd) => children.push((uffd, self.missing.clone())),
                Message::Remap { from, to, bytes } => {
                    self.missing.remap(from, to, bytes);
                    self.wake(from, bytes)?;
                }
                // What is lost but still mapped stays watched: a page of it never existed from now on, and is answered
                // with zeros. Not to watch it would cut mappings in pieces, of which a task may have so many only.
                Message::Lost { start, end } => {
                    self.missing.remove(Range { start, end });
                    self.wake(start, end.saturating_sub(start))?;
                }
            }
        }
        Ok((n_messages, children))
    }

    /// Looks at the pages that threads wait for: those that are missing are returned, those that never existed are given.
    pub(super) fn faults(&mut self) -> io::Result<Vec<Missing>> {
        let mut wanted = Vec::new();
        for address in std::mem::take(&mut self.faults) {
            if let Some(missing) = self.missing.at(address) {
                wanted.push(missing);
                continue;
            }
            match self.patiently(|uffd| userfault::zero(uffd, address, PAGE))? {
                // The address may mean something else after the messages that are still to be read.
                Filled::Changing => self.faults.push(address),
                Filled::Gone => self.lose(),
                Filled::Bytes(_) => {}
                // Filled or unmapped since; the thread finds out by itself when it looks again.
                Filled::Present | Filled::Unmapped | Filled::NoMemory => self.wake(address, PAGE)?,
            }
        }
        Ok(wanted)
    }

    /// Fills what is missing of the pages `image`.
    pub(super) fn fill(&mut self, image: Range, content: Content<'_>) -> io::Result<Progress> {
        let mut step = u64::MAX;
        while let Some(Missing { now, image: from }) = self.missing.of_image(image) {
            let bytes = now.bytes().min(step);
            let offset = usize::try_from(from - image.start).map_err(io::Error::other)?;
            let length = usize::try_from(bytes).map_err(io::Error::other)?;
            let filled = self.patiently(|uffd| match content {
                Content::Raw(all) => userfault::copy(uffd, now.start, &all[offset..offset + length]),
                Content::Zero => userfault::zero(uffd, now.start, bytes),
            })?;
            let n_bytes = match filled {
                Filled::Bytes(n_bytes) => {
                    step = step.saturating_mul(2);
                    n_bytes
                }
                Filled::Changing => return Ok(Progress::Changing),
                Filled::Gone => {
                    self.lose();
                    return Ok(Progress::Complete);
                }
                // A mapping may have been cut in two since the dump, and a call fills within one only.
                Filled::Unmapped if bytes > PAGE => {
                    step = (bytes / 2).next_multiple_of(PAGE);
                    continue;
                }
                Filled::Present | Filled::Unmapped => {
                    self.wake(now.start, PAGE)?;
                    PAGE
                }
                Filled::NoMemory => {
                    return Err(io::Error::other("there is no memory for the container's pages"));
                }
            };
            self.missing.remove(Range {
                start: now.start,
                end: now.start + n_bytes,
            });
        }
        Ok(Progress::Complete)
    }

    /// Finds out whether the address space is still there, by a page that never existed.
    pub(super) fn probe(&mut self) {
        // Above what Linux lets nobody map, and below nearly every program.
        let address = (0x1_0000..)
            .step_by(PAGE_BYTES)
            .find(|address| self.missing.at(*address).is_none());
        if let Some(address) = address
            && matches!(
                userfault::zero(self.uffd.as_fd(), address, PAGE),
                Ok(Filled::Gone)
            )
        {
            self.lose();
        }
    }

    fn lose(&mut self) {
        self.is_gone = true;
        self.missing = Ranges::default();
        self.faults.clear();
    }

    fn wake(&self, start: u64, bytes: u64) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        userfault::wake(self.uffd.as_fd(), start, bytes)
    }

    fn patiently(&self, call: impl Fn(BorrowedFd<'_>) -> io::Result<Filled>) -> io::Result<Filled> {
        let deadline = Instant::now() + MEMORY_DEADLINE;
        loop {
            match call(self.uffd.as_fd())? {
                Filled::NoMemory if Instant::now() < deadline => std::thread::sleep(MEMORY_INTERVAL),
                other => return Ok(other),
            }
        }
    }
}

impl AsFd for Context {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }
}
