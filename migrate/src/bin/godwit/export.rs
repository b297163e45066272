//! `godwit export`: asks the agent for a container's archive and stores it, or has it stored as an image.
//!
//! The file gets its name when all of it is on the disk, and only then is the container let go of. Whatever happens before, ^C
//! included, leaves the container running and no file. Of an image the agent sees to that.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::Context;
use godwit_migrate::agent::archives::ExportRequest;
use godwit_migrate::archive::ExportOptions;
use godwit_migrate::archive::compress::Compression;
use godwit_migrate::engine::set::Choice;
use godwit_migrate::volumes::policy::Wish;
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::{Bytes, Incoming};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::archive::{End, Telling, beside};
use crate::{client, complete};

/// Pieces between the connection and the disk.
const PIECES_BOUND: usize = 16;

/// Where an archive goes.
enum Target {
    /// Into the engine, by the agent, under this name.
    Image(String),
    /// Into a pipe, or whatever standard output is.
    Stdout,
    /// Into this file, by way of another name beside it.
    File { path: PathBuf, temporary: PathBuf },
}

/// What is to be stored where, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Order {
    /// Name, id or unique prefix of the id; with containerd also NAMESPACE/ID.
    #[arg(add = complete::containers())]
    container: String,
    /// The file, which must not be there yet; `-` for standard output.
    #[arg(short, long, value_name = "FILE", required_unless_present = "oci")]
    output: Option<PathBuf>,
    /// Instead of a file, make an image of this name in the container's engine; there must be none yet.
    #[arg(long, value_name = "REF", conflicts_with = "output")]
    oci: Option<String>,
    /// Let it run on, once its memory and files were read, instead of leaving it stopped.
    #[arg(long)]
    leave_running: bool,
    /// How the file is packed: `zstd`, `gzip` or `none`. Docker keeps images unpacked in any case.
    #[arg(long, default_value_t, value_parser = Compression::from_str, value_name = "HOW")]
    compress: Compression,
    /// What becomes of its volumes: `copy` (default), `skip`, or `shared` where whoever imports it has the same storage under the
    /// same name; for all of them, or for one by name or place in the container. May be given several times.
    #[arg(long, value_name = "[VOLUME=]POLICY", value_parser = Wish::from_str)]
    volumes: Vec<Wish>,
    /// Have this host sign the archive, so that an import can tell that one of your hosts has made it.
    #[arg(long)]
    sign: bool,
    /// Whose container it is: docker, containerd or auto, the first that knows it.
    #[arg(long, default_value_t)]
    engine: Choice,
    /// containerd's namespace, if not `default`; the same as NAMESPACE/ID.
    #[arg(long)]
    namespace: Option<String>,
}

impl Order {
    /// What is to be asked of the agent, and the file where the answer goes, if it does not stay in the engine.
    pub(crate) fn split(self) -> (ExportRequest, Option<PathBuf>) {
        let request = ExportRequest {
            container: self.container,
            engine: self.engine,
            namespace: self.namespace,
            options: ExportOptions {
                leave_running: self.leave_running,
                compress: self.compress,
                volumes: self.volumes.into_iter().collect(),
                sign: self.sign,
                image: self.oci,
            },
        };
        (request, self.output)
    }
}

/// Exports a container to `output`, `-` for standard output; without one into an image.
pub(crate) async fn run(
    socket: &Path,
    request: ExportRequest,
    output: Option<&Path>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let target = Target::new(output, &request, json)?;
    let file = target.open()?;
    let outcome = store(socket, &request, &target, file, json).await;
    if !matches!(outcome, Ok(ExitCode::SUCCESS)) {
        target.discard();
    }
    outcome
}

async fn store(
    socket: &Path,
    request: &ExportRequest,
    target: &Target,
    file: Option<File>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let now = format!("{} runs on, and there is no {}", request.container, target.kind());
    let (mut telling, id) = Telling::begin(socket, "/v1/exports", request, json).await?;
    if let Some(file) = file {
        let path = format!("/v1/exports/{id}/archive");
        let body = client::send(socket, Method::GET, &path, None::<&()>)
            .await?
            .into_body();
        let stored = tokio::select! {
            stored = receive(body, file) => stored,
            end = telling.end() => match end? {
                End::Failed(failure) => return Ok(telling.fail(&failure, &now)),
                // One that runs on is let go of as soon as all was read; the rest of it is on its way.
                End::Done(_) => anyhow::bail!("the agent said that the archive is stored, which it is not"),
            },
        };
        // Before the agent hears of it: from then on this is the container's memory.
        let kept = stored.and_then(|()| target.name());
        if kept.is_ok() {
            let path = format!("/v1/exports/{id}/stored");
            // If it was not whole, the events say why.
            let _ = client::send(socket, Method::POST, &path, None::<&()>).await;
        }
        if let Err(error) = kept {
            // Without us it gives the archive up.
            drop(telling);
            eprintln!("godwit: {error:#}\n{now}");
            return Ok(crate::EXIT_FAILED.into());
        }
    }
    match telling.end().await? {
        End::Failed(failure) => Ok(telling.fail(&failure, &now)),
        End::Done(summary) => {
            let down = summary.down_micros / 1000;
            let told = if summary.runs {
                format!(
                    "{} is in {target}, and runs on: {down} ms down",
                    summary.container
                )
            } else {
                format!("{} is in {target}, and is stopped here", summary.container)
            };
            telling.succeed(&told, &summary)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Writes the body into the file, and has it on the disk.
async fn receive(mut body: Incoming, mut file: File) -> anyhow::Result<()> {
    let (pieces, mut queue) = mpsc::channel::<Bytes>(PIECES_BOUND);
    let writer = spawn_blocking(move || -> std::io::Result<()> {
        while let Some(piece) = queue.blocking_recv() {
            file.write_all(&piece)?;
        }
        file.flush()?;
        match file.sync_all() {
            // A pipe, or a terminal.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => Ok(()),
            synced => synced,
        }
    });
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the archive was cut short by the agent")?;
        if let Ok(data) = frame.into_data()
            && pieces.send(data).await.is_err()
        {
            break;
        }
    }
    drop(pieces);
    writer.await?.context("storing the archive")
}

impl Target {
    fn new(output: Option<&Path>, request: &ExportRequest, json: bool) -> anyhow::Result<Self> {
        let Some(output) = output else {
            return Ok(Self::Image(request.options.image.clone().unwrap_or_default()));
        };
        if output == Path::new("-") {
            anyhow::ensure!(!json, "standard output is the archive's: say --json with a file");
            return Ok(Self::Stdout);
        }
        anyhow::ensure!(!output.exists(), "{} is there already", output.display());
        Ok(Self::File {
            path: output.into(),
            temporary: beside(output)?,
        })
    }

    /// What there is not if the export fails.
    fn kind(&self) -> &'static str {
        match self {
            Self::Image(_) => "image",
            Self::Stdout | Self::File { .. } => "archive",
        }
    }

    /// What the archive's bytes are written to here.
    fn open(&self) -> anyhow::Result<Option<File>> {
        match self {
            Self::Image(_) => Ok(None),
            Self::Stdout => Ok(Some(std::io::stdout().as_fd().try_clone_to_owned()?.into())),
            Self::File { temporary, .. } => File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(temporary)
                .map(Some)
                .with_context(|| format!("making {}", temporary.display())),
        }
    }

    /// Gives the file its name, unless that was taken meanwhile.
    fn name(&self) -> anyhow::Result<()> {
        let Self::File { path, temporary } = self else {
            return Ok(());
        };
        renameat_with(CWD, temporary, CWD, path, RenameFlags::NOREPLACE)
            .with_context(|| format!("naming it {}", path.display()))?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = File::open(directory.unwrap_or(Path::new(".")))?;
        // Some file systems cannot; what could be done was done.
        let _ = directory.sync_all();
        Ok(())
    }

    fn discard(&self) {
        let Self::File { path, temporary } = self else {
            return;
        };
        // Only what we have named is ours.
        if std::fs::remove_file(temporary).is_err() {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Image(name) => write!(formatter, "image {name}"),
            Self::Stdout => formatter.write_str("the archive"),
            Self::File { path, .. } => path.display().fmt(formatter),
        }
    }
}
