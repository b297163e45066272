//! Pages that have come before the pager takes them: while CRIU restores, it may not fill any.
//!
//! Without a place to stay they would wait at the source, with the link at rest for all of the restore; and what has come
//! by the time the tasks run, a program's own books first of all, none of them has to ask for. The place is bounded: a
//! pager that does not read stops the source all the same.

use std::io;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};

/// Bytes that are kept for one container. A restore takes a tenth of a second, in which an open link carries about as much
/// beside it.
const ROOM_BYTES: usize = 32 << 20;

/// What streams put pages into.
#[derive(Debug)]
pub(super) struct Ahead {
    room: Semaphore,
    queue: mpsc::UnboundedSender<Vec<u8>>,
}

/// What they are taken out of.
pub(super) type Queue = mpsc::UnboundedReceiver<Vec<u8>>;

impl Ahead {
    /// An empty place, and its other end.
    pub(super) fn new() -> (Self, Queue) {
        // The room is its bound.
        let (queue, taken) = mpsc::unbounded_channel();
        let room = Semaphore::new(ROOM_BYTES);
        (Self { room, queue }, taken)
    }

    /// Puts a whole record there when there is room; an error if nobody takes any more.
    pub(super) async fn put(&self, record: Vec<u8>) -> io::Result<()> {
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        self.room
            .acquire_many(bytes_of(&record))
            .await
            .map_err(|_| gone())?
            .forget();
        self.queue.send(record).map_err(|_| gone())
    }

    /// Takes records for ever, in the order in which they were put there, and writes them.
    pub(super) async fn hand_on(
        &self,
        queue: &mut Queue,
        pager: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        while let Some(record) = queue.recv().await {
            pager.write_all(&record).await?;
            self.room.add_permits(bytes_of(&record) as usize);
        }
        Ok(())
    }
}

/// A record is far smaller than the room, and takes no more than there is.
fn bytes_of(record: &[u8]) -> u32 {
    u32::try_from(record.len().min(ROOM_BYTES)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::AsyncReadExt;
    use tokio::time::timeout;

    const RECORD: usize = 1 << 20;
    const SHORT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_pager_that_takes_nothing_stops_the_source_when_the_room_is_full() {
        let (ahead, mut queue) = Ahead::new();
        for number in 0..ROOM_BYTES / RECORD {
            let record = vec![number as u8; RECORD];
            timeout(SHORT, ahead.put(record)).await.unwrap().unwrap();
        }
        assert!(timeout(SHORT, ahead.put(vec![0; 1])).await.is_err());
        // One that reads gets all of it in order, and makes room.
        let (mut ours, mut theirs) = tokio::io::duplex(RECORD);
        let read = async {
            let mut bytes = vec![0; RECORD];
            for number in 0..ROOM_BYTES / RECORD {
                theirs.read_exact(&mut bytes).await.unwrap();
                assert!(bytes.iter().all(|byte| *byte == number as u8));
            }
        };
        tokio::select! {
            () = read => {}
            ended = ahead.hand_on(&mut queue, &mut ours) => panic!("{ended:?}"),
        }
        timeout(SHORT, ahead.put(vec![0; 1])).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn where_nobody_takes_any_more_a_stream_ends() {
        let (ahead, queue) = Ahead::new();
        drop(queue);
        assert!(ahead.put(vec![0; 1]).await.is_err());
    }
}
