//! Runtime options of a Create, in every type that is about: `[which type][message]`.
#![no_main]
#![allow(dead_code)]

#[path = "../../shim/src/create_options.rs"]
mod create_options;
#[path = "../../shim/src/error.rs"]
mod error;

use std::path::PathBuf;

use containerd_shim::api::CreateTaskRequest;
use containerd_shim::protos::protobuf::Message;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::shim::oci::Options;
use create_options::CreateOptions;
use godwit_runtime::options::Layer;
use libfuzzer_sys::fuzz_target;

const TYPES: [&str; 5] = [
    "containerd.runc.v1.Options",
    "type.googleapis.com/containerd.runc.v1.Options",
    "containerd.linux.runc.CreateOptions",
    "runtimeoptions.v1.Options",
    "some.other.Options",
];

fuzz_target!(|input: &[u8]| {
    let Some((which, value)) = input.split_first() else {
        return;
    };
    if let Some(name) = TYPES.get(usize::from(*which)) {
        check(&Any {
            type_url: (*name).to_owned(),
            value: value.to_vec(),
            ..Default::default()
        });
    } else if let Ok(request) = CreateTaskRequest::parse_from_bytes(value)
        && let Some(any) = request.options.as_ref()
    {
        check(any);
    }
});

/// What is understood means the same when the stock type says it, but for what only the legacy type can say.
fn check(any: &Any) {
    let Ok(decoded) = CreateOptions::decode(Some(any)) else {
        return;
    };
    assert!(
        !any.type_url.starts_with("some.other"),
        "an unknown type was taken"
    );
    let text = |path: &Option<PathBuf>| {
        path.as_ref()
            .map(|path| path.display().to_string())
            .unwrap_or_default()
    };
    let stock = Options {
        no_pivot_root: decoded.no_pivot_root,
        no_new_keyring: decoded.no_new_keyring,
        shim_cgroup: decoded.shim_cgroup.clone(),
        io_uid: decoded.io_uid,
        io_gid: decoded.io_gid,
        binary_name: decoded.binary_name.clone(),
        root: decoded.root.clone(),
        systemd_cgroup: decoded.systemd_cgroup,
        criu_image_path: text(&decoded.criu_image_path),
        criu_work_path: text(&decoded.criu_work_path),
        ..Default::default()
    };
    let again = Any {
        type_url: TYPES[0].to_owned(),
        value: stock.write_to_bytes().expect("options can be written"),
        ..Default::default()
    };
    let again = CreateOptions::decode(Some(&again)).expect("what was decoded can be decoded again");
    let restore = Layer::default();
    assert_eq!(CreateOptions { restore, ..decoded }, again);
}
