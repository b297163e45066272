//! Frames: what two agents' bytes mean.
//!
//! `[kind: u8][length: u32, big endian][payload]`. Kind 0 does not exist, so a zeroed header means nothing. A length is
//! checked against the kind's bound before anything is allocated. This layer knows no order of frames and judges no
//! content beyond its form: JSON that is a [`Message`], nothing missing, nothing unknown, nothing behind it.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::message::Message;

/// Payload of a chunk at most: large enough that the cost per frame vanishes beside the copy (256 KiB at 1 GB/s are
/// 4,000 frames a second), small enough that the few chunks in flight stay in a CPU's cache.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// A control message at most: an engine's description of a container has some tens of kilobytes.
pub const MESSAGE_BYTES: usize = 1024 * 1024;

const HEADER_BYTES: usize = 5;

/// One frame.
#[derive(Debug)]
pub enum Frame {
    /// A control message, as JSON.
    Message(Box<Message>),
    /// Part of a bulk stream, 1 to [`CHUNK_BYTES`] bytes.
    Chunk(Vec<u8>),
    /// The end of a bulk stream, with the number of bytes it had.
    End(u64),
    /// Nothing but a sign of life.
    Heartbeat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Message = 1,
    Chunk = 2,
    End = 3,
    Heartbeat = 4,
}

/// What is wrong with what was read, or why it could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The first byte names no kind.
    #[error("unknown kind of frame {0}")]
    UnknownKind(u8),
    /// The length does not fit the kind.
    #[error("a frame of kind {kind} with {length} bytes")]
    Length {
        /// The kind's number.
        kind: u8,
        /// The length its header names.
        length: usize,
    },
    /// The JSON is no message, or a message is too long to be sent.
    #[error("not a message: {0}")]
    Message(String),
    /// The stream ended inside a frame.
    #[error("the connection ended inside a frame")]
    Truncated,
    /// The system said so.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [Self::Message, Self::Chunk, Self::End, Self::Heartbeat]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }

    fn allows(self, length: usize) -> bool {
        match self {
            Self::Message => (1..=MESSAGE_BYTES).contains(&length),
            Self::Chunk => (1..=CHUNK_BYTES).contains(&length),
            Self::End => length == size_of::<u64>(),
            Self::Heartbeat => length == 0,
        }
    }
}

/// Reads one frame; `None` if the stream ended before it.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<Frame>, FrameError> {
    let mut header = [0; HEADER_BYTES];
    // An end between two frames is how a peer leaves; inside one it is an error.
    if stream.read(&mut header[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut header[1..]).await.map_err(truncated)?;
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    let kind = Kind::of(header[0]).ok_or(FrameError::UnknownKind(header[0]))?;
    if !kind.allows(length) {
        return Err(FrameError::Length {
            kind: header[0],
            length,
        });
    }
    let mut payload = Vec::with_capacity(length);
    if stream.take(length as u64).read_to_end(&mut payload).await? < length {
        return Err(FrameError::Truncated);
    }
    Ok(Some(match kind {
        Kind::Message => Frame::Message(
            serde_json::from_slice(&payload).map_err(|error| FrameError::Message(error.to_string()))?,
        ),
        Kind::Chunk => Frame::Chunk(payload),
        Kind::End => Frame::End(u64::from_be_bytes(
            payload.try_into().map_err(|_| FrameError::Truncated)?,
        )),
        Kind::Heartbeat => Frame::Heartbeat,
    }))
}

/// Writes one frame, unflushed. A future dropped half-way leaves the stream unusable.
pub async fn write(stream: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> Result<(), FrameError> {
    match frame {
        Frame::Message(message) => {
            let json = serde_json::to_vec(message).map_err(|error| FrameError::Message(error.to_string()))?;
            put(stream, Kind::Message, &json).await
        }
        Frame::Chunk(bytes) => put(stream, Kind::Chunk, bytes).await,
        Frame::End(total) => put(stream, Kind::End, &total.to_be_bytes()).await,
        Frame::Heartbeat => put(stream, Kind::Heartbeat, &[]).await,
    }
}

async fn put(stream: &mut (impl AsyncWrite + Unpin), kind: Kind, payload: &[u8]) -> Result<(), FrameError> {
    if !kind.allows(payload.len()) {
        return Err(FrameError::Length {
            kind: kind as u8,
            length: payload.len(),
        });
    }
    let mut header = [kind as u8; HEADER_BYTES];
    // The bounds of `allows` are far below `u32::MAX`.
    header[1..].copy_from_slice(&(payload.len() as u32).to_be_bytes());
    stream.write_all(&header).await?;
    stream.write_all(payload).await?;
    Ok(())
}

fn truncated(error: io::Error) -> FrameError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        FrameError::Truncated
    } else {
        error.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::facts::Facts;
    use crate::finding::{Code, Finding};
    use crate::message::Answer;
    use proptest::prelude::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }

    fn bytes_of(frame: &Frame) -> Vec<u8> {
        let mut bytes = Vec::new();
        block_on(write(&mut bytes, frame)).unwrap();
        bytes
    }

    fn read_all(mut bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
        block_on(read(&mut bytes))
    }

    #[test]
    fn frames_have_exactly_these_bytes() {
        assert_eq!(bytes_of(&Frame::Heartbeat), [4, 0, 0, 0, 0]);
        assert_eq!(bytes_of(&Frame::Chunk(b"abc".to_vec())), b"\x02\0\0\0\x03abc");
        assert_eq!(bytes_of(&Frame::End(258)), b"\x03\0\0\0\x08\0\0\0\0\0\0\x01\x02");
        assert_eq!(
            bytes_of(&Frame::Message(Box::new(Message::Commit))),
            b"\x01\0\0\0\x08\"commit\""
        );
        assert_eq!(
            bytes_of(&Frame::Message(Box::new(Message::Welcome { version: 1 }))),
            b"\x01\0\0\0\x19{\"welcome\":{\"version\":1}}"
        );
    }

    #[test]
    fn an_end_between_frames_is_no_error_and_one_inside_is() {
        let whole = bytes_of(&Frame::Chunk(b"abc".to_vec()));
        assert!(matches!(read_all(&[]), Ok(None)));
        for cut in 1..whole.len() {
            assert!(
                matches!(read_all(&whole[..cut]), Err(FrameError::Truncated)),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        assert!(matches!(
            read_all(&[0, 0, 0, 0, 0]),
            Err(FrameError::UnknownKind(0))
        ));
        assert!(matches!(
            read_all(&[9, 0, 0, 0, 0]),
            Err(FrameError::UnknownKind(9))
        ));
        assert!(matches!(
            read_all(b"\x04\0\0\0\x01x"),
            Err(FrameError::Length { .. })
        ));
        assert!(matches!(
            read_all(&[2, 0, 0, 0, 0]),
            Err(FrameError::Length { .. })
        ));
        for hostile in [1, 2, 3, 4] {
            let frame = [hostile, 0xff, 0xff, 0xff, 0xff];
            assert!(
                matches!(read_all(&frame), Err(FrameError::Length { .. })),
                "kind {hostile}"
            );
        }
    }

    #[test]
    fn a_message_has_nothing_unknown_and_nothing_behind_it() {
        let frame = |json: &str| {
            let mut bytes = vec![1];
            bytes.extend((json.len() as u32).to_be_bytes());
            bytes.extend(json.as_bytes());
            read_all(&bytes)
        };
        assert!(matches!(frame(r#"{"welcome":{"version":1}}"#), Ok(Some(_))));
        for bad in [
            r#"{"welcome":{"version":1}} {}"#,
            r#"{"welcome":{"version":1,"more":2}}"#,
            r#"{"welcome":{}}"#,
            r#""no-such-message""#,
            "{",
        ] {
            assert!(matches!(frame(bad), Err(FrameError::Message(_))), "{bad}");
        }
    }

    #[test]
    fn a_message_that_the_peer_would_refuse_is_not_sent() {
        let message = Message::Answer(Box::new(Answer {
            findings: vec![Finding::ok(Code::Image, "x".repeat(MESSAGE_BYTES))],
            image_wanted: false,
            facts: Facts::default(),
        }));
        let sent = block_on(write(&mut Vec::new(), &Frame::Message(Box::new(message))));
        assert!(matches!(sent, Err(FrameError::Length { .. })));
    }

    proptest! {
        #[test]
        fn chunks_come_back_as_they_were(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..4096), 0..8)) {
            let mut bytes = Vec::new();
            for chunk in &chunks {
                bytes.extend(bytes_of(&Frame::Chunk(chunk.clone())));
            }
            let mut rest = &bytes[..];
            let mut back = Vec::new();
            while let Some(Frame::Chunk(chunk)) = block_on(read(&mut rest)).unwrap() {
                back.push(chunk);
            }
            prop_assert_eq!(back, chunks);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = read_all(&bytes);
        }
    }
}
