//! Why a dump or restore failed, told so that a person can act on it.
//!
//! CRIU's log is kept under `/var/log/godwit`, where it outlives the task, and named by the error.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::Site;
use crate::control::create_private_dir;
use crate::criu::{self, Cause};
use crate::runc::RuncError;

/// Where CRIU's logs of failures are kept: the last of each container and kind.
const LOG_DIR: &str = "/var/log/godwit";

/// What to do about a CRIU that does not come to an end.
const DAMAGED: &str = "the image is damaged, as a rule: restore from another, or make a new one";

/// A dump or restore that failed.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// It could not be begun: nothing was touched.
    #[error("cannot {operation} container {id}: {reason}")]
    Unready {
        /// `dump` or `restore`.
        operation: &'static str,
        /// The container.
        id: String,
        /// Why not.
        reason: String,
    },
    /// runC or CRIU failed.
    #[error("{operation} of container {id} failed: {cause}{}{}", remedy_text(.remedy.as_ref()), log_text(.log.as_ref()))]
    Failed {
        /// `dump` or `restore`.
        operation: &'static str,
        /// The container.
        id: String,
        /// CRIU's own words, or else runC's.
        cause: String,
        /// What to do about it, if known.
        remedy: Option<&'static str>,
        /// CRIU's log, if there is one.
        log: Option<PathBuf>,
    },
}

fn remedy_text(remedy: Option<&&'static str>) -> String {
    remedy.map(|remedy| format!(" ({remedy})")).unwrap_or_default()
}

fn log_text(log: Option<&PathBuf>) -> String {
    log.map(|log| format!("; CRIU's log: {}", log.display()))
        .unwrap_or_default()
}

impl CheckpointError {
    /// Nothing was begun, because of `reason`.
    pub fn unready(operation: &'static str, site: &Site, reason: &dyn std::fmt::Display) -> Self {
        Self::Unready {
            operation,
            id: site.id.clone(),
            reason: reason.to_string(),
        }
    }

    /// runC ended with `error`; the cause is in CRIU's log, `log_name` in `work`.
    pub(super) fn failed(
        operation: &'static str,
        site: &Site,
        work: &Path,
        log_name: &str,
        error: &RuncError,
    ) -> Self {
        let (cause, remedy) = match criu::cause(&work.join(log_name)) {
            Some(Cause { text, remedy }) => (text, remedy),
            None => (error.to_string(), None),
        };
        Self::told(operation, site, work, log_name, cause, remedy)
    }

    /// CRIU was ended because of `reason`; its log is `log_name` in `work`.
    pub(super) fn given_up(
        operation: &'static str,
        site: &Site,
        work: &Path,
        log_name: &str,
        reason: String,
    ) -> Self {
        Self::told(operation, site, work, log_name, reason, Some(DAMAGED))
    }

    fn told(
        operation: &'static str,
        site: &Site,
        work: &Path,
        log_name: &str,
        cause: String,
        remedy: Option<&'static str>,
    ) -> Self {
        let log = keep_log(site, &work.join(log_name), log_name).unwrap_or_else(|reason| {
            log::warn!("CRIU's log of container {} could not be kept: {reason}", site.id);
            None
        });
        Self::Failed {
            operation,
            id: site.id.clone(),
            cause,
            remedy,
            log,
        }
    }
}

fn keep_log(site: &Site, written: &Path, log_name: &str) -> io::Result<Option<PathBuf>> {
    if !written.exists() {
        return Ok(None);
    }
    create_private_dir(Path::new(LOG_DIR))?;
    let short_id: String = site.id.chars().take(12).collect();
    let kept = Path::new(LOG_DIR).join(format!("{}-{short_id}-{log_name}", site.namespace));
    fs::write(&kept, criu::end_of_log(written)?)?;
    Ok(Some(kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_why_what_to_do_and_where_to_look() {
        let error = CheckpointError::Failed {
            operation: "dump",
            id: "web".into(),
            cause: "Can't dump io_uring".into(),
            remedy: Some("switch it off"),
            log: Some("/var/log/godwit/x".into()),
        };
        let text = error.to_string();
        assert_eq!(
            text,
            "dump of container web failed: Can't dump io_uring (switch it off); CRIU's log: /var/log/godwit/x"
        );
    }
}
