//! How long one side waits for the other, and for its own engine. A peer that is dead is noticed by the link's silence
//! long before; these bound a peer that lives and does not come to an end.

use std::time::Duration;

/// A hello is answered without any work.
pub const HELLO: Duration = Duration::from_secs(3);

/// The plan looks at files, sockets and the engine's lists. A user waits for it.
pub const PLAN: Duration = Duration::from_secs(10);

/// From the last image layer to a container that waits for its image: the engine unpacks layers meanwhile.
pub const PREPARE: Duration = Duration::from_secs(300);

/// From the ticket to a shim that waits for the image; the engine starts a container in a second, on a slow host ten.
pub const AWAITING_IMAGE: Duration = Duration::from_secs(60);

/// From a pre-synced file system to the source's next word.
pub const SYNC: Duration = Duration::from_secs(600);

/// From the word that the container is going to stand still to its first bytes: the dump lies between.
pub const DUMP: Duration = Duration::from_secs(3600);

/// From the commit to the destination's word that the container runs.
pub const RUNNING: Duration = Duration::from_secs(30);

/// From there to an engine that is content.
pub const SETTLED: Duration = Duration::from_secs(60);

/// From the commit to the last page of memory. The link's silence tells of a lost peer; beyond this somebody has forgotten
/// the move: it is a terabyte at 1 Gbit/s, ten times over.
pub const DRAIN: Duration = Duration::from_secs(24 * 3600);

/// Between two looks whether a container whose memory is on its way is still there.
pub const LOOK_AT_PAGER: Duration = Duration::from_secs(1);

/// For an engine to notice that its start has failed, after the ticket is gone.
pub const START_FAILED: Duration = Duration::from_secs(30);

/// Between two questions to a peer that cannot be reached: soon enough for a user, rare enough for a log.
pub const ASK_AGAIN: Duration = Duration::from_secs(2);

/// Between two looks at a shim that is about to await its image.
pub const LOOK_AGAIN: Duration = Duration::from_millis(20);
