//! One container on one host: its bundle, runC, CRIU, cgroups, checkpoint image and file-system delta.
//!
//! This crate knows no RPC, no engine and no network peer; the shim and the mover are built on it.

pub mod bundle;
pub mod cgroup;
pub mod console;
pub mod control;
pub mod oom;
pub mod reaper;
pub mod runc;
mod sys;
pub mod ticket;
pub mod verdict;
