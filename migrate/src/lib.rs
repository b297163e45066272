//! The mover: the protocol between two hosts, the agent and its engines.

pub mod bulk;
pub mod clock;
pub mod engine;
pub mod failure;
pub mod frame;
pub mod image_stream;
pub mod link;
pub mod message;
pub mod phase;
pub mod places;
pub mod progress;
pub mod shim;
