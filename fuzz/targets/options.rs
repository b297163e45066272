//! Runtime options of a Create, in every type that is about: `[which type][message]`.
#![no_main]
#![allow(dead_code)]

#[path = "../../shim/src/error.rs"]
mod error;
#[path = "../../shim/src/options.rs"]
mod options;

use containerd_shim::api::CreateTaskRequest;
use containerd_shim::protos::protobuf::Message;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
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

/// What is understood means the same when the stock type says it.
fn check(any: &Any) {
    let Ok(decoded) = options::decode(Some(any)) else {
        return;
    };
    assert!(
        !any.type_url.starts_with("some.other"),
        "an unknown type was taken"
    );
    let settings = options::runc_settings(&decoded, "moby");
    let again = Any {
        type_url: TYPES[0].to_owned(),
        value: decoded.write_to_bytes().expect("options can be written"),
        ..Default::default()
    };
    let again = options::decode(Some(&again)).expect("what was decoded can be decoded again");
    let again = options::runc_settings(&again, "moby");
    assert_eq!(format!("{settings:?}"), format!("{again:?}"));
}
