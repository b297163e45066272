//! Memory that travels apart from its checkpoint image: pre-copy and post-copy.
//!
//! A lazy dump writes of the pages that a process can do without for a while only where they are. At the source they
//! stay in the frozen tasks, where the agent reads them; at the destination the tasks start without them, and the
//! pager answers their faults. Between the two the pages travel as [`wire`] records, over TLS between agents and over
//! a unix socket to the pager. What is to travel before the dump is found by [`soft_dirty`] while the container runs. Nothing
//! here decides who owns a container.

mod context;
pub mod extents;
mod intake;
pub(crate) mod keeper;
pub mod layout;
pub mod left_out;
mod link;
pub mod pager;
mod ranges;
pub mod soft_dirty;
pub mod standstill;
mod tasks;
#[cfg(test)]
mod tests;
pub mod whole;
pub mod wire;

pub use crate::sys::unacknowledged;
