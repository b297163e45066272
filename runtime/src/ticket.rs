//! Tickets: how an agent makes an engine's plain *start* of a container a restore.
//!
//! The agent writes `/run/godwit/tickets/NAMESPACE/ID`; the shim claims it in Create. A ticket is a lease: the
//! agent touches it while it lives, and the shim gives up on one that was removed or has grown stale. It is used
//! once, belongs to root, and names its container; one that does not fit is an error, never a fresh start.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::control::{RUN_DIR, create_private_dir};

/// How often the agent touches a ticket whose image is still to come.
pub const TOUCH_INTERVAL: Duration = Duration::from_secs(2);

/// A ticket not touched for this long belongs to a dead agent: seven missed touches.
pub const STALE_AFTER: Duration = Duration::from_secs(15);

/// The format this code writes and reads.
const VERSION: u32 = 1;

/// A ticket is a few hundred bytes; more is not ours.
const MAX_BYTES: u64 = 16 * 1024;

/// What the agent promises the shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ticket {
    version: u32,
    /// containerd's namespace of the container.
    pub namespace: String,
    /// The container's full id.
    pub id: String,
    /// The move it belongs to, for logs and errors.
    pub migration: String,
    /// The checkpoint image, if it lies on this host already; else it comes by `Restore`.
    pub image_dir: Option<PathBuf>,
}

/// Why a ticket cannot be used.
#[derive(Debug, Error)]
pub enum TicketError {
    /// The file is there and does not belong to this start.
    #[error("ticket {path} is refused: {reason}")]
    Refused {
        /// The ticket's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The agent removed the ticket, or has not touched it for [`STALE_AFTER`].
    #[error("the move was given up: {reason}")]
    Withdrawn {
        /// What was seen.
        reason: String,
    },
    /// The file could not be read or written.
    #[error("ticket {path}: {source}")]
    Io {
        /// The ticket's file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The directory of all tickets on this host.
pub fn default_root() -> PathBuf {
    Path::new(RUN_DIR).join("tickets")
}

/// The agent's side of a ticket it has written.
#[derive(Debug)]
pub struct Issued {
    open: PathBuf,
    claimed: PathBuf,
}

/// The shim's side of a ticket it has claimed.
#[derive(Debug)]
pub struct Claimed {
    /// What the ticket says.
    pub ticket: Ticket,
    path: PathBuf,
}

impl Ticket {
    /// A ticket for container `id` of `namespace` in the move `migration`.
    pub fn new(namespace: &str, id: &str, migration: &str, image_dir: Option<PathBuf>) -> Self {
        Self {
            version: VERSION,
            namespace: namespace.into(),
            id: id.into(),
            migration: migration.into(),
            image_dir,
        }
    }

    /// What `text` says, or why it is no ticket of this version.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let ticket: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if ticket.version != VERSION {
            return Err(format!("version {} is not {VERSION}", ticket.version));
        }
        Ok(ticket)
    }

    /// Writes the ticket below `root`. Fails if there is one for this container already.
    pub fn issue(&self, root: &Path) -> Result<Issued, TicketError> {
        let (open, claimed) = paths(root, &self.namespace, &self.id)?;
        let fail = |source| TicketError::Io {
            path: open.clone(),
            source,
        };
        if let Some(directory) = open.parent() {
            create_private_dir(directory).map_err(fail)?;
        }
        if claimed.exists() {
            return Err(TicketError::Refused {
                path: claimed,
                reason: "another move of this container is under way".into(),
            });
        }
        let text = serde_json::to_vec(self).map_err(|error| fail(error.into()))?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&open)
            .map_err(fail)?;
        // Half a ticket would be refused for ever: the next start of the container and the next move of it.
        file.write_all(&text)
            .inspect_err(|_| drop(fs::remove_file(&open)))
            .map_err(fail)?;
        Ok(Issued { open, claimed })
    }

    /// Takes the ticket for container `id` of `namespace` below `root`, if there is one, so that nobody can use it
    /// again.
    pub fn claim(root: &Path, namespace: &str, id: &str) -> Result<Option<Claimed>, TicketError> {
        let (open, claimed) = paths(root, namespace, id)?;
        let fail = |source| TicketError::Io {
            path: open.clone(),
            source,
        };
        match fs::rename(&open, &claimed) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(fail(source)),
        }
        let refuse = |reason: String| {
            let _ = fs::remove_file(&claimed);
            TicketError::Refused {
                path: open.clone(),
                reason,
            }
        };
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&claimed)
            .map_err(|error| refuse(error.to_string()))?;
        let metadata = file.metadata().map_err(fail)?;
        if !metadata.is_file()
            || metadata.uid() != nix::unistd::geteuid().as_raw()
            || metadata.mode() & 0o077 != 0
        {
            return Err(refuse("it must be a file of ours with mode 0600".into()));
        }
        let mut text = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut text).map_err(fail)?;
        let ticket = Self::parse(&text).map_err(refuse)?;
        if ticket.namespace != namespace || ticket.id != id {
            return Err(refuse(format!("it is for {}/{}", ticket.namespace, ticket.id)));
        }
        Ok(Some(Claimed {
            ticket,
            path: claimed,
        }))
    }
}

impl Issued {
    /// Whether a shim has claimed the ticket.
    pub fn is_claimed(&self) -> bool {
        self.claimed.exists()
    }

    /// Whether the ticket still lies there to be claimed.
    pub fn is_open(&self) -> bool {
        self.open.exists()
    }

    /// Says that the agent lives. Fails if the shim has dropped the ticket.
    pub fn touch(&self) -> io::Result<()> {
        let now = SystemTime::now();
        File::open(&self.open)
            .or_else(|_| File::open(&self.claimed))?
            .set_modified(now)
    }

    /// Withdraws the ticket: a shim that waits on it fails its Create.
    pub fn withdraw(&self) {
        let _ = fs::remove_file(&self.open);
        let _ = fs::remove_file(&self.claimed);
    }
}

/// Removes the ticket of a container that a dead agent may have left.
pub fn withdraw(root: &Path, namespace: &str, id: &str) -> Result<(), TicketError> {
    let (open, claimed) = paths(root, namespace, id)?;
    Issued { open, claimed }.withdraw();
    Ok(())
}

impl Claimed {
    /// Whether the agent still stands by the ticket.
    pub fn check(&self) -> Result<(), TicketError> {
        let withdrawn = |reason: String| TicketError::Withdrawn { reason };
        let modified = fs::metadata(&self.path)
            .and_then(|metadata| metadata.modified())
            .map_err(|_| withdrawn("the agent took its ticket back".into()))?;
        let age = SystemTime::now().duration_since(modified).unwrap_or_default();
        if age > STALE_AFTER {
            return Err(withdrawn(format!(
                "the agent has not been heard of for {} s",
                age.as_secs()
            )));
        }
        Ok(())
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn paths(root: &Path, namespace: &str, id: &str) -> Result<(PathBuf, PathBuf), TicketError> {
    for name in [namespace, id] {
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            return Err(TicketError::Refused {
                path: root.into(),
                reason: format!("{name:?} is no container name"),
            });
        }
    }
    let directory = root.join(namespace);
    // A container id has no colon, so a claimed ticket is never another container's open one.
    Ok((directory.join(id), directory.join(format!("{id}:claimed"))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_ticket_is_used_once() {
        let root = tempfile::tempdir().unwrap();
        let issued = Ticket::new("moby", "abc", "m1", None).issue(root.path()).unwrap();
        assert!(!issued.is_claimed() && issued.is_open());
        let claimed = Ticket::claim(root.path(), "moby", "abc").unwrap().unwrap();
        assert_eq!(claimed.ticket.migration, "m1");
        assert!(issued.is_claimed() && !issued.is_open());
        assert!(Ticket::claim(root.path(), "moby", "abc").unwrap().is_none());
    }

    #[test]
    fn a_ticket_that_does_not_fit_on_the_disk_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        // The room of a directory entry, and of less than this image's name.
        let options = Some("size=4k,nr_inodes=16");
        let mounted = nix::mount::mount(
            Some("full"),
            root.path(),
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            options,
        );
        if let Err(error) = mounted {
            println!("skipped: mounting a tmpfs needs root: {error}");
            return;
        }
        let _unmount = Unmount(root.path());
        let ticket = Ticket::new("moby", "abc", "m1", Some("x".repeat(5000).into()));
        assert!(matches!(ticket.issue(root.path()), Err(TicketError::Io { .. })));
        assert!(!root.path().join("moby/abc").exists());
        Ticket::new("moby", "abc", "m2", None).issue(root.path()).unwrap();
    }

    struct Unmount<'a>(&'a Path);

    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = nix::mount::umount(self.0);
        }
    }

    #[test]
    fn a_withdrawn_ticket_ends_the_wait() {
        let root = tempfile::tempdir().unwrap();
        let issued = Ticket::new("moby", "abc", "m1", None).issue(root.path()).unwrap();
        let claimed = Ticket::claim(root.path(), "moby", "abc").unwrap().unwrap();
        claimed.check().unwrap();
        issued.touch().unwrap();
        issued.withdraw();
        assert!(matches!(claimed.check(), Err(TicketError::Withdrawn { .. })));
        assert!(issued.touch().is_err());
    }

    #[test]
    fn a_stale_ticket_ends_the_wait() {
        let root = tempfile::tempdir().unwrap();
        let _issued = Ticket::new("moby", "abc", "m1", None).issue(root.path()).unwrap();
        let claimed = Ticket::claim(root.path(), "moby", "abc").unwrap().unwrap();
        let long_ago = SystemTime::now() - STALE_AFTER - Duration::from_secs(1);
        File::open(&claimed.path).unwrap().set_modified(long_ago).unwrap();
        assert!(matches!(claimed.check(), Err(TicketError::Withdrawn { .. })));
    }

    #[test]
    fn a_ticket_that_others_can_write_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let issued = Ticket::new("moby", "abc", "m1", None).issue(root.path()).unwrap();
        fs::set_permissions(&issued.open, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(
            Ticket::claim(root.path(), "moby", "abc"),
            Err(TicketError::Refused { .. })
        ));
    }

    #[test]
    fn a_ticket_for_another_container_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let issued = Ticket::new("moby", "abc", "m1", None).issue(root.path()).unwrap();
        fs::rename(&issued.open, issued.open.with_file_name("def")).unwrap();
        assert!(matches!(
            Ticket::claim(root.path(), "moby", "def"),
            Err(TicketError::Refused { .. })
        ));
    }

    #[test]
    fn names_cannot_leave_the_directory() {
        let root = tempfile::tempdir().unwrap();
        assert!(Ticket::claim(root.path(), "..", "abc").is_err());
        assert!(Ticket::claim(root.path(), "moby", "../abc").is_err());
    }
}
