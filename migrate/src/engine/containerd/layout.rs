//! An image as a stream: a tar archive in OCI's image layout, whose blobs come in the order in which they are named.
//!
//! `index.json` comes first, so that the reader knows of each blob what it is before it comes; one that nobody named is
//! refused. Other tools can read what is written here; what others write is not what is read here.

use std::io;

use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::image::{Descriptor, MAX_DOCUMENT_BYTES};

const BLOCK_BYTES: usize = 512;
const INDEX: &str = "index.json";
const MARKER: &str = "oci-layout";
const MARKER_TEXT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// Begins an archive whose image is `target`.
pub(super) async fn begin(out: &mut (impl AsyncWrite + Unpin), target: &Descriptor) -> io::Result<()> {
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [target],
    });
    small(out, MARKER, MARKER_TEXT).await?;
    small(out, INDEX, index.to_string().as_bytes()).await
}

/// The head of a blob; exactly its bytes must follow, and then `pad`.
pub(super) async fn blob_head(out: &mut (impl AsyncWrite + Unpin), blob: &Descriptor) -> io::Result<()> {
    let hex = blob
        .sha256()
        .ok_or_else(|| io::Error::other("a digest of an unknown kind"))?;
    head(out, &format!("blobs/sha256/{hex}"), blob.size).await
}

/// Fills a blob's last block.
pub(super) async fn pad(out: &mut (impl AsyncWrite + Unpin), size: u64) -> io::Result<()> {
    out.write_all(&[0; BLOCK_BYTES][..padding(size)]).await
}

/// Ends an archive.
pub(super) async fn end(out: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK_BYTES]).await?;
    out.shutdown().await
}

/// Reads an archive up to its index; returns what image it holds.
pub(super) async fn read_target(input: &mut (impl AsyncRead + Unpin)) -> io::Result<Descriptor> {
    let marker = read_small(input, MARKER).await?;
    if marker != MARKER_TEXT {
        return Err(io::Error::other("it is no OCI image layout of version 1.0.0"));
    }
    let index: serde_json::Value = serde_json::from_slice(&read_small(input, INDEX).await?)?;
    let target: Descriptor = serde_json::from_value(index["manifests"][0].clone())?;
    if target.sha256().is_none() {
        return Err(io::Error::other("its image has a digest of an unknown kind"));
    }
    Ok(target)
}

/// Reads the head of the next blob: its digest and size; `None` at the archive's end.
pub(super) async fn next_blob(input: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<(String, u64)>> {
    let Some((path, size)) = read_head(input).await? else {
        return Ok(None);
    };
    let hex = path
        .strip_prefix("blobs/sha256/")
        .ok_or_else(|| io::Error::other(format!("{path:?} is no blob")))?;
    Ok(Some((format!("sha256:{hex}"), size)))
}

/// Reads over what fills a blob's last block.
pub(super) async fn skip_padding(input: &mut (impl AsyncRead + Unpin), size: u64) -> io::Result<()> {
    let mut block = [0; BLOCK_BYTES];
    input.read_exact(&mut block[..padding(size)]).await.map(drop)
}

fn padding(size: u64) -> usize {
    let over = (size % BLOCK_BYTES as u64) as usize;
    if over == 0 { 0 } else { BLOCK_BYTES - over }
}

async fn small(out: &mut (impl AsyncWrite + Unpin), path: &str, text: &[u8]) -> io::Result<()> {
    head(out, path, text.len() as u64).await?;
    out.write_all(text).await?;
    pad(out, text.len() as u64).await
}

async fn head(out: &mut (impl AsyncWrite + Unpin), path: &str, size: u64) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_path(path)?;
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(size);
    header.set_cksum();
    out.write_all(header.as_bytes()).await
}

async fn read_small(input: &mut (impl AsyncRead + Unpin), expected: &str) -> io::Result<Vec<u8>> {
    let (path, size) = read_head(input)
        .await?
        .ok_or_else(|| io::Error::other(format!("it has no {expected}")))?;
    if path != expected || size > MAX_DOCUMENT_BYTES {
        return Err(io::Error::other(format!(
            "{path:?} stands where {expected} should"
        )));
    }
    let mut text = Vec::new();
    input.take(size).read_to_end(&mut text).await?;
    skip_padding(input, size).await?;
    Ok(text)
}

async fn read_head(input: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<(String, u64)>> {
    let mut block = [0; BLOCK_BYTES];
    input.read_exact(&mut block).await?;
    if block == [0; BLOCK_BYTES] {
        return Ok(None);
    }
    let header = tar::Header::from_byte_slice(&block);
    let mut summed = header.clone();
    summed.set_cksum();
    if summed.cksum()? != header.cksum()? || header.entry_type() != tar::EntryType::Regular {
        return Err(io::Error::other(
            "a header of the archive is broken, or of no file",
        ));
    }
    let path = header.path()?.to_string_lossy().into_owned();
    Ok(Some((path, header.size()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(size: u64) -> Descriptor {
        Descriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            digest: format!("sha256:{}", "7".repeat(64)),
            size,
        }
    }

    async fn archive(blob: &[u8]) -> Vec<u8> {
        let (mut out, descriptor) = (Vec::new(), descriptor(blob.len() as u64));
        begin(&mut out, &descriptor).await.unwrap();
        blob_head(&mut out, &descriptor).await.unwrap();
        out.extend(blob);
        pad(&mut out, descriptor.size).await.unwrap();
        end(&mut out).await.unwrap();
        out
    }

    #[tokio::test]
    async fn what_is_written_is_read_again_and_by_tar_too() {
        for size in [0, 1, 511, 512, 513] {
            let blob = vec![7; size];
            let written = archive(&blob).await;
            let mut input = written.as_slice();
            let target = read_target(&mut input).await.unwrap();
            assert_eq!(target, descriptor(size as u64));
            let (digest, length) = next_blob(&mut input).await.unwrap().unwrap();
            assert_eq!((digest, length), (target.digest, size as u64));
            input = &input[size..];
            skip_padding(&mut input, length).await.unwrap();
            assert_eq!(next_blob(&mut input).await.unwrap(), None);

            let mut by_tar = tar::Archive::new(written.as_slice());
            assert_eq!(by_tar.entries().unwrap().count(), 3);
        }
    }

    #[tokio::test]
    async fn an_archive_cut_short_or_spoilt_is_noticed() {
        let whole = archive(b"{}").await;
        for length in (0..5 * BLOCK_BYTES).step_by(100) {
            let mut input = &whole[..length];
            let read = async {
                read_target(&mut input).await?;
                next_blob(&mut input).await
            };
            assert!(read.await.is_err(), "cut at {length}");
        }
        let mut spoilt = whole;
        spoilt[4 * BLOCK_BYTES + 130] ^= 1;
        let mut input = spoilt.as_slice();
        read_target(&mut input).await.unwrap();
        assert!(next_blob(&mut input).await.is_err());
    }
}
