//! All address spaces of a container that is restored lazily: who waits for what, and to whom a page belongs that comes.
//!
//! It talks to the kernel and to the keeper of the duplicates, never to an agent.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::context::{Content, Context, Progress};
use super::keeper::Keeper;
use super::layout::{Range, Task};
use super::ranges::Ranges;
use super::wire::{Header, Kind, MAX_PAGES, PAGE_BYTES};

/// How long one change of a task's mappings may take: it is some kernel work under a lock. Beyond that the kernel has
/// lost the message (before Linux 6.14 of a move that failed) and would never let a page in again.
const CHANGE_DEADLINE: Duration = Duration::from_secs(30);

/// How often it is looked whether the change is done.
const CHANGE_INTERVAL: Duration = Duration::from_micros(50);

/// Pages asked for at a fault: the one, and those behind it, which a program is likely to touch next; no more than a
/// slow link carries in the time of a disk access.
const URGENT_PAGES: u64 = 8;

/// See the module.
pub(super) struct Tasks {
    /// What is missing at first, of tasks that CRIU has not told of yet.
    layout: HashMap<u32, Ranges>,
    contexts: Vec<Context>,
    /// Who keeps the duplicates of all descriptors.
    pub(super) keeper: Keeper,
    last_number: u32,
    /// Pages that threads wait for, by task and address in the image.
    waited_for: BTreeSet<(u32, u64)>,
    /// Requests for those that nobody has taken yet.
    requests: Vec<Header>,
}

impl Tasks {
    pub(super) fn new(layout: Vec<Task>, keeper: Keeper) -> Self {
        let layout = layout
            .into_iter()
            .map(|task| (task.pid, Ranges::of(&task.ranges)));
        Self {
            layout: layout.collect(),
            contexts: Vec::new(),
            keeper,
            last_number: 0,
            waited_for: BTreeSet::new(),
            requests: Vec::new(),
        }
    }

    /// The descriptors to wait on.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.contexts.iter().map(AsFd::as_fd)
    }

    /// True if a thread waits whose page must be looked at again soon.
    pub(super) fn is_hurried(&self) -> bool {
        self.contexts.iter().any(Context::is_waited_for)
    }

    /// CRIU has made the memory of a task.
    pub(super) fn adopt(&mut self, pid: u32, uffd: OwnedFd) {
        let missing = self.layout.remove(&pid).unwrap_or_default();
        self.watch(pid, uffd, missing);
    }

    fn watch(&mut self, task: u32, uffd: OwnedFd, missing: Ranges) {
        self.last_number += 1;
        // Before anything is answered: from then on the pager may die, and the memory does not become zeros.
        self.keeper.keep(self.last_number, uffd.as_fd());
        self.contexts
            .push(Context::new(self.last_number, task, uffd, missing));
    }

    /// Takes in what all tasks tell, and answers what needs no agent.
    pub(super) fn serve(&mut self) -> io::Result<()> {
        let mut index = 0;
        // Children come behind their parents.
        while index < self.contexts.len() {
            while self.take_messages(index)? {}
            let task = self.contexts[index].task;
            for missing in self.contexts[index].faults()? {
                if self.waited_for.insert((task, missing.image)) {
                    let pages = (missing.now.bytes() / PAGE_BYTES as u64).min(URGENT_PAGES);
                    let pages = u32::try_from(pages).unwrap_or(1);
                    self.requests
                        .push(Header::bare(Kind::Urgent, task, missing.image, pages));
                }
            }
            index += 1;
        }
        Ok(())
    }

    /// Returns whether there were any.
    fn take_messages(&mut self, index: usize) -> io::Result<bool> {
        let (n_messages, children) = self.contexts[index].take_messages()?;
        let task = self.contexts[index].task;
        for (uffd, missing) in children {
            self.watch(task, uffd, missing);
        }
        Ok(n_messages > 0)
    }

    /// Puts pages that have come where they are missing. Pages of nobody are nobody's business.
    pub(super) fn fill(&mut self, header: &Header, content: Content<'_>) -> io::Result<()> {
        let image = Range {
            start: header.address,
            end: header.end(),
        };
        let mut index = 0;
        while index < self.contexts.len() {
            if self.contexts[index].task == header.task {
                let deadline = Instant::now() + CHANGE_DEADLINE;
                while self.contexts[index].fill(image, content)? == Progress::Changing {
                    if self.take_messages(index)? {
                        continue;
                    }
                    if Instant::now() >= deadline {
                        let task = header.task;
                        return Err(io::Error::other(format!(
                            "the kernel lets no page into task {task}, whose mappings have been changing for \
                             {CHANGE_DEADLINE:?}"
                        )));
                    }
                    std::thread::sleep(CHANGE_INTERVAL);
                }
            }
            index += 1;
        }
        if !self.waited_for.is_empty() {
            let pages = (header.task, image.start)..(header.task, image.end);
            let answered: Vec<_> = self.waited_for.range(pages).copied().collect();
            for page in answered {
                self.waited_for.remove(&page);
            }
        }
        Ok(())
    }

    /// Requests for pages that threads have begun to wait for.
    pub(super) fn take_requests(&mut self) -> Vec<Header> {
        std::mem::take(&mut self.requests)
    }

    /// Requests for everything that threads wait for, to be made anew.
    pub(super) fn all_requests(&mut self) -> Vec<Header> {
        self.requests.clear();
        let is_missing = |task: u32, address: u64| {
            let page = Range {
                start: address,
                end: address + PAGE_BYTES as u64,
            };
            self.contexts
                .iter()
                .any(|context| context.task == task && context.missing.of_image(page).is_some())
        };
        self.waited_for
            .retain(|(task, address)| is_missing(*task, *address));
        let request = |(task, address): &(u32, u64)| Header::bare(Kind::Urgent, *task, *address, 1);
        self.waited_for.iter().map(request).collect()
    }

    /// A request for pages that nobody waits for yet and that none of `outstanding` asks for.
    pub(super) fn next_wanted(&self, outstanding: &[Header]) -> Option<Header> {
        let most = u64::from(MAX_PAGES) * PAGE_BYTES as u64;
        self.contexts.iter().find_map(|context| {
            context.missing.all().find_map(|missing| {
                let (mut start, mut end) = (missing.image, missing.image + missing.now.bytes());
                // In ascending order, so that one look at each is enough.
                for asked in outstanding.iter().filter(|asked| asked.task == context.task) {
                    if asked.address <= start {
                        start = start.max(asked.end());
                    } else {
                        end = end.min(asked.address);
                    }
                }
                let bytes = end.checked_sub(start).filter(|bytes| *bytes > 0)?.min(most);
                let pages = u32::try_from(bytes / PAGE_BYTES as u64).ok()?;
                Some(Header::bare(Kind::Wanted, context.task, start, pages))
            })
        })
    }

    /// Lets go of address spaces that miss nothing; true if none is left.
    pub(super) fn release_complete(&mut self) -> bool {
        let keeper = &mut self.keeper;
        self.contexts.retain(|context| {
            let is_complete = context.is_complete();
            if is_complete {
                keeper.release(context.number);
            }
            !is_complete
        });
        self.contexts.is_empty()
    }

    /// How many address spaces there have been.
    pub(super) fn n_seen(&self) -> u32 {
        self.last_number
    }

    /// Finds out which address spaces are no more; they are complete then.
    pub(super) fn probe(&mut self) {
        self.contexts.iter_mut().for_each(Context::probe);
    }
}
