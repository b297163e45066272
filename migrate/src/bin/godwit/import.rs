//! `godwit import`: brings an archive to the agent, or names an image that is one, and the agent makes a container of it.

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
use tokio_util::task::AbortOnDropHandle;

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
    #[arg(required_unless_present = "oci")]
    file: Option<PathBuf>,
    /// Instead of a file, an image that `godwit export --oci` or another has made, in an engine of this host.
    #[arg(long, value_name = "REF", conflicts_with = "file")]
    oci: Option<String>,
    /// What the container is called here, if not as it was; inside it keeps its host name.
    #[arg(long)]
    name: Option<String>,
    /// Whose container it becomes: docker, containerd or auto, the engine that it came from. With --oci: whose the image is; auto is
    /// the first that has it.
    #[arg(long, default_value_t)]
    engine: Choice,
    /// containerd's namespace that has the image, if not `default`.
    #[arg(long, requires = "oci")]
    namespace: Option<String>,
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
    /// What is to be asked of the agent, and the file that is to be brought to it, if it does not come out of an image.
    pub(crate) fn split(self) -> (ImportRequest, Option<PathBuf>) {
        let options = ImportOptions {
            name: self.name,
            image: self.oci,
            namespace: self.namespace,
            engine: self.engine,
            tcp: self.tcp,
            publish: self.publish,
            require_signature: self.require_signature,
        };
        (ImportRequest { options }, self.file)
    }
}

/// Imports the archive `input`, `-` for standard input; without one what the request names.
pub(crate) async fn run(
    socket: &Path,
    request: ImportRequest,
    input: Option<&Path>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let file: Option<File> = match input {
        None => None,
        Some(input) if input == Path::new("-") => Some(std::io::stdin().as_fd().try_clone_to_owned()?.into()),
        Some(input) => Some(File::open(input).with_context(|| format!("opening {}", input.display()))?),
    };
    let (mut telling, id) = Telling::begin(socket, "/v1/imports", &request, json).await?;
    let sent = file.map(|file| bring(socket, &id, file));
    let end = telling.end().await;
    // One that was refused is not read to its end.
    drop(sent);
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

/// Brings a file to the agent, until what is returned is dropped: as it is, or what comes out of it if it is a pipe.
fn bring(socket: &Path, id: &str, mut file: File) -> AbortOnDropHandle<anyhow::Result<()>> {
    let (socket, path) = (socket.to_owned(), format!("/v1/imports/{id}/archive"));
    if file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return AbortOnDropHandle::new(tokio::spawn(async move {
            client::hand_over(&socket, &path, file).await
        }));
    }
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
    AbortOnDropHandle::new(tokio::spawn(
        async move { client::upload(&socket, &path, body).await },
    ))
}
