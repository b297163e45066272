//! The clock of a move: which step took how long and who measured it, and the report made of it.
//!
//! Downtime is what the source sees: from the begin of the freeze to the destination's word that the container runs.
//! The order of the three instants is checked, so a report never holds a downtime that was not measured.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::mode::Mode;
use crate::pages::relay::Figures;
use crate::phase::Role;
use crate::precopy::PreCopy;
use crate::tcp::Account;
use crate::volumes::Carried;

/// One measured step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// `freeze`, `dump`, `send-files`, `send-image`, `restore`, `resume` …
    pub name: String,
    /// Who measured it.
    pub by: Role,
    /// How long it took.
    pub micros: u64,
    /// When it began, since the begin of the move by the clock of whoever measured it; `None` if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_micros: Option<u64>,
}

/// Bytes by what they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bytes {
    /// Image layers the destination did not have.
    pub layers: u64,
    /// The writable layer, all rounds.
    pub files: u64,
    /// The volumes that are copied, all rounds.
    #[serde(default)]
    pub volumes: u64,
    /// The log.
    pub log: u64,
    /// Memory that went before the image, all rounds; what follows the container is in [`Report::memory`].
    pub memory: u64,
    /// The checkpoint image.
    pub image: u64,
}

/// How a move that was committed ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The container runs at the destination.
    Moved,
    /// The container belongs to the destination, which has not confirmed that it runs. The source's agent keeps
    /// asking, and keeps the stopped container until then.
    CommittedUnconfirmed {
        /// What happened to the confirmation.
        reason: String,
    },
}

/// What is left of a moved container at its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Remains {
    /// Nothing: it was removed.
    Nothing,
    /// The container, stopped, with its files as they were; its engine does not start it again.
    Stopped,
}

/// Everything a move can tell about itself when it is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The move's id.
    pub migration: String,
    /// The container's name.
    pub container: String,
    /// Its name at the destination, if it was given another.
    pub renamed: Option<String>,
    /// Host it left.
    pub from: String,
    /// Host it went to.
    pub to: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What is left of the container at the source.
    pub source: Remains,
    /// From the begin of the freeze to the destination's word; `None` if that word did not come.
    pub downtime_micros: Option<u64>,
    /// From the first to the last phase.
    pub total_micros: u64,
    /// How its memory went over, `stop`, `pre` or `post`.
    pub mode: Mode,
    /// What was copied before it stood still; `None` if nothing was.
    pub pre_copy: Option<PreCopy>,
    /// What was sent.
    pub bytes: Bytes,
    /// How the memory came that followed after it ran; `None` if there was none of that.
    pub memory: Option<Figures>,
    /// What became of the TCP connections that it had when it was frozen.
    pub connections: Account,
    /// What became of its volumes.
    #[serde(default)]
    pub volumes: Vec<Carried>,
    /// The steps in the order in which they ended; source's and destination's overlap.
    pub steps: Vec<Step>,
    /// What did not go as it should after the commit, in words; empty as a rule.
    pub remarks: Vec<String>,
}

/// The stages the clock goes through, each once and in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Running,
    Frozen { at: Instant },
    Resumed { downtime: Duration },
}

/// Measures one side of a move.
#[derive(Debug)]
pub struct Clock {
    role: Role,
    began: Instant,
    stage: Stage,
    steps: Vec<Step>,
}

impl Clock {
    /// Starts the clock.
    pub fn start(role: Role) -> Self {
        Self {
            role,
            began: Instant::now(),
            stage: Stage::Running,
            steps: Vec::new(),
        }
    }

    /// The container is about to be frozen. Only the first call counts.
    pub fn frozen(&mut self) {
        if self.stage == Stage::Running {
            self.stage = Stage::Frozen { at: Instant::now() };
        }
    }

    /// The container runs again. Without a freeze before it, nothing is noted.
    pub fn resumed(&mut self) {
        if let Stage::Frozen { at } = self.stage {
            self.stage = Stage::Resumed {
                downtime: at.elapsed(),
            };
        }
    }

    /// Adds a step that this side measured from `since` to now.
    pub fn step(&mut self, name: &str, since: Instant) {
        self.steps.push(Step {
            name: name.into(),
            by: self.role,
            micros: micros(since.elapsed()),
            at_micros: Some(micros(since.saturating_duration_since(self.began))),
        });
    }

    /// Adds steps that somebody else measured here, one after the other, from `since` on.
    pub fn extend_since(&mut self, since: Instant, steps: impl IntoIterator<Item = Step>) {
        let mut at = micros(since.saturating_duration_since(self.began));
        for step in steps {
            let micros = step.micros;
            self.steps.push(Step {
                at_micros: Some(at),
                ..step
            });
            at += micros;
        }
    }

    /// Adds steps that somebody else measured.
    pub fn extend(&mut self, steps: impl IntoIterator<Item = Step>) {
        self.steps.extend(steps);
    }

    /// Takes the steps measured so far.
    pub fn take_steps(&mut self) -> Vec<Step> {
        std::mem::take(&mut self.steps)
    }

    /// The downtime, if both its ends were seen.
    pub fn downtime_micros(&self) -> Option<u64> {
        match self.stage {
            Stage::Resumed { downtime } => Some(micros(downtime)),
            Stage::Running | Stage::Frozen { .. } => None,
        }
    }

    /// Time since the start.
    pub fn total_micros(&self) -> u64 {
        micros(self.began.elapsed())
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_downtime_needs_both_its_ends() {
        let mut clock = Clock::start(Role::Source);
        clock.resumed();
        assert_eq!(clock.downtime_micros(), None);
        clock.frozen();
        assert_eq!(clock.downtime_micros(), None);
        clock.resumed();
        let downtime = clock.downtime_micros().unwrap();
        clock.frozen();
        clock.resumed();
        assert_eq!(
            clock.downtime_micros(),
            Some(downtime),
            "a second freeze does not count"
        );
    }
}
