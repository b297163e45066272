//! The pager on real userfaultfds of this very process, with a fake CRIU, a fake agent and a real keeper's line.
//!
//! A thread that touches memory plays the restored task. What is asserted is what the task reads.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::wait::{WaitStatus, waitpid};

use super::intake::Intake;
use super::keeper::{self, Keeper, Note};
use super::layout::{Range, Task};
use super::link::Link;
use super::pager::Pager;
use super::tasks::Tasks;
use super::wire::{HEADER_BYTES, Header, Kind, MAX_PAGES, PAGE_BYTES};
use crate::sys::userfault::making;

const PAGE: u64 = PAGE_BYTES as u64;

/// The task that all tests restore.
const TASK: u32 = 7;

/// Far more than any step takes, on a machine however busy.
const DEADLINE: Duration = Duration::from_secs(60);

/// A container under restore: one task, with one mapping of which all pages are missing.
struct Restore {
    _directory: tempfile::TempDir,
    memory: u64,
    pages: u64,
    criu: UnixStream,
    shim: OwnedFd,
    agent: UnixListener,
    pager: Option<JoinHandle<io::Result<()>>>,
}

/// The agent's ends.
struct Agent {
    asked: UnixStream,
    pushed: UnixStream,
}

/// What page `page` of the task holds.
fn content(page: u64) -> [u8; PAGE_BYTES] {
    [u8::try_from(page % 250).unwrap() + 1; PAGE_BYTES]
}

fn header(stream: &mut UnixStream) -> Header {
    Header::read(stream).unwrap().expect("the pager hung up")
}

impl Restore {
    /// `None`, with the reason told, where this process may have no userfaultfd.
    fn begin(pages: u64) -> Option<Self> {
        let uffd = match making::uffd() {
            Ok(uffd) => uffd,
            Err(error) => {
                eprintln!("skipped: no userfaultfd can be made here: {error}");
                return None;
            }
        };
        let memory = making::map(pages * PAGE);
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("criu")).unwrap();
        let agent = UnixListener::bind(directory.path().join("agent")).unwrap();
        let (shim, line) = keeper::line().unwrap();
        let range = Range {
            start: memory,
            end: memory + pages * PAGE,
        };
        let layout = vec![Task {
            pid: TASK,
            ranges: vec![range],
        }];
        let path = directory.path().join("agent");
        let pager = std::thread::spawn(move || {
            let tasks = Tasks::new(layout, Keeper::new(line)?);
            Pager::new(Intake::new(listener.into())?, tasks, Link::new(&path)).run()
        });
        let mut criu = UnixStream::connect(directory.path().join("criu")).unwrap();
        criu.write_all(&TASK.to_ne_bytes()).unwrap();
        making::register(uffd.as_fd(), memory, pages * PAGE).unwrap();
        send(&criu, &uffd);
        // A zombie has no memory.
        criu.write_all(&(-9i32).to_ne_bytes()).unwrap();
        Some(Self {
            _directory: directory,
            memory,
            pages,
            criu,
            shim,
            agent,
            pager: Some(pager),
        })
    }

    fn accept(&self) -> Agent {
        let [mut first, mut second] = [(), ()].map(|()| self.agent.accept().unwrap().0);
        let kinds = [header(&mut first).kind, header(&mut second).kind];
        assert_eq!(kinds, [Kind::Urgent, Kind::Wanted]);
        Agent {
            asked: first,
            pushed: second,
        }
    }

    fn finish_restore(&mut self) {
        keeper::begin(self.shim.as_fd());
        self.criu.write_all(&0x5253_5446u32.to_ne_bytes()).unwrap();
    }

    fn page(&self, page: u64) -> u64 {
        self.memory + page * PAGE
    }

    fn record(&self, page: u64, pages: u64) -> Vec<u8> {
        let header = Header {
            length: u32::try_from(pages * PAGE).unwrap(),
            ..Header::bare(Kind::Raw, TASK, self.page(page), u32::try_from(pages).unwrap())
        };
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend((page..page + pages).flat_map(content));
        bytes
    }

    fn read(&self, page: u64) -> JoinHandle<u8> {
        let address = self.page(page);
        std::thread::spawn(move || making::byte(address))
    }

    /// The pager's end, after all its notes; returns how many descriptors were kept and let go, and whether it drained.
    fn end(mut self, agent: Option<UnixStream>) -> (usize, usize, bool) {
        let result = self.pager.take().unwrap().join().unwrap();
        let (mut kept, mut released, mut drained) = (0, 0, false);
        while let Some(note) = keeper::next(self.shim.as_fd()).unwrap() {
            match note {
                Note::Keep(..) => kept += 1,
                Note::Release(_) => released += 1,
                Note::Drained => drained = true,
            }
        }
        result.unwrap();
        if let Some(mut agent) = agent {
            let mut rest = Vec::new();
            agent.read_to_end(&mut rest).unwrap();
            let last = rest
                .last_chunk::<HEADER_BYTES>()
                .expect("the pager said nothing at its end");
            assert_eq!(Header::parse(last).unwrap().kind, Kind::Drained);
        }
        making::unmap(self.memory, self.pages * PAGE);
        (kept, released, drained)
    }

    fn answer_all(&self, stream: &mut UnixStream) {
        let mut n_left = self.pages;
        while n_left > 0 {
            let asked = header(stream);
            assert!(matches!(asked.kind, Kind::Wanted | Kind::Urgent), "{asked:?}");
            let page = (asked.address - self.memory) / PAGE;
            stream
                .write_all(&self.record(page, u64::from(asked.pages)))
                .unwrap();
            n_left -= u64::from(asked.pages).min(n_left);
        }
    }
}

fn send(criu: &UnixStream, uffd: &OwnedFd) {
    let descriptors: [RawFd; 1] = [uffd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(
        criu.as_raw_fd(),
        &[IoSlice::new(&[0])],
        &rights,
        MsgFlags::empty(),
        None,
    )
    .unwrap();
}

#[test]
fn a_fault_is_answered_before_the_restore_is_finished_and_the_rest_is_pushed_after() {
    let Some(mut restore) = Restore::begin(600) else {
        return;
    };
    let mut agent = restore.accept();
    let reader = restore.read(300);
    let asked = header(&mut agent.asked);
    assert_eq!(asked, Header::bare(Kind::Urgent, TASK, restore.page(300), 8));
    // Fewer pages than asked for.
    agent.asked.write_all(&restore.record(300, 2)).unwrap();
    assert_eq!(reader.join().unwrap(), content(300)[0]);
    restore.finish_restore();
    // In pieces, some of them zeros, and one that is there already.
    let zero = Header::bare(Kind::Zero, TASK, restore.page(0), 10);
    agent.pushed.write_all(&zero.to_bytes()).unwrap();
    agent.pushed.write_all(&restore.record(10, 256)).unwrap();
    agent.pushed.write_all(&restore.record(266, 234)).unwrap();
    agent.pushed.write_all(&restore.record(500, 100)).unwrap();
    for page in 0..600 {
        let expected = if page < 10 { 0 } else { content(page)[0] };
        assert_eq!(restore.read(page).join().unwrap(), expected, "page {page}");
    }
    assert_eq!(restore.end(Some(agent.asked)), (1, 1, true));
}

#[test]
fn what_was_not_pushed_is_pulled() {
    let Some(mut restore) = Restore::begin(600) else {
        return;
    };
    let mut agent = restore.accept();
    let reader = restore.read(599);
    header(&mut agent.asked);
    restore.finish_restore();
    // The fault is not answered: as far as the agent knows, the page was pushed.
    let all = Header::bare(Kind::AllSent, 0, 0, 0);
    agent.pushed.write_all(&all.to_bytes()).unwrap();
    let again = header(&mut agent.asked);
    assert_eq!(again, Header::bare(Kind::Urgent, TASK, restore.page(599), 1));
    agent.asked.write_all(&restore.record(599, 1)).unwrap();
    assert_eq!(reader.join().unwrap(), content(599)[0]);
    let wanted = [header(&mut agent.asked), header(&mut agent.asked)];
    assert_eq!(
        wanted[0],
        Header::bare(Kind::Wanted, TASK, restore.page(0), MAX_PAGES)
    );
    assert_eq!(
        wanted[1],
        Header::bare(Kind::Wanted, TASK, restore.page(256), MAX_PAGES)
    );
    // Answered in part, and out of order.
    agent.asked.write_all(&restore.record(256, 100)).unwrap();
    agent.asked.write_all(&restore.record(0, 256)).unwrap();
    let mut left = 600 - 1 - 356;
    while left > 0 {
        let wanted = header(&mut agent.asked);
        let page = (wanted.address - restore.memory) / PAGE;
        agent
            .asked
            .write_all(&restore.record(page, u64::from(wanted.pages)))
            .unwrap();
        left -= u64::from(wanted.pages);
    }
    assert_eq!(restore.read(300).join().unwrap(), content(300)[0]);
    assert_eq!(restore.end(Some(agent.asked)), (1, 1, true));
}

#[test]
fn an_agent_that_comes_back_is_asked_again() {
    let Some(mut restore) = Restore::begin(64) else {
        return;
    };
    let mut agent = restore.accept();
    restore.finish_restore();
    let reader = restore.read(20);
    header(&mut agent.asked);
    // In the middle of a record.
    let record = restore.record(20, 4);
    agent.asked.write_all(&record[..5000]).unwrap();
    drop(agent);
    let (mut asked, _) = restore.agent.accept().unwrap();
    assert_eq!(header(&mut asked).kind, Kind::Urgent);
    assert_eq!(
        header(&mut asked),
        Header::bare(Kind::Urgent, TASK, restore.page(20), 1)
    );
    asked.write_all(&restore.record(20, 1)).unwrap();
    assert_eq!(reader.join().unwrap(), content(20)[0]);
    // In one run or in two, by whether page 20 was there when the rest was asked for.
    let mut missing: BTreeSet<u64> = (0..64).filter(|page| *page != 20).collect();
    while !missing.is_empty() {
        let wanted = header(&mut asked);
        let page = (wanted.address - restore.memory) / PAGE;
        let pages = u64::from(wanted.pages);
        asked.write_all(&restore.record(page, pages)).unwrap();
        missing.retain(|other| !(page..page + pages).contains(other));
    }
    assert_eq!(restore.end(Some(asked)), (1, 1, true));
}

#[test]
fn memory_that_is_moved_discarded_unmapped_and_protected_gets_what_is_due_to_it() {
    let Some(mut restore) = Restore::begin(64) else {
        return;
    };
    let mut agent = restore.accept();
    restore.finish_restore();
    let place = making::map(8 * PAGE);
    // Each of these waits until the pager has heard of it.
    making::remap(restore.page(8), 8 * PAGE, place);
    making::discard(restore.page(16), 8 * PAGE);
    making::unmap(restore.page(24), 8 * PAGE);
    making::protect(restore.page(40), 4 * PAGE);
    // What was discarded never existed; the agent is not asked.
    for page in 16..24 {
        assert_eq!(restore.read(page).join().unwrap(), 0, "page {page} was discarded");
    }
    let moved = std::thread::spawn(move || making::byte(place + 3 * PAGE));
    assert_eq!(header(&mut agent.asked).address, restore.page(11));
    agent.pushed.write_all(&restore.record(0, 64)).unwrap();
    assert_eq!(moved.join().unwrap(), content(11)[0]);
    let there = [0..8, 32..64].into_iter().flatten();
    for page in there {
        assert_eq!(
            restore.read(page).join().unwrap(),
            content(page)[0],
            "page {page}"
        );
    }
    for page in 0..8 {
        assert_eq!(making::byte(place + page * PAGE), content(8 + page)[0]);
    }
    assert_eq!(restore.end(Some(agent.asked)), (1, 1, true));
    making::unmap(place, 8 * PAGE);
}

#[test]
fn a_child_has_the_memory_its_parent_had() {
    let Some(mut restore) = Restore::begin(16) else {
        return;
    };
    let mut agent = restore.accept();
    restore.finish_restore();
    agent.pushed.write_all(&restore.record(0, 4)).unwrap();
    assert_eq!(restore.read(3).join().unwrap(), content(3)[0]);
    let (mut from_child, to_parent) = io::pipe().unwrap();
    let memory = restore.memory;
    let child = making::fork(move || {
        let is_whole = (0..16).all(|page| making::byte(memory + page * PAGE) == content(page)[0]);
        drop(to_parent);
        is_whole
    });
    let mut asked = header(&mut agent.asked);
    // The first reader may have been quicker than what was pushed for it.
    if asked.address == restore.page(3) {
        asked = header(&mut agent.asked);
    }
    assert_eq!(asked, Header::bare(Kind::Urgent, TASK, restore.page(4), 8));
    agent.pushed.write_all(&restore.record(4, 12)).unwrap();
    let mut end = Vec::new();
    from_child.read_to_end(&mut end).unwrap();
    assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
    assert_eq!(restore.read(15).join().unwrap(), content(15)[0]);
    assert_eq!(restore.end(Some(agent.asked)), (2, 2, true));
}

#[test]
fn a_child_that_has_ended_keeps_nobody_waiting() {
    let Some(mut restore) = Restore::begin(16) else {
        return;
    };
    let mut agent = restore.accept();
    restore.finish_restore();
    let child = making::fork(|| true);
    assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
    agent.pushed.write_all(&restore.record(0, 16)).unwrap();
    assert_eq!(restore.end(Some(agent.asked)), (2, 2, true));
}

#[test]
fn pages_of_nobody_are_passed_over_and_no_record_at_all_ends_the_connection() {
    let Some(mut restore) = Restore::begin(8) else {
        return;
    };
    let mut agent = restore.accept();
    restore.finish_restore();
    let nobody = Header::bare(Kind::Zero, TASK + 1, restore.page(0), 8);
    let nowhere = Header::bare(Kind::Zero, TASK, 0x1000, 256);
    let end = Header::bare(Kind::Zero, TASK, !0 << 12 & !(256 * PAGE), 256);
    for header in [nobody, nowhere, end] {
        agent.pushed.write_all(&header.to_bytes()).unwrap();
        agent.asked.write_all(&header.to_bytes()).unwrap();
    }
    // An agent must not send what only agents send each other.
    let lz4 = Header {
        length: 9,
        ..Header::bare(Kind::Lz4, TASK, restore.page(0), 1)
    };
    agent.asked.write_all(&lz4.to_bytes()).unwrap();
    let (mut asked, _) = restore.agent.accept().unwrap();
    assert_eq!(header(&mut asked).kind, Kind::Urgent);
    asked.write_all(&[0xff; HEADER_BYTES]).unwrap();
    let (mut asked, _) = restore.agent.accept().unwrap();
    assert_eq!(header(&mut asked).kind, Kind::Urgent);
    restore.answer_all(&mut asked);
    assert_eq!(restore.read(7).join().unwrap(), content(7)[0]);
    assert_eq!(restore.end(Some(asked)), (1, 1, true));
}

#[test]
fn nothing_is_filled_unasked_before_all_is_registered() {
    let Some(mut restore) = Restore::begin(8) else {
        return;
    };
    let mut agent = restore.accept();
    agent.pushed.write_all(&restore.record(0, 8)).unwrap();
    let reader = restore.read(5);
    assert_eq!(header(&mut agent.asked).address, restore.page(5));
    assert!(!reader.is_finished(), "the pushed record was taken in too early");
    keeper::begin(restore.shim.as_fd());
    assert_eq!(reader.join().unwrap(), content(5)[0]);
    restore.finish_restore();
    assert_eq!(restore.end(Some(agent.asked)), (1, 1, true));
}

#[test]
fn a_restore_that_criu_gives_up_ends_the_pager() {
    let Some(mut restore) = Restore::begin(8) else {
        return;
    };
    restore.criu.shutdown(std::net::Shutdown::Both).unwrap();
    let result = restore.pager.take().unwrap().join().unwrap();
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_pager_without_shim_and_criu_ends_and_one_without_a_shim_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { directory.path().join(name) };
    let listener = UnixListener::bind(at("criu")).unwrap();
    let (shim, line) = keeper::line().unwrap();
    drop(shim);
    let tasks = Tasks::new(Vec::new(), Keeper::new(line).unwrap());
    let intake = Intake::new(listener.into()).unwrap();
    assert!(Pager::new(intake, tasks, Link::new(&at("agent"))).run().is_err());

    let Some(mut restore) = Restore::begin(8) else {
        return;
    };
    let mut agent = restore.accept();
    restore.shim = fs::File::open("/dev/null").unwrap().into();
    restore.criu.write_all(&0x5253_5446u32.to_ne_bytes()).unwrap();
    agent.pushed.write_all(&restore.record(0, 8)).unwrap();
    let pager = restore.pager.take().unwrap();
    let deadline = Instant::now() + DEADLINE;
    while !pager.is_finished() {
        assert!(Instant::now() < deadline, "the pager does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
    pager.join().unwrap().unwrap();
}
