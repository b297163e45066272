//! Images of one layer, as an engine keeps them: what an archive is when it lies in an engine and not in a file.
//!
//! Layers are streamed in and out, and held nowhere whole. What is in them, the engine is not asked and does not care.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;

use super::{EngineError, Source};
use crate::archive::compress::Compression;

/// An image that is to be made.
#[derive(Clone, Debug)]
pub struct NewImage {
    /// containerd's namespace; Docker has none.
    pub namespace: String,
    /// What it is called; no image may be called so yet.
    pub name: String,
    /// What is noted on it: annotations, or Docker's labels. Letters, digits and `._-/:@` only.
    pub notes: BTreeMap<&'static str, String>,
    /// That of the notes which no other image has.
    pub mark: &'static str,
}

/// Its layer.
pub struct NewLayer {
    /// The packed bytes. If they are cut short they end with an error.
    pub bytes: Source,
    /// How they are packed.
    pub compression: Compression,
    /// The sha256 of what is packed, `sha256:…`: set before the bytes come to their end. Not needed if they are not packed.
    pub diff_id: Arc<OnceLock<String>>,
}

/// What is found under an image's name.
pub enum Layer {
    /// No image is called so.
    Absent,
    /// An image of another number of layers than one.
    NotOne(usize),
    /// The bytes of its only layer, packed or not. To be read by a thread that may wait.
    Here(Box<dyn Read + Send>),
}

/// Asks an engine for its images. Every call has a deadline of its own inside.
#[async_trait]
pub trait ImageStore: Send + Sync {
    /// Whether layers stay packed as they come; where they do not, packing them is in vain.
    fn keeps_packed(&self) -> bool;

    /// Whether an image is called so, or why none can be.
    async fn has(&self, namespace: &str, name: &str) -> Result<bool, EngineError>;

    /// Makes an image. It is stored whole and has its name when this returns; on `Err` none has, unless only the engine's answer
    /// was lost.
    async fn make(&self, image: &NewImage, layer: NewLayer) -> Result<(), EngineError>;

    /// Removes what `make` has made; absent is fine, and another image of that name stays.
    async fn unmake(&self, image: &NewImage) -> Result<(), EngineError>;

    /// Opens the only layer of an image. `namespace` is containerd's, if not `default`.
    async fn layer(&self, namespace: Option<&str>, name: &str) -> Result<Layer, EngineError>;
}

/// Whether `reference` may stand in a request's path: letters, digits and the separators of image names.
pub fn is_well_formed(reference: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte);
    reference.starts_with(|first: char| first.is_ascii_alphanumeric())
        && reference.bytes().all(fits)
        && !reference.contains("//")
        && !reference.split('/').any(|part| matches!(part, "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_leave_its_place_in_a_path_is_not_asked_for() {
        for name in [
            "../../containers/x",
            "a/../b",
            "a?b",
            "a b",
            "/a",
            "a//b",
            "a%2fb",
            ".",
        ] {
            assert!(!is_well_formed(name), "{name}");
        }
        assert!(is_well_formed("registry.example:5000/a_b/c-d:1.2@sha256:00ff"));
    }
}
