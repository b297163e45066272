//! Memory that travels apart from its checkpoint image: before its container (pre-copy) and after it (post-copy).
//!
//! Before: at the source [`tracker`] sees what a running container has written to, and [`rounds`] says what is to go and
//! when that has paid; the destination keeps it in a [`store`]. After: at the source [`memory`] finds the pages that a lazy
//! dump has left in the frozen tasks, [`schedule`] says which are to go next, and [`serve`] sends them: all of them once,
//! unasked, and any of them when a task there waits for it. At the destination [`relay`] stands between these, the store
//! and the pager that fills the pages in, with what has come [`ahead`] of it. Neither end decides anything about the container.

mod ahead;
pub(crate) mod chooser;
pub mod codec;
mod given;
pub mod memory;
mod neighbours;
pub mod portion;
pub mod relay;
pub mod rounds;
pub mod schedule;
pub mod serve;
pub mod store;
pub mod tracker;
mod turn;
