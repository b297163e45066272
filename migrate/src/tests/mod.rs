//! Moves between two hosts that exist only in memory: fake engines and shims around the real runners.

mod blows;
mod fake;
mod faults;
mod plans;
mod world;
