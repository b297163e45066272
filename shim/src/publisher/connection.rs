//! The connection to containerd's event service: one request at a time, and a close look at its end.
//!
//! The general ttrpc client tells neither that an idle connection has ended nor whether a request that failed may
//! still be answered. Both are needed to send each event once: see `publisher`. Nothing is repeated here.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use containerd_shim::protos::protobuf::Message;
use containerd_shim::protos::shim::event::Envelope;
use containerd_shim::protos::shim::events::ForwardRequest;
use containerd_shim::protos::ttrpc::proto::{
    Code, GenMessage, GenMessageError, MESSAGE_TYPE_RESPONSE, MessageHeader, Request, Response,
};
use log::warn;
use tokio::net::UnixStream;
use tokio::time::timeout;

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";
const METHOD: &str = "Forward";

/// containerd answers in milliseconds; a wait of this long is worth a line in the log, each time.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why an event was not taken.
#[derive(Debug)]
pub(super) enum ForwardError {
    /// containerd has read it and does not want it.
    Refused(String),
    /// The connection ended before the answer.
    Lost(String),
}

/// A connection to containerd's ttrpc socket.
pub(super) struct Connection {
    stream: UnixStream,
    /// Odd for clients, and rising.
    next_stream_id: u32,
}

impl Connection {
    pub(super) async fn open(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path).await?;
        Ok(Self {
            stream,
            next_stream_id: 1,
        })
    }

    /// Sends an event and waits for the answer for as long as the connection stands.
    ///
    /// To give up sooner would be to send the event twice: what is written cannot be taken back, and a containerd that
    /// was only slow takes it. If it is dead the kernel ends the connection. Not to be cancelled half-way.
    pub(super) async fn forward(&mut self, event: &Envelope) -> Result<(), ForwardError> {
        let stream_id = self.next_stream_id;
        self.next_stream_id = self.next_stream_id.wrapping_add(2);
        let message = request(stream_id, event).map_err(|error| ForwardError::Refused(error.to_string()))?;
        let lost = |error: &dyn std::fmt::Debug| ForwardError::Lost(format!("{error:?}"));
        message
            .write_to(&mut self.stream)
            .await
            .map_err(|error| lost(&error))?;
        loop {
            let answer = {
                let read = GenMessage::read_from(&mut self.stream);
                tokio::pin!(read);
                loop {
                    match timeout(PATIENCE, &mut read).await {
                        Ok(answer) => break answer,
                        Err(_) => warn!(
                            "containerd has not answered event {} for {PATIENCE:?}",
                            event.topic
                        ),
                    }
                }
            };
            match answer {
                Ok(answer) if answer.header.stream_id == stream_id => return verdict(&answer),
                Ok(_) | Err(GenMessageError::ReturnError(..)) => {}
                Err(error) => return Err(lost(&error)),
            }
        }
    }

    /// Returns when containerd has ended the connection, which is idle.
    pub(super) async fn ended(&self) {
        let mut byte = [0];
        loop {
            if self.stream.readable().await.is_err() {
                return;
            }
            match self.stream.try_read(&mut byte) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // Nothing is due on an idle connection; whatever comes, it is of no use any more.
                _ => return,
            }
        }
    }
}

fn request(stream_id: u32, event: &Envelope) -> containerd_shim::protos::protobuf::Result<GenMessage> {
    let forward = ForwardRequest {
        envelope: Some(event.clone()).into(),
        ..Default::default()
    };
    let request = Request {
        service: SERVICE.to_owned(),
        method: METHOD.to_owned(),
        payload: forward.write_to_bytes()?,
        ..Default::default()
    };
    let payload = request.write_to_bytes()?;
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    Ok(GenMessage {
        header: MessageHeader::new_request(stream_id, length),
        payload,
    })
}

fn verdict(answer: &GenMessage) -> Result<(), ForwardError> {
    if answer.header.type_ != MESSAGE_TYPE_RESPONSE {
        return Err(ForwardError::Lost("the answer is no response".to_owned()));
    }
    let response = Response::parse_from_bytes(&answer.payload);
    let response = response.map_err(|error| ForwardError::Lost(error.to_string()))?;
    match response.status.as_ref() {
        Some(status) if status.code() != Code::OK => Err(ForwardError::Refused(status.message.clone())),
        _ => Ok(()),
    }
}
