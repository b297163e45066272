//! `-info` and `-v`: what this runtime is and can do, as containerd asks before it starts anything.
//!
//! Beside what the stock shim tells, the annotations name the versions of runC and CRIU, since what a container can be
//! put through depends on them. A host without CRIU has a runtime that runs containers and checkpoints none.

use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use containerd_shim::protos::protobuf::Message;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use godwit_runtime::reaper::{Limits, Output, Reaper};
use serde_json::{Map, Value};

use crate::bootstrap::read_stdin;
use crate::create_options::CreateOptions;

/// The runtime's name, as engines call it.
pub(crate) const RUNTIME_NAME: &str = "io.containerd.godwit.v2";

/// The annotation by which engines learn that a runtime can checkpoint.
const CHECKPOINT_ANNOTATION: &str = "org.opencontainers.runc.checkpoint.enabled";

/// The versions of what the shim calls, in the words of their `--version`.
const RUNC_VERSION_ANNOTATION: &str = "io.godwit.runc.version";
const CRIU_VERSION_ANNOTATION: &str = "io.godwit.criu.version";

/// The type under which containerd finds OCI features, which travel as JSON.
const FEATURES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// A question about versions and features is answered from the program itself; engines wait for it when they start.
const QUESTION: Limits = Limits {
    deadline: Duration::from_secs(10),
    output_bytes: 1 << 20,
};

/// Answers `-info`: options come on stdin, the answer goes to stdout.
pub(crate) fn info(called_as: &Path) -> Result<()> {
    let input = read_stdin()?;
    let sent = Any::parse_from_bytes(&input).context("decode the options on stdin")?;
    let options = CreateOptions::decode(Some(&sent))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let answer = runtime.block_on(describe(
        &options,
        Some(sent).filter(|sent| !sent.type_url.is_empty()),
        runtime_name(called_as),
    ))?;
    io::stdout()
        .write_all(&answer.write_to_bytes()?)
        .context("answer containerd")
}

/// Answers `-v`, in the stock shim's form.
pub(crate) fn version(called_as: &Path) -> Result<()> {
    let name = called_as.file_name().unwrap_or_default().to_string_lossy();
    let version = env!("CARGO_PKG_VERSION");
    writeln!(io::stdout(), "{name}:\n  Version:  {version}\n").context("write the version")
}

/// What engines call the runtime whose binary has this name: ours, also where it stands in for the stock one.
fn runtime_name(called_as: &Path) -> String {
    let file = called_as.file_name().unwrap_or_default().to_string_lossy();
    let name = file
        .strip_prefix("containerd-shim-")
        .and_then(|rest| rest.rsplit_once('-'))
        .map(|(name, version)| format!("io.containerd.{name}.{version}"));
    name.unwrap_or_else(|| RUNTIME_NAME.to_owned())
}

async fn describe(options: &CreateOptions, sent: Option<Any>, name: String) -> Result<RuntimeInfo> {
    let reaper = Reaper::start().context("start the exit dispatcher")?;
    let runc = options.runc_settings("").binary.to_string_lossy().into_owned();
    let mut info = RuntimeInfo {
        name,
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
        .into(),
        options: sent.into(),
        ..Default::default()
    };
    let said = ask(&reaper, &runc, "--version").await?;
    ensure!(
        said.exit.success(),
        "{runc} --version failed: {}",
        text(&said.stderr)
    );
    info.annotations.insert(
        RUNC_VERSION_ANNOTATION.to_owned(),
        first_line(&text(&said.stdout)).to_owned(),
    );
    let criu = ask(&reaper, "criu", "--version").await;
    let criu = criu.ok().filter(|said| said.exit.success());
    if let Some(said) = &criu {
        let said = text(&said.stdout);
        let version = first_line(&said);
        info.annotations.insert(
            CRIU_VERSION_ANNOTATION.to_owned(),
            version.strip_prefix("Version: ").unwrap_or(version).to_owned(),
        );
    }
    let can_checkpoint = criu.is_some().to_string();
    // A runtime without this subcommand has no features to report, and that is no failure.
    let output = ask(&reaper, &runc, "features").await?;
    if output.exit.success() {
        let read = serde_json::from_slice(&output.stdout);
        let mut features: Map<String, Value> =
            read.with_context(|| format!("read what {runc} features says"))?;
        let annotations = features
            .entry("annotations")
            .or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(annotations) = annotations {
            annotations.insert(CHECKPOINT_ANNOTATION.to_owned(), can_checkpoint.clone().into());
        }
        info.features = Some(Any {
            type_url: FEATURES_TYPE.to_owned(),
            value: serde_json::to_vec(&features)?,
            ..Default::default()
        })
        .into();
    }
    info.annotations
        .insert(CHECKPOINT_ANNOTATION.to_owned(), can_checkpoint);
    Ok(info)
}

async fn ask(reaper: &Reaper, program: &str, question: &str) -> Result<Output> {
    let mut command = Command::new(program);
    command.arg(question);
    let asked = reaper.run(command, QUESTION).await;
    asked.with_context(|| format!("run {program} {question}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_is_called_after_its_binary() {
        let name = |file: &str| runtime_name(Path::new(file));
        assert_eq!(name("/usr/local/bin/containerd-shim-godwit-v2"), RUNTIME_NAME);
        assert_eq!(name("containerd-shim-runc-v2"), "io.containerd.runc.v2");
        assert_eq!(name("/tmp/x"), RUNTIME_NAME);
    }
}
