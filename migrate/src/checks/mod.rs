//! What a host and a container must have before a move; each check answers with findings that name the remedy.
//!
//! One file holds one idea. Nothing here changes anything, and nothing decides: a plan or a doctor puts the findings
//! together. What the engine must have is the engine's own answer (`Engine::objections`).

pub mod connections;
pub mod container;
pub mod cpu;
pub mod facts;
pub mod namespaces;
pub mod objects;
pub mod proc;
pub mod room;
pub mod security;
pub mod system;
pub mod tools;
