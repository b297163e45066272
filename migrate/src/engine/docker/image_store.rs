//! An archive as an image of Docker's: imported as one layer, and found again in what `docker save` would give.
//!
//! Docker unpacks a layer as it comes, and makes the image when all of it has come. It stages what it gives out on its own disk.

use std::io::{self, Cursor, Read};
use std::time::Duration;

use async_trait::async_trait;
use godwit_runtime::tar;
use hyper::Method;
use tokio::task::spawn_blocking;
use tokio_util::io::SyncIoBridge;

use super::http::broken;
use super::{CHANGE_DEADLINE, Docker, image, text};
use crate::engine::EngineError;
use crate::engine::image_store::{ImageStore, Layer, NewImage, NewLayer};

/// A container is held no longer for its archive.
const MAKE_DEADLINE: Duration = Duration::from_secs(3600);

/// Where blobs lie in what Docker gives out (OCI image layout).
const BLOBS: &[u8] = b"blobs/";

#[async_trait]
impl ImageStore for Docker {
    fn keeps_packed(&self) -> bool {
        false
    }

    async fn has(&self, _namespace: &str, name: &str) -> Result<bool, EngineError> {
        Ok(self.image(&whole_name(name)?).await?.is_some())
    }

    async fn make(&self, image: &NewImage, layer: NewLayer) -> Result<(), EngineError> {
        let name = whole_name(&image.name)?;
        let (repository, tag) = name.rsplit_once(':').unwrap_or((&name, "latest"));
        let mut path = format!("/images/create?fromSrc=-&repo={repository}&tag={tag}");
        for (key, value) in &image.notes {
            path += &format!("&changes=LABEL%20{key}={value}");
        }
        let answer = self.client.upload(&path, layer.bytes, MAKE_DEADLINE).await?;
        image::check_loaded(&answer).map_err(|reason| broken("POST /images/create", reason))
    }

    async fn unmake(&self, image: &NewImage) -> Result<(), EngineError> {
        let name = whole_name(&image.name)?;
        let Some(found) = self.image(&name).await? else {
            return Ok(());
        };
        if image.notes.get(image.mark).map(String::as_str) != found["Config"]["Labels"][image.mark].as_str() {
            return Ok(());
        }
        let path = format!("/images/{name}");
        let removed = self
            .client
            .call(Method::DELETE, &path, None, CHANGE_DEADLINE)
            .await;
        super::absent_is_none(removed).map(drop)
    }

    async fn layer(&self, _namespace: Option<&str>, name: &str) -> Result<Layer, EngineError> {
        let Some(found) = self.image(name).await? else {
            return Ok(Layer::Absent);
        };
        let layers = found["RootFS"]["Layers"].as_array().map_or(0, Vec::len);
        if layers != 1 {
            return Ok(Layer::NotOne(layers));
        }
        let request = format!("/images/{}/get", text(&found["Id"]));
        let saved = self.client.download(&request).await?;
        let failed = |error: io::Error| broken(&format!("GET {request}"), error.to_string());
        let bridge = SyncIoBridge::new(saved);
        let layer = spawn_blocking(move || layer_in(bridge)).await;
        let layer = layer.map_err(io::Error::other).flatten().map_err(failed)?;
        Ok(Layer::Here(layer))
    }
}

/// The name with its tag.
fn whole_name(name: &str) -> Result<String, EngineError> {
    image::portable_name(name).ok_or_else(|| {
        let reason = "an image cannot be called so: name a repository, and a tag behind a colon";
        broken(&format!("image {name:?}"), reason.into())
    })
}

/// The layer in an image that has one. Its name is not known beforehand where Docker keeps layers packed, but all other blobs
/// are documents: JSON objects.
fn layer_in(saved: impl Read + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
    let mut archive = tar::Reader::new(saved);
    while let Some(member) = archive.next_member()? {
        let mut first = [0];
        let is_blob = member.path.starts_with(BLOBS) && member.kind == tar::Kind::File && member.size > 0;
        if is_blob && archive.read(&mut first)? == 1 && first != *b"{" {
            return Ok(Box::new(Cursor::new(first).chain(archive)));
        }
    }
    Err(io::Error::other("there is no layer in it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Docker would give out of an image with these blobs.
    fn saved(blobs: &[&[u8]]) -> Vec<u8> {
        let mut archive = ::tar::Builder::new(Vec::new());
        let mut add = |path: &str, kind, content: &[u8]| {
            let mut header = ::tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(content.len() as u64);
            archive.append_data(&mut header, path, content).unwrap();
        };
        add("blobs/", ::tar::EntryType::Directory, b"");
        for (number, blob) in blobs.iter().enumerate() {
            add(&format!("blobs/sha256/{number}"), ::tar::EntryType::Regular, blob);
        }
        add("index.json", ::tar::EntryType::Regular, b"[]");
        archive.into_inner().unwrap()
    }

    #[test]
    fn the_layer_is_the_blob_that_is_no_document_wherever_it_stands() {
        for blobs in [
            [b"layer".as_slice(), b"{}", b"{ }"],
            [b"{}", b"layer", b"{ }"],
            [b"{}", b"{ }", b"layer"],
        ] {
            let mut found = Vec::new();
            let mut layer = layer_in(Cursor::new(saved(&blobs))).unwrap();
            layer.read_to_end(&mut found).unwrap();
            assert_eq!(found, b"layer");
        }
        assert!(layer_in(Cursor::new(saved(&[b"{}", b""]))).is_err());
        let mut cut = saved(&[b"{}", b"layer"]);
        cut.truncate(512 * 3 + 100);
        assert!(layer_in(Cursor::new(cut)).is_err());
    }
}
