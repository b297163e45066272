//! gRPC to containerd over its unix socket: one HTTP/2 connection per call, each answer bounded.
//!
//! It knows how to ask and how containerd says no; it knows nothing of containers. Like Docker's client it repeats no
//! call. Why not tonic: it brings a second protobuf stack and `protoc` into the build, for what stands here.

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::client::conn::http2;
use hyper::header::HeaderMap;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use protobuf::Message;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::engine::EngineError;

/// The engine's name in errors.
pub(super) const ENGINE: &str = "containerd";

/// Statuses of gRPC that mean something here.
pub(super) const NOT_FOUND: u16 = 5;
pub(super) const ALREADY_EXISTS: u16 = 6;
pub(super) const FAILED_PRECONDITION: u16 = 9;

/// Connecting to a unix socket waits only for room in the listener's queue.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// containerd itself takes and gives messages of 16 MiB at most.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Messages on their way to containerd: each waits until the one before is taken.
const OUTGOING_BOUND: usize = 1;

/// A message's prefix: not compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// Whom a call concerns: containerd's namespace, and the lease that keeps what the call makes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope<'a> {
    pub(super) namespace: &'a str,
    pub(super) lease: Option<&'a str>,
}

/// Where containerd listens.
#[derive(Debug)]
pub(super) struct Client {
    socket: PathBuf,
}

/// The way to containerd of a call that has been begun. Dropping it says that no more will come.
pub(super) struct Requests(mpsc::Sender<Bytes>);

/// The answers of a call; the connection lives as long as this value.
pub(super) struct Answers {
    method: String,
    body: Incoming,
    head: HeaderMap,
    received: Vec<u8>,
    _connection: AbortOnDropHandle<()>,
}

impl Client {
    pub(super) fn new(socket: PathBuf) -> Self {
        Client { socket }
    }

    /// One question, one answer. `method` is `SERVICE.VERSION.NAME/CALL`, without `containerd.services`.
    pub(super) async fn call<A: Message>(
        &self,
        scope: Scope<'_>,
        method: &str,
        request: &impl Message,
        deadline: Duration,
    ) -> Result<A, EngineError> {
        let exchange = async {
            let mut answers = self.ask(scope, method, request).await?;
            let answer = answers.next().await?;
            // The status comes behind the answer, and may refuse what was answered.
            answers.end().await?;
            answer.ok_or_else(|| broken(method, "no answer".into()))
        };
        timeout(deadline, exchange).await.unwrap_or_else(|_| {
            Err(broken(
                method,
                format!("no answer within {} s", deadline.as_secs()),
            ))
        })
    }

    /// One question, whose answers come one by one.
    pub(super) async fn ask(
        &self,
        scope: Scope<'_>,
        method: &str,
        request: &impl Message,
    ) -> Result<Answers, EngineError> {
        let (requests, outgoing) = mpsc::channel(OUTGOING_BOUND);
        Requests(requests).send(method, request).await?;
        self.open(scope, method, outgoing).await
    }

    /// A call in which both sides speak more than once, begun with its first message.
    pub(super) async fn converse(
        &self,
        scope: Scope<'_>,
        method: &str,
        first: &impl Message,
    ) -> Result<(Requests, Answers), EngineError> {
        let (requests, outgoing) = mpsc::channel(OUTGOING_BOUND);
        let requests = Requests(requests);
        // The answer's head comes only after the first message has been read.
        requests.send(method, first).await?;
        let answers = self.open(scope, method, outgoing).await?;
        Ok((requests, answers))
    }

    async fn open(
        &self,
        scope: Scope<'_>,
        method: &str,
        outgoing: mpsc::Receiver<Bytes>,
    ) -> Result<Answers, EngineError> {
        let failed = |error: hyper::Error| broken(method, error_chain(&error));
        let stream = timeout(CONNECT_DEADLINE, UnixStream::connect(&self.socket))
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(|source| EngineError::Unreachable {
                engine: ENGINE,
                socket: self.socket.clone(),
                source,
            })?;
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(failed)?;
        // What goes wrong on the connection also ends the call, which reports it.
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            let _ = connection.await;
        }));
        let mut message = Request::builder()
            .method(Method::POST)
            .uri(format!("http://localhost/containerd.services.{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("containerd-namespace", scope.namespace);
        if let Some(lease) = scope.lease {
            message = message.header("containerd-lease", lease);
        }
        let message = message
            .body(Outgoing(outgoing))
            .map_err(|error| broken(method, error.to_string()))?;
        let response = sender.send_request(message).await.map_err(failed)?;
        if response.status() != StatusCode::OK {
            return Err(broken(method, format!("HTTP status {}", response.status())));
        }
        let (head, body) = response.into_parts();
        Ok(Answers {
            method: method.to_owned(),
            body,
            head: head.headers,
            received: Vec::new(),
            _connection: connection,
        })
    }
}

impl Requests {
    /// Queues a message.
    pub(super) async fn send(&self, method: &str, message: &impl Message) -> Result<(), EngineError> {
        let failed = |error: String| broken(method, error);
        let body = message
            .write_to_bytes()
            .map_err(|error| failed(error.to_string()))?;
        let length = u32::try_from(body.len()).map_err(|error| failed(error.to_string()))?;
        let mut framed = Vec::with_capacity(PREFIX_BYTES + body.len());
        framed.push(0);
        framed.extend(length.to_be_bytes());
        framed.extend(body);
        self.0
            .send(framed.into())
            .await
            .map_err(|_| failed("the call has ended".into()))
    }
}

impl Answers {
    /// The next answer; `None` at the end, an error if containerd refused. May not be dropped half-way.
    pub(super) async fn next<A: Message>(&mut self) -> Result<Option<A>, EngineError> {
        loop {
            if let Some(length) = self.whole_message()? {
                let end = PREFIX_BYTES + length;
                let answer = A::parse_from_bytes(&self.received[PREFIX_BYTES..end])
                    .map_err(|error| broken(&self.method, error.to_string()))?;
                self.received.drain(..end);
                return Ok(Some(answer));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.received.extend_from_slice(&data),
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            self.head = trailers;
                        }
                    }
                },
                Some(Err(error)) => return Err(broken(&self.method, error_chain(&error))),
                None if self.received.is_empty() => return self.status().map(|()| None),
                None => return Err(broken(&self.method, "the answer is cut short".into())),
            }
        }
    }

    /// Waits for the call's end; another answer is an error.
    pub(super) async fn end(&mut self) -> Result<(), EngineError> {
        match self.next::<super::proto::Empty>().await? {
            None => Ok(()),
            Some(_) => Err(broken(&self.method, "an answer too many".into())),
        }
    }

    /// The length of the message at the front, if all of it is here.
    fn whole_message(&self) -> Result<Option<usize>, EngineError> {
        let Some((prefix, rest)) = self.received.split_first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let [compressed, length @ ..] = *prefix;
        let length = u32::from_be_bytes(length) as usize;
        if compressed != 0 || length > MAX_MESSAGE_BYTES {
            return Err(broken(
                &self.method,
                format!("an answer of {length} bytes, or a compressed one"),
            ));
        }
        Ok((rest.len() >= length).then_some(length))
    }

    /// What containerd says of the whole call, in trailers, or in the head where there was nothing else.
    fn status(&self) -> Result<(), EngineError> {
        let header = |name| self.head.get(name).and_then(|value| value.to_str().ok());
        match header("grpc-status").and_then(|status| status.parse().ok()) {
            Some(0) => Ok(()),
            Some(status) => Err(EngineError::Refused {
                engine: ENGINE,
                request: self.method.clone(),
                status,
                message: percent_decoded(header("grpc-message").unwrap_or_default()),
            }),
            None => Err(broken(&self.method, "the connection ended".into())),
        }
    }
}

/// A request's messages, as they are queued.
struct Outgoing(mpsc::Receiver<Bytes>);

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(context)
            .map(|message| message.map(|bytes| Ok(Frame::data(bytes))))
    }
}

pub(super) fn broken(method: &str, reason: String) -> EngineError {
    EngineError::Broken {
        engine: ENGINE,
        request: method.to_owned(),
        reason,
    }
}

/// The error with what caused it: hyper's own words name only the layer that noticed.
fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// gRPC writes what is no printable ASCII as `%XX`.
fn percent_decoded(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = tail
            .first_chunk::<2>()
            .filter(|_| first == b'%')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        decoded.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::percent_decoded;

    #[test]
    fn what_containerd_says_is_readable() {
        assert_eq!(
            percent_decoded("container %22web%22: not found"),
            "container \"web\": not found"
        );
        assert_eq!(
            percent_decoded("100% and %zz, \u{e4} %C3%A4"),
            "100% and %zz, \u{e4} \u{e4}"
        );
    }
}
