//! The mover: the protocol between two hosts, the agent and its engines.

pub mod ca;
pub mod config;
pub mod engine;
pub mod tls;
