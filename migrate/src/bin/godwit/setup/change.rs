//! One change of a host, done and undone: a member of a JSON file, a block of lines, a file, a link, a directory.
//!
//! It decides nothing: what is to be changed, and whether it may be, is planned elsewhere. Undoing takes back only what
//! still is as it was made; what somebody has changed since is left, and said.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::json;

/// Mode of a new file: configuration, not secret.
const FILE_MODE: u32 = 0o644;

/// A change, complete enough to be undone. Paths are the host's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Change {
    /// A member of a JSON file, in an object that is there.
    Member {
        file: PathBuf,
        path: Vec<String>,
        value: String,
    },
    /// Lines at the end of a file.
    Block { file: PathBuf, text: String },
    /// A new file.
    File { file: PathBuf, text: String },
    /// A new symbolic link.
    Link { file: PathBuf, target: PathBuf },
    /// A new directory.
    Directory { file: PathBuf },
}

/// What became of an undo.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Undone {
    /// It is as it was.
    Done,
    /// It was gone already.
    Absent,
    /// Somebody changed it since; it was left alone.
    Left,
}

impl Change {
    /// What it does, in a line.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Member { file, path, value } => {
                format!("{}: \"{}\": {value}", file.display(), path.join("\".\""))
            }
            Self::Block { file, text } => {
                format!(
                    "{}, at its end:\n    {}",
                    file.display(),
                    text.trim().replace('\n', "\n    ")
                )
            }
            Self::File { file, text } => {
                format!(
                    "{}, new:\n    {}",
                    file.display(),
                    text.trim_end().replace('\n', "\n    ")
                )
            }
            Self::Link { file, target } => format!("{} -> {}", file.display(), target.display()),
            Self::Directory { file } => format!("{}/, new", file.display()),
        }
    }

    /// Carries it out below `root`.
    pub(super) fn apply(&self, root: &Path) -> io::Result<()> {
        match self {
            Self::Member { file, path, value } => edit(&below(root, file), |text| {
                let path: Vec<&str> = path.iter().map(String::as_str).collect();
                json::insert(text, &path, value)
            }),
            Self::Block { file, text: block } => {
                edit(&below(root, file), |text| Ok(format!("{text}{block}")))
            }
            Self::File { file, text } => write(&below(root, file), text, FILE_MODE),
            Self::Link { file, target } => symlink(target, below(root, file)),
            Self::Directory { file } => fs::create_dir(below(root, file)),
        }
    }

    /// Takes it back below `root`.
    pub(super) fn undo(&self, root: &Path) -> io::Result<Undone> {
        match self {
            Self::Member { file, path, value } => take_from(&below(root, file), |text| {
                let path: Vec<&str> = path.iter().map(String::as_str).collect();
                Ok(match json::get(text, &path)? {
                    None => (Undone::Absent, None),
                    Some(now) if is_json(value, &now) => (Undone::Done, Some(json::remove(text, &path)?)),
                    Some(_) => (Undone::Left, None),
                })
            }),
            Self::Block { file, text: block } => take_from(&below(root, file), |text| {
                Ok(match text.matches(block.as_str()).count() {
                    0 => (Undone::Left, None),
                    _ => (Undone::Done, Some(text.replacen(block.as_str(), "", 1))),
                })
            }),
            Self::File { file, text } => {
                let file = below(root, file);
                match fs::read_to_string(&file) {
                    Ok(now) if now == *text => fs::remove_file(&file).map(|()| Undone::Done),
                    Ok(_) => Ok(Undone::Left),
                    Err(error) => absent(error),
                }
            }
            Self::Link { file, target } => {
                let file = below(root, file);
                match fs::read_link(&file) {
                    Ok(now) if now == *target => fs::remove_file(&file).map(|()| Undone::Done),
                    Ok(_) => Ok(Undone::Left),
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(Undone::Left),
                    Err(error) => absent(error),
                }
            }
            Self::Directory { file } => match fs::remove_dir(below(root, file)) {
                Ok(()) => Ok(Undone::Done),
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(Undone::Left),
                Err(error) => absent(error),
            },
        }
    }
}

/// The place of a host's path below `root`.
pub(super) fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// The text of a file; none if there is no such file.
pub(super) fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a file at once or not at all.
pub(super) fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let fresh = path.with_file_name(format!(".{name}.godwit"));
    let written = fs::File::create(&fresh).and_then(|mut file| {
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    });
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&fresh);
    }
    written
}

/// Rewrites a file that is there; where it is a link, what it leads to.
fn edit(path: &Path, change: impl FnOnce(&str) -> Result<String, String>) -> io::Result<()> {
    let path = fs::canonicalize(path)?;
    let changed = change(&fs::read_to_string(&path)?).map_err(io::Error::other)?;
    write(&path, &changed, fs::metadata(&path)?.permissions().mode())
}

fn take_from(
    path: &Path,
    judge: impl FnOnce(&str) -> Result<(Undone, Option<String>), String>,
) -> io::Result<Undone> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => return absent(error),
    };
    let (undone, changed) = judge(&text).map_err(io::Error::other)?;
    if let Some(changed) = changed {
        edit(path, |_| Ok(changed))?;
    }
    Ok(undone)
}

fn absent(error: io::Error) -> io::Result<Undone> {
    if error.kind() == io::ErrorKind::NotFound {
        Ok(Undone::Absent)
    } else {
        Err(error)
    }
}

fn is_json(text: &str, value: &Value) -> bool {
    serde_json::from_str::<Value>(text).is_ok_and(|meant| meant == *value)
}
