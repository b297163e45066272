//! Records of pages that are kept before their container comes: what a store has taken in is what it gives out again.
//!
//! The input lacks most of what a header must have, which the target adds: otherwise almost nothing would get past the
//! checks. A record is `[kind][task][place][pages][length]` and `length` bytes, which are repeated where a page wants more.
//! Behind a kind of 255 the rest is a stream as it stands.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use godwit_fuzz::scratch;
use godwit_migrate::pages::codec;
use godwit_migrate::pages::store::Store;
use godwit_runtime::pages::wire::{Header, Kind, PAGE_BYTES};
use libfuzzer_sys::fuzz_target;

/// A page, by its task and its address.
type Place = (u32, u64);

/// Where places begin: low, where programs have their memory, where a file ends, and where addresses do.
const BASES: [u64; 4] = [0, 0x7fff_0000_0000, i64::MAX as u64 - 0x1fff, u64::MAX - 0x1fff];
const BYTES: u64 = PAGE_BYTES as u64;

/// Pages of a record at most, and bytes of a stream as it stands: a record of zeros takes 24 bytes there for 256 pages.
const MAX_PAGES: u8 = 4;
const MAX_RAW_BYTES: usize = 1 << 10;

fuzz_target!(|input: &[u8]| {
    let around = scratch();
    let directory = around.path().join("kept");
    let store = Store::create(&directory).expect("a directory in memory");
    let mut kept: BTreeMap<Place, Vec<u8>> = BTreeMap::new();
    let (mut touched, mut is_complete, mut rest) = (BTreeSet::new(), false, input);
    while let Some((record, behind)) = next_record(rest) {
        rest = behind;
        let header = Header::read(&mut &record[..]).ok().flatten();
        let taken = store.take(&mut record.as_slice());
        let Some(header) = header else {
            assert!(taken.is_err(), "what is no record was taken");
            break;
        };
        let places = (0..u64::from(header.pages)).map(|page| (header.task, header.address + page * BYTES));
        if taken.is_err() {
            // Some of it may have been written.
            places.for_each(|place| {
                kept.remove(&place);
                touched.remove(&place);
            });
            break;
        }
        let pages = content(header, &record[record.len() - header.length as usize..]);
        is_complete |= header.kind == Kind::AllSent;
        for (number, place) in places.enumerate() {
            touched.insert(place);
            match &pages {
                Some(pages) => kept.insert(place, pages[number * PAGE_BYTES..][..PAGE_BYTES].to_vec()),
                None => kept.remove(&place),
            };
        }
    }
    check(&store, &kept, &touched);
    assert_eq!(store.is_complete(), is_complete);
    let again = Store::reopen(&directory)
        .expect("a store of ours")
        .expect("it is there");
    check(&again, &kept, &touched);
    if let Some(stream) = rest.strip_prefix(&[u8::MAX]) {
        let _ = store.take(&mut &stream[..stream.len().min(MAX_RAW_BYTES)]);
    }
    let entries = fs::read_dir(around.path()).expect("a directory in memory");
    assert_eq!(entries.count(), 1, "something lies beside the store");
});

/// The next record, as a connection would bring it.
fn next_record(input: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (&[kind, task, place, pages, length], behind) = input.split_first_chunk()?;
    if kind == u8::MAX {
        return None;
    }
    let (content, behind) = behind.split_at_checked(length.into())?;
    let base = BASES[usize::from(place >> 6)];
    let address = base.wrapping_add(u64::from(place & 63) * BYTES) & !(BYTES - 1);
    let pages = pages % (MAX_PAGES + 1);
    let content = match kind {
        _ if kind == Kind::Raw as u8 => {
            let pattern = if content.is_empty() { &[0][..] } else { content };
            let bytes = usize::from(pages) * PAGE_BYTES;
            pattern.iter().copied().cycle().take(bytes).collect()
        }
        _ => content.to_vec(),
    };
    let mut record = vec![kind, 0, 0, 0];
    record.extend(u32::from(task).to_be_bytes());
    record.extend(address.to_be_bytes());
    record.extend(u32::from(pages).to_be_bytes());
    record.extend((content.len() as u32).to_be_bytes());
    record.extend(content);
    Some((record, behind))
}

/// What a record that was taken holds; nothing if it brings no page.
fn content(header: Header, packed: &[u8]) -> Option<Vec<u8>> {
    let mut pages = vec![0; header.pages as usize * PAGE_BYTES];
    match header.kind {
        Kind::Zero => {}
        Kind::Raw => pages.copy_from_slice(packed),
        Kind::Lz4 | Kind::Zstd => {
            codec::unpack(header, packed, &mut pages).expect("the store has unpacked it");
        }
        _ => return None,
    }
    Some(pages)
}

/// Each page is there as it came last, and none that has become stale.
fn check(store: &Store, kept: &BTreeMap<Place, Vec<u8>>, touched: &BTreeSet<Place>) {
    for place @ (task, address) in touched {
        let mut out = Vec::new();
        let Ok(found) = store.find(*task, *address, 1, &mut out) else {
            // Nor can anything be kept there.
            assert!(
                *address > i64::MAX as u64 && !kept.contains_key(place),
                "a page that cannot be read"
            );
            continue;
        };
        let Some(page) = kept.get(place) else {
            assert_eq!(found, None, "a page that is stale");
            continue;
        };
        let found = found.expect("a page that was taken");
        assert_eq!((found.start, found.end), (*address, address + BYTES));
        let header = Header::read(&mut out.as_slice())
            .ok()
            .flatten()
            .expect("a record");
        assert_eq!((header.task, header.address, header.pages), (*task, *address, 1));
        assert_eq!(
            content(header, &out[out.len() - header.length as usize..]).as_ref(),
            Some(page)
        );
    }
}
