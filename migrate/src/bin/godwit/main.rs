//! The command line and the agent.
fn main() {}
