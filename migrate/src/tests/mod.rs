//! Moves between two hosts that exist only in memory: fake engines and shims around the real runners.

mod blows;
mod fake;
mod fake_volumes;
mod faults;
mod model;
mod pages;
mod plans;
mod volumes;
mod world;
