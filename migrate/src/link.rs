//! One connection to another agent: messages, and one bulk stream at a time between them.
//!
//! A writer task and a reader task own the two halves, so any wait on a link can be dropped without breaking a frame.
//! Both sides send a heartbeat whenever they have nothing else to say: a link on which nothing was heard for
//! [`SILENCE`] is lost, however long the work at its other end takes. Who may say what when is not decided here.

use std::future::Future;
use std::io::Write;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::bandwidth::Pacer;
use crate::bulk::{ChunkReader, ChunkWriter, Part};
use crate::failure::{Cause, Problem};
use crate::frame::{self, CHUNK_BYTES, Frame, FrameError};
use crate::message::{Message, Purpose};
use crate::progress::Transfer;

/// How often an idle side says that it lives: five can be late before the other side gives up.
pub const HEARTBEAT: Duration = Duration::from_secs(1);

/// A link on which nothing is heard for this long is lost. A frozen container waits for it, so it is short; a whole
/// chunk must arrive within it, which a link of 50 kB/s still does.
pub const SILENCE: Duration = Duration::from_secs(5);

/// The longest wait for the next chunk of a bulk stream from a peer that lives: it may be reading a slow disk.
const CHUNK_DEADLINE: Duration = Duration::from_secs(120);

/// How long a link that is closed may take to send what is queued.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// How long to look for the peer's own reason after a write has failed.
const REASON_DEADLINE: Duration = Duration::from_secs(1);

/// Frames queued each way: enough to keep both sides busy, at most 1 MiB.
const QUEUE_BOUND: usize = 4;

/// A connection to the agent of host `peer`.
#[derive(Debug)]
pub struct Link {
    peer: String,
    outgoing: mpsc::Sender<Frame>,
    incoming: mpsc::Receiver<Result<Frame, String>>,
    transfer: Arc<Transfer>,
    pacer: Pacer,
    writer: JoinHandle<()>,
    _reader: AbortOnDropHandle<()>,
    dead: CancellationToken,
    /// Why nothing can be written any more, once that is so.
    write_error: Arc<OnceLock<String>>,
}

impl Link {
    /// Takes over a connected stream to `peer`.
    pub fn new<S>(stream: S, peer: &str) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read_half, write_half) = tokio::io::split(stream);
        let (outgoing, to_write) = mpsc::channel(QUEUE_BOUND);
        let (was_read, incoming) = mpsc::channel(QUEUE_BOUND);
        let dead = CancellationToken::new();
        let write_error = Arc::default();
        Self {
            peer: peer.into(),
            outgoing,
            incoming,
            transfer: Arc::default(),
            pacer: Pacer::default(),
            writer: tokio::spawn(write_frames(
                write_half,
                to_write,
                dead.clone(),
                Arc::clone(&write_error),
            )),
            _reader: AbortOnDropHandle::new(tokio::spawn(read_frames(read_half, was_read, dead.clone()))),
            dead,
            write_error,
        }
    }

    /// Counts the bytes of bulk streams in `transfer` from here on.
    pub fn count_in(&mut self, transfer: Arc<Transfer>) {
        self.transfer = transfer;
    }

    /// Bounds what bulk streams send from here on.
    pub fn pace_by(&mut self, pacer: Pacer) {
        self.pacer = pacer;
    }

    /// The other agent's host.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Sends a message.
    pub async fn send(&mut self, message: Message) -> Result<(), Problem> {
        match self.outgoing.send(Frame::Message(Box::new(message))).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.reason().await),
        }
    }

    /// Sends a message if there is room for it at once.
    pub fn try_send(&mut self, message: Message) {
        let _ = self.outgoing.try_send(Frame::Message(Box::new(message)));
    }

    /// Waits for the next message, which is to be a `wanted`.
    pub async fn receive(&mut self, wanted: &'static str, deadline: Duration) -> Result<Message, Problem> {
        let frame = timeout(deadline, self.next()).await.map_err(|_| {
            Problem::Here(Cause::Lost(format!(
                "no {wanted} from the agent on {} within {} s",
                self.peer,
                deadline.as_secs()
            )))
        })??;
        match frame {
            Frame::Message(message) => Ok(*message),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Does something here, unless the peer fails or is lost meanwhile. It has nothing else to say.
    pub async fn during<T>(&mut self, work: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
        let outcome = tokio::select! {
            biased;
            frame = self.next() => Err(match frame {
                Ok(frame) => self.unexpected(&frame),
                Err(problem) => problem,
            }),
            outcome = work => outcome,
        };
        match outcome {
            // Work that fails because the link broke under it says less than the link does.
            Err(Problem::Here(_)) if self.outgoing.is_closed() => Err(self.reason().await),
            other => other,
        }
    }

    /// Sends a bulk stream written by `produce` on a thread of its own; returns its result and the bytes sent.
    pub async fn send_bulk<T, P>(&mut self, purpose: Purpose, produce: P) -> Result<(T, u64), Problem>
    where
        T: Send + 'static,
        P: FnOnce(&mut dyn Write) -> Result<T, Problem> + Send + 'static,
    {
        self.send(Message::Bulk { purpose }).await?;
        let transfer = Arc::clone(&self.transfer);
        let mut writer = ChunkWriter::new(self.outgoing.clone(), transfer, self.pacer.clone());
        let peer = self.peer.clone();
        let task = spawn_blocking(move || {
            let value = produce(&mut writer)?;
            let bytes = writer
                .finish()
                .map_err(|error| Problem::Here(lost(&peer, &error.to_string())))?;
            Ok((value, bytes))
        });
        self.during(joined(task)).await
    }

    /// Sends all of `source` as a bulk stream; returns the bytes sent.
    pub async fn send_stream(
        &mut self,
        purpose: Purpose,
        mut source: impl AsyncRead + Unpin + Send,
    ) -> Result<u64, Problem> {
        self.send(Message::Bulk { purpose }).await?;
        let (outgoing, transfer) = (self.outgoing.clone(), Arc::clone(&self.transfer));
        let pacer = self.pacer.clone();
        let peer = self.peer.clone();
        let gone = |_| Problem::Here(lost(&peer, "it was closed"));
        self.during(async {
            let mut total = 0;
            loop {
                let mut chunk = Vec::with_capacity(CHUNK_BYTES);
                while chunk.len() < CHUNK_BYTES {
                    let room = (CHUNK_BYTES - chunk.len()) as u64;
                    let read = (&mut source).take(room).read_buf(&mut chunk).await;
                    if read.map_err(|error| Problem::io("reading what is to be sent", &error))? == 0 {
                        break;
                    }
                }
                if chunk.is_empty() {
                    break;
                }
                total += chunk.len() as u64;
                pacer.take(chunk.len() as u64).await;
                transfer.add(chunk.len() as u64);
                outgoing.send(Frame::Chunk(chunk)).await.map_err(gone)?;
            }
            outgoing.send(Frame::End(total)).await.map_err(gone)?;
            Ok(total)
        })
        .await
    }

    /// Takes a bulk stream whose [`Message::Bulk`] was received; returns what `consume` made of it, and its bytes.
    pub async fn receive_bulk<T, C, F>(&mut self, consume: C) -> Result<(T, u64), Problem>
    where
        C: FnOnce(ChunkReader) -> F,
        F: Future<Output = Result<T, Problem>>,
    {
        let (parts, reader) = ChunkReader::new();
        let mut consumer = pin!(consume(reader));
        let mut pump = pin!(self.pump(parts));
        tokio::select! {
            biased;
            total = &mut pump => {
                let total = total?;
                Ok((consumer.await?, total))
            }
            value = &mut consumer => {
                let value = value?;
                Ok((value, pump.await?))
            }
        }
    }

    /// The same with a consumer that blocks, and which must read the stream to its end.
    pub async fn receive_bulk_blocking<T, C>(&mut self, consume: C) -> Result<(T, u64), Problem>
    where
        T: Send + 'static,
        C: FnOnce(&mut ChunkReader) -> Result<T, Problem> + Send + 'static,
    {
        self.receive_bulk(|mut reader| {
            joined(spawn_blocking(move || {
                let value = consume(&mut reader)?;
                if reader.is_at_end() {
                    Ok(value)
                } else {
                    Err(Problem::protocol("there is something behind the end of a stream"))
                }
            }))
        })
        .await
    }

    /// Sends what is queued and closes.
    pub async fn close(mut self) {
        self.end().await;
    }

    /// The same for a link that its owner keeps: nothing can be said on it any more.
    pub async fn end(&mut self) {
        let (closed, _) = mpsc::channel(1);
        self.outgoing = closed;
        if timeout(CLOSE_DEADLINE, &mut self.writer).await.is_err() {
            self.writer.abort();
        }
    }

    /// The next frame; a failure told by the peer, or the loss of it, is an error.
    async fn next(&mut self) -> Result<Frame, Problem> {
        match self.incoming.recv().await {
            Some(Ok(Frame::Message(message))) => match *message {
                Message::Failed(failure) => Err(Problem::There(failure)),
                message => Ok(Frame::Message(Box::new(message))),
            },
            Some(Ok(frame)) => Ok(frame),
            Some(Err(reason)) => Err(Problem::Here(lost(&self.peer, &reason))),
            None => Err(Problem::Here(lost(&self.peer, "it was closed"))),
        }
    }

    /// Why nothing can be sent any more.
    async fn reason(&mut self) -> Problem {
        loop {
            match timeout(REASON_DEADLINE, self.next()).await {
                Ok(Ok(_)) => {}
                Ok(Err(problem)) => return problem,
                Err(_) => {
                    let reason = self.write_error.get().map_or("it was closed", String::as_str);
                    return Problem::Here(lost(&self.peer, reason));
                }
            }
        }
    }

    fn unexpected(&self, frame: &Frame) -> Problem {
        let what = match frame {
            Frame::Message(message) => message.name(),
            Frame::Chunk(_) => "part of a stream",
            Frame::End(_) => "the end of a stream",
            Frame::Heartbeat => "a heartbeat",
        };
        Problem::protocol(format!("the agent on {} said {what} out of turn", self.peer))
    }

    async fn pump(&mut self, parts: mpsc::Sender<Part>) -> Result<u64, Problem> {
        let mut total = 0;
        loop {
            let frame = timeout(CHUNK_DEADLINE, self.next())
                .await
                .map_err(|_| Problem::Here(lost(&self.peer, "a stream has stalled")))??;
            match frame {
                Frame::Chunk(chunk) => {
                    total += chunk.len() as u64;
                    self.transfer.add(chunk.len() as u64);
                    // A consumer may be content before the end, as an engine is that ignores padding.
                    let _ = parts.send(Part::Data(chunk)).await;
                }
                Frame::End(sent) if sent == total => {
                    let _ = parts.send(Part::End).await;
                    return Ok(total);
                }
                Frame::End(sent) => {
                    return Err(Problem::protocol(format!(
                        "a stream of {sent} bytes arrived with {total}"
                    )));
                }
                other => return Err(self.unexpected(&other)),
            }
        }
    }

    /// Says that the message received is none that may come now.
    pub fn out_of_turn(&self, message: &Message) -> Problem {
        Problem::protocol(format!(
            "the agent on {} said {} out of turn",
            self.peer,
            message.name()
        ))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // A writer that is stuck in a dead connection would live as long as the kernel keeps that.
        let dead = self.dead.clone();
        if !self.writer.is_finished() {
            tokio::spawn(async move {
                tokio::time::sleep(CLOSE_DEADLINE).await;
                dead.cancel();
            });
        }
    }
}

/// Waits for work on a thread; a panic there is a failure here.
pub async fn joined<T>(task: JoinHandle<Result<T, Problem>>) -> Result<T, Problem> {
    match task.await {
        Ok(outcome) => outcome,
        Err(error) => Err(Problem::failed(format!("a worker thread failed: {error}"))),
    }
}

fn lost(peer: &str, reason: &str) -> Cause {
    Cause::Lost(format!(
        "the connection to the agent on {peer} was lost: {reason}"
    ))
}

async fn write_frames(
    mut stream: impl AsyncWrite + Unpin,
    mut frames: mpsc::Receiver<Frame>,
    dead: CancellationToken,
    write_error: Arc<OnceLock<String>>,
) {
    let write = async {
        loop {
            let frame = match timeout(HEARTBEAT, frames.recv()).await {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(_) => Frame::Heartbeat,
            };
            frame::write(&mut stream, &frame).await?;
            if frames.is_empty() {
                stream.flush().await?;
            }
        }
        stream.shutdown().await?;
        Ok::<(), FrameError>(())
    };
    tokio::select! {
        outcome = write => {
            if let Err(error) = outcome {
                log::debug!("writing to a peer: {error}");
                // The kernel tells of a cut once, and it may tell the writer only.
                let _ = write_error.set(error.to_string());
            }
        }
        () = dead.cancelled() => {}
    }
}

async fn read_frames(
    mut stream: impl AsyncRead + Unpin,
    frames: mpsc::Sender<Result<Frame, String>>,
    dead: CancellationToken,
) {
    let reason = loop {
        match timeout(SILENCE, frame::read(&mut stream)).await {
            Ok(Ok(Some(Frame::Heartbeat))) => {}
            Ok(Ok(Some(frame))) => {
                if frames.send(Ok(frame)).await.is_err() {
                    return;
                }
            }
            Ok(Ok(None)) => break "it was closed at the other end".into(),
            Ok(Err(error)) => break error.to_string(),
            Err(_) => break format!("nothing was heard for {} s", SILENCE.as_secs()),
        }
    };
    dead.cancel();
    let _ = frames.send(Err(reason)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Link, Link) {
        let (left, right) = tokio::io::duplex(4096);
        (Link::new(left, "right"), Link::new(right, "left"))
    }

    #[tokio::test]
    async fn a_bulk_stream_arrives_whole_and_is_counted() {
        let (mut left, mut right) = pair();
        let sent: Vec<u8> = (0..CHUNK_BYTES * 5 / 2)
            .map(|index| (index % 251) as u8)
            .collect();
        let copy = sent.clone();
        let send = async {
            left.send_bulk(Purpose::Image, move |out| {
                out.write_all(&copy).map_err(|e| Problem::io("x", &e))
            })
            .await
        };
        let receive = async {
            right.receive("bulk", SILENCE).await.unwrap();
            right
                .receive_bulk_blocking(|reader| {
                    let mut bytes = Vec::new();
                    std::io::Read::read_to_end(reader, &mut bytes)
                        .map_err(|error| Problem::io("x", &error))?;
                    Ok(bytes)
                })
                .await
        };
        let (sending, received) = tokio::join!(send, receive);
        assert_eq!(sending.unwrap().1, sent.len() as u64);
        assert!(received.unwrap().0 == sent);
        assert_eq!(right.transfer.read().0, sent.len() as u64);
    }

    #[tokio::test]
    async fn a_stream_that_is_not_read_to_its_end_is_an_error() {
        let (mut left, mut right) = pair();
        let send = left.send_bulk(Purpose::Files, |out| {
            out.write_all(&[7; 100]).map_err(|e| Problem::io("x", &e))
        });
        let receive = async {
            right.receive("bulk", SILENCE).await.unwrap();
            right
                .receive_bulk_blocking(|reader| {
                    std::io::Read::read_exact(reader, &mut [0; 99]).map_err(|error| Problem::io("x", &error))
                })
                .await
        };
        let (_, received) = tokio::join!(send, receive);
        assert!(
            matches!(received, Err(Problem::Here(Cause::Protocol(_)))),
            "{received:?}"
        );
    }

    #[tokio::test]
    async fn a_producer_that_fails_ends_the_stream_for_its_consumer() {
        let (mut left, mut right) = pair();
        let sent = left
            .send_bulk(Purpose::Files, |_| Err::<(), _>(Problem::failed("disk on fire")))
            .await;
        assert!(matches!(sent, Err(Problem::Here(Cause::Failed(_)))));
        left.close().await;
        right.receive("bulk", SILENCE).await.unwrap();
        let received = right
            .receive_bulk_blocking(|reader| {
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(reader, &mut bytes).map_err(|error| Problem::io("reading", &error))
            })
            .await;
        assert!(matches!(received, Err(Problem::Here(_))), "{received:?}");
    }

    #[tokio::test]
    async fn the_peers_reason_is_preferred_to_a_broken_link() {
        let (mut left, mut right) = pair();
        let failure = crate::failure::Failure::new(
            crate::phase::Role::Destination,
            "hb",
            crate::phase::Phase::Freeze,
            Cause::Failed("no space left".into()),
        );
        right.send(Message::Failed(failure.clone())).await.unwrap();
        right.close().await;
        let outcome = left
            .send_bulk(Purpose::Image, |out| {
                loop {
                    out.write_all(&[0; 4096])
                        .map_err(|error| Problem::io("sending", &error))?;
                }
            })
            .await
            .map(|((), _)| ());
        assert!(matches!(outcome, Err(Problem::There(told)) if told == failure));
    }

    #[tokio::test]
    async fn work_ends_when_the_peer_is_lost() {
        let (mut left, right) = pair();
        let work = left.during(std::future::pending::<Result<(), Problem>>());
        let (outcome, ()) = tokio::join!(work, right.close());
        assert!(matches!(outcome, Err(Problem::Here(Cause::Lost(_)))));
    }

    #[tokio::test]
    async fn a_peer_that_only_works_is_not_lost() {
        let (mut left, mut right) = pair();
        let work = async {
            tokio::time::sleep(SILENCE + HEARTBEAT).await;
            Ok(())
        };
        let (outcome, _) = tokio::join!(left.during(work), timeout(SILENCE + HEARTBEAT, right.next()));
        outcome.unwrap();
    }
}
