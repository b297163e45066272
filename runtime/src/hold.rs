//! The holder: CRIU's action script, which can stop CRIU one step before its point of no return.
//!
//! CRIU runs it by the path `…/hold` in a container's control directory, without arguments, at every action. It
//! reports each to the shim, for the clock, and at `post-dump` and `post-restore` waits for the verdict file. It
//! needs neither shim nor agent: `hold.json` says all. It never writes `committed`.
//!
//! At `pre-dump` it freezes the container's cgroup, because CRIU would take 100 ms for it (see `freezer`), and
//! leaves a thawer behind: a process that waits for CRIU's end and settles what is left (see [`HoldRecord::settle`]).
//! CRIU gives a cgroup back as it found it, so tasks that CRIU resumes stay frozen until they are thawed here. That
//! makes the thaw, not CRIU's resume, the act that gives the container back: a holder that is killed makes CRIU
//! resume, and still nothing runs unless `aborted` stands. While it dumps CRIU thaws the cgroup and holds the tasks by
//! tracing alone, so it is frozen anew at `post-dump`: a CRIU that is killed in the hold lets nothing go either.
//!
//! A container that was paused before is let go for some milliseconds where the pause came amid a vfork. For that time
//! the holder has a keeper beside it, which pauses the container again should the holder not come to do it.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::control::ControlDir;
use crate::freezer::Freezer;
use crate::gate::{self, Report};
use crate::release::Traces;
use crate::verdict::{self, Fate, Verdict};

/// The name the shim's binary is called by to be the holder.
pub const NAME: &str = "hold";

/// The name it is called by to be the thawer, whose argument is CRIU's pid, the keeper, whose argument is [`KEEP`], or the
/// announcer, whose argument begins with [`ANNOUNCE`].
pub const THAWER_NAME: &str = "thaw";

/// What a thawer is told whose CRIU has ended: no process has this pid.
pub(crate) const NOBODY: &str = "0";

/// What the thawer is told to be a keeper.
const KEEP: &str = "keep-paused";

/// How what it is told to be an announcer begins; the pid of a process in the network namespace follows.
const ANNOUNCE: &str = "announce:";

/// What a holder writes to its keeper when it has paused the container again.
const KEPT: &[u8] = b"kept";

/// CRIU's name of the action before it touches a task.
pub const PRE_DUMP: &str = "pre-dump";

/// CRIU's name of the action after which only "kill" or "resume" is left of a dump.
pub const POST_DUMP: &str = "post-dump";

/// CRIU's name of the last action of a restore that can still refuse.
pub const POST_RESTORE: &str = "post-restore";

/// CRIU's name of the action at which every socket has left its repair and no task runs yet.
pub const PRE_RESUME: &str = "pre-resume";

/// How often the thawer looks whether CRIU has ended: it adds to the downtime of a checkpoint that leaves the
/// container running.
const THAW_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// How often it is looked whether a container that was given away is still needed for its pages: nobody waits for it.
const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What those who hold a dump try to make the verdict when nobody else did in time, or CRIU has ended: they know of no
/// copy elsewhere.
pub const WITHOUT_WORD: Verdict = Verdict::Aborted;

/// What became of the tasks of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Settled {
    /// They run, or are killed.
    Done,
    /// They belong to another host, which still needs pages of theirs: they stay frozen.
    PagesNeeded,
}

/// What the holder must know; written by the shim as `hold.json` before it starts CRIU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldRecord {
    /// Where the verdict will be. None: nothing is held, actions are only reported.
    pub verdict: Option<PathBuf>,
    /// For a dump: how long to wait before writing `aborted`.
    pub hold_ms: Option<u64>,
    /// Whether a gate has closed the network namespace, which the holder is to open at `post-restore`.
    pub gated: bool,
    /// For a dump: the container's freezer.
    pub freezer: Option<Freezer>,
    /// Whether the container was paused before, and is to stay so: nobody thaws it.
    pub paused: bool,
    /// For a dump that leaves pages in its tasks: the file that says, after `committed`, that nobody needs them any
    /// more. Until it is there the tasks stay frozen and alive, whoever has died.
    #[serde(default)]
    pub drained: Option<PathBuf>,
    /// For a dump: whether the network namespace is the container's alone, wired by the engine.
    #[serde(default)]
    pub own_network: bool,
    /// For a dump: where to look for what a CRIU that was killed has left.
    #[serde(default)]
    pub traces: Option<Traces>,
    /// For a dump: the shim, to whom the children of a CRIU that was killed fall.
    #[serde(default)]
    pub shim: Option<u32>,
}

impl HoldRecord {
    /// Settles a dump that CRIU has done with: lets the tasks run, or makes sure that they do not.
    ///
    /// A held dump that ends without a verdict is aborted first; tasks that are left after `committed` are killed, unless
    /// somebody still needs their pages. May be called again, by whoever outlived CRIU; where a CRIU was killed, only by
    /// a process as [`Traces::remove`] asks for.
    pub fn settle(&self) -> io::Result<Settled> {
        let Some(freezer) = &self.freezer else {
            return Ok(Settled::Done);
        };
        let give_back = || {
            let removed = self.remove_traces(freezer);
            if !self.paused {
                // Also where traces stay: a container without its network is better than one that stands still.
                freezer.thaw()?;
            }
            removed
        };
        match &self.verdict {
            None => give_back()?,
            Some(path) => match self.fate(verdict::decide(path, WITHOUT_WORD)?)? {
                Fate::GivenBack => give_back()?,
                Fate::Kept => return Ok(Settled::PagesNeeded),
                Fate::Killed => freezer.kill()?,
            },
        }
        Ok(Settled::Done)
    }

    /// Whether the container is to be given back after a CRIU that was killed and has left something: no process can do
    /// that by [`HoldRecord::settle`] but one as [`Traces::remove`] asks for. A held dump without a verdict is aborted.
    pub fn must_release(&self) -> io::Result<bool> {
        let is_given_back = match &self.verdict {
            None => true,
            Some(path) => self.fate(verdict::decide(path, WITHOUT_WORD)?)? == Fate::GivenBack,
        };
        Ok(is_given_back && self.traces.as_ref().is_some_and(Traces::are_left))
    }

    /// Whether CRIU, which had started a process whose parent is this now, has ended.
    fn is_orphaned(&self, parent: u32) -> bool {
        parent <= 1 || self.shim == Some(parent)
    }

    /// Freezes the container for a CRIU that lives. One that is killed meanwhile may have been settled before the cgroup was
    /// frozen, and nobody would do it again.
    fn freeze_for_criu(
        &self,
        parent: impl Fn() -> u32,
        freeze: impl FnOnce(u32) -> io::Result<()>,
    ) -> io::Result<()> {
        let gone = || Err(io::Error::other("CRIU has ended"));
        let criu = parent();
        if self.is_orphaned(criu) {
            return gone();
        }
        freeze(criu)?;
        if self.is_orphaned(parent()) {
            while self.settle()? == Settled::PagesNeeded {
                std::thread::sleep(DRAIN_POLL_INTERVAL);
            }
            return gone();
        }
        Ok(())
    }

    /// Whether this was a held dump whose tasks run again.
    fn is_given_back(&self) -> io::Result<bool> {
        let Some(path) = &self.verdict else {
            return Ok(false);
        };
        Ok(verdict::read(path)? == Some(Verdict::Aborted))
    }

    /// The container's first process, if the network namespace is its own.
    fn init_with_own_network(&self) -> Option<i32> {
        self.traces
            .as_ref()
            .filter(|_| self.own_network)
            .map(|traces| traces.pid)
    }

    fn remove_traces(&self, freezer: &Freezer) -> io::Result<()> {
        match &self.traces {
            Some(traces) if traces.are_left() => traces.remove(&freezer.processes()?),
            _ => Ok(()),
        }
    }

    fn fate(&self, verdict: Verdict) -> io::Result<Fate> {
        Ok(verdict.fate(self.pages_are_needed()?))
    }

    /// Whether sockets are left when CRIU unlocks the network, of tasks that were given away. A lazy dump fails in CRIU's
    /// eyes, so that it lets the sockets go, whether or not a page is still needed: they would answer for an address that has moved, and
    /// at their tasks' end reset its connections.
    fn outlives_its_lock(&self) -> bool {
        self.own_network && self.drained.is_some()
    }

    fn pages_are_needed(&self) -> io::Result<bool> {
        let drained = self.drained.as_ref().map(|path| path.try_exists()).transpose()?;
        Ok(drained == Some(false))
    }
}

/// Runs one action; an error fails it, which CRIU understands as "resume" after a dump and "kill" before a start.
pub fn main(called_as: &Path) -> io::Result<()> {
    let control = ControlDir::at(called_as.parent().unwrap_or(Path::new("/")));
    let action = std::env::var("CRTOOLS_SCRIPT_ACTION").map_err(io::Error::other)?;
    let record: HoldRecord = serde_json::from_slice(&fs::read(control.join("hold.json"))?)?;
    if let (PRE_DUMP, Some(freezer)) = (action.as_str(), &record.freezer) {
        // Also what is paused already: the pause may have come amid a vfork.
        let freeze = |criu: u32| {
            if !record.paused {
                leave_helper(&control, criu.to_string(), Stdio::null())?;
                freezer.freeze()
            } else if freezer.must_let_go()? {
                freeze_kept(&control, freezer)
            } else {
                freezer.freeze()
            }
        };
        let frozen = record.freeze_for_criu(parent_id, freeze);
        frozen.inspect_err(|error| refuse(&control, error))?;
    }
    if let (POST_DUMP, Some(_), Some(freezer)) = (action.as_str(), &record.verdict, &record.freezer) {
        // CRIU has thawed the cgroup: until now only its tracing held the tasks. Frozen again, they stand still even if it
        // is killed; it leaves the cgroup as it had found it, which is frozen as well.
        let frozen = record.freeze_for_criu(parent_id, |_| freezer.freeze());
        frozen.inspect_err(|error| refuse(&control, error))?;
    }
    // The clock is not worth a container: a shim that is gone is no reason to fail.
    let reached = Report::Hold {
        action: action.clone(),
    };
    tell(&control, &reached);
    if record.gated {
        // At post-restore every socket is back, and CRIU's own lock holds until it has unlocked the network.
        match (action.as_str(), &record.verdict) {
            (POST_RESTORE, None) => gate::quiet_network(init_pid()?)?,
            (PRE_RESUME, None) => gate::remove_table(init_pid()?)?,
            _ => {}
        }
        if action == PRE_RESUME {
            // Not before: until CRIU has unlocked the network, what it draws would be dropped. Without it the addresses are
            // found as well, only later.
            // By a process of its own: to close the socket that it takes, and to delete a table, waits for every processor,
            // and CRIU would for us.
            let _ =
                init_pid().and_then(|pid| leave_helper(&control, format!("{ANNOUNCE}{pid}"), Stdio::null()));
        }
    }
    match (action.as_str(), &record.verdict) {
        (POST_DUMP, Some(path)) => {
            let verdict = hold_dump(path, record.hold_ms)?;
            obey(&verdict)?;
            if let (None, Some(freezer)) = (&record.drained, &record.freezer) {
                // CRIU kills the tasks now and waits for their end, which on cgroup v1 does not come while they are frozen.
                freezer.thaw()?;
            }
            if record.outlives_its_lock()
                && let Err(error) = init_pid().and_then(gate::cut_network)
            {
                let reason = format!(
                    "its network is not cut off, and may answer for an address that has moved: {error}"
                );
                tell(&control, &Report::Amiss { reason });
            }
            // Only the other host knows how long that is.
            while record.fate(verdict)? == Fate::Kept {
                std::thread::sleep(DRAIN_POLL_INTERVAL);
            }
            Ok(())
        }
        (POST_RESTORE, Some(path)) => {
            // The gate's is the only lock here (see `inventory`): nothing reaches a copy that may still be given up. A move
            // need not keep quiet until the tasks run: connections through another host's address translation end anyway.
            let opener = record
                .gated
                .then(|| init_pid().and_then(gate::Opener::start))
                .transpose()?;
            obey(&hold_restore(path)?)?;
            if let Some(Err(error)) = opener.map(gate::Opener::open) {
                // To fail now would end a container that is nowhere else. The announcer removes the whole table.
                let reason = format!("its network is opened later: {error}");
                tell(&control, &Report::Amiss { reason });
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn init_pid() -> io::Result<i32> {
    let pid = std::env::var("CRTOOLS_INIT_PID").map_err(io::Error::other)?;
    pid.parse().map_err(io::Error::other)
}

/// Waits for CRIU's end, then settles the dump; this is a process of its own, which outlives the holder. As a keeper it
/// waits for the holder's word or end, and as an announcer it says where addresses are, and clears away what a gate has left.
pub fn thawer_main(called_as: &Path, argument: &str) -> io::Result<()> {
    if let Some(pid) = argument.strip_prefix(ANNOUNCE) {
        let pid = pid.parse().map_err(io::Error::other)?;
        let announced = gate::announce_network(pid);
        gate::remove_table(pid)?;
        return announced;
    }
    let control = ControlDir::at(called_as.parent().unwrap_or(Path::new("/")));
    let record: HoldRecord = serde_json::from_slice(&fs::read(control.join("hold.json"))?)?;
    if argument == KEEP {
        return keep(io::stdin(), record.freezer.as_ref());
    }
    let criu = Path::new("/proc").join(argument);
    while is_running(&criu) {
        std::thread::sleep(THAW_POLL_INTERVAL);
    }
    // A CRIU that was killed leaves the tasks frozen, with all their pages.
    while record.settle()? == Settled::PagesNeeded {
        std::thread::sleep(DRAIN_POLL_INTERVAL);
    }
    if let (true, Some(pid)) = (record.is_given_back()?, record.init_with_own_network()) {
        // Another host may have announced its addresses already, as engines do when they wire a network.
        gate::announce_network(pid)?;
    }
    Ok(())
}

/// A zombie has ended, whether or not its parent has looked.
fn is_running(process: &Path) -> bool {
    let Ok(stat) = fs::read_to_string(process.join("stat")) else {
        return false;
    };
    // The state follows the program's name, which may itself contain parentheses.
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Starts the process that thaws when CRIU has ended, whatever ends it, or keeps what is paused, or announces.
fn leave_helper(control: &ControlDir, argument: impl AsRef<OsStr>, stdin: Stdio) -> io::Result<Child> {
    Command::new("/proc/self/exe")
        .arg0(control.join(THAWER_NAME))
        .arg(argument)
        .current_dir("/")
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

/// Lets go what was paused amid a vfork and pauses it again, as [`Freezer::freeze`] does; the keeper would, if this
/// process were killed.
fn freeze_kept(control: &ControlDir, freezer: &Freezer) -> io::Result<()> {
    let mut keeper = leave_helper(control, KEEP, Stdio::piped())?;
    let frozen = freezer.freeze();
    if let Some(mut word) = keeper.stdin.take() {
        // On a failure the tasks are told to freeze as well. Should the keeper not hear it, it says it once more.
        let _ = word.write_all(KEPT);
    }
    // Waited for: CRIU must be alone with the freezer when it goes on.
    keeper.wait()?;
    frozen
}

/// Pauses the container if the holder ends without a word.
fn keep(mut holder: impl Read, freezer: Option<&Freezer>) -> io::Result<()> {
    let mut word = Vec::new();
    holder.read_to_end(&mut word)?;
    match freezer {
        Some(freezer) if word != KEPT => freezer.pause(),
        _ => Ok(()),
    }
}

/// Tells the shim why the holder makes CRIU fail; CRIU's log says only that a script did.
fn refuse(control: &ControlDir, reason: &io::Error) {
    let reason = reason.to_string();
    tell(control, &Report::Refusal { reason });
}

/// Says something to the shim, if it is there.
fn tell(control: &ControlDir, report: &Report) {
    if let Ok(mut shim) = UnixStream::connect(control.join("ctl.sock")) {
        let _ = gate::send(&mut shim, report);
    }
}

/// A dump that nobody decides about in time is given up, unless somebody decided meanwhile.
fn hold_dump(path: &Path, hold_ms: Option<u64>) -> io::Result<Verdict> {
    let deadline = hold_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
    match verdict::wait(path, deadline)? {
        Some(verdict) => Ok(verdict),
        None => verdict::decide(path, WITHOUT_WORD),
    }
}

/// A restore waits as long as it takes: only the source knows whether it has given the container away.
fn hold_restore(path: &Path) -> io::Result<Verdict> {
    verdict::wait(path, None)?
        .ok_or_else(|| io::Error::other("a wait without a deadline ended without a verdict"))
}

fn obey(verdict: &Verdict) -> io::Result<()> {
    match verdict {
        Verdict::Committed => Ok(()),
        Verdict::Aborted => Err(io::Error::other("the move was aborted")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_left_alone_is_aborted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("verdict");
        assert_eq!(hold_dump(&path, Some(5)).unwrap(), Verdict::Aborted);
        assert_eq!(
            verdict::decide(&path, Verdict::Committed).unwrap(),
            Verdict::Aborted
        );
    }

    #[test]
    fn a_committed_dump_is_never_resumed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("verdict");
        verdict::decide(&path, Verdict::Committed).unwrap();
        let verdict = hold_dump(&path, Some(0)).unwrap();
        assert!(obey(&verdict).is_ok());
    }

    fn record(directory: &Path) -> HoldRecord {
        fs::write(directory.join("freezer.state"), "FROZEN").unwrap();
        fs::write(directory.join("cgroup.procs"), "").unwrap();
        HoldRecord {
            verdict: Some(directory.join("verdict")),
            freezer: Some(Freezer::v1_at(directory)),
            ..HoldRecord::default()
        }
    }

    #[test]
    fn a_dump_whose_holder_died_is_aborted_before_it_is_thawed() {
        let directory = tempfile::tempdir().unwrap();
        let record = record(directory.path());
        assert_eq!(record.settle().unwrap(), Settled::Done);
        let verdict = directory.path().join("verdict");
        assert_eq!(
            verdict::decide(&verdict, Verdict::Committed).unwrap(),
            Verdict::Aborted
        );
        assert!(
            fs::read_to_string(directory.path().join("freezer.state"))
                .unwrap()
                .starts_with("THAWED")
        );
    }

    #[test]
    fn a_container_is_not_left_frozen_by_the_holder_of_a_criu_that_was_killed() {
        const CRIU: u32 = 40;
        const SHIM: u32 = 30;
        let state = |directory: &Path| fs::read_to_string(directory.join("freezer.state")).unwrap();
        for heir in [SHIM, 1] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path();
            let record = HoldRecord {
                shim: Some(SHIM),
                ..record(path)
            };
            let freeze = |_| fs::write(path.join("freezer.state"), "FROZEN");
            assert!(record.freeze_for_criu(|| CRIU, freeze).is_ok());
            assert!(state(path).starts_with("FROZEN"));
            // Killed before the holder has looked for its parent: there is nothing to do.
            fs::write(path.join("freezer.state"), "THAWED").unwrap();
            assert!(record.freeze_for_criu(|| heir, freeze).is_err());
            assert!(state(path).starts_with("THAWED"));
            // Killed after that, and settled before the cgroup was frozen.
            let parent = std::cell::Cell::new(CRIU);
            let killed = |criu| {
                parent.set(heir);
                freeze(criu)
            };
            assert!(record.freeze_for_criu(|| parent.get(), killed).is_err());
            assert!(state(path).starts_with("THAWED"));
            let verdict = verdict::read(&path.join("verdict")).unwrap();
            assert_eq!(verdict, Some(Verdict::Aborted));
        }
    }

    #[test]
    fn tasks_left_after_a_commit_are_killed_not_resumed() {
        let directory = tempfile::tempdir().unwrap();
        let record = record(directory.path());
        let mut task = Command::new("sleep").arg("60").spawn().unwrap();
        fs::write(directory.path().join("cgroup.procs"), format!("{}\n", task.id())).unwrap();
        verdict::decide(&directory.path().join("verdict"), Verdict::Committed).unwrap();
        assert_eq!(record.settle().unwrap(), Settled::Done);
        assert!(!task.wait().unwrap().success());
    }

    #[test]
    fn tasks_whose_pages_are_needed_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let record = HoldRecord {
            drained: Some(at("drained")),
            ..record(directory.path())
        };
        let mut task = Command::new("sleep").arg("60").spawn().unwrap();
        fs::write(at("cgroup.procs"), format!("{}\n", task.id())).unwrap();
        verdict::decide(&at("verdict"), Verdict::Committed).unwrap();
        assert_eq!(record.settle().unwrap(), Settled::PagesNeeded);
        assert!(task.try_wait().unwrap().is_none());
        assert_eq!(fs::read_to_string(at("freezer.state")).unwrap(), "FROZEN");
        fs::write(at("drained"), "").unwrap();
        assert_eq!(record.settle().unwrap(), Settled::Done);
        assert!(!task.wait().unwrap().success());
    }

    #[test]
    fn a_lazy_dump_outlives_its_lock_even_if_no_page_is_needed() {
        let directory = tempfile::tempdir().unwrap();
        let drained = directory.path().join("drained");
        let dump = |own_network, drained| HoldRecord {
            own_network,
            drained,
            ..record(directory.path())
        };
        fs::write(&drained, "").unwrap();
        assert!(dump(true, Some(drained.clone())).outlives_its_lock());
        assert!(
            !dump(false, Some(drained)).outlives_its_lock(),
            "the host's own network"
        );
        assert!(!dump(true, None).outlives_its_lock(), "CRIU keeps its lock");
    }

    #[test]
    fn a_keeper_pauses_what_a_killed_holder_let_go() {
        let directory = tempfile::tempdir().unwrap();
        let freezer = record(directory.path()).freezer.unwrap();
        let state = || fs::read_to_string(directory.path().join("freezer.state")).unwrap();
        freezer.thaw().unwrap();
        keep(KEPT, Some(&freezer)).unwrap();
        assert!(state().starts_with("THAWED"));
        keep(io::empty(), Some(&freezer)).unwrap();
        assert!(state().starts_with("FROZEN"));
    }

    #[test]
    fn a_thawer_tells_the_living_from_the_dead() {
        assert!(is_running(Path::new("/proc/self")));
        let mut child = Command::new("true").spawn().unwrap();
        let process = Path::new("/proc").join(child.id().to_string());
        while is_running(&process) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!is_running(&process));
    }

    #[test]
    fn a_restore_waits_for_its_verdict() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("verdict");
        let verdict = std::thread::scope(|scope| {
            let held = scope.spawn(|| hold_restore(&path).unwrap());
            verdict::decide(&path, Verdict::Aborted).unwrap();
            held.join().unwrap()
        });
        assert!(obey(&verdict).is_err());
    }
}
