//! One container on one host: its bundle, runC, CRIU, cgroups, checkpoint image and file-system delta.
//!
//! This crate knows no RPC, no engine and no network peer; the shim and the mover are built on it.

mod announce;
pub mod bundle;
pub mod cgroup;
pub mod checkpoint;
pub mod connections;
pub mod console;
pub mod control;
pub mod criu;
pub mod delta;
pub mod descriptor;
pub mod freezer;
pub mod gate;
pub mod handover;
pub mod hold;
pub mod image;
pub mod image_file;
mod inventory;
pub mod lens;
pub mod oom;
pub mod options;
pub mod pages;
pub mod processes;
pub mod reaper;
pub mod release;
pub mod runc;
pub mod spec;
mod sys;
pub mod tar;
pub mod ticket;
pub mod verdict;
