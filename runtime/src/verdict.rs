//! The verdict on a held dump or restore: one file, created once, `committed` or `aborted`.
//!
//! A complete, synced temporary file is linked to the verdict's name, so the file is never seen half-written and
//! exactly one writer wins (`link(2)` fails with EEXIST for all others, who then obey what they find). The file
//! decides what CRIU does with frozen tasks even when every process that knew of the move is dead.
//! This module does not say who may write which verdict: `docs/architecture.md` does.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How often [`wait`] looks: small against a downtime of some hundred milliseconds, and cheap.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Longest content that is a verdict; anything longer is not ours.
const MAX_BYTES: u64 = 16;

/// Who owns the container after the freeze.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The destination owns it: the source's tasks are killed.
    Committed,
    /// The source owns it: its tasks run on.
    Aborted,
}

/// What is to become of the tasks of a held dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fate {
    /// They run on here.
    GivenBack,
    /// They stand still: they are another host's, which still needs pages of theirs.
    Kept,
    /// They are killed.
    Killed,
}

impl Verdict {
    /// What this verdict means for the dumped tasks.
    pub fn fate(self, pages_are_needed: bool) -> Fate {
        match (self, pages_are_needed) {
            (Self::Aborted, _) => Fate::GivenBack,
            (Self::Committed, true) => Fate::Kept,
            (Self::Committed, false) => Fate::Killed,
        }
    }

    /// The file's content, without the final newline.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Aborted => "aborted",
        }
    }
}

/// Tries to make `verdict` the verdict at `path` and returns the one that stands, ours or an earlier one.
///
/// On success the verdict and its name are on stable storage. On an error that is not "exists" no verdict was made.
pub fn decide(path: &Path, verdict: Verdict) -> io::Result<Verdict> {
    let directory = path
        .parent()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    if let Some(standing) = read(path)? {
        // No temporary file where nothing can be decided any more: somebody may be removing the directory. Its name
        // may still be on its way to the disk, though, if its writer has died.
        File::open(directory)?.sync_all()?;
        return Ok(standing);
    }
    let temporary = temporary_in(directory);
    let linked = write_temporary(&temporary, verdict).and_then(|()| fs::hard_link(&temporary, path));
    // Also what a full disk has cut short.
    let _ = fs::remove_file(&temporary);
    match linked {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    File::open(directory)?.sync_all()?;
    read(path)?.ok_or_else(|| io::Error::other("the verdict vanished while it was being made"))
}

/// A name that no other writer uses: two threads of one process may decide at once.
fn temporary_in(directory: &Path) -> PathBuf {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    directory.join(format!(".verdict-{}-{number}", std::process::id()))
}

fn write_temporary(path: &Path, verdict: Verdict) -> io::Result<()> {
    // What bears this process's pid and a number that was just drawn was left by a dead process; `create_new` would fail
    // on it for ever.
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    writeln!(file, "{}", verdict.as_str())?;
    file.sync_all()
}

/// Reads the verdict at `path`; `None` if there is none yet.
pub fn read(path: &Path) -> io::Result<Option<Verdict>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text)?;
    match text.trim_end() {
        "committed" => Ok(Some(Verdict::Committed)),
        "aborted" => Ok(Some(Verdict::Aborted)),
        other => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} holds {other:?}, which is no verdict", path.display()),
        )),
    }
}

/// Blocks until there is a verdict at `path`, or until `deadline` (`None`: for ever).
pub fn wait(path: &Path, deadline: Option<Instant>) -> io::Result<Option<Verdict>> {
    loop {
        if let Some(verdict) = read(path)? {
            return Ok(Some(verdict));
        }
        if deadline.is_some_and(|at| Instant::now() >= at) {
            return Ok(None);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn the_first_verdict_stands() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("verdict");
        assert_eq!(read(&path).unwrap(), None);
        assert_eq!(decide(&path, Verdict::Aborted).unwrap(), Verdict::Aborted);
        assert_eq!(decide(&path, Verdict::Committed).unwrap(), Verdict::Aborted);
        assert_eq!(read(&path).unwrap(), Some(Verdict::Aborted));
        assert_eq!(
            fs::read_dir(directory.path()).unwrap().count(),
            1,
            "a temporary file was left"
        );
    }

    #[test]
    fn many_writers_agree_on_one_verdict() {
        let directory = tempfile::tempdir().unwrap();
        // As many rounds as show two writers of the same verdict who share a name.
        for round in 0..50 {
            let path = directory.path().join(format!("verdict-{round}"));
            let together = Barrier::new(16);
            let decided: Vec<Verdict> = std::thread::scope(|scope| {
                let writers: Vec<_> = (0..16)
                    .map(|n| {
                        let verdict = [Verdict::Committed, Verdict::Aborted][n % 2];
                        let (path, together) = (&path, &together);
                        scope.spawn(move || {
                            together.wait();
                            decide(path, verdict).unwrap()
                        })
                    })
                    .collect();
                writers.into_iter().map(|writer| writer.join().unwrap()).collect()
            });
            let stands = read(&path).unwrap().unwrap();
            assert!(decided.iter().all(|verdict| *verdict == stands), "{decided:?}");
        }
        let left = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(left, 50, "a temporary file was left");
    }

    #[test]
    fn a_leftover_of_a_dead_process_is_no_obstacle() {
        let directory = tempfile::tempdir().unwrap();
        let temporary = temporary_in(directory.path());
        fs::write(&temporary, "").unwrap();
        write_temporary(&temporary, Verdict::Aborted).unwrap();
        assert_eq!(read(&temporary).unwrap(), Some(Verdict::Aborted));
    }

    #[test]
    fn a_wait_ends_at_its_deadline() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("verdict");
        assert_eq!(wait(&path, Some(Instant::now())).unwrap(), None);
    }

    #[test]
    fn garbage_is_no_verdict() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("verdict");
        fs::write(&path, "maybe\n").unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
