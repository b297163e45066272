//! An image in a content store: its index, manifest and configuration, and what follows from them.
//!
//! It reads and computes. What an image is called, and how it gets from one store into another, stands in `transfer`.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::calls::Namespace;
use super::content;
use super::grpc::broken;
use super::proto;
use crate::engine::EngineError;

/// Documents of an image; those of the largest have some hundred KiB.
pub(super) const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

/// Manifests that an index lists, and layers that a manifest has: far more than any does, and bounded.
const MAX_LISTED: usize = 1024;

/// The only operating system of ours, as images call it.
pub(super) const OS: &str = "linux";

/// A blob as an OCI document names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
}

/// A document of an image with its text.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub(super) descriptor: Descriptor,
    pub(super) text: Vec<u8>,
}

/// One image, for this machine's architecture.
#[derive(Clone, Debug)]
pub(super) struct Image {
    /// Index (if there is one), manifest, configuration.
    pub(super) documents: Vec<Document>,
    /// From the lowest.
    pub(super) layers: Vec<Descriptor>,
    /// What each layer is, unpacked.
    pub(super) diff_ids: Vec<String>,
}

impl Descriptor {
    pub(super) fn of(descriptor: &proto::Descriptor) -> Self {
        Self {
            media_type: descriptor.media_type.clone(),
            digest: descriptor.digest.clone(),
            size: u64::try_from(descriptor.size).unwrap_or(0),
        }
    }

    pub(super) fn message(&self) -> proto::Descriptor {
        proto::Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.clone(),
            size: i64::try_from(self.size).unwrap_or(i64::MAX),
            ..Default::default()
        }
    }

    /// The hexadecimal digits of a digest by sha256, the only kind that containerd makes.
    pub(super) fn sha256(&self) -> Option<&str> {
        self.digest
            .strip_prefix("sha256:")
            .filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
    }
}

impl Image {
    /// Reads the documents of the image `target`; `None` if one of them is not in the store.
    pub(super) async fn read(
        namespace: Namespace<'_>,
        target: &Descriptor,
    ) -> Result<Option<Self>, EngineError> {
        let mut documents = Vec::new();
        let mut next = target.clone();
        loop {
            let Some(text) = content::document(namespace, &next).await? else {
                return Ok(None);
            };
            let document = Document {
                descriptor: next,
                text,
            };
            let listed = document.children()?;
            let is_index = document.is_index();
            documents.push(document);
            if is_index && documents.len() == 1 {
                match first_here(namespace, listed).await? {
                    Some(manifest) => next = manifest,
                    None => return Ok(None),
                }
                continue;
            }
            let mut layers = listed;
            if layers.is_empty() {
                return Err(unusable(target, "it has no manifest"));
            }
            let configuration = layers.remove(0);
            let Some(text) = content::document(namespace, &configuration).await? else {
                return Ok(None);
            };
            let diff_ids = diff_ids(&text).filter(|ids| ids.len() == layers.len());
            let diff_ids =
                diff_ids.ok_or_else(|| unusable(target, "its layers are not those of its configuration"))?;
            documents.push(Document {
                descriptor: configuration,
                text,
            });
            return Ok(Some(Self {
                documents,
                layers,
                diff_ids,
            }));
        }
    }

    /// The name of each layer's snapshot: it stands for the layer and all below it.
    pub(super) fn chain_ids(&self) -> Vec<String> {
        chain_ids(&self.diff_ids)
    }

    pub(super) fn configuration(&self) -> Option<&Descriptor> {
        self.documents.last().map(|document| &document.descriptor)
    }
}

impl Document {
    /// A document with this text.
    pub(super) fn new(media_type: &str, text: &Value) -> Self {
        let text = text.to_string().into_bytes();
        let descriptor = Descriptor {
            media_type: media_type.into(),
            digest: sha256(&text),
            size: text.len() as u64,
        };
        Self { descriptor, text }
    }

    fn is_index(&self) -> bool {
        is_index(&self.descriptor)
    }

    /// What it refers to: of an index the manifests for this architecture, of a manifest its configuration and then
    /// its layers, of anything else nothing.
    pub(super) fn children(&self) -> Result<Vec<Descriptor>, EngineError> {
        let broken = |error: serde_json::Error| unusable(&self.descriptor, &error.to_string());
        let media_type = self.descriptor.media_type.as_str();
        let children: Vec<Descriptor> = if self.is_index() {
            let index: Index = serde_json::from_slice(&self.text).map_err(broken)?;
            index
                .manifests
                .into_iter()
                .filter(|entry| entry.platform.as_ref().is_none_or(is_ours))
                .map(|entry| entry.descriptor)
                .collect()
        } else if media_type.ends_with("image.manifest.v1+json") || media_type.ends_with("manifest.v2+json") {
            let manifest: Manifest = serde_json::from_slice(&self.text).map_err(broken)?;
            std::iter::once(manifest.config).chain(manifest.layers).collect()
        } else {
            Vec::new()
        };
        if children.len() > MAX_LISTED || children.iter().any(|child| child.sha256().is_none()) {
            return Err(unusable(
                &self.descriptor,
                "it lists too much, or digests of an unknown kind",
            ));
        }
        Ok(children)
    }

    /// What containerd's garbage collector has to know of it.
    pub(super) fn gc_labels(&self) -> Result<HashMap<String, String>, EngineError> {
        let is_index = self.is_index();
        let children = self.children()?.into_iter().enumerate();
        let label = |number: usize| match number {
            _ if is_index => format!("containerd.io/gc.ref.content.m.{number}"),
            0 => "containerd.io/gc.ref.content.config".to_owned(),
            layer => format!("containerd.io/gc.ref.content.l.{}", layer - 1),
        };
        Ok(children
            .map(|(number, child)| (label(number), child.digest))
            .collect())
    }
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<IndexEntry>,
}

#[derive(Deserialize)]
struct IndexEntry {
    #[serde(flatten)]
    descriptor: Descriptor,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// Whether a document lists manifests.
pub(super) fn is_index(descriptor: &Descriptor) -> bool {
    let media_type = descriptor.media_type.as_str();
    media_type.ends_with("image.index.v1+json") || media_type.ends_with("manifest.list.v2+json")
}

/// Whether a blob is a document, and not a layer.
pub(super) fn is_document(descriptor: &Descriptor) -> bool {
    descriptor.media_type.ends_with("+json")
}

fn is_ours(platform: &Platform) -> bool {
    platform.os == OS && platform.architecture == architecture()
}

/// This machine's architecture, as images call it.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Of several manifests that would do, the one that is in the store: nobody fetches the others.
async fn first_here(
    namespace: Namespace<'_>,
    manifests: Vec<Descriptor>,
) -> Result<Option<Descriptor>, EngineError> {
    for manifest in manifests {
        if namespace.blob(&manifest.digest).await?.is_some() {
            return Ok(Some(manifest));
        }
    }
    Ok(None)
}

/// The digests of the unpacked layers, out of an image's configuration.
pub(super) fn diff_ids(configuration: &[u8]) -> Option<Vec<String>> {
    let configuration: Value = serde_json::from_slice(configuration).ok()?;
    let listed = configuration["rootfs"]["diff_ids"].as_array()?;
    listed.iter().map(|id| Some(id.as_str()?.to_owned())).collect()
}

/// OCI image specification, "Layer ChainID": the first is the layer's own digest, each further one that of the text
/// `BELOW LAYER`.
pub(super) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => diff_id.clone(),
            Some(below) => sha256(format!("{below} {diff_id}").as_bytes()),
        });
    }
    chain
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest
        .iter()
        .fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

pub(super) fn unusable(descriptor: &Descriptor, reason: &str) -> EngineError {
    broken(&format!("image {}", descriptor.digest), reason.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(digit: char) -> String {
        format!("sha256:{}", digit.to_string().repeat(64))
    }

    fn blob(digit: char) -> Value {
        serde_json::json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(digit), "size": 1 })
    }

    #[test]
    fn a_chain_is_that_of_the_specification() {
        // Computed by sha256sum.
        let [first, second] = [
            "sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
            "sha256:3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d",
        ];
        let both = "sha256:51c0c8ace48498d6f5fee6b0592cc06f2da0f3cbe09c5a34a97dce85c3889676";
        let chain = chain_ids(&[first.to_owned(), second.to_owned()]);
        assert_eq!(chain, [first, both]);
        assert!(chain_ids(&[]).is_empty());
    }

    #[test]
    fn of_an_index_only_what_this_machine_can_run_is_followed() {
        let entry = |digit, os: &str, architecture: &str| {
            let mut entry = blob(digit);
            entry["platform"] = serde_json::json!({ "os": os, "architecture": architecture });
            entry
        };
        let ours = if cfg!(target_arch = "aarch64") {
            "arm64"
        } else {
            "amd64"
        };
        let manifests = [
            entry('1', "unknown", "unknown"),
            entry('2', "linux", "s390x"),
            entry('3', "linux", ours),
        ];
        let index = Document::new(
            "application/vnd.oci.image.index.v1+json",
            &serde_json::json!({ "manifests": manifests }),
        );
        let children = index.children().unwrap();
        assert_eq!(children.len(), 1);
        assert_eq!(children[0].digest, digest('3'));
    }

    #[test]
    fn a_manifest_keeps_its_configuration_and_layers_from_the_collector() {
        let manifest = Document::new(
            "application/vnd.docker.distribution.manifest.v2+json",
            &serde_json::json!({ "config": blob('c'), "layers": [blob('1'), blob('2')] }),
        );
        let labels = manifest.gc_labels().unwrap();
        assert_eq!(labels["containerd.io/gc.ref.content.config"], digest('c'));
        assert_eq!(labels["containerd.io/gc.ref.content.l.1"], digest('2'));
    }

    #[test]
    fn a_digest_that_is_no_digest_is_refused() {
        let mut layer = blob('1');
        layer["digest"] = "sha256:../../etc/passwd".into();
        let manifest = Document::new(
            "application/vnd.oci.image.manifest.v1+json",
            &serde_json::json!({ "config": blob('c'), "layers": [layer] }),
        );
        assert!(manifest.children().is_err());
    }
}
