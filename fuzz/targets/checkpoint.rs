//! Options of a checkpoint from each of their places: `[0][request]`, `[1][annotations, a line each]`, else
//! `[any][shim.toml]`.
#![no_main]
#![allow(dead_code)]

#[path = "../../shim/src/error.rs"]
mod error;
#[path = "../../shim/src/options.rs"]
mod options;

use std::collections::HashMap;

use containerd_shim::api::CheckpointTaskRequest;
use containerd_shim::protos::protobuf::Message;
use godwit_runtime::options::{ANNOTATION_PREFIX, CheckpointOptions, HostLayers, Layer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((place, rest)) = input.split_first() else {
        return;
    };
    let layer = match place {
        0 => request(rest),
        1 => annotations(rest),
        _ => std::str::from_utf8(rest)
            .ok()
            .and_then(|text| HostLayers::parse(text).ok())
            .map(|host| host.checkpoint),
    };
    if let Some(layer) = layer {
        let resolved = CheckpointOptions::resolve(&[&layer]);
        assert_eq!(resolved.leave_running, layer.leave_running.unwrap_or(false));
    }
});

fn request(input: &[u8]) -> Option<Layer> {
    let request = CheckpointTaskRequest::parse_from_bytes(input).ok()?;
    options::checkpoint_order(&request).ok().map(|order| order.layer)
}

fn annotations(input: &[u8]) -> Option<Layer> {
    let text = std::str::from_utf8(input).ok()?;
    let all: HashMap<String, String> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (format!("{ANNOTATION_PREFIX}{name}"), value.to_owned()))
        .collect();
    let layer = Layer::from_annotations(&all).ok()?;
    assert!(
        all.is_empty() || layer != Layer::default(),
        "an annotation was passed over in silence"
    );
    Some(layer)
}
