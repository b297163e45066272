//! The mover: the protocol between two hosts, the agent and its engines.

pub mod engine;
