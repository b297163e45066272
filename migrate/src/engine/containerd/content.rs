//! Blobs in and out of containerd's content store.
//!
//! containerd checks digests: a blob that is not what its name says is never committed. Nothing is held in memory whole
//! but documents, whose length is bounded.

use std::collections::HashMap;
use std::time::Duration;

use protobuf::EnumOrUnknown;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::calls::{Namespace, absent_is_none};
use super::grpc::{ALREADY_EXISTS, Answers, broken};
use super::image::{Descriptor, Document, MAX_DOCUMENT_BYTES, unusable};
use super::proto::{BlobPart, BlobWritten, ReadBlob, WriteAction, WriteBlob};
use crate::engine::EngineError;

const READ: &str = "content.v1.Content/Read";
const WRITE: &str = "content.v1.Content/Write";

/// One message of a blob: large enough to be cheap, small enough to hold in memory per move.
const PART_BYTES: usize = 512 << 10;

/// containerd reads from and writes to a local disk: longer silence means that it hangs. The commit of a large blob
/// waits for the disk.
const SILENCE: Duration = Duration::from_secs(120);

/// A document's text; `None` if it is not in the store.
pub(super) async fn document(
    namespace: Namespace<'_>,
    descriptor: &Descriptor,
) -> Result<Option<Vec<u8>>, EngineError> {
    if descriptor.size > MAX_DOCUMENT_BYTES {
        return Err(unusable(descriptor, "a document of it is too long"));
    }
    // Not all versions refuse to begin to read what is not there.
    if namespace.blob(&descriptor.digest).await?.is_none() {
        return Ok(None);
    }
    let mut text = Vec::new();
    absent_is_none(copy_out(namespace, descriptor, &mut text).await).map(|found| found.map(|()| text))
}

/// Copies a blob into `out`; exactly as much as its descriptor says.
pub(super) async fn copy_out(
    namespace: Namespace<'_>,
    descriptor: &Descriptor,
    out: &mut (impl AsyncWrite + Unpin),
) -> Result<(), EngineError> {
    let request = ReadBlob {
        digest: descriptor.digest.clone(),
        ..Default::default()
    };
    let mut answers = in_time(READ, namespace.client.ask(namespace.scope, READ, &request)).await?;
    let mut rest = descriptor.size;
    while let Some(part) = in_time(READ, answers.next::<BlobPart>()).await? {
        rest = rest
            .checked_sub(part.data.len() as u64)
            .ok_or_else(|| unusable(descriptor, "a blob is longer than it should be"))?;
        out.write_all(&part.data)
            .await
            .map_err(|error| broken(READ, error.to_string()))?;
    }
    if rest == 0 {
        Ok(())
    } else {
        Err(unusable(descriptor, "a blob is shorter than it should be"))
    }
}

/// Takes a document in, under the labels that keep what it refers to.
pub(super) async fn keep(namespace: Namespace<'_>, document: &Document) -> Result<(), EngineError> {
    let labels = document.gc_labels()?;
    copy_in(
        namespace,
        &document.descriptor,
        labels,
        &mut document.text.as_slice(),
    )
    .await
}

/// Takes a blob out of `input`, which holds at least its length. `input` is read to the blob's end in any case.
pub(super) async fn copy_in(
    namespace: Namespace<'_>,
    descriptor: &Descriptor,
    labels: HashMap<String, String>,
    input: &mut (impl AsyncRead + Unpin),
) -> Result<(), EngineError> {
    let mut blob = input.take(descriptor.size);
    // The name of the unfinished blob is this move's own, so that two moves of one image do not write into one.
    let lease = namespace.scope.lease.unwrap_or("godwit");
    let name = format!("{lease}-{}", descriptor.digest);
    match write(namespace, &name, Some(descriptor), &labels, &mut blob).await {
        // From an earlier image, or another namespace's: the blob is the same, its labels may not be.
        Err(EngineError::Refused {
            status: ALREADY_EXISTS,
            ..
        }) => {
            let mut sink = tokio::io::sink();
            tokio::io::copy(&mut blob, &mut sink)
                .await
                .map_err(|error| broken(WRITE, error.to_string()))?;
            namespace.label_blob(&descriptor.digest, labels).await
        }
        other => other.map(drop),
    }
}

/// What a layer is called while it is taken in under this lease.
pub(super) fn layer_of(lease: &str) -> String {
    format!("{lease}-layer")
}

/// Takes in all of `input` as a blob whose length and digest come out of it, which are returned. On `Err` nothing of it stays.
pub(super) async fn take_in(
    namespace: Namespace<'_>,
    media_type: &str,
    input: &mut (impl AsyncRead + Unpin),
) -> Result<Descriptor, EngineError> {
    let name = layer_of(namespace.scope.lease.unwrap_or("godwit"));
    match write(namespace, &name, None, &HashMap::new(), input).await {
        Ok((digest, size)) => Ok(Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
        }),
        Err(error) => {
            if let Err(left) = namespace.abort_blob(&name).await {
                log::warn!("{left}: containerd removes the unfinished blob by itself");
            }
            Err(error)
        }
    }
}

/// Writes a blob under the name `name`, and commits it: as long as `expected` says and with its digest, or as long as `blob` is.
/// Returns its digest and length.
async fn write(
    namespace: Namespace<'_>,
    name: &str,
    expected: Option<&Descriptor>,
    labels: &HashMap<String, String>,
    blob: &mut (impl AsyncRead + Unpin),
) -> Result<(String, u64), EngineError> {
    let size = expected.map_or(i64::MAX, |descriptor| descriptor.message().size);
    let request = |action, offset: i64, data: Vec<u8>| WriteBlob {
        action: EnumOrUnknown::new(action),
        ref_: name.to_owned(),
        // Nothing is checked against these where they are not known.
        total: expected.map_or(0, |_| size),
        expected: expected.map_or_else(String::new, |descriptor| descriptor.digest.clone()),
        offset,
        data,
        ..Default::default()
    };
    let first = request(WriteAction::STAT, 0, Vec::new());
    let (requests, mut answers) =
        in_time(WRITE, namespace.client.converse(namespace.scope, WRITE, &first)).await?;
    answered(&mut answers).await?;
    let mut offset = 0;
    while offset < size {
        let mut part = Vec::with_capacity(PART_BYTES);
        let read = (&mut *blob).take(PART_BYTES as u64).read_to_end(&mut part).await;
        let length = read.map_err(|error| broken(WRITE, error.to_string()))?;
        if length == 0 {
            match expected {
                Some(descriptor) => return Err(unusable(descriptor, "a blob was cut short on its way")),
                None => break,
            }
        }
        requests
            .send(WRITE, &request(WriteAction::WRITE, offset, part))
            .await?;
        answered(&mut answers).await?;
        offset += length as i64;
    }
    let mut commit = request(WriteAction::COMMIT, offset, Vec::new());
    commit.labels.clone_from(labels);
    requests.send(WRITE, &commit).await?;
    drop(requests);
    let mut digest = String::new();
    // It answers the last message twice. What it says after that is whether all went well.
    while let Some(written) = in_time(WRITE, answers.next::<BlobWritten>()).await? {
        digest = written.digest;
    }
    Ok((digest, offset.unsigned_abs()))
}

async fn answered(answers: &mut Answers) -> Result<(), EngineError> {
    match in_time(WRITE, answers.next::<BlobWritten>()).await? {
        Some(_) => Ok(()),
        None => Err(broken(WRITE, "it ended before the blob did".into())),
    }
}

async fn in_time<T>(
    method: &str,
    answer: impl Future<Output = Result<T, EngineError>>,
) -> Result<T, EngineError> {
    timeout(SILENCE, answer).await.unwrap_or_else(|_| {
        Err(broken(
            method,
            format!("no answer within {} s", SILENCE.as_secs()),
        ))
    })
}
