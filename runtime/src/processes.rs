//! Ends a process with all that descends from it, found by looks at `/proc`.
//!
//! A look is no lock: a process may make another while it is looked at, so it is looked until nothing is left. A process
//! is known by its pid and the time it began, so that none is killed which only has the pid of another.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

/// A killed process ends at once, unless it waits for a device.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// How often it is looked whether it has.
const END_INTERVAL: Duration = Duration::from_millis(5);

/// What the host's table of processes says of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    parent: i32,
    session: i32,
    /// In ticks since the machine's start.
    began: u64,
    /// A zombie, which waits for its parent to look.
    has_ended: bool,
}

/// By pid.
type Table = BTreeMap<i32, Line>;

/// A process that another program can find again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    pid: i32,
    /// In ticks since the machine's start.
    began: u64,
}

impl Known {
    /// The process that now has `pid`.
    pub fn now(pid: i32) -> io::Result<Self> {
        let line = parse(&fs::read_to_string(format!("/proc/{pid}/stat"))?);
        let began = line.ok_or(io::ErrorKind::InvalidData)?.began;
        Ok(Self { pid, began })
    }
}

/// Processes that are to end.
#[derive(Debug)]
pub struct Doomed {
    /// Where the search begins: pids, and when they began once they have been seen.
    roots: BTreeMap<i32, Option<u64>>,
    /// Whether the roots themselves end as well, and all in the sessions which they lead.
    with_roots: bool,
    /// All that was found so far: what has lost its parent since is found no more.
    found: BTreeMap<i32, u64>,
}

impl Doomed {
    /// All that descends from `root`, which itself is spared.
    pub fn below(root: i32) -> Self {
        Self::new(&[root], false)
    }

    /// `leaders`, all that descends from them, and all in the sessions they lead, which has their terminal.
    pub fn sessions_of(leaders: &[i32]) -> Self {
        Self::new(leaders, true)
    }

    /// `root` and all that descends from it; nothing if it has ended.
    pub fn tree(root: Known) -> Self {
        Self {
            roots: BTreeMap::from([(root.pid, Some(root.began))]),
            with_roots: true,
            found: BTreeMap::new(),
        }
    }

    fn new(roots: &[i32], with_roots: bool) -> Self {
        Self {
            roots: roots.iter().map(|pid| (*pid, None)).collect(),
            with_roots,
            found: BTreeMap::new(),
        }
    }

    /// Looks once and kills what it finds; returns one that has not ended.
    pub fn kill(&mut self) -> io::Result<Option<i32>> {
        let left = self.look(&table()?);
        for pid in &left {
            match kill(Pid::from_raw(*pid), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(left.first().copied())
    }

    /// Kills until nothing is left. It is an error of kind `TimedOut` if something is after ten seconds.
    pub async fn end(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + END_DEADLINE;
        while let Some(pid) = self.kill()? {
            if Instant::now() >= deadline {
                let reason = format!("process {pid} does not end, though it was killed");
                return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
            }
            sleep(END_INTERVAL).await;
        }
        Ok(())
    }

    /// Finds what belongs to it in `table`; returns what of all that was found has not ended.
    fn look(&mut self, table: &Table) -> Vec<i32> {
        for (root, began) in &mut self.roots {
            *began = began.or(table.get(root).map(|line| line.began));
        }
        loop {
            let belongs = |line: &Line| {
                self.is(table, line.parent) || (self.with_roots && self.leads(table, line.session))
            };
            let fresh: Vec<(i32, u64)> = table
                .iter()
                .filter(|(pid, line)| self.found.get(pid) != Some(&line.began) && belongs(line))
                .map(|(pid, line)| (*pid, line.began))
                .collect();
            if fresh.is_empty() {
                break;
            }
            self.found.extend(fresh);
        }
        let ends = |pid: &i32, line: &Line| {
            self.found.get(pid) == Some(&line.began) || (self.with_roots && self.is_root(*pid, line.began))
        };
        table
            .iter()
            .filter(|(pid, line)| !line.has_ended && ends(pid, line))
            .map(|(pid, _)| *pid)
            .collect()
    }

    /// Whether `pid` is a root or was found.
    fn is(&self, table: &Table, pid: i32) -> bool {
        table
            .get(&pid)
            .is_some_and(|line| self.found.get(&pid) == Some(&line.began) || self.is_root(pid, line.began))
    }

    fn is_root(&self, pid: i32, began: u64) -> bool {
        self.roots.get(&pid) == Some(&Some(began))
    }

    /// Whether `session` is a root's. The kernel gives its number to no other process while anything is in it.
    fn leads(&self, table: &Table, session: i32) -> bool {
        match self.roots.get(&session) {
            Some(began) => table.get(&session).is_none_or(|line| *began == Some(line.began)),
            None => false,
        }
    }
}

/// Whether a child of `parent` was killed and `parent` has not taken notice. One that has ended by itself does not count:
/// `parent` may only be slow to look.
pub(crate) fn has_unnoticed_kill(parent: i32) -> bool {
    // Each child is its thread's. Nothing of it is there any more when `parent` itself has ended.
    let threads = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten();
    threads.flatten().any(|thread| {
        let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        children.split_whitespace().any(|child| {
            let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            parse(&stat).is_some_and(|line| line.has_ended) && was_killed(&stat)
        })
    })
}

/// Whether the status with which a process has ended, the last field of its `/proc/PID/stat`, is that of a signal.
fn was_killed(stat: &str) -> bool {
    let status = stat
        .split_whitespace()
        .next_back()
        .and_then(|field| field.parse::<i32>().ok());
    status.is_some_and(|status| nix::libc::WIFSIGNALED(status))
}

fn table() -> io::Result<Table> {
    let mut table = Table::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // What has ended since is in nobody's way.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        if let Some(line) = parse(&stat) {
            table.insert(pid, line);
        }
    }
    Ok(table)
}

/// One `/proc/PID/stat` (proc_pid_stat(5)).
fn parse(stat: &str) -> Option<Line> {
    // The state follows the program's name, which may itself contain parentheses.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let began = fields.nth(15)?.parse().ok()?;
    Some(Line {
        parent,
        session,
        began,
        has_ended: matches!(state, "Z" | "X"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn table(lines: &[(i32, i32, i32, u64)]) -> Table {
        let line = |(pid, parent, session, began): &(i32, i32, i32, u64)| {
            let line = Line {
                parent: *parent,
                session: *session,
                began: *began,
                has_ended: false,
            };
            (*pid, line)
        };
        lines.iter().map(line).collect()
    }

    #[test]
    fn what_has_lost_its_parent_is_still_doomed_and_what_has_its_pid_is_not() {
        let mut doomed = Doomed::below(10);
        let before = [
            (1, 0, 1, 0),
            (10, 1, 10, 1),
            (11, 10, 10, 2),
            (12, 11, 12, 3),
            (20, 1, 10, 4),
        ];
        assert_eq!(doomed.look(&table(&before)), [11, 12]);
        // 11 has ended and its pid is another's; 12 is the init's, and has made 13.
        let after = [
            (1, 0, 1, 0),
            (11, 1, 1, 9),
            (12, 1, 12, 3),
            (13, 12, 12, 9),
            (14, 11, 1, 9),
        ];
        assert_eq!(doomed.look(&table(&after)), [12, 13]);
    }

    #[test]
    fn a_session_ends_with_its_leader_and_not_with_one_that_has_its_pid() {
        let before = [(1, 0, 1, 0), (10, 1, 10, 1), (11, 1, 10, 2), (12, 1, 12, 3)];
        let mut doomed = Doomed::sessions_of(&[10]);
        assert_eq!(doomed.look(&table(&before)), [10, 11]);
        assert_eq!(doomed.look(&table(&[(1, 0, 1, 0), (13, 1, 10, 4)])), [13]);
        assert_eq!(doomed.look(&table(&[(10, 1, 10, 8), (14, 10, 10, 9)])), [0; 0]);
    }

    #[test]
    fn a_tree_ends_with_its_root_and_nothing_of_one_that_has_its_pid() {
        let known = Known { pid: 10, began: 1 };
        let before = [(1, 0, 1, 0), (10, 1, 1, 1), (11, 10, 1, 2), (12, 1, 1, 3)];
        assert_eq!(Doomed::tree(known).look(&table(&before)), [10, 11]);
        let after = [(1, 0, 1, 0), (10, 1, 10, 8), (11, 10, 10, 9)];
        assert_eq!(Doomed::tree(known).look(&table(&after)), [0; 0]);
    }

    #[test]
    fn a_kill_is_unnoticed_until_it_is_waited_for_and_an_end_is_none() {
        // What a shell has started and has then forgotten by becoming another program.
        for (child, is_kill) in [("exit 1", false), ("kill -9 $$", true)] {
            let script = format!("sh -c '{child}' & exec sleep 300");
            let mut shell = Command::new("sh").args(["-c", &script]).spawn().unwrap();
            let pid = shell.id().cast_signed();
            let ended = || {
                super::table()
                    .unwrap()
                    .values()
                    .any(|line| line.parent == pid && line.has_ended)
            };
            let deadline = Instant::now() + Duration::from_secs(30);
            while !ended() {
                assert!(Instant::now() < deadline);
                std::thread::yield_now();
            }
            assert_eq!(has_unnoticed_kill(pid), is_kill, "{child}");
            shell.kill().unwrap();
            shell.wait().unwrap();
            assert!(!has_unnoticed_kill(pid));
        }
    }

    #[test]
    fn a_line_is_read_whatever_the_program_calls_itself() {
        let stat = "7 (a) Z (b) S 3 7 5 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 1 2";
        let line = Line {
            parent: 3,
            session: 5,
            began: 4242,
            has_ended: false,
        };
        assert_eq!(parse(stat), Some(line));
        assert_eq!(parse("7 (a"), None);
    }

    #[tokio::test]
    async fn children_and_their_children_end() {
        let script = "setsid sleep 300 & sleep 300 & wait";
        let mut shell = Command::new("sh").args(["-c", script]).spawn().unwrap();
        let pid = shell.id().cast_signed();
        let mut doomed = Doomed::below(pid);
        while doomed.look(&super::table().unwrap()).len() < 2 {
            std::thread::yield_now();
        }
        doomed.end().await.unwrap();
        // The shell has nothing left to wait for.
        shell.wait().unwrap();
    }
}
