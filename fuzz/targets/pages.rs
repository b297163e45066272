//! Records of pages, as an agent or a pager reads them off a connection, and what is packed in them.
#![no_main]

use godwit_migrate::pages::codec;
use godwit_runtime::pages::wire::{Header, Kind, MAX_PAGES, PAGE_BYTES};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut rest = input;
    let mut pages = Vec::new();
    while let Ok(Some(header)) = Header::read(&mut rest) {
        let length = header.length as usize;
        assert!(header.pages <= MAX_PAGES && length <= MAX_PAGES as usize * PAGE_BYTES);
        let Some((content, behind)) = rest.split_at_checked(length) else {
            return;
        };
        if matches!(header.kind, Kind::Lz4 | Kind::Zstd)
            && let Ok(unpacked) = codec::unpack(header, content, &mut pages)
        {
            assert_eq!(unpacked.length as usize, pages.len());
            assert_eq!(pages.len(), header.pages as usize * PAGE_BYTES);
        }
        rest = behind;
    }
});
