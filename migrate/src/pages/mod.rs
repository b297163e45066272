//! Post-copy: memory that travels after its container, from tasks that stand still here to tasks that run there.
//!
//! At the source [`memory`] finds the pages that a lazy dump has left in the frozen tasks, [`schedule`] says which are
//! to go next, and [`serve`] sends them: all of them once, unasked, and any of them when a task there waits for it. At
//! the destination [`relay`] stands between those streams and the pager that fills the pages in. Neither end decides
//! anything about the container: that was done before the first page was needed.

mod chooser;
pub mod codec;
pub mod memory;
pub mod relay;
pub mod schedule;
pub mod serve;
mod turn;
