//! What a request for a checkpoint says, in the two types that are about.
//!
//! containerd and Docker send `containerd.runc.v1.CheckpointOptions` to the stock shim's name, containerd 1.7's client
//! `containerd.linux.runc.CheckpointOptions` to any other.

use std::path::PathBuf;

use containerd_shim::api::CheckpointTaskRequest;
use containerd_shim::protos::protobuf::Message;
use containerd_shim::protos::shim::oci::CheckpointOptions;
use godwit_runtime::options::{CgroupsMode, EmptyNamespaces, Layer, Tcp};

use crate::error::ShimError;

const RUNC_TYPE: &str = "containerd.runc.v1.CheckpointOptions";
const LEGACY_TYPE: &str = "containerd.linux.runc.CheckpointOptions";

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
    if name != RUNC_TYPE && name != LEGACY_TYPE {
        return Err(ShimError::InvalidArgument(format!(
            "checkpoint options of type {name} are not known"
        )));
    }
    let mut options = CheckpointOptions::parse_from_bytes(&any.value)
        .map_err(|error| ShimError::InvalidArgument(format!("options of type {name}: {error}")))?;
    // The legacy message has the same fields under the same numbers, but for the two paths, which are exchanged.
    if name == LEGACY_TYPE {
        std::mem::swap(&mut options.image_path, &mut options.work_path);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    use containerd_shim::protos::protobuf::well_known_types::any::Any;

    fn order(type_url: &str, value: &[u8]) -> Result<CheckpointOrder, ShimError> {
        checkpoint_order(&CheckpointTaskRequest {
            path: "/path".into(),
            options: Some(Any {
                type_url: type_url.into(),
                value: value.into(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        })
    }

    #[test]
    fn the_two_types_have_their_paths_under_exchanged_numbers() {
        // Field 8 is "/8", field 9 is "/9".
        let bytes = [0x42, 2, b'/', b'8', 0x4a, 2, b'/', b'9'];
        let stock = order(RUNC_TYPE, &bytes).unwrap();
        assert_eq!(stock.image_dir, PathBuf::from("/8"));
        assert_eq!(stock.work_dir, Some(PathBuf::from("/9")));
        let legacy = order(LEGACY_TYPE, &bytes).unwrap();
        assert_eq!(legacy.image_dir, PathBuf::from("/9"));
        assert_eq!(legacy.work_dir, Some(PathBuf::from("/8")));
    }

    #[test]
    fn an_unknown_type_is_refused() {
        assert!(matches!(
            order("some.CheckpointOptions", b""),
            Err(ShimError::InvalidArgument(_))
        ));
    }

    fn ordered(type_url: &str, options: &CheckpointOptions) -> Result<CheckpointOrder, ShimError> {
        order(type_url, &options.write_to_bytes().unwrap())
    }

    #[test]
    fn every_field_of_a_checkpoint_request_is_heard_under_both_names() {
        let mut options = CheckpointOptions {
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
        for name in [RUNC_TYPE, LEGACY_TYPE] {
            let order = ordered(name, &options).unwrap();
            assert_eq!(order.image_dir, PathBuf::from("/image"));
            assert_eq!(order.work_dir, Some(PathBuf::from("/logs")));
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
            // The older message has the two paths under each other's numbers.
            std::mem::swap(&mut options.image_path, &mut options.work_path);
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
        assert_eq!((order.layer, order.image_dir), (heard, "/path".into()));
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
