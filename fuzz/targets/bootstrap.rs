//! What containerd gives to `start` on stdin: parameters (2.3 and later) or runtime options (before that).
#![no_main]
#![allow(dead_code)]

#[path = "../../shim/src/bootstrap.rs"]
mod bootstrap;
#[path = "../../shim/src/create_options.rs"]
mod create_options;
#[path = "../../shim/src/error.rs"]
mod error;

use bootstrap::{Request, detect, reply};
use containerd_shim::protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim::protos::protobuf::Message;
use create_options::CreateOptions;
use libfuzzer_sys::fuzz_target;

const ADDRESS: &str = "unix:///run/containerd/s/0123";

fuzz_target!(|input: &[u8]| {
    check(input, "a", "moby");
    // Parameters count only for the container they name, which is hard to guess.
    if let Ok(params) = BootstrapParams::parse_from_bytes(input) {
        check(input, &params.instance_id, &params.namespace);
    }
});

fn check(input: &[u8], id: &str, namespace: &str) {
    let Ok(request) = detect(input, id, namespace) else {
        return;
    };
    let answer = reply(&request, ADDRESS).expect("every request that is understood has an answer");
    match request {
        Request::Params(params) => {
            assert_eq!(
                (params.instance_id.as_str(), params.namespace.as_str()),
                (id, namespace)
            );
            let answer =
                BootstrapResult::parse_from_bytes(&answer).expect("protobuf is answered by protobuf");
            assert_eq!((answer.address.as_str(), answer.version), (ADDRESS, 3));
            for extension in &params.extensions {
                let _ = CreateOptions::decode(extension.value.as_ref());
            }
        }
        Request::Options(sent) => {
            let answer: serde_json::Value = serde_json::from_slice(&answer).expect("JSON");
            assert_eq!(answer["address"], ADDRESS);
            let _ = CreateOptions::decode(sent.as_ref());
        }
    }
}
