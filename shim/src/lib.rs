//! What other programs need to talk to the shim: the messages and the client of Godwit's own service.
//!
//! The shim itself is the binary `containerd-shim-godwit-v2`.

/// Messages, client and server of the service in `proto/godwit.proto`.
pub mod api {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::pedantic,
        clippy::unwrap_used,
        rust_2018_idioms,
        unused_imports
    )]
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}
