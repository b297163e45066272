//! Why a move failed: on which host, in which phase, and of what kind. It crosses the wire as a value.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use crate::engine::EngineError;
use crate::finding::Finding;
use crate::phase::{Phase, Role};
use crate::shim::ShimError;

/// The kinds of failure, by what the user can do about them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Cause {
    /// The plan says no; every reason is listed. Nothing was touched.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Finding>),
    /// The other agent cannot be reached, or was lost.
    #[error("{0}")]
    Lost(String),
    /// Somebody asked for it.
    #[error("aborted on request")]
    Aborted,
    /// The other agent said something that makes no sense here.
    #[error("{0}; are both agents of the same release?")]
    Protocol(String),
    /// Something on the host did not work.
    #[error("{0}")]
    Failed(String),
}

/// A cause with the place where it arose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// Which side failed.
    pub role: Role,
    /// The host's name.
    pub host: String,
    /// The phase it was in.
    pub phase: Phase,
    /// What went wrong.
    pub cause: Cause,
    /// What could not be undone, in words; empty as a rule.
    pub leftovers: Vec<String>,
}

impl Failure {
    /// A failure of `role` on `host`, nothing left over.
    pub fn new(role: Role, host: &str, phase: Phase, cause: Cause) -> Self {
        Self {
            role,
            host: host.into(),
            phase,
            cause,
            leftovers: Vec::new(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} failed on {} ({}): {}",
            self.phase, self.host, self.role, self.cause
        )?;
        if !self.leftovers.is_empty() {
            write!(formatter, "; left behind: {}", self.leftovers.join("; "))?;
        }
        Ok(())
    }
}

/// What stops a phase: something here, or what the peer told of.
#[derive(Clone, Debug)]
pub enum Problem {
    /// It arose on this side, which is to tell the peer.
    Here(Cause),
    /// The peer told of it and is undoing its part.
    There(Failure),
}

impl Problem {
    /// An error of the system, with what was being done.
    pub fn io(doing: impl fmt::Display, error: &io::Error) -> Self {
        Self::failed(format!("{doing}: {error}"))
    }

    /// Something on this host did not work.
    pub fn failed(text: impl Into<String>) -> Self {
        Self::Here(Cause::Failed(text.into()))
    }

    /// The peer broke the protocol.
    pub fn protocol(text: impl Into<String>) -> Self {
        Self::Here(Cause::Protocol(text.into()))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here(cause) => cause.fmt(formatter),
            Self::There(failure) => failure.fmt(formatter),
        }
    }
}

impl From<EngineError> for Problem {
    fn from(error: EngineError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<ShimError> for Problem {
    fn from(error: ShimError) -> Self {
        Self::failed(error.to_string())
    }
}
