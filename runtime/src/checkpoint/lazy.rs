//! The memory of a restored container that is still on its way: its pager, and the duplicates that keep a dead pager from
//! making zeros of it.
//!
//! A task of its own watches the pager from its start to its end. However the pager ends, if it has not said that nothing
//! is missing, every task of the container is killed before the duplicates are let go: a container without its memory
//! must not run for an instant. Nothing here brings a page.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::libc;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;

use super::Site;
use crate::control::write_atomically;
use crate::descriptor::hand_over;
use crate::freezer::Freezer;
use crate::pages::keeper::{self, Note};
use crate::pages::pager::{LOG_NAME, NAME, PagerRecord, RECORD_NAME, SOCKET_NAME};
use crate::reaper::{Departure, Reaper};
use crate::sys;

/// A restore gives two orders.
const ORDERS_BOUND: usize = 4;

/// A container's memory on its way. Dropped, it is given up: the pager ends, and with it what is left of the container.
#[derive(Debug)]
pub struct Arrival {
    orders: mpsc::Sender<Order>,
    outcome: oneshot::Receiver<bool>,
}

/// Lets the pager of an [`Arrival`] go on for as long as it is kept.
#[derive(Debug)]
pub struct Lease {
    orders: mpsc::Sender<Order>,
}

#[derive(Debug)]
enum Order {
    /// These are the container's tasks.
    Tasks(Freezer),
    /// Every mapping is made: what nobody waits for may be filled in.
    Begin,
    /// No task is left.
    Ended,
}

/// What watches the pager.
struct Watch {
    container: String,
    reaper: Reaper,
    line: AsyncFd<OwnedFd>,
    duplicates: HashMap<u32, OwnedFd>,
    tasks: Option<Freezer>,
    has_drained: bool,
    log: PathBuf,
}

impl Arrival {
    /// Starts the pager, which connects to the agent at `agent` and awaits CRIU in `work`.
    pub(super) fn begin(site: &Site, work: &Path, agent: &Path, image: &Path) -> io::Result<Self> {
        let record = PagerRecord {
            agent: agent.to_owned(),
            image: image.to_owned(),
        };
        write_atomically(&site.control.join(RECORD_NAME), &serde_json::to_vec(&record)?)?;
        let listener = listen(work)?;
        let (ours, pagers) = keeper::line()?;
        let line = sys::watch_readable(ours)?;
        let log = site.control.join(LOG_NAME);
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&log)?;
        let mut command = Command::new(site.control.join(NAME));
        command
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(written);
        hand_over(&mut command, &[listener.as_fd(), pagers.as_fd()])?;
        let reaper = site.runc.reaper().clone();
        let child = reaper.spawn(&mut command)?;
        let (orders, taken) = mpsc::channel(ORDERS_BOUND);
        let (tell, outcome) = oneshot::channel();
        let watch = Watch {
            container: site.id.clone(),
            reaper,
            line,
            duplicates: HashMap::new(),
            tasks: None,
            has_drained: false,
            log,
        };
        tokio::spawn(async move {
            let has_come = watch.run(child.departure, taken).await;
            let _ = tell.send(has_come);
        });
        Ok(Self { orders, outcome })
    }

    /// The container's first process stands: from now on there are tasks that must not outlive the pager.
    pub(super) async fn tasks_of(&self, pid: i32) -> io::Result<()> {
        self.order(Order::Tasks(Freezer::of(pid)?)).await;
        Ok(())
    }

    /// Everything is restored but the memory.
    pub(super) async fn fill(&self) {
        self.order(Order::Begin).await;
    }

    /// A watch that has ended takes no orders, and needs none.
    async fn order(&self, order: Order) {
        let _ = self.orders.send(order).await;
    }

    /// Splits it: the lease keeps the pager going, the other waits for its end.
    pub fn split(self) -> (Lease, impl Future<Output = bool> + Send + 'static) {
        let lease = Lease { orders: self.orders };
        (lease, async { self.outcome.await.unwrap_or(false) })
    }
}

impl Lease {
    /// Ends the pager of a container that has ended by itself, and kills nobody.
    pub fn tasks_have_ended(self) {
        // A watch that has ended, or that has its orders unread, ends the pager when this is dropped.
        let _ = self.orders.try_send(Order::Ended);
    }
}

/// CRIU connects by a name relative to its work directory; an absolute one may be longer than a socket's name can be.
fn listen(work: &Path) -> io::Result<UnixListener> {
    let directory = File::open(work)?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&directory);
    let path = Path::new("/proc/self/fd")
        .join(number.to_string())
        .join(SOCKET_NAME);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(&path)
}

impl Watch {
    /// Watches to the end; true if all of the memory has come.
    async fn run(mut self, mut pager: Departure, mut orders: mpsc::Receiver<Order>) -> bool {
        let mut is_heard = true;
        let mut is_given_up = false;
        let exit = loop {
            tokio::select! {
                order = orders.recv(), if !is_given_up => match order {
                    Some(Order::Tasks(tasks)) => self.tasks = Some(tasks),
                    Some(Order::Begin) => keeper::begin(self.line.as_fd()),
                    ended => {
                        if ended.is_some() {
                            self.tasks = None;
                        }
                        is_given_up = true;
                        self.reaper.kill(pager.pid(), libc::SIGKILL);
                    }
                },
                ready = self.line.readable(), if is_heard => {
                    match ready {
                        Ok(mut ready) => ready.clear_ready(),
                        Err(error) => log::error!("the line to a pager: {error}"),
                    }
                    is_heard = self.hear();
                }
                exit = pager.wait() => break exit,
            }
        };
        // What it said last may still be in the line.
        self.hear();
        if self.has_drained {
            log::info!("all of the memory of container {} is here", self.container);
            return true;
        }
        if !is_given_up {
            log::error!(
                "container {} is killed: its pager ended with status {} while memory was still missing, and nobody \
                 else has that ({}); the pager's log: {}",
                self.container,
                exit.status(),
                last_line(&self.log),
                self.log.display()
            );
        }
        self.end_tasks().await;
        false
    }

    /// Takes in what the pager has said; false once it says no more.
    fn hear(&mut self) -> bool {
        loop {
            match keeper::next(self.line.as_fd()) {
                Ok(Some(Note::Keep(number, uffd))) => drop(self.duplicates.insert(number, uffd)),
                Ok(Some(Note::Release(number))) => drop(self.duplicates.remove(&number)),
                Ok(Some(Note::Drained)) => self.has_drained = true,
                Ok(None) => return false,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The tasks that it was about run on; should the pager die, they are killed a moment too late.
                Err(error) => log::error!("container {}: {error}", self.container),
            }
        }
    }

    async fn end_tasks(self) {
        let Some(tasks) = self.tasks else { return };
        let duplicates = self.duplicates;
        let ended = spawn_blocking(move || {
            let ended = tasks.kill_all();
            drop(duplicates);
            ended
        });
        if let Err(error) = ended.await.map_err(io::Error::other).flatten() {
            log::error!("tasks of container {} may be left: {error}", self.container);
        }
    }
}

fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let last = text.lines().next_back();
    last.unwrap_or("it said nothing").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::{Mutex, MutexGuard};

    #[test]
    fn a_socket_is_made_however_long_the_name_of_its_directory_is() {
        let directory = tempfile::tempdir().unwrap();
        let work = directory.path().join("w".repeat(150));
        fs::create_dir(&work).unwrap();
        drop(listen(&work).unwrap());
        let _listener = listen(&work).unwrap();
        assert!(
            work.join(SOCKET_NAME).exists(),
            "and made anew where one was left"
        );
    }

    /// There can be one reaper in a process: of two, each would take the exits that the other waits for.
    static REAPERS: Mutex<()> = Mutex::const_new(());

    /// What a watched pager needs until its test ends.
    type Kept = (tempfile::TempDir, MutexGuard<'static, ()>);

    /// A pager that is played by a shell, and a container that is one process.
    async fn watched(script: &str) -> (Arrival, OwnedFd, std::process::Child, Kept) {
        let alone = REAPERS.lock().await;
        let directory = tempfile::tempdir().unwrap();
        let victim = Command::new("sleep").arg("60").spawn().unwrap();
        fs::write(
            directory.path().join("cgroup.procs"),
            format!("{}\n", victim.id()),
        )
        .unwrap();
        fs::write(directory.path().join("freezer.state"), "THAWED").unwrap();
        let reaper = Reaper::start().unwrap();
        let (ours, pagers) = keeper::line().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let child = reaper.spawn(&mut command).unwrap();
        let (orders, taken) = mpsc::channel(ORDERS_BOUND);
        let (tell, outcome) = oneshot::channel();
        let watch = Watch {
            container: "web".into(),
            reaper,
            line: sys::watch_readable(ours).unwrap(),
            duplicates: HashMap::new(),
            tasks: Some(Freezer::v1_at(directory.path())),
            has_drained: false,
            log: directory.path().join("pager.log"),
        };
        tokio::spawn(async move {
            let _ = tell.send(watch.run(child.departure, taken).await);
        });
        (Arrival { orders, outcome }, pagers, victim, (directory, alone))
    }

    fn is_alive(pid: u32) -> bool {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    }

    #[tokio::test]
    async fn a_pager_that_dies_takes_the_container_with_it_before_its_duplicates_are_closed() {
        let (arrival, pagers, victim, _kept) = watched("sleep 0.2; exit 1").await;
        let mut line = crate::pages::keeper::tests::pager(pagers);
        let (gone, kept) = io::pipe().unwrap();
        line.keep(1, kept.as_fd());
        drop((kept, line));
        let (_lease, end) = arrival.split();
        let held = std::thread::spawn(move || io::Read::read(&mut &gone, &mut [0]).unwrap());
        assert!(!end.await);
        assert!(!is_alive(victim.id()));
        assert_eq!(held.join().unwrap(), 0, "the duplicate was let go in the end");
    }

    #[tokio::test]
    async fn a_pager_that_has_drained_ends_and_the_container_runs_on() {
        let (arrival, pagers, mut victim, _kept) = watched("sleep 0.2").await;
        crate::pages::keeper::tests::pager(pagers).drained();
        let (_lease, end) = arrival.split();
        assert!(end.await);
        assert!(is_alive(victim.id()));
        victim.kill().unwrap();
    }

    #[tokio::test]
    async fn memory_that_is_given_up_ends_the_pager_and_the_container() {
        let (arrival, pagers, victim, _kept) = watched("exec sleep 600").await;
        let (lease, end) = arrival.split();
        drop(lease);
        assert!(!end.await);
        assert!(!is_alive(victim.id()));
        drop(pagers);
    }

    #[tokio::test]
    async fn a_container_that_has_ended_ends_its_pager_and_nobody_else() {
        let (arrival, _pagers, mut victim, _kept) = watched("exec sleep 600").await;
        let (lease, end) = arrival.split();
        lease.tasks_have_ended();
        assert!(!end.await);
        assert!(is_alive(victim.id()));
        victim.kill().unwrap();
    }
}
