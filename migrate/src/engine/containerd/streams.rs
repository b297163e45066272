//! The fifos that containerd's clients make for a container's standard streams, made here for one that comes without
//! its client, and removed with it.
//!
//! Nobody need read them: the shim holds both ends, and `ctr task attach` finds them by what containerd says of the task.

use std::fs::{self, DirBuilder, FileType};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::record::Streams;

/// Where clients put them, one directory for a container.
const DIRECTORY: &str = "/run/containerd/fifo";

/// The file that a stream is appended to, or somebody's own fifo: it must be on the new host already.
pub(super) fn file_of(stream: &str) -> Option<&Path> {
    let path = Path::new(stream);
    (path.is_absolute() && !path.starts_with(DIRECTORY)).then_some(path)
}

/// The streams of a container at its new host: fifos in the place of a client's fifos, anything else as it was. `key`
/// tells it from the other containers of this host.
pub(super) fn make(streams: &Streams, key: &str) -> io::Result<Streams> {
    make_in(Path::new(DIRECTORY), streams, key)
}

/// Removes the fifos a task was created with, and their directory.
pub(super) fn remove(stdin: &str, stdout: &str, stderr: &str) {
    remove_in(Path::new(DIRECTORY), &[stdin, stdout, stderr]);
}

/// Removes what `make` has made for a task that never came to be.
pub(super) fn remove_made(key: &str) {
    // What is not there need not be removed.
    let _ = fs::remove_dir_all(directory_of(Path::new(DIRECTORY), key));
}

fn directory_of(root: &Path, key: &str) -> PathBuf {
    root.join(format!("godwit-{key}"))
}

fn make_in(root: &Path, streams: &Streams, key: &str) -> io::Result<Streams> {
    let directory = directory_of(root, key);
    let fifo = |stream: &str, name: &str| {
        if !stream.starts_with(DIRECTORY) {
            return Ok(stream.to_owned());
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let path = directory.join(name);
        match mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(()) | Err(nix::Error::EEXIST) => Ok(path.to_string_lossy().into_owned()),
            Err(error) => Err(io::Error::from(error)),
        }
    };
    Ok(Streams {
        stdin: fifo(&streams.stdin, "stdin")?,
        stdout: fifo(&streams.stdout, "stdout")?,
        stderr: fifo(&streams.stderr, "stderr")?,
        terminal: streams.terminal,
    })
}

fn remove_in(root: &Path, streams: &[&str]) {
    for path in streams
        .iter()
        .map(Path::new)
        .filter(|path| path.starts_with(root))
    {
        let is_fifo = fs::symlink_metadata(path).map(|found| FileType::is_fifo(&found.file_type()));
        if is_fifo.unwrap_or(false) {
            // A fifo that stays behind is a name and no more.
            let _ = fs::remove_file(path);
            if let Some(directory) = path.parent().filter(|directory| *directory != root) {
                let _ = fs::remove_dir(directory);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifos_are_made_for_fifos_and_go_away_with_their_directory() {
        let root = tempfile::tempdir().unwrap();
        let there = Streams {
            stdin: String::new(),
            stdout: "/run/containerd/fifo/1/web-stdout".into(),
            stderr: "file:///var/log/web".into(),
            terminal: false,
        };
        let here = make_in(root.path(), &there, "default-web").unwrap();
        assert_eq!((here.stdin.as_str(), &here.stderr), ("", &there.stderr));
        assert!(fs::metadata(&here.stdout).unwrap().file_type().is_fifo());
        assert_eq!(make_in(root.path(), &there, "default-web").unwrap(), here);
        remove_in(root.path(), &[&here.stdin, &here.stdout, &here.stderr]);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_stays_the_file_it_is() {
        let root = tempfile::tempdir().unwrap();
        let there = Streams {
            stdout: "/var/log/web.out".into(),
            ..Streams::default()
        };
        assert_eq!(make_in(root.path(), &there, "default-web").unwrap(), there);
        assert_eq!(file_of(&there.stdout), Some(Path::new("/var/log/web.out")));
        for other in ["", "file:///var/log/web", "/run/containerd/fifo/1/web-stdout"] {
            assert_eq!(file_of(other), None, "{other}");
        }
    }

    #[test]
    fn nothing_is_removed_that_is_no_fifo_of_a_client() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "text").unwrap();
        remove_in(&root.path().join("other"), &[file.to_str().unwrap()]);
        remove_in(root.path(), &[file.to_str().unwrap()]);
        assert!(file.exists());
    }
}
