//! What two agents say to each other; the order in which they say it stands in `docs/protocol.md`.
//!
//! Every message is complete and known to both: unknown names and fields are errors, and what may differ between
//! releases differs by the version agreed on in the first exchange.

use godwit_runtime::verdict::Verdict;
use serde::{Deserialize, Serialize};

use crate::checks::facts::Facts;
use crate::clock::Step;
use crate::doctor::Health;
use crate::engine::Container;
use crate::failure::Failure;
use crate::finding::Finding;
use crate::options::MoveOptions;
use crate::pages::relay::Figures;
use crate::places::MigrationId;
use crate::volumes::Offered;

/// The versions of the protocol that this release speaks, best first.
pub const VERSIONS: &[u32] = &[3];

/// Why an agent connects to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Intent {
    /// To move a container there.
    Move {
        /// The new move.
        migration: MigrationId,
    },
    /// A destination that reported ready and lost the connection asks the source what became of it.
    AskVerdict {
        /// The move it was ready for.
        migration: MigrationId,
    },
    /// A source that committed and heard no more tells so again, and asks whether the container runs.
    TellCommitted {
        /// The move that was committed.
        migration: MigrationId,
    },
    /// To hear what would stop a move there; nothing is moved.
    Plan,
    /// To hear how the host is.
    Doctor,
    /// A destination wants pages of memory that the source's tasks still hold. After the welcome there are no more frames
    /// but records of pages.
    Pages {
        /// The move.
        migration: MigrationId,
        /// Which of them.
        stream: PageStream,
    },
}

/// What a stream of pages is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PageStream {
    /// All pages, unasked.
    Push,
    /// Those that are asked for.
    Urgent,
}

/// What a bulk stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// Image layers, in the engine's portable form.
    Layers,
    /// The writable layer, or what changed in it.
    Files,
    /// The content of a volume, or what changed in it; its number in the offer.
    Volume(u32),
    /// The log, or what was added to it.
    Log,
    /// Pages of memory, as records, to be kept until the container is here.
    Memory,
    /// The checkpoint image.
    Image,
}

/// The container a source wants to give away.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// The engine's view of it.
    pub container: Container,
    /// What is asked of the move.
    pub options: MoveOptions,
    /// Memory that its image will need, about.
    pub memory_bytes: u64,
    /// What its writable layer holds, about.
    pub files_bytes: u64,
    /// Its volumes, and what is to become of each.
    pub volumes: Vec<Offered>,
    /// What its image's layers hold; 0 if the engine does not say.
    pub image_bytes: u64,
    /// The profile of AppArmor or label of `SELinux` that it runs under.
    pub security_profile: Option<String>,
    /// The host it is on.
    pub source: Facts,
}

/// What a destination says to an offer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Everything found; it is willing if none is a problem.
    pub findings: Vec<Finding>,
    /// The image is not there and must be sent.
    pub image_wanted: bool,
    /// The destination.
    pub facts: Facts,
}

/// A control message.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Message {
    /// The first message of whoever connects.
    Hello {
        /// Versions of the protocol, best first.
        versions: Vec<u32>,
        /// What it wants.
        intent: Intent,
    },
    /// The answer: the version both speak from here on.
    Welcome {
        /// One of those offered.
        version: u32,
    },
    /// Plan: the container.
    Offer(Box<Offer>),
    /// Plan: every reason why not.
    Answer(Box<Answer>),
    /// Prepare: make it.
    Prepare {
        /// Memory does not come in its image, but apart from it.
        post_copy: bool,
        /// And some of it comes before.
        pre_copy: bool,
    },
    /// Prepare: the container is made, and if a log is wanted it comes now, before the engine's start.
    Made {
        /// There is a log to write.
        log_wanted: bool,
    },
    /// Prepare: it waits for its image, and files can come.
    Prepared,
    /// A bulk stream follows.
    Bulk {
        /// What it carries.
        purpose: Purpose,
    },
    /// A round of memory was sent; is it there?
    RoundSent,
    /// It is.
    Kept,
    /// The last bulk stream of prepare is taken in.
    Synced,
    /// The container is about to stand still; files, log and image follow.
    Freezing,
    /// All is restored and held.
    Ready {
        /// What the destination measured.
        steps: Vec<Step>,
    },
    /// The container is yours.
    Commit,
    /// It runs here.
    Running {
        /// What the destination measured.
        steps: Vec<Step>,
    },
    /// All its memory is here.
    Drained {
        /// How it came.
        memory: Figures,
    },
    /// The engine is content too; the source may let go.
    Settled,
    /// The sender gave up and is undoing its part.
    Failed(Failure),
    /// The answer to `AskVerdict`.
    Verdict {
        /// What stands at the source.
        verdict: Verdict,
    },
    /// The answer to `TellCommitted` while the destination is still at it.
    Pending,
    /// The answer to `TellCommitted` of a destination whose container a human has given up: it is gone there.
    GivenUp,
    /// The answer to `Doctor`.
    Health(Box<Health>),
}

impl Message {
    /// Its name, for errors.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "hello",
            Self::Welcome { .. } => "welcome",
            Self::Offer(_) => "offer",
            Self::Answer(_) => "answer",
            Self::Prepare { .. } => "prepare",
            Self::Made { .. } => "made",
            Self::Prepared => "prepared",
            Self::Bulk { .. } => "bulk",
            Self::RoundSent => "round-sent",
            Self::Kept => "kept",
            Self::Synced => "synced",
            Self::Freezing => "freezing",
            Self::Ready { .. } => "ready",
            Self::Commit => "commit",
            Self::Running { .. } => "running",
            Self::Drained { .. } => "drained",
            Self::Settled => "settled",
            Self::Failed(_) => "failed",
            Self::Verdict { .. } => "verdict",
            Self::Pending => "pending",
            Self::GivenUp => "given-up",
            Self::Health(_) => "health",
        }
    }
}

/// The best version both sides speak, if there is one.
pub fn negotiate(offered: &[u32], spoken: &[u32]) -> Option<u32> {
    spoken
        .iter()
        .copied()
        .filter(|version| offered.contains(version))
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_picked() {
        assert_eq!(negotiate(&[1, 2, 3], &[4, 2, 1]), Some(2));
        assert_eq!(negotiate(&[3], &[1, 2]), None);
        assert_eq!(negotiate(&[], &[1]), None);
    }
}
