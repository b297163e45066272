//! What there is in a container, in a checkpoint image and in an archive: processes, memory, open files, sockets, mounts.
//!
//! [`running`] reads a container's `/proc`, [`directory`] an image's files and [`archive`] those in an archive; all end in one
//! [`view::Inspection`], which is printed, drawn ([`picture`]) or given away as JSON. [`judge`] says what would hinder a restore of an image on this host.
//! Nothing is frozen, opened for writing or started here but CRIU and runC for their versions. An image is taken for
//! hostile: what it can make a reader hold is bounded ([`budget`]), and nothing follows it in a circle.

pub mod archive;
mod budget;
pub mod collected;
pub mod directory;
mod files;
mod image;
pub mod judge;
mod memory;
mod mounts;
pub mod picture;
pub mod running;
pub mod treemap;
pub mod view;

pub use image::Image;

#[cfg(test)]
mod tests;
