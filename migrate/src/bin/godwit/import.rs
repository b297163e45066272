//! `godwit import`: brings an archive to the agent, which makes a container of it.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::Context;
use godwit_migrate::agent::archives::ImportRequest;
use godwit_migrate::archive::ImportOptions;
use godwit_migrate::archive::publish::Published;
use godwit_migrate::engine::set::Choice;
use godwit_migrate::tcp::TcpChoice;
use hyper::body::Bytes;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::archive::{End, Telling};
use crate::client;

/// Bytes read at a time.
const PIECE_BYTES: usize = 256 * 1024;

/// Pieces between the file and the connection.
const PIECES_BOUND: usize = 16;

/// What is to be made of which archive.
#[derive(Debug, clap::Args)]
pub(crate) struct Order {
    /// The archive; `-` for standard input.
    file: PathBuf,
    /// What the container is called here, if not as it was; inside it keeps its host name.
    #[arg(long)]
    name: Option<String>,
    /// Whose container it becomes: docker, containerd or auto, the engine that it came from.
    #[arg(long, default_value_t)]
    engine: Choice,
    /// What becomes of its TCP connections: `keep`, `close`, or `auto`: kept if the addresses of all are here again and it did not
    /// run on elsewhere.
    #[arg(long, default_value_t, value_parser = TcpChoice::from_str)]
    tcp: TcpChoice,
    /// A port it publishes, in place of all that it did. May be given several times.
    #[arg(short, long, value_name = "[ADDRESS:]HOST-PORT:PORT[/PROTOCOL]")]
    publish: Vec<Published>,
    /// Take no archive but one that a host of this one's authority has signed.
    #[arg(long)]
    require_signature: bool,
}

impl Order {
    /// What is to be asked of the agent, and what is to be brought to it.
    pub(crate) fn split(self) -> (ImportRequest, PathBuf) {
        let options = ImportOptions {
            name: self.name,
            engine: self.engine,
            tcp: self.tcp,
            publish: self.publish,
            require_signature: self.require_signature,
        };
        (ImportRequest { options }, self.file)
    }
}

/// Imports the archive `input`, `-` for standard input.
pub(crate) async fn run(
    socket: &Path,
    request: ImportRequest,
    input: &Path,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let mut file: File = if input == Path::new("-") {
        std::io::stdin().as_fd().try_clone_to_owned()?.into()
    } else {
        File::open(input).with_context(|| format!("opening {}", input.display()))?
    };
    let (mut telling, id) = Telling::begin(socket, "/v1/imports", &request, json).await?;
    let (pieces, body) = mpsc::channel::<std::io::Result<Bytes>>(PIECES_BOUND);
    spawn_blocking(move || {
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            let piece = match file.read(&mut piece) {
                Ok(0) => return,
                Ok(read) => {
                    piece.truncate(read);
                    Ok(Bytes::from(piece))
                }
                Err(error) => Err(error),
            };
            let is_last = piece.is_err();
            if pieces.blocking_send(piece).is_err() || is_last {
                return;
            }
        }
    });
    let path = format!("/v1/imports/{id}/archive");
    let sent = tokio::spawn({
        let socket = socket.to_owned();
        async move { client::upload(&socket, &path, body).await }
    });
    let end = telling.end().await;
    // One that was refused is not read to its end.
    sent.abort();
    match end? {
        End::Failed(failure) => Ok(telling.fail(&failure, "nothing of it is left on this host")),
        End::Done(summary) => {
            let millis = summary.down_micros / 1000;
            let told = format!("{} runs here, after {millis} ms", summary.container);
            telling.succeed(&told, &summary)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
