//! `start`: brings up a shim server, or finds the one that serves the group already, and tells containerd where.
//!
//! The socket is bound here and given to the server as its stdin, so that containerd can connect as soon as
//! this program has ended; and this program waits for the server's ready byte, so that it fails when the server
//! did not come up. containerd 1.7 to 2.2 send runtime options on stdin and read JSON, 2.3 and later
//! send and read protobuf; which of the two it was is told by [`detect`] from the bytes alone.

use std::env;
use std::fs::{self, DirBuilder};
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use containerd_shim::cgroup::adjust_oom_score;
use containerd_shim::protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim::protos::protobuf::Message;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::{Flags, socket_address};
use godwit_runtime::bundle::Bundle;
use godwit_runtime::cgroup;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::create_options::CreateOptions;

/// What the server writes to its stdout when it serves.
pub(crate) const READY: u8 = b'+';

/// The server has only to start a runtime and take over a socket; a busy machine may take seconds.
const READY_DEADLINE: Duration = Duration::from_secs(20);

/// More than this on stdin is not from containerd, whose own limit it is.
const MAX_INPUT_BYTES: u64 = 10 << 20;

/// Containers whose bundles name the same group share a shim; the first that is there names it.
const GROUP_ANNOTATIONS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// How containerd started us, and so how it wants to be answered.
#[derive(Debug, PartialEq)]
pub(crate) enum Request {
    /// 2.3 and later.
    Params(Box<BootstrapParams>),
    /// Before that: runtime options, if there are any.
    Options(Option<Any>),
}

/// Tells the two kinds of input apart.
///
/// Options decode as parameters as well (type as instance id, value as namespace), so what counts is that the
/// parameters are for the very shim that the command line names.
pub(crate) fn detect(input: &[u8], id: &str, namespace: &str) -> Result<Request> {
    if let Ok(params) = BootstrapParams::parse_from_bytes(input)
        && !input.is_empty()
    {
        if params.instance_id == id && params.namespace == namespace {
            return Ok(Request::Params(Box::new(params)));
        }
        let only_two_fields = BootstrapParams {
            instance_id: params.instance_id.clone(),
            namespace: params.namespace.clone(),
            ..Default::default()
        };
        if params != only_two_fields {
            bail!(
                "the parameters on stdin are for {}/{}, the command line is for {namespace}/{id}",
                params.namespace,
                params.instance_id
            );
        }
    }
    let options =
        Any::parse_from_bytes(input).context("stdin holds neither parameters nor runtime options")?;
    Ok(Request::Options(
        Some(options).filter(|options| !options.type_url.is_empty()),
    ))
}

/// Runs `start`.
pub(crate) fn start(flags: &Flags) -> Result<()> {
    ensure!(
        !flags.id.is_empty() && !flags.namespace.is_empty(),
        "start needs -id and -namespace"
    );
    let request = detect(&read_stdin()?, &flags.id, &flags.namespace)?;
    let bundle = Bundle::at(env::current_dir().context("find the bundle")?);
    let group = group(&bundle, &flags.id)?;
    let (containerd, events, options) = match &request {
        Request::Params(params) => {
            let mut options = params
                .extensions
                .iter()
                .filter_map(|extension| extension.value.as_ref());
            let options = options.find(|any| any.type_url.ends_with("Options")).cloned();
            (
                params.containerd_grpc_address.clone(),
                params.containerd_ttrpc_address.clone(),
                options,
            )
        }
        Request::Options(options) => {
            let events = env::var("TTRPC_ADDRESS").unwrap_or_else(|_| format!("{}.ttrpc", flags.address));
            (flags.address.clone(), events, options.clone())
        }
    };
    let address = match &request {
        Request::Params(params) if !params.socket_dir().is_empty() => {
            let name = socket_address(&containerd, &flags.namespace, &group);
            let name = name.rsplit('/').next().unwrap_or_default();
            format!("unix://{}/{name}", params.socket_dir().trim_end_matches('/'))
        }
        _ => socket_address(&containerd, &flags.namespace, &group),
    };
    let path = Path::new(address.trim_start_matches("unix://"));
    if !serves(path) {
        let shim_cgroup = CreateOptions::decode(options.as_ref())?.shim_cgroup;
        launch(flags, &bundle, &address, &containerd, &events, &shim_cgroup).inspect_err(|_| {
            let _ = fs::remove_file(path);
        })?;
    }
    fs::write(bundle.join("address"), &address).context("write the address to the bundle")?;
    let reply = reply(&request, &address)?;
    let mut stdout = io::stdout();
    stdout
        .write_all(&reply)
        .and_then(|()| stdout.flush())
        .context("answer containerd")
}

pub(crate) fn reply(request: &Request, address: &str) -> Result<Vec<u8>> {
    match request {
        // 1.7 takes version 2 only, and everything later takes it too.
        Request::Options(_) => Ok(serde_json::to_vec(
            &serde_json::json!({"version": 2, "address": address, "protocol": "ttrpc"}),
        )?),
        Request::Params(_) => {
            let result = BootstrapResult {
                version: 3,
                address: address.to_owned(),
                protocol: "ttrpc".to_owned(),
                ..Default::default()
            };
            Ok(result.write_to_bytes()?)
        }
    }
}

pub(crate) fn group(bundle: &Bundle, id: &str) -> Result<String> {
    let spec = bundle.spec().context("read the bundle's configuration")?;
    let named = |name: &&str| spec.annotations().get(*name).cloned();
    Ok(GROUP_ANNOTATIONS
        .iter()
        .find_map(named)
        .unwrap_or_else(|| id.to_owned()))
}

/// True if a shim answers at the socket; one that a dead shim has left is removed.
fn serves(path: &Path) -> bool {
    if UnixStream::connect(path).is_ok() {
        return true;
    }
    // Absent, most of the time; else binding tells.
    let _ = fs::remove_file(path);
    false
}

fn launch(
    flags: &Flags,
    bundle: &Bundle,
    address: &str,
    containerd: &str,
    events: &str,
    shim_cgroup: &str,
) -> Result<()> {
    let path = Path::new(address.trim_start_matches("unix://"));
    if let Some(parent) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(parent)
            .context("make the socket's directory")?;
    }
    let listener = UnixListener::bind(path).with_context(|| format!("bind {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).context("protect the socket")?;
    let mut command = Command::new(env::current_exe().context("find the shim's own binary")?);
    // The name it was called by: the server must know whether it stands in for the stock shim.
    if let Some(called_as) = env::args_os().next() {
        command.arg0(called_as);
    }
    command
        .args(["-namespace", &flags.namespace, "-id", &flags.id])
        .args(["-address", containerd, "-socket", address])
        .env("TTRPC_ADDRESS", events)
        .current_dir(bundle.path())
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::piped())
        .process_group(0);
    if flags.debug {
        command.arg("-debug");
    }
    let mut server = command.spawn().context("start the shim server")?;
    let ready = wait_ready(&mut server).and_then(|()| {
        fs::write(bundle.join("shim.pid"), server.id().to_string())
            .context("write the shim's pid to the bundle")?;
        if !shim_cgroup.is_empty() {
            cgroup::enter(shim_cgroup, server.id())
                .with_context(|| format!("move the shim into the cgroup {shim_cgroup}"))?;
        }
        adjust_oom_score(server.id()).context("make the shim a candidate to be killed before containerd")
    });
    if ready.is_err() {
        // The first error is the one to tell.
        let _ = server.kill();
        let _ = server.wait();
    }
    ready
}

fn wait_ready(server: &mut Child) -> Result<()> {
    let mut stdout = server.stdout.take().context("the shim server has no stdout")?;
    let timeout = PollTimeout::try_from(READY_DEADLINE).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
    ensure!(
        poll(&mut fds, timeout).context("wait for the shim server")? > 0,
        "the shim server was not ready within {READY_DEADLINE:?}"
    );
    let mut byte = [0];
    let n_read = stdout.read(&mut byte).context("wait for the shim server")?;
    // Its own words are on stderr, which it shares with us until it is ready.
    ensure!(n_read == 1 && byte[0] == READY, "the shim server did not come up");
    Ok(())
}

/// Reads what containerd sends; nothing when started by hand.
pub(crate) fn read_stdin() -> Result<Vec<u8>> {
    let stdin = io::stdin();
    let mut input = Vec::new();
    if !stdin.is_terminal() {
        stdin
            .lock()
            .take(MAX_INPUT_BYTES)
            .read_to_end(&mut input)
            .context("read stdin")?;
    }
    Ok(input)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(id: &str, namespace: &str) -> BootstrapParams {
        BootstrapParams {
            instance_id: id.into(),
            namespace: namespace.into(),
            containerd_ttrpc_address: "/run/c.ttrpc".into(),
            ..Default::default()
        }
    }

    #[test]
    fn parameters_for_this_shim_are_the_new_protocol() {
        let input = params("a", "moby").write_to_bytes().unwrap();
        assert!(matches!(detect(&input, "a", "moby").unwrap(), Request::Params(_)));
    }

    #[test]
    fn parameters_for_another_shim_are_refused() {
        let input = params("b", "moby").write_to_bytes().unwrap();
        assert!(detect(&input, "a", "moby").is_err());
    }

    #[test]
    fn runtime_options_and_nothing_are_the_old_protocol() {
        assert_eq!(detect(b"", "a", "moby").unwrap(), Request::Options(None));
        let any = Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: vec![0x32, 1, b'x'],
            ..Default::default()
        };
        let input = any.write_to_bytes().unwrap();
        assert_eq!(detect(&input, "a", "moby").unwrap(), Request::Options(Some(any)));
    }

    #[test]
    fn noise_is_an_error() {
        assert!(detect(b"\xff\xff\xff", "a", "moby").is_err());
    }

    #[test]
    fn old_daemons_are_told_version_2_in_json() {
        let reply = reply(&Request::Options(None), "unix:///s").unwrap();
        let reply: serde_json::Value = serde_json::from_slice(&reply).unwrap();
        assert_eq!(reply["version"], 2);
        assert_eq!(reply["address"], "unix:///s");
    }

    #[test]
    fn a_pod_annotation_names_the_group() {
        let directory = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(directory.path());
        let write = |text: &str| fs::write(bundle.join("config.json"), text).unwrap();
        write(r#"{"ociVersion":"1.0.2","annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#);
        assert_eq!(group(&bundle, "a").unwrap(), "pod");
        write(r#"{"ociVersion":"1.0.2"}"#);
        assert_eq!(group(&bundle, "a").unwrap(), "a");
    }
}
