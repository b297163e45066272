//! `-info` and `-v`: what this runtime is and can do, as containerd asks before it starts anything.

use std::io::{self, Write};
use std::process::Command;

use anyhow::{Context, Result};
use containerd_shim::api::Options;
use containerd_shim::protos::protobuf::Message;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::types::introspection::{RuntimeInfo, RuntimeVersion};

use crate::bootstrap::read_stdin;
use crate::options;

/// The runtime's name, as engines call it.
pub(crate) const RUNTIME_NAME: &str = "io.containerd.godwit.v2";

/// The annotation by which engines learn that a runtime can checkpoint.
const CHECKPOINT_ANNOTATION: &str = "org.opencontainers.runc.checkpoint.enabled";

/// The type under which containerd finds OCI features, which travel as JSON.
const FEATURES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Answers `-info`: options come on stdin, the answer goes to stdout.
pub(crate) fn info() -> Result<()> {
    let input = read_stdin()?;
    let sent = Any::parse_from_bytes(&input).context("decode the options on stdin")?;
    let options = options::decode(Some(&sent))?;
    let answer = describe(&options, Some(sent).filter(|sent| !sent.type_url.is_empty()))?;
    io::stdout()
        .write_all(&answer.write_to_bytes()?)
        .context("answer containerd")
}

/// Answers `-v`.
pub(crate) fn version() -> Result<()> {
    writeln!(
        io::stdout(),
        "containerd-shim-godwit-v2 {}",
        env!("CARGO_PKG_VERSION")
    )
    .context("write the version")
}

fn describe(options: &Options, sent: Option<Any>) -> Result<RuntimeInfo> {
    let binary = if options.binary_name.is_empty() {
        "runc"
    } else {
        &options.binary_name
    };
    let mut info = RuntimeInfo {
        name: RUNTIME_NAME.to_owned(),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
        .into(),
        options: sent.into(),
        ..Default::default()
    };
    // A runtime without this subcommand has no features to report, and that is no failure.
    let output = Command::new(binary).arg("features").output();
    let output = output.with_context(|| format!("run {binary} features"))?;
    if output.status.success() {
        let mut features: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("read what {binary} features says"))?;
        features["annotations"][CHECKPOINT_ANNOTATION] = "true".into();
        info.features = Some(Any {
            type_url: FEATURES_TYPE.to_owned(),
            value: serde_json::to_vec(&features)?,
            ..Default::default()
        })
        .into();
    }
    info.annotations
        .insert(CHECKPOINT_ANNOTATION.to_owned(), "true".to_owned());
    Ok(info)
}
