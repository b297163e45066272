//! A client of the agent's local API.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use godwit_migrate::agent::api::ErrorView;
use godwit_migrate::agent::handover::Carrier;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// The exit code for an agent that is not there.
pub(crate) const EXIT_UNREACHABLE: u8 = 5;

/// An agent on this host answers at once, or a user is told within 5 s.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// The agent asks engines, `criu check` and another agent first, all of which it gives less.
const ANSWER_DEADLINE: Duration = Duration::from_secs(180);

/// A single answer of the API at most; lists have some hundred bytes a line.
const MAX_ANSWER_BYTES: usize = 4 << 20;

/// Some 300 bytes for each mapping and each open file, of as many as an inspection tells at most.
const MAX_LARGE_ANSWER_BYTES: usize = 512 << 20;

/// Nobody listens on the agent's socket, or not to this user.
#[derive(Debug, thiserror::Error)]
#[error("the agent on this host does not answer on {socket} ({error}); {}", self.remedy())]
pub(crate) struct Unreachable {
    socket: PathBuf,
    error: std::io::Error,
}

impl Unreachable {
    fn remedy(&self) -> &'static str {
        match self.error.kind() {
            std::io::ErrorKind::PermissionDenied => "ask as root, or as a member of the group `godwit`",
            _ => "start it: systemctl start godwit-agent; its log says why it ended",
        }
    }
}

/// The agent says no.
#[derive(Debug, thiserror::Error)]
#[error("{sentence}")]
pub(crate) struct Refused {
    pub(crate) status: StatusCode,
    sentence: String,
}

/// Sends one request; a refusal becomes an error in the agent's words.
pub(crate) async fn send(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> anyhow::Result<Response<Incoming>> {
    let json = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
    let request = request(method, path, Full::new(Bytes::from(json)))?;
    exchange(socket, request, None).await
}

/// Hands an open file over along with a request.
pub(crate) async fn hand_over(socket: &Path, path: &str, file: File) -> anyhow::Result<()> {
    let request = request(Method::PUT, path, Full::new(Bytes::new()))?;
    exchange(socket, request, Some(file)).await.map(drop)
}

/// Sends what comes from a queue as the body of one request.
pub(crate) async fn upload(
    socket: &Path,
    path: &str,
    pieces: mpsc::Receiver<std::io::Result<Bytes>>,
) -> anyhow::Result<()> {
    let request = request(Method::PUT, path, Pieces(pieces))?;
    exchange(socket, request, None).await.map(drop)
}

fn request<B>(method: Method, path: &str, body: B) -> anyhow::Result<Request<B>> {
    Ok(Request::builder()
        .method(method)
        .uri(path)
        .header("host", "godwit")
        .header("content-type", "application/json")
        .body(body)?)
}

/// A body whose pieces come from a queue.
struct Pieces(mpsc::Receiver<std::io::Result<Bytes>>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        self.0
            .poll_recv(context)
            .map(|piece| piece.map(|bytes| bytes.map(Frame::data)))
    }
}

async fn exchange<B>(
    socket: &Path,
    request: Request<B>,
    file: Option<File>,
) -> anyhow::Result<Response<Incoming>>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let unreachable = |error| Unreachable {
        socket: socket.into(),
        error,
    };
    let stream = timeout(CONNECT_DEADLINE, UnixStream::connect(socket))
        .await
        .map_err(|_| unreachable(std::io::ErrorKind::TimedOut.into()))?
        .map_err(unreachable)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(Carrier::connected(stream, file))).await?;
    tokio::spawn(connection);
    let response = sender
        .send_request(request)
        .await
        .context("the agent went away")?;
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status();
    let text = collect(response).await?;
    match serde_json::from_slice::<ErrorView>(&text) {
        Ok(view) => Err(Refused {
            status,
            sentence: view.error,
        }
        .into()),
        Err(_) => anyhow::bail!("the agent says {status}: {}", String::from_utf8_lossy(&text)),
    }
}

/// Asks for one JSON value.
pub(crate) async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> anyhow::Result<T> {
    Ok(serde_json::from_slice(&get_bytes(socket, path).await?)?)
}

/// Asks for something that is no JSON.
pub(crate) async fn get_bytes(socket: &Path, path: &str) -> anyhow::Result<Bytes> {
    let answer = async { collect(send(socket, Method::GET, path, None::<&()>).await?).await };
    timeout(ANSWER_DEADLINE, answer).await.with_context(|| {
        format!(
            "the agent has not answered within {} s",
            ANSWER_DEADLINE.as_secs()
        )
    })?
}

/// Sends one JSON value and reads the one that answers.
pub(crate) async fn post<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    body: &impl Serialize,
) -> anyhow::Result<T> {
    let response = send(socket, Method::POST, path, Some(body)).await?;
    Ok(serde_json::from_slice(&collect(response).await?)?)
}

/// The same where the answer may have a line for each mapping of a thousand processes.
pub(crate) async fn post_large<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    body: &impl Serialize,
) -> anyhow::Result<T> {
    let response = send(socket, Method::POST, path, Some(body)).await?;
    Ok(serde_json::from_slice(
        &collect_up_to(response, MAX_LARGE_ANSWER_BYTES).await?,
    )?)
}

async fn collect(response: Response<Incoming>) -> anyhow::Result<Bytes> {
    collect_up_to(response, MAX_ANSWER_BYTES).await
}

async fn collect_up_to(response: Response<Incoming>, limit_bytes: usize) -> anyhow::Result<Bytes> {
    let body = http_body_util::Limited::new(response.into_body(), limit_bytes);
    let collected = body
        .collect()
        .await
        .map_err(|error| anyhow::anyhow!("reading the answer: {error}"))?;
    Ok(collected.to_bytes())
}
