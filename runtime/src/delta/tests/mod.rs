//! Tests of the delta: what a hostile stream may do, and what becomes of real trees on real overlays.
//!
//! The latter need root to mount; without it each says so and passes.

mod acts;
mod description;
mod histories;
mod hostile;
mod overlay;
mod plain;
mod random;
mod tars;
