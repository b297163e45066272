//! The mover: the protocol between two hosts, the agent and its engines.

pub mod agent;
pub mod bandwidth;
pub mod bulk;
pub mod ca;
pub mod checks;
pub mod clock;
pub mod config;
pub mod container_log;
pub mod deadlines;
pub mod destination;
pub mod doctor;
pub mod drain;
pub mod engine;
pub mod failure;
pub mod finding;
pub mod frame;
pub mod history;
pub mod host;
pub mod image_stream;
pub mod inspect;
pub mod journal;
pub mod lease;
pub mod link;
pub mod made;
pub mod message;
pub mod metrics;
pub mod mode;
pub mod options;
pub mod pages;
pub mod phase;
pub mod places;
pub mod plan;
pub mod precopy;
pub mod progress;
pub mod protocol;
pub mod recovery;
pub mod run;
pub mod shim;
pub mod source;
pub mod tcp;
pub mod timeline;
pub mod tls;
pub mod volumes;

#[cfg(test)]
mod tests;
