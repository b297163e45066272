//! `godwit inspect`: what there is in a container, in an image's directory or in an archive, as text, JSON or a picture.
//!
//! A container is looked at by the agent; files are read here, with the rights of whoever asks.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use godwit_migrate::agent::inspections::InspectRequest;
use godwit_migrate::engine::set::Choice;
use godwit_migrate::host::Tools;
use godwit_migrate::inspect::judge::Here;
use godwit_migrate::inspect::view::{Inspection, MemoryKind, Process, State, SubjectKind, printable, size};
use godwit_migrate::inspect::{archive, directory, picture};

use crate::{client, complete, findings};

/// What speaks for a finding's host where no agent gives it a name.
const HERE: &str = "this host";

/// Rows of a list before the rest is counted; `--json` has all.
const MAX_ROWS: usize = 12;

/// Deeper trees are not indented further.
const MAX_DEPTH: usize = 30;

/// What is to be looked at, and how it is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Order {
    /// A directory with a checkpoint image, an archive's file, or a container; what exists as a file is one.
    #[arg(value_name = "FILE|DIRECTORY|CONTAINER", add = complete::containers_and_paths())]
    target: String,
    /// It is a container, even if there is a file of that name.
    #[arg(long)]
    container: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Draw where the memory is, as SVG into this file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write a page with that picture and a list of what is largest.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Whose container it is: docker, containerd or auto, the first that knows it.
    #[arg(long, default_value_t)]
    engine: Choice,
    /// containerd's namespace, if not `default`; the same as NAMESPACE/ID.
    #[arg(long)]
    namespace: Option<String>,
}

/// Looks, and tells.
pub(crate) async fn run(socket: &Path, order: Order) -> anyhow::Result<ExitCode> {
    let path = Path::new(&order.target);
    let inspection = if !order.container && path.exists() {
        of_files(path).await?
    } else {
        of_container(socket, &order).await?
    };
    for (file, draw) in [
        (&order.svg, picture::svg as fn(&Inspection) -> String),
        (&order.html, picture::html),
    ] {
        if let Some(file) = file {
            std::fs::write(file, draw(&inspection)).with_context(|| format!("writing {}", file.display()))?;
        }
    }
    let mut out = anstream::stdout().lock();
    if order.json {
        serde_json::to_writer(&mut out, &inspection)?;
        writeln!(out)?;
    } else if order.svg.is_none() && order.html.is_none() {
        print(&mut out, &inspection)?;
    }
    Ok(if inspection.restorable {
        ExitCode::SUCCESS
    } else {
        crate::migrate::EXIT_REFUSED.into()
    })
}

async fn of_container(socket: &Path, order: &Order) -> anyhow::Result<Inspection> {
    let request = InspectRequest {
        container: order.target.clone(),
        engine: order.engine,
        namespace: order.namespace.clone(),
    };
    client::post_large(socket, "/v1/inspect", &request).await
}

async fn of_files(path: &Path) -> anyhow::Result<Inspection> {
    let mut image = if path.is_dir() {
        directory::read(path)?
    } else {
        archive::read(path).with_context(|| format!("{} is no archive that can be read", path.display()))?
    };
    Here::ask(&Tools::default()).await.judge(HERE, &mut image);
    Ok(image.inspection)
}

fn print(out: &mut impl Write, inspection: &Inspection) -> std::io::Result<()> {
    head(out, inspection)?;
    tree(out, inspection)?;
    for process in &inspection.processes {
        memory(out, process)?;
    }
    open(out, inspection)?;
    if !inspection.mounts.is_empty() {
        writeln!(out, "\nmounts")?;
        for mount in &inspection.mounts {
            let access = if mount.read_only { "ro" } else { "rw" };
            let (path, kind, source) = (
                printable(&mount.path),
                printable(&mount.kind),
                printable(&mount.source),
            );
            // An empty cell would shift the columns of whoever cuts them out.
            let kind = if kind.is_empty() { "-" } else { &kind };
            writeln!(out, "  {path:<40}  {kind:<10}  {access}  {source}")?;
        }
    }
    writeln!(out)?;
    if inspection.findings.is_empty() {
        writeln!(
            out,
            "nothing that was found hinders a checkpoint or a restore here"
        )?;
    }
    findings::print(
        out,
        &inspection.findings,
        inspection.subject.kind == SubjectKind::Container,
    )
}

fn head(out: &mut impl Write, inspection: &Inspection) -> std::io::Result<()> {
    let subject = &inspection.subject;
    let name = printable(&subject.name);
    match subject.kind {
        SubjectKind::Container => writeln!(
            out,
            "{name}: a container of {}, {}",
            subject.engine.as_deref().unwrap_or("its engine"),
            subject.state.as_deref().unwrap_or("running")
        )?,
        SubjectKind::Directory => writeln!(out, "{name}: a checkpoint image")?,
        SubjectKind::Archive => writeln!(out, "{name}: an archive")?,
    }
    for (what, text) in [("container", &subject.id), ("image", &subject.image)] {
        if let Some(text) = text {
            writeln!(out, "{what} {}", printable(text))?;
        }
    }
    if let Some(host) = &subject.signed_by {
        writeln!(out, "signed by {}, which an import checks", printable(host))?;
    }
    if let Some(origin) = &inspection.origin {
        let told = [
            origin.architecture.clone(),
            origin.kernel.as_ref().map(|kernel| format!("Linux {kernel}")),
            origin.criu.as_ref().map(|criu| format!("CRIU {criu}")),
            origin.runc.as_ref().map(|runc| format!("runC {runc}")),
            origin.cgroup_version.map(|version| format!("cgroups v{version}")),
        ];
        let told: Vec<String> = told.into_iter().flatten().map(|text| printable(&text)).collect();
        writeln!(out, "dumped on {}", told.join(", "))?;
    }
    let sizes = &inspection.sizes;
    let kinds: Vec<String> = MemoryKind::ALL
        .iter()
        .filter_map(|kind| {
            let bytes = sizes.memory.get(kind.as_str()).filter(|bytes| **bytes > 0)?;
            Some(format!("{} {}", size(*bytes), kind.as_str()))
        })
        .collect();
    write!(out, "memory {}", size(sizes.memory_bytes))?;
    if !kinds.is_empty() {
        write!(out, ": {}", kinds.join(", "))?;
    }
    if let Some(zeros) = sizes.zero_bytes.filter(|zeros| *zeros > 0) {
        write!(out, "; {} of it zeros", size(zeros))?;
    }
    writeln!(out)?;
    if let (Some(pages), Some(metadata)) = (sizes.pages_bytes, sizes.metadata_bytes) {
        writeln!(
            out,
            "files {} of pages, {} of descriptions",
            size(pages),
            size(metadata)
        )?;
    }
    // Those of an archive.
    for (part, bytes) in &sizes.parts {
        writeln!(out, "  {:<32}  {:>12}", printable(part), size(*bytes))?;
    }
    Ok(())
}

fn tree(out: &mut impl Write, inspection: &Inspection) -> std::io::Result<()> {
    writeln!(out, "\nprocesses")?;
    for (process, depth) in inspection.processes.iter().zip(inspection.depths()) {
        let indent = "   ".repeat(depth.min(MAX_DEPTH).saturating_sub(1));
        let branch = if depth > 0 { "└─ " } else { "" };
        let what = printable(process.command.as_ref().unwrap_or(&process.name));
        let host_pid = process
            .host_pid
            .map(|pid| format!(", {pid} on the host"))
            .unwrap_or_default();
        let threads = match process.threads {
            0 | 1 => String::new(),
            n_threads => format!(", {n_threads} threads"),
        };
        let state = match process.state {
            State::Alive => "",
            State::Stopped => ", stopped",
            State::Zombie => ", has ended",
        };
        writeln!(
            out,
            "  {indent}{branch}{} {what} ({}{threads}{state}{host_pid})",
            process.pid,
            size(process.memory_bytes())
        )?;
    }
    Ok(())
}

fn memory(out: &mut impl Write, process: &Process) -> std::io::Result<()> {
    let mut mappings: Vec<_> = process
        .memory
        .iter()
        .filter(|mapping| mapping.memory_bytes > 0)
        .collect();
    if mappings.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nmemory of {} ({})", process.pid, printable(&process.name))?;
    mappings.sort_by_key(|mapping| std::cmp::Reverse(mapping.memory_bytes));
    for mapping in mappings.iter().take(MAX_ROWS) {
        let zeros = match mapping.zero_bytes {
            Some(bytes) if bytes > 0 => format!("{} zeros", size(bytes)),
            _ => String::new(),
        };
        writeln!(
            out,
            "  {:<12}  {:<4}  {:>11}  of {:>11}  {zeros:<17}  {:<9}  {}",
            mapping.start,
            printable(&mapping.access),
            size(mapping.memory_bytes),
            size(mapping.size_bytes),
            mapping.kind.as_str(),
            printable(&mapping.name)
        )?;
    }
    more(out, mappings.len())
}

fn open(out: &mut impl Write, inspection: &Inspection) -> std::io::Result<()> {
    for process in inspection
        .processes
        .iter()
        .filter(|process| !process.files.is_empty())
    {
        writeln!(
            out,
            "\nopen files of {} ({})",
            process.pid,
            printable(&process.name)
        )?;
        for file in process.files.iter().take(MAX_ROWS) {
            writeln!(
                out,
                "  {:>4}  {:<9}  {}",
                file.descriptor,
                printable(&file.kind),
                printable(&file.name)
            )?;
        }
        more(out, process.files.len())?;
    }
    for process in inspection
        .processes
        .iter()
        .filter(|process| !process.sockets.is_empty())
    {
        writeln!(out, "\nsockets of {} ({})", process.pid, printable(&process.name))?;
        for socket in process.sockets.iter().take(MAX_ROWS) {
            let remote = match socket.remote.as_str() {
                "" => String::new(),
                remote => format!(" from {}", printable(remote)),
            };
            writeln!(
                out,
                "  {:>4}  {:<7}  {:<12}  {}{remote}",
                socket.descriptor,
                socket.protocol,
                socket.state,
                printable(&socket.local)
            )?;
        }
        more(out, process.sockets.len())?;
    }
    Ok(())
}

fn more(out: &mut impl Write, n_all: usize) -> std::io::Result<()> {
    match n_all.saturating_sub(MAX_ROWS) {
        0 => Ok(()),
        n_more => writeln!(out, "  and {n_more} more"),
    }
}
