//! An archive as an image of containerd's: its packed bytes are the layer, as they come; a configuration and a manifest are put
//! beside it.
//!
//! A lease keeps all three from the garbage collector until the image, which is named last, refers to them. Nothing is unpacked.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use protobuf::MessageField;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_util::io::SyncIoBridge;

use super::calls::Namespace;
use super::grpc::broken;
use super::image::{self, Descriptor, Document, Image};
use super::transfer::{Lease, export_blob};
use super::{Containerd, DEFAULT_NAMESPACE, content, proto};
use crate::archive::compress::Compression;
use crate::engine::EngineError;
use crate::engine::image_store::{ImageStore, Layer, NewImage, NewLayer, is_well_formed};

const CONFIGURATION: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[async_trait]
impl ImageStore for Containerd {
    fn keeps_packed(&self) -> bool {
        true
    }

    async fn has(&self, namespace: &str, name: &str) -> Result<bool, EngineError> {
        if !is_well_formed(name) {
            return Err(broken(&format!("image {name:?}"), "no image is called so".into()));
        }
        Ok(self.namespace(namespace)?.image(name).await?.is_some())
    }

    async fn make(&self, image: &NewImage, layer: NewLayer) -> Result<(), EngineError> {
        let namespace = self.namespace(&image.namespace)?;
        let lease = Lease::called(namespace, lease_of(image)).await?;
        let made = make(namespace.leased(&lease.id), image, layer).await;
        lease.end(namespace).await;
        made
    }

    async fn unmake(&self, image: &NewImage) -> Result<(), EngineError> {
        let namespace = self.namespace(&image.namespace)?;
        if let Some(found) = namespace.image(&image.name).await?
            && found.labels.get(image.mark) == image.notes.get(image.mark)
        {
            namespace.delete_image(&image.name).await?;
        }
        // What a containerd that died meanwhile could not be told.
        let lease = lease_of(image);
        namespace.abort_blob(&content::layer_of(&lease)).await?;
        namespace.delete_lease(&lease).await
    }

    async fn layer(&self, namespace: Option<&str>, name: &str) -> Result<Layer, EngineError> {
        let called = namespace.unwrap_or(DEFAULT_NAMESPACE);
        let namespace = self.namespace(called)?;
        let Some(found) = namespace.image(name).await? else {
            return Ok(Layer::Absent);
        };
        let target = Descriptor::of(&found.target);
        let image = Image::read(namespace, &target).await?;
        let image = image.ok_or_else(|| image::unusable(&target, "it is not whole in the content store"))?;
        match image.layers.as_slice() {
            [layer] => {
                let layer = export_blob(Arc::clone(&self.client), called, layer.clone());
                Ok(Layer::Here(Box::new(SyncIoBridge::new(layer))))
            }
            layers => Ok(Layer::NotOne(layers.len())),
        }
    }
}

/// The lease that keeps an image while it is made: found again by whoever is to remove it.
fn lease_of(image: &NewImage) -> String {
    let mark = image.notes.get(image.mark);
    format!("godwit-{}", mark.map_or("", String::as_str))
}

async fn make(namespace: Namespace<'_>, image: &NewImage, mut layer: NewLayer) -> Result<(), EngineError> {
    let media_type = match layer.compression {
        Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression::None => "application/vnd.oci.image.layer.v1.tar",
    };
    let blob = content::take_in(namespace, media_type, &mut layer.bytes).await?;
    let diff_id = match layer.compression {
        Compression::None => Some(&blob.digest),
        _ => layer.diff_id.get(),
    };
    let diff_id = diff_id.ok_or_else(|| image::unusable(&blob, "nobody has said what it is unpacked"))?;
    let created = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    let configuration = json!({
        "created": created,
        "architecture": image::architecture(),
        "os": image::OS,
        "config": { "Labels": image.notes },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        "history": [{ "created": created, "created_by": "godwit export" }],
    });
    let configuration = Document::new(CONFIGURATION, &configuration);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": configuration.descriptor,
        "layers": [blob],
        "annotations": image.notes,
    });
    let manifest = Document::new(MANIFEST, &manifest);
    for document in [&configuration, &manifest] {
        content::keep(namespace, document).await?;
    }
    let mark = image.notes.get(image.mark).cloned().unwrap_or_default();
    // Refused if the name was taken meanwhile.
    namespace
        .create_image(proto::Image {
            name: image.name.clone(),
            labels: HashMap::from([(image.mark.to_owned(), mark)]),
            target: MessageField::some(manifest.descriptor.message()),
            ..Default::default()
        })
        .await
}
