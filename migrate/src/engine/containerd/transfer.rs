//! An image on its way from one containerd into another, and from its content store into snapshots.
//!
//! What comes is kept from the garbage collector by a lease until the image refers to it; a lease that nobody ends
//! expires. Only what the image names is taken, and containerd checks each digest.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncRead, DuplexStream, ReadBuf};
use tokio_util::task::AbortOnDropHandle;

use super::calls::Namespace;
use super::grpc::{ALREADY_EXISTS, Client, broken};
use super::image::{self, Descriptor, Document, Image, unusable};
use super::{SNAPSHOTTER, content, layout, proto};
use crate::engine::{EngineError, Source};
use crate::places::MigrationId;

/// What is read of an image before somebody takes it.
const PIPE_BYTES: usize = 1 << 20;

/// A lease that was not ended by its agent: longer than any image takes, and no hindrance for ever.
const LEASE_TIME: Duration = Duration::from_secs(2 * 3600);

const LEASE: &str = "leases.v1.Leases/Create";
const IMPORT: &str = "taking in an image";

/// Streams an image out.
pub(super) fn export(client: Arc<Client>, namespace: &str, target: Descriptor) -> Source {
    let namespace = namespace.to_owned();
    streamed(async move |mut out| write(Namespace::new(&client, &namespace), &target, &mut out).await)
}

/// Streams one blob out.
pub(super) fn export_blob(client: Arc<Client>, namespace: &str, blob: Descriptor) -> Source {
    let namespace = namespace.to_owned();
    streamed(async move |mut out| {
        content::copy_out(Namespace::new(&client, &namespace), &blob, &mut out).await
    })
}

fn streamed<W, F>(write: W) -> Source
where
    W: FnOnce(DuplexStream) -> F,
    F: Future<Output = Result<(), EngineError>> + Send + 'static,
{
    let (out, reader) = tokio::io::duplex(PIPE_BYTES);
    let writing = write(out);
    let writing = tokio::spawn(async move { writing.await.map_err(io::Error::other) });
    Box::new(Export {
        reader,
        writing: Some(AbortOnDropHandle::new(writing)),
    })
}

async fn write(
    namespace: Namespace<'_>,
    target: &Descriptor,
    out: &mut DuplexStream,
) -> Result<(), EngineError> {
    let failed = |error: io::Error| broken("giving out an image", error.to_string());
    let image = Image::read(namespace, target)
        .await?
        .ok_or_else(|| unusable(target, "it is not whole in the content store"))?;
    layout::begin(out, target).await.map_err(failed)?;
    let documents = image.documents.iter().map(|document| &document.descriptor);
    for blob in documents.chain(&image.layers) {
        layout::blob_head(out, blob).await.map_err(failed)?;
        content::copy_out(namespace, blob, out).await?;
        layout::pad(out, blob.size).await.map_err(failed)?;
    }
    layout::end(out).await.map_err(failed)
}

/// What is being read; what fails behind it fails the reader.
struct Export {
    reader: DuplexStream,
    writing: Option<AbortOnDropHandle<io::Result<()>>>,
}

impl AsyncRead for Export {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.reader).poll_read(context, buffer))?;
        if buffer.filled().len() == before
            && let Some(writing) = &mut self.writing
        {
            let ended = ready!(Pin::new(writing).poll(context));
            self.writing = None;
            return Poll::Ready(ended.map_err(io::Error::other)?);
        }
        Poll::Ready(Ok(()))
    }
}

/// Takes in what `export` gave, under `name`; the image is `expected` and unpacked when this returns.
pub(super) async fn import(
    namespace: Namespace<'_>,
    name: &str,
    expected: &str,
    mut stream: Source,
) -> Result<(), EngineError> {
    let lease = Lease::begin(namespace).await?;
    let taken = async {
        let leased = namespace.leased(&lease.id);
        let target = layout::read_target(&mut stream)
            .await
            .map_err(|error| unreadable(&error))?;
        if target.digest != expected {
            return Err(unusable(&target, &format!("it is not {expected}")));
        }
        take_blobs(leased, &target, &mut stream).await?;
        put(leased, name, &target).await?;
        unpack(leased, &lease.id, &target).await.map(drop)
    };
    let outcome = taken.await;
    lease.end(namespace).await;
    outcome
}

fn unreadable(error: &io::Error) -> EngineError {
    broken(IMPORT, error.to_string())
}

/// Takes blobs in, each of which the image or one before it has named.
async fn take_blobs(
    namespace: Namespace<'_>,
    target: &Descriptor,
    stream: &mut Source,
) -> Result<(), EngineError> {
    let mut named = HashMap::from([(target.digest.clone(), target.clone())]);
    while let Some((digest, size)) = layout::next_blob(stream)
        .await
        .map_err(|error| unreadable(&error))?
    {
        let blob = named
            .remove(&digest)
            .filter(|blob| blob.size == size)
            .ok_or_else(|| {
                broken(
                    IMPORT,
                    format!("nobody has named a blob {digest} of {size} bytes"),
                )
            })?;
        if image::is_document(&blob) {
            let mut text = Vec::new();
            let mut input = tokio::io::AsyncReadExt::take(&mut *stream, image::MAX_DOCUMENT_BYTES.min(size));
            tokio::io::AsyncReadExt::read_to_end(&mut input, &mut text)
                .await
                .map_err(|error| unreadable(&error))?;
            let document = Document {
                descriptor: blob,
                text,
            };
            for child in document.children()? {
                named.insert(child.digest.clone(), child);
            }
            content::keep(namespace, &document).await?;
        } else {
            content::copy_in(namespace, &blob, HashMap::new(), stream).await?;
        }
        layout::skip_padding(stream, size)
            .await
            .map_err(|error| unreadable(&error))?;
    }
    Ok(())
}

/// Gives an image a name, unless it has it.
pub(super) async fn put(
    namespace: Namespace<'_>,
    name: &str,
    target: &Descriptor,
) -> Result<(), EngineError> {
    let image = proto::Image {
        name: name.to_owned(),
        target: protobuf::MessageField::some(target.message()),
        ..Default::default()
    };
    match namespace.create_image(image).await {
        Err(EngineError::Refused {
            status: ALREADY_EXISTS,
            ..
        }) => Ok(()),
        other => other,
    }
}

/// Unpacks an image's layers as far as they are not; returns the name of the uppermost.
///
/// `key` begins the names of snapshots on the way. `namespace` must hold a lease: nothing refers to them yet.
pub(super) async fn unpack(
    namespace: Namespace<'_>,
    key: &str,
    target: &Descriptor,
) -> Result<String, EngineError> {
    let image = Image::read(namespace, target)
        .await?
        .ok_or_else(|| unusable(target, "it is not whole in the content store"))?;
    let chain = image.chain_ids();
    let mut below = String::new();
    for ((layer, diff_id), name) in image.layers.iter().zip(&image.diff_ids).zip(chain) {
        if namespace.snapshot(SNAPSHOTTER, &name).await?.is_none() {
            let key = format!("{key}-{name}");
            let mounts = namespace.prepare_snapshot(SNAPSHOTTER, &key, &below).await?;
            let applied = namespace.apply(layer.message(), mounts).await?;
            if applied != *diff_id {
                return Err(unusable(
                    target,
                    &format!("its layer {} is {applied} unpacked", layer.digest),
                ));
            }
            match namespace.commit_snapshot(SNAPSHOTTER, &name, &key).await {
                // Somebody else was quicker; the lease's end lets go of ours.
                Err(EngineError::Refused {
                    status: ALREADY_EXISTS,
                    ..
                }) => {}
                other => other?,
            }
        }
        below = name;
    }
    if let Some(configuration) = image.configuration() {
        let label = format!("containerd.io/gc.ref.snapshot.{SNAPSHOTTER}");
        let labels = HashMap::from([(label, below.clone())]);
        namespace.label_blob(&configuration.digest, labels).await?;
    }
    Ok(below)
}

/// What keeps from the garbage collector what nothing refers to yet.
pub(super) struct Lease {
    pub(super) id: String,
}

impl Lease {
    pub(super) async fn begin(namespace: Namespace<'_>) -> Result<Self, EngineError> {
        let random = MigrationId::random().map_err(|error| broken(LEASE, error.to_string()))?;
        Self::called(namespace, format!("godwit-{random}")).await
    }

    /// The lease of this name.
    pub(super) async fn called(namespace: Namespace<'_>, id: String) -> Result<Self, EngineError> {
        let expires_at = (OffsetDateTime::now_utc() + LEASE_TIME)
            .format(&Rfc3339)
            .map_err(|error| broken(LEASE, error.to_string()))?;
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), expires_at)]);
        namespace.create_lease(&id, labels).await?;
        Ok(Self { id })
    }

    pub(super) async fn end(self, namespace: Namespace<'_>) {
        if let Err(error) = namespace.delete_lease(&self.id).await {
            log::warn!("{error}: it expires by itself");
        }
    }
}
