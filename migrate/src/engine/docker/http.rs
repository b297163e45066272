//! Docker's HTTP API over its unix socket: one connection per request, each with a deadline, each answer bounded.
//!
//! It knows how to ask and how Docker says no; it knows nothing of containers. No request is repeated here: whether
//! asking twice is safe only the caller can tell.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyDataStream, BodyExt, Full, Limited};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::OnceCell;
use tokio::time::{Instant, Sleep, timeout};
use tokio_util::io::StreamReader;
use tokio_util::task::AbortOnDropHandle;

use crate::engine::{EngineError, Source};

/// The engine's name in errors.
pub(super) const ENGINE: &str = "docker";
/// Questions: Docker answers from memory; more than this means that it hangs.
pub(super) const QUERY_DEADLINE: Duration = Duration::from_secs(10);

/// Connecting to a unix socket waits only for room in the listener's queue.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// Docker writes an image to a temporary directory before its first byte comes, so silence may last.
const STREAM_SILENCE: Duration = Duration::from_secs(300);
/// The longest honest answers are lists of networks and descriptions: some hundred KiB.
const ANSWER_LIMIT_BYTES: usize = 16 << 20;
/// One write of an image into Docker: large enough to be cheap, small enough to hold in memory per move.
const UPLOAD_CHUNK_BYTES: usize = 128 << 10;

/// The newest API this code was tried with (Docker 28.5), and the oldest that takes several networks with MAC
/// addresses in one create request (Docker 25).
const NEWEST_API: (u32, u32) = (1, 51);
const OLDEST_API: (u32, u32) = (1, 44);

/// What goes out with a request, and its media type.
struct RequestBody {
    media_type: &'static str,
    bytes: UnsyncBoxBody<Bytes, io::Error>,
}

/// The client: a socket, and the API version agreed on with whoever answers there.
#[derive(Debug)]
pub(super) struct Client {
    socket: PathBuf,
    version: OnceCell<String>,
}

/// An answer whose head is here; the connection lives as long as this value.
struct Answer {
    response: Response<Incoming>,
    connection: AbortOnDropHandle<()>,
}

impl Client {
    pub(super) fn new(socket: PathBuf) -> Self {
        Client {
            socket,
            version: OnceCell::new(),
        }
    }

    /// A question: `GET path`.
    pub(super) async fn get(&self, path: &str) -> Result<Value, EngineError> {
        self.call(Method::GET, path, None, QUERY_DEADLINE).await
    }

    /// A request with a JSON body or none, answered by JSON or by nothing (`null`).
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        deadline: Duration,
    ) -> Result<Value, EngineError> {
        let request = label(&method, path);
        let exchange = async {
            let body = body.map_or_else(Bytes::new, |value| value.to_string().into());
            let answer = self.exchange(method, path, json_body(body)).await?;
            let bytes = read_bounded(answer, &request).await?;
            if bytes.is_empty() {
                return Ok(Value::Null);
            }
            serde_json::from_slice(&bytes)
                .map_err(|error| broken(&request, format!("the answer is not JSON: {error}")))
        };
        timeout(deadline, exchange)
            .await
            .unwrap_or_else(|_| Err(no_answer(&request, deadline)))
    }

    /// Opens `GET path` as a stream. It ends with an error when Docker stays silent for too long.
    pub(super) async fn download(&self, path: &str) -> Result<Source, EngineError> {
        let request = label(&Method::GET, path);
        let exchange = self.exchange(Method::GET, path, json_body(Bytes::new()));
        let answer = timeout(STREAM_SILENCE, exchange)
            .await
            .unwrap_or_else(|_| Err(no_answer(&request, STREAM_SILENCE)))?;
        let body = answer
            .response
            .into_body()
            .map_err(io::Error::other)
            .boxed_unsync();
        Ok(Box::new(Download {
            reader: StreamReader::new(BodyDataStream::new(body)),
            silence: Box::pin(tokio::time::sleep(STREAM_SILENCE)),
            waiting: false,
            _connection: answer.connection,
        }))
    }

    /// Sends `stream` as the body of `POST path` and returns the answer as it came.
    pub(super) async fn upload(
        &self,
        path: &str,
        stream: Source,
        deadline: Duration,
    ) -> Result<Bytes, EngineError> {
        let request = label(&Method::POST, path);
        let exchange = async {
            let bytes = Upload { source: stream }.boxed_unsync();
            let body = RequestBody {
                media_type: "application/x-tar",
                bytes,
            };
            let answer = self.exchange(Method::POST, path, body).await?;
            read_bounded(answer, &request).await
        };
        timeout(deadline, exchange)
            .await
            .unwrap_or_else(|_| Err(no_answer(&request, deadline)))
    }

    /// Sends one request below the agreed API version; anything but success is an error with Docker's words.
    async fn exchange(&self, method: Method, path: &str, body: RequestBody) -> Result<Answer, EngineError> {
        let version = self.version.get_or_try_init(|| self.agree_on_version()).await?;
        let request = label(&method, path);
        let answer = self
            .send(method, &format!("/v{version}{path}"), body, &request)
            .await?;
        let status = answer.response.status();
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(answer);
        }
        let said = read_bounded(answer, &request).await?;
        let message = serde_json::from_slice::<Value>(&said)
            .ok()
            .and_then(|value| value.get("message")?.as_str().map(str::to_owned))
            .unwrap_or_else(|| String::from_utf8_lossy(&said).trim().to_owned());
        Err(EngineError::Refused {
            engine: ENGINE,
            request,
            status: status.as_u16(),
            message,
        })
    }

    /// `GET /_ping` names the newest API the daemon serves; both sides then use the older one.
    async fn agree_on_version(&self) -> Result<String, EngineError> {
        let request = label(&Method::GET, "/_ping");
        let answer = timeout(
            QUERY_DEADLINE,
            self.send(Method::GET, "/_ping", json_body(Bytes::new()), &request),
        )
        .await
        .unwrap_or_else(|_| Err(no_answer(&request, QUERY_DEADLINE)))?;
        let offered = answer
            .response
            .headers()
            .get("api-version")
            .and_then(|value| value.to_str().ok());
        let served = offered
            .and_then(parse_version)
            .ok_or_else(|| broken(&request, "no API version in the answer: is this Docker?".into()))?;
        if served < OLDEST_API {
            let reason = format!(
                "API {}.{} is too old: Docker 25 or newer is needed",
                served.0, served.1
            );
            return Err(broken(&request, reason));
        }
        let (major, minor) = served.min(NEWEST_API);
        Ok(format!("{major}.{minor}"))
    }

    async fn send(
        &self,
        method: Method,
        target: &str,
        body: RequestBody,
        request: &str,
    ) -> Result<Answer, EngineError> {
        let stream = connect(&self.socket)
            .await
            .map_err(|source| EngineError::Unreachable {
                engine: ENGINE,
                socket: self.socket.clone(),
                source,
            })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(request, with_causes(&error)))?;
        // What goes wrong on the connection also ends the request or its body, which report it.
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            let _ = connection.await;
        }));
        let message = Request::builder()
            .method(method)
            .uri(target)
            .header("host", ENGINE)
            .header("content-type", body.media_type)
            .body(body.bytes)
            .map_err(|error| broken(request, error.to_string()))?;
        let response = sender
            .send_request(message)
            .await
            .map_err(|error| broken(request, with_causes(&error)))?;
        Ok(Answer { response, connection })
    }
}

/// A streamed answer.
struct Download<R> {
    reader: R,
    silence: Pin<Box<Sleep>>,
    /// Whether the reader waits: only then does time count as Docker's silence.
    waiting: bool,
    _connection: AbortOnDropHandle<()>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Download<R> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Poll::Ready(result) = Pin::new(&mut this.reader).poll_read(context, buffer) {
            this.waiting = false;
            return Poll::Ready(result);
        }
        if !this.waiting {
            this.waiting = true;
            this.silence.as_mut().reset(Instant::now() + STREAM_SILENCE);
        }
        ready!(this.silence.as_mut().poll(context));
        let reason = format!("docker sent nothing for {} s", STREAM_SILENCE.as_secs());
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, reason)))
    }
}

/// A streamed request body: one chunk of `source` at a time, when the connection has room for it.
struct Upload {
    source: Source,
}

impl Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut chunk = Vec::with_capacity(UPLOAD_CHUNK_BYTES);
        let read = ready!(tokio_util::io::poll_read_buf(
            Pin::new(&mut self.get_mut().source),
            context,
            &mut chunk
        ));
        Poll::Ready(match read {
            Ok(0) => None,
            Ok(_) => Some(Ok(Frame::data(chunk.into()))),
            Err(error) => Some(Err(error)),
        })
    }
}

async fn connect(socket: &Path) -> io::Result<UnixStream> {
    timeout(CONNECT_DEADLINE, UnixStream::connect(socket))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn read_bounded(answer: Answer, request: &str) -> Result<Bytes, EngineError> {
    let body = Limited::new(answer.response.into_body(), ANSWER_LIMIT_BYTES);
    let collected = body
        .collect()
        .await
        .map_err(|error| broken(request, with_causes(&*error)))?;
    Ok(collected.to_bytes())
}

fn json_body(bytes: Bytes) -> RequestBody {
    let bytes = Full::new(bytes).map_err(|never| match never {}).boxed_unsync();
    RequestBody {
        media_type: "application/json",
        bytes,
    }
}

fn label(method: &Method, path: &str) -> String {
    format!("{method} {path}")
}

fn parse_version(version: &str) -> Option<(u32, u32)> {
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

pub(super) fn broken(request: &str, reason: String) -> EngineError {
    EngineError::Broken {
        engine: ENGINE,
        request: request.to_owned(),
        reason,
    }
}

fn no_answer(request: &str, deadline: Duration) -> EngineError {
    broken(request, format!("no answer within {} s", deadline.as_secs()))
}

/// The error with what caused it: hyper's own words name only the layer that noticed.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
