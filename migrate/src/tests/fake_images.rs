//! The images of a fake engine that are archives: their bytes, by name.

use std::io::Cursor;

use async_trait::async_trait;
use tokio::io::AsyncReadExt;

use super::fake::Fake;
use crate::engine::EngineError;
use crate::engine::image_store::{ImageStore, Layer, NewImage, NewLayer};

/// One image.
#[derive(Clone, Debug)]
pub(super) struct FakeImage {
    pub(super) mark: String,
    pub(super) layer: Vec<u8>,
}

#[async_trait]
impl ImageStore for Fake {
    fn keeps_packed(&self) -> bool {
        true
    }

    async fn has(&self, _namespace: &str, name: &str) -> Result<bool, EngineError> {
        self.engine_call("image_has")?;
        Ok(self.archives.lock().unwrap().contains_key(name))
    }

    async fn make(&self, image: &NewImage, mut layer: NewLayer) -> Result<(), EngineError> {
        self.engine_call("image_make")?;
        let mut bytes = Vec::new();
        let read = layer.bytes.read_to_end(&mut bytes).await;
        read.map_err(|error| EngineError::Broken {
            engine: "fake",
            request: "image_make".into(),
            reason: error.to_string(),
        })?;
        assert!(layer.diff_id.get().is_some_and(|id| id.starts_with("sha256:")));
        let made = FakeImage {
            mark: image.notes[image.mark].clone(),
            layer: bytes,
        };
        self.archives.lock().unwrap().insert(image.name.clone(), made);
        // It has made it, and says otherwise, or nothing.
        self.engine_call("image_answer")?;
        if self.engine_call("image_silence").is_err() {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    async fn unmake(&self, image: &NewImage) -> Result<(), EngineError> {
        let mut archives = self.archives.lock().unwrap();
        if archives
            .get(&image.name)
            .is_some_and(|found| found.mark == image.notes[image.mark])
        {
            archives.remove(&image.name);
        }
        Ok(())
    }

    async fn layer(&self, _namespace: Option<&str>, name: &str) -> Result<Layer, EngineError> {
        Ok(match self.archives.lock().unwrap().get(name) {
            Some(image) => Layer::Here(Box::new(Cursor::new(image.layer.clone()))),
            None => Layer::Absent,
        })
    }
}
