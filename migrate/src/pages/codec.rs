//! Pages to records and back: zeros left out, compression where the link is slower than the processor.
//!
//! Records of many pages are made for a stream that goes unasked; a page that a task waits for is never compressed. What
//! comes from a peer is unpacked into a buffer of the size that its checked header says, and into no other.

use std::io;

use godwit_runtime::pages::wire::{Header, Kind, MAX_PAGES, PAGE_BYTES};
use serde::{Deserialize, Serialize};

/// Fastest level: at the others zstd is slower than most links.
const ZSTD_LEVEL: i32 = 1;

/// How pages are packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Packing {
    /// As they are.
    #[default]
    None,
    /// As LZ4 blocks.
    Lz4,
    /// As zstd frames.
    Zstd,
}

/// Appends the records of `content`, pages of `task` from `address` on, to `out`.
pub fn pack(task: u32, address: u64, content: &[u8], packing: Packing, out: &mut Vec<u8>) -> io::Result<()> {
    let mut at = 0;
    while at < content.len() {
        let is_zero = page_is_zero(&content[at..at + PAGE_BYTES]);
        let mut end = at + PAGE_BYTES;
        while end < content.len() && page_is_zero(&content[end..end + PAGE_BYTES]) == is_zero {
            end += PAGE_BYTES;
        }
        let header = Header::bare(
            Kind::Zero,
            task,
            address + at as u64,
            ((end - at) / PAGE_BYTES) as u32,
        );
        if is_zero {
            out.extend(header.to_bytes());
        } else {
            pack_run(header, &content[at..end], packing, out)?;
        }
        at = end;
    }
    Ok(())
}

fn pack_run(header: Header, content: &[u8], packing: Packing, out: &mut Vec<u8>) -> io::Result<()> {
    let (kind, packed) = match packing {
        Packing::None => (Kind::Raw, None),
        Packing::Lz4 => (Kind::Lz4, Some(lz4_flex::block::compress(content))),
        Packing::Zstd => (Kind::Zstd, Some(zstd::bulk::compress(content, ZSTD_LEVEL)?)),
    };
    let (kind, bytes) = match &packed {
        Some(packed) if packed.len() < content.len() => (kind, packed.as_slice()),
        _ => (Kind::Raw, content),
    };
    let header = Header {
        kind,
        length: bytes.len() as u32,
        ..header
    };
    out.extend(header.to_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

/// Unpacks the content of a record into `pages`; returns the header of what it is then, raw or zero.
pub fn unpack(header: Header, content: &[u8], pages: &mut Vec<u8>) -> io::Result<Header> {
    let size = header.pages as usize * PAGE_BYTES;
    debug_assert!(header.pages <= MAX_PAGES);
    pages.resize(size, 0);
    let unpacked = match header.kind {
        Kind::Lz4 => lz4_flex::block::decompress_into(content, pages).map_err(io::Error::other)?,
        Kind::Zstd => zstd::bulk::decompress_to_buffer(content, pages)?,
        kind => {
            return Err(io::Error::other(format!(
                "a record of kind {kind:?} is not packed"
            )));
        }
    };
    if unpacked != size {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{size} bytes of pages were packed as {unpacked}"),
        ));
    }
    Ok(Header {
        kind: Kind::Raw,
        length: size as u32,
        ..header
    })
}

fn page_is_zero(page: &[u8]) -> bool {
    // In words, which the compiler turns into vectors; a page that is not zero shows that in its first words.
    page.chunks_exact(16)
        .all(|word| u128::from_ne_bytes(word.try_into().unwrap_or([1; 16])) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn unpack_all(mut bytes: &[u8], size: usize) -> Vec<u8> {
        let mut content = vec![0xaa; size];
        let mut pages = Vec::new();
        while let Some(header) = Header::read(&mut bytes).unwrap() {
            let (body, rest) = bytes.split_at(header.length as usize);
            let at = header.address as usize;
            let target = &mut content[at..at + header.pages as usize * PAGE_BYTES];
            match header.kind {
                Kind::Raw => target.copy_from_slice(body),
                Kind::Zero => target.fill(0),
                _ => {
                    assert_eq!(unpack(header, body, &mut pages).unwrap().kind, Kind::Raw);
                    target.copy_from_slice(&pages);
                }
            }
            bytes = rest;
        }
        content
    }

    proptest! {
        #[test]
        fn pages_come_back_as_they_were(kinds in prop::collection::vec(0..3u8, 1..40), seed in any::<u64>()) {
            let mut state = seed | 1;
            let content: Vec<u8> = kinds.iter().flat_map(|kind| {
                let mut page = vec![0; PAGE_BYTES];
                match kind {
                    0 => {}
                    1 => page.fill(7),
                    _ => page.iter_mut().for_each(|byte| {
                        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        *byte = (state >> 56) as u8;
                    }),
                }
                page
            }).collect();
            for packing in [Packing::None, Packing::Lz4, Packing::Zstd] {
                let mut out = Vec::new();
                pack(1, 0, &content, packing, &mut out).unwrap();
                prop_assert_eq!(&unpack_all(&out, content.len()), &content);
            }
        }

        #[test]
        fn no_content_makes_the_unpacker_panic(content in prop::collection::vec(any::<u8>(), 1..4095), lz4 in any::<bool>()) {
            let header = Header {
                kind: if lz4 { Kind::Lz4 } else { Kind::Zstd },
                task: 1,
                address: 0,
                pages: 1,
                length: content.len() as u32,
            };
            let mut pages = Vec::new();
            let _ = unpack(header, &content, &mut pages);
            prop_assert_eq!(pages.len(), PAGE_BYTES);
        }
    }

    #[test]
    fn a_bomb_does_not_go_off() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], ZSTD_LEVEL).unwrap();
        let header = Header {
            kind: Kind::Zstd,
            task: 1,
            address: 0,
            pages: 1,
            length: bomb.len() as u32,
        };
        let mut pages = Vec::new();
        assert!(unpack(header, &bomb, &mut pages).is_err());
        assert_eq!(pages.len(), PAGE_BYTES);
    }
}
