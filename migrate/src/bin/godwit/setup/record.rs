//! What a setup has made, kept on disk until it is undone: `/var/lib/godwit/setup/NAME.json`.
//!
//! It is written before the first change is made, so that a setup which is cut off can be undone as well: an undo
//! passes over what is not there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::change::{self, Change, Undone, below};

const DIRECTORY: &str = "/var/lib/godwit/setup";

/// The format this code writes and reads.
const VERSION: u32 = 1;

/// It names files that are changed back as root.
const MODE: u32 = 0o600;

/// One record by its place; it need not be there.
#[derive(Debug)]
pub(super) struct Record {
    file: PathBuf,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    changes: Vec<Change>,
}

/// What became of one change.
#[derive(Debug)]
pub(super) struct Undoing {
    pub(super) change: Change,
    /// Somebody has changed it since, and it stays.
    pub(super) left: bool,
}

impl Record {
    /// The record of that name on the system below `root`.
    pub(super) fn named(root: &Path, name: &str) -> Self {
        Self {
            file: below(root, Path::new(DIRECTORY)).join(format!("{name}.json")),
        }
    }

    /// The changes that were made, in their order.
    pub(super) fn read(&self) -> Result<Vec<Change>> {
        let file = self.file.display();
        let Some(text) = change::read(&self.file).with_context(|| format!("read {file}"))? else {
            return Ok(Vec::new());
        };
        let content: Content =
            serde_json::from_str(&text).with_context(|| format!("{file} is no record of a setup"))?;
        ensure!(
            content.version == VERSION,
            "{file} has version {}, this godwit reads {VERSION}",
            content.version
        );
        Ok(content.changes)
    }

    /// Makes `changes`; if one fails, those before it are undone.
    pub(super) fn make(&self, root: &Path, changes: &[Change]) -> Result<()> {
        let before = self.read()?;
        self.write(before.iter().chain(changes))?;
        for (n_made, change) in changes.iter().enumerate() {
            if let Err(error) = change.apply(root) {
                for made in changes[..n_made].iter().rev() {
                    // The first error is the one to tell; what stays is in the record.
                    let _ = made.undo(root);
                }
                let _ = self.write(before.iter());
                return Err(error).with_context(|| format!("nothing was changed: {}", change.describe()));
            }
        }
        Ok(())
    }

    /// Undoes the last of the changes, which are `changes`, and forgets them.
    pub(super) fn take_back(&self, root: &Path, changes: &[Change]) -> Result<()> {
        for change in changes.iter().rev() {
            change
                .undo(root)
                .with_context(|| format!("undo {}", change.describe()))?;
        }
        let all = self.read()?;
        self.write(all[..all.len().saturating_sub(changes.len())].iter())
    }

    /// Undoes all of it, the last change first, and forgets it.
    pub(super) fn undo(&self, root: &Path) -> Result<Vec<Undoing>> {
        let mut undone = Vec::new();
        for change in self.read()?.into_iter().rev() {
            let how = change
                .undo(root)
                .with_context(|| format!("undo {}", change.describe()))?;
            undone.push(Undoing {
                change,
                left: how == Undone::Left,
            });
        }
        self.write(std::iter::empty())?;
        Ok(undone)
    }

    fn write<'a>(&self, changes: impl Iterator<Item = &'a Change>) -> Result<()> {
        let content = Content {
            version: VERSION,
            changes: changes.cloned().collect(),
        };
        let kept = || format!("keep the record {}", self.file.display());
        let directory = self.file.parent().unwrap_or(Path::new("/"));
        if content.changes.is_empty() {
            match fs::remove_file(&self.file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(kept);
                }
                _ => {}
            }
            // Another record may be there.
            let _ = fs::remove_dir(directory);
            return Ok(());
        }
        fs::create_dir_all(directory).with_context(kept)?;
        change::write(&self.file, &serde_json::to_string_pretty(&content)?, MODE).with_context(kept)
    }
}
