//! What containerd gives to `start` on stdin: parameters (2.3 and later) or runtime options (before that).
#![no_main]
#![allow(dead_code)]

#[path = "../../shim/src/bootstrap.rs"]
mod bootstrap;
#[path = "../../shim/src/error.rs"]
mod error;
#[path = "../../shim/src/options.rs"]
mod options;

use bootstrap::{Request, detect, reply};
use containerd_shim::protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim::protos::protobuf::Message;
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
                let _ = options::decode(extension.value.as_ref());
            }
        }
        Request::Options(sent) => {
            let answer: serde_json::Value = serde_json::from_slice(&answer).expect("JSON");
            assert_eq!(answer["address"], ADDRESS);
            let _ = options::decode(sent.as_ref());
        }
    }
}
