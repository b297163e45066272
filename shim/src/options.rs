//! The runtime options an engine sends along, in the three types that are about.
//!
//! containerd and Docker send `containerd.runc.v1.Options` to the stock shim's name; containerd 1.7's client sends
//! `containerd.linux.runc.CreateOptions` to any other; `runtimeoptions.v1.Options` is the generic wrapper. Unknown
//! types are refused, because ignoring them would run a container otherwise than was asked.

use std::path::{Path, PathBuf};

use containerd_shim::api::CheckpointTaskRequest;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::protobuf::{CodedInputStream, Message};
use containerd_shim::protos::shim::oci::{CheckpointOptions, Options};
use godwit_runtime::options::{CgroupsMode, EmptyNamespaces, Layer, Tcp};
use godwit_runtime::runc::RuncSettings;

use crate::error::ShimError;

/// Where runC's state lies if the options name no other place.
const RUNC_ROOT: &str = "/run/containerd/runc";

/// A checkpoint by the task API.
#[derive(Clone, Debug)]
pub(crate) struct CheckpointOrder {
    /// Where the image goes.
    pub(crate) image_dir: PathBuf,
    /// Where CRIU's logs go, if the request says so.
    pub(crate) work_dir: Option<PathBuf>,
    /// What the request asks for.
    pub(crate) layer: Layer,
}

/// Decodes the options of a request; none are the defaults.
pub(crate) fn decode(options: Option<&Any>) -> Result<Options, ShimError> {
    let Some(options) = options.filter(|options| !options.type_url.is_empty()) else {
        return Ok(Options::default());
    };
    let name = options.type_url.rsplit('/').next().unwrap_or_default();
    let decoded = match name {
        "containerd.runc.v1.Options" => Options::parse_from_bytes(&options.value),
        "containerd.linux.runc.CreateOptions" => decode_legacy(&options.value),
        "runtimeoptions.v1.Options" if options.value.is_empty() => Ok(Options::default()),
        "runtimeoptions.v1.Options" => return decode_generic(&options.value),
        _ => {
            return Err(ShimError::InvalidArgument(format!(
                "options of type {name} are not known"
            )));
        }
    };
    decoded.map_err(|error| ShimError::InvalidArgument(format!("options of type {name}: {error}")))
}

/// How runC is called under these options for a container of `namespace`.
pub(crate) fn runc_settings(options: &Options, namespace: &str) -> RuncSettings {
    let or = |value: &str, default: &str| {
        if value.is_empty() {
            default.to_owned()
        } else {
            value.to_owned()
        }
    };
    RuncSettings {
        binary: or(&options.binary_name, "runc").into(),
        root: Path::new(&or(&options.root, RUNC_ROOT)).join(namespace),
        systemd_cgroup: options.systemd_cgroup,
    }
}

/// What a checkpoint request asks for, by its path and its options.
///
/// Without options nothing is asked for: Docker sends none under a runtime name that is not its own.
pub(crate) fn checkpoint_order(request: &CheckpointTaskRequest) -> Result<CheckpointOrder, ShimError> {
    let mut order = CheckpointOrder {
        image_dir: PathBuf::from(&request.path),
        work_dir: None,
        layer: Layer::default(),
    };
    let Some(any) = request
        .options
        .as_ref()
        .filter(|options| !options.type_url.is_empty())
    else {
        return Ok(order);
    };
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    // The legacy message has the same fields under the same numbers, up to the work path.
    if !matches!(
        name,
        "containerd.runc.v1.CheckpointOptions" | "containerd.linux.runc.CheckpointOptions"
    ) {
        return Err(ShimError::InvalidArgument(format!(
            "checkpoint options of type {name} are not known"
        )));
    }
    let options = CheckpointOptions::parse_from_bytes(&any.value)
        .map_err(|error| ShimError::InvalidArgument(format!("options of type {name}: {error}")))?;
    // A flag that is not set cannot be told from one that was left out; only `exit` has no third meaning.
    order.layer = Layer {
        leave_running: Some(!options.exit),
        tcp: options.open_tcp.then_some(Tcp::Established),
        external_unix_sockets: options.external_unix_sockets.then_some(true),
        shell_job: options.terminal.then_some(true),
        file_locks: options.file_locks.then_some(true),
        empty_namespaces: empty_namespaces(&options.empty_namespaces)?,
        cgroups_mode: cgroups_mode(&options.cgroups_mode)?,
        ..Layer::default()
    };
    if !options.image_path.is_empty() {
        order.image_dir = PathBuf::from(options.image_path);
    }
    order.work_dir = (!options.work_path.is_empty()).then(|| PathBuf::from(options.work_path));
    Ok(order)
}

/// runC can empty no namespace but that of the network.
fn empty_namespaces(names: &[String]) -> Result<Option<EmptyNamespaces>, ShimError> {
    match names.iter().find(|name| *name != "network") {
        Some(other) => Err(ShimError::InvalidArgument(format!(
            "empty_namespaces: {other} cannot be left empty, only network can"
        ))),
        None => Ok((!names.is_empty()).then_some(EmptyNamespaces::Network)),
    }
}

fn cgroups_mode(name: &str) -> Result<Option<CgroupsMode>, ShimError> {
    match name {
        "" => Ok(None),
        "ignore" => Ok(Some(CgroupsMode::Ignore)),
        "soft" => Ok(Some(CgroupsMode::Soft)),
        "full" => Ok(Some(CgroupsMode::Full)),
        "strict" => Ok(Some(CgroupsMode::Strict)),
        _ => Err(ShimError::InvalidArgument(format!(
            "cgroups_mode: {name} is none of ignore, soft, full and strict"
        ))),
    }
}

/// `runtimeoptions.v1.Options`: fields type_url 1, config_path 2, config_body 3.
fn decode_generic(bytes: &[u8]) -> Result<Options, ShimError> {
    let bad =
        |error| ShimError::InvalidArgument(format!("options of type runtimeoptions.v1.Options: {error}"));
    let mut stream = CodedInputStream::from_bytes(bytes);
    let (mut type_url, mut path, mut body) = (String::new(), String::new(), Vec::new());
    while let Some(tag) = stream.read_raw_tag_or_eof().map_err(bad)? {
        match tag >> 3 {
            1 => type_url = stream.read_string().map_err(bad)?,
            2 => path = stream.read_string().map_err(bad)?,
            3 => body = stream.read_bytes().map_err(bad)?,
            _ => skip(&mut stream, tag).map_err(bad)?,
        }
    }
    let body = Any {
        type_url,
        value: body,
        ..Default::default()
    };
    if !path.is_empty() || (body.type_url.is_empty() && !body.value.is_empty()) {
        return Err(ShimError::InvalidArgument(
            "a configuration file for the runtime is not supported: give its options as containerd.runc.v1.Options"
                .to_owned(),
        ));
    }
    if body.type_url.ends_with("runtimeoptions.v1.Options") {
        return Ok(Options::default());
    }
    decode(Some(&body))
}

/// The fields of `containerd.linux.runc.CreateOptions` that have a like today; those for CRIU are in the checkpoint path.
fn decode_legacy(bytes: &[u8]) -> containerd_shim::protos::protobuf::Result<Options> {
    let mut options = Options::default();
    let mut stream = CodedInputStream::from_bytes(bytes);
    while let Some(tag) = stream.read_raw_tag_or_eof()? {
        match tag >> 3 {
            1 => options.no_pivot_root = stream.read_bool()?,
            8 => options.no_new_keyring = stream.read_bool()?,
            9 => options.shim_cgroup = stream.read_string()?,
            10 => options.io_uid = stream.read_uint32()?,
            11 => options.io_gid = stream.read_uint32()?,
            12 => options.criu_work_path = stream.read_string()?,
            13 => options.criu_image_path = stream.read_string()?,
            _ => skip(&mut stream, tag)?,
        }
    }
    Ok(options)
}

fn skip(stream: &mut CodedInputStream<'_>, tag: u32) -> containerd_shim::protos::protobuf::Result<()> {
    match tag & 7 {
        0 => stream.read_raw_varint64().map(drop),
        1 => stream.skip_raw_bytes(8),
        5 => stream.skip_raw_bytes(4),
        _ => stream.read_bytes().map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, value: &[u8]) -> Any {
        Any {
            type_url: type_url.into(),
            value: value.into(),
            ..Default::default()
        }
    }

    #[test]
    fn the_stock_type_is_taken_with_and_without_a_host() {
        let sent = Options {
            binary_name: "/bin/crun".into(),
            root: "/var/run/docker/runtime-runc".into(),
            ..Default::default()
        };
        let bytes = sent.write_to_bytes().unwrap();
        for url in [
            "containerd.runc.v1.Options",
            "type.googleapis.com/containerd.runc.v1.Options",
        ] {
            let settings = runc_settings(&decode(Some(&any(url, &bytes))).unwrap(), "moby");
            assert_eq!(settings.binary, Path::new("/bin/crun"));
            assert_eq!(settings.root, Path::new("/var/run/docker/runtime-runc/moby"));
        }
    }

    #[test]
    fn no_options_are_the_defaults() {
        let settings = runc_settings(&decode(None).unwrap(), "default");
        assert_eq!(settings.binary, Path::new("runc"));
        assert_eq!(settings.root, Path::new("/run/containerd/runc/default"));
        assert!(!settings.systemd_cgroup);
    }

    #[test]
    fn the_legacy_type_keeps_owner_and_paths_and_skips_what_it_does_not_know() {
        // open_tcp = true, shim_cgroup = "/s", io_uid = 1000, criu_image_path = "/i"
        let bytes = [
            0x10, 1, 0x4a, 2, b'/', b's', 0x50, 0xe8, 0x07, 0x6a, 2, b'/', b'i',
        ];
        let options = decode(Some(&any("containerd.linux.runc.CreateOptions", &bytes))).unwrap();
        assert_eq!(options.shim_cgroup, "/s");
        assert_eq!(options.io_uid, 1000);
        assert_eq!(options.criu_image_path, "/i");
    }

    #[test]
    fn unknown_types_and_configuration_files_are_refused() {
        assert!(decode(Some(&any("some.other.Options", b""))).is_err());
        assert!(decode(Some(&any("runtimeoptions.v1.Options", b"\x12\x02/x"))).is_err());
        assert!(decode(Some(&any("runtimeoptions.v1.Options", b""))).is_ok());
    }

    fn ordered(type_url: &str, options: &CheckpointOptions) -> Result<CheckpointOrder, ShimError> {
        checkpoint_order(&CheckpointTaskRequest {
            path: "/engine".into(),
            options: Some(any(type_url, &options.write_to_bytes().unwrap())).into(),
            ..Default::default()
        })
    }

    #[test]
    fn every_field_of_a_checkpoint_request_is_heard_under_both_names() {
        let options = CheckpointOptions {
            exit: true,
            open_tcp: true,
            external_unix_sockets: true,
            terminal: true,
            file_locks: true,
            empty_namespaces: vec!["network".into()],
            cgroups_mode: "soft".into(),
            image_path: "/image".into(),
            work_path: "/logs".into(),
            ..Default::default()
        };
        for name in [
            "containerd.runc.v1.CheckpointOptions",
            "containerd.linux.runc.CheckpointOptions",
        ] {
            let order = ordered(name, &options).unwrap();
            assert_eq!(order.image_dir, Path::new("/image"));
            assert_eq!(order.work_dir.as_deref(), Some(Path::new("/logs")));
            let heard = Layer {
                leave_running: Some(false),
                tcp: Some(Tcp::Established),
                external_unix_sockets: Some(true),
                shell_job: Some(true),
                file_locks: Some(true),
                empty_namespaces: Some(EmptyNamespaces::Network),
                cgroups_mode: Some(CgroupsMode::Soft),
                ..Layer::default()
            };
            assert_eq!(order.layer, heard);
        }
    }

    #[test]
    fn a_request_leaves_to_the_others_what_it_does_not_set() {
        let order = ordered(
            "containerd.runc.v1.CheckpointOptions",
            &CheckpointOptions::default(),
        )
        .unwrap();
        let heard = Layer {
            leave_running: Some(true),
            ..Layer::default()
        };
        assert_eq!((order.layer, order.image_dir), (heard, "/engine".into()));
    }

    #[test]
    fn what_a_checkpoint_cannot_honour_is_refused_by_name() {
        let refused = |options: CheckpointOptions| {
            ordered("containerd.runc.v1.CheckpointOptions", &options)
                .unwrap_err()
                .to_string()
        };
        let error = refused(CheckpointOptions {
            empty_namespaces: vec!["network".into(), "ipc".into()],
            ..Default::default()
        });
        assert!(error.contains("ipc"), "{error}");
        let error = refused(CheckpointOptions {
            cgroups_mode: "hard".into(),
            ..Default::default()
        });
        assert!(error.contains("hard"), "{error}");
        assert!(ordered("some.other.CheckpointOptions", &CheckpointOptions::default()).is_err());
    }
}
