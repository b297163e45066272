//! Moves between two hosts that exist only in memory: fake engines and shims around the real runners.

mod archives;
mod blows;
mod fake;
mod fake_images;
mod fake_volumes;
mod faults;
mod model;
mod pages;
mod plans;
mod volumes;
mod world;

/// An offer of a container, as a source makes it.
pub(crate) fn offer() -> crate::message::Offer {
    crate::message::Offer {
        container: fake::container(),
        options: crate::options::MoveOptions::default(),
        memory_bytes: 0,
        files_bytes: 0,
        volumes: Vec::new(),
        image_bytes: 0,
        security_profile: None,
        source: crate::checks::facts::Facts::default(),
    }
}
