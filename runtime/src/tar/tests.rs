//! Members go over whole, and nothing hostile is taken for a member.

use std::io::{self, Read};

use proptest::prelude::*;

use super::*;

fn read_all(archive: &[u8]) -> io::Result<Vec<(Member, Vec<u8>)>> {
    let mut reader = Reader::new(archive);
    let mut members = Vec::new();
    while let Some(member) = reader.next_member()? {
        let mut contents = Vec::new();
        reader.read_to_end(&mut contents)?;
        members.push((member, contents));
    }
    reader.finish()?;
    Ok(members)
}

fn archive(members: &[(Member, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (member, contents) in members {
        bytes.extend(head(member).unwrap());
        bytes.extend(contents);
        bytes.resize(bytes.len() + padding(contents.len() as u64), 0);
    }
    bytes.extend(END);
    bytes
}

fn refused(archive: &[u8]) -> String {
    read_all(archive).unwrap_err().to_string()
}

fn member() -> impl Strategy<Value = (Member, Vec<u8>)> {
    let name = || prop::collection::vec(1_u8..=255, 1..300);
    let attributes = prop::collection::vec((name(), prop::collection::vec(any::<u8>(), 0..40)), 0..3);
    let contents = prop::collection::vec(any::<u8>(), 0..1200);
    let time = || (-9_000_000_000_i64..9_000_000_000, 0_u32..1_000_000_000);
    (
        name(),
        name(),
        attributes,
        contents,
        time(),
        time(),
        any::<u32>(),
        0_u32..0o10000,
    )
        .prop_map(
            |(path, mut link, mut attributes, contents, modified, accessed, uid, mode)| {
                for (name, _) in &mut attributes {
                    // The first `=` ends a record's name.
                    name.retain(|byte| *byte != b'=');
                }
                let is_link = contents.is_empty();
                if !is_link {
                    link.clear();
                }
                let member = Member {
                    kind: if is_link { Kind::SymbolicLink } else { Kind::File },
                    mode,
                    uid,
                    gid: uid / 2,
                    modified,
                    accessed: Some(accessed),
                    link,
                    attributes,
                    ..Member::file(path, contents.len() as u64)
                };
                (member, contents)
            },
        )
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(members in prop::collection::vec(member(), 0..4)) {
        prop_assert_eq!(read_all(&archive(&members)).unwrap(), members);
    }

    #[test]
    fn bytes_of_no_archive_are_an_error_and_no_more(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let _ = read_all(&bytes);
    }
}

#[test]
fn another_reader_of_tar_sees_the_same() {
    let long = [b"d/".as_slice(), &[b'n'; 200]].concat();
    let members = [
        (Member::directory("d/"), Vec::new()),
        (Member::file(long.clone(), 5), b"12345".to_vec()),
        (
            Member {
                kind: Kind::CharacterDevice,
                device: (5, 1),
                ..Member::file("d/console", 0)
            },
            Vec::new(),
        ),
    ];
    let bytes = archive(&members);
    let mut other = ::tar::Archive::new(&bytes[..]);
    let names: Vec<Vec<u8>> = other
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path_bytes().into_owned())
        .collect();
    assert_eq!(names, [b"d/".to_vec(), long, b"d/console".to_vec()]);
    assert_eq!(read_all(&bytes).unwrap(), members);
}

#[test]
fn an_archive_cut_anywhere_is_noticed() {
    let whole = archive(&[(Member::file("a", 700), vec![7; 700])]);
    for length in 0..whole.len() - BLOCK_BYTES {
        assert!(read_all(&whole[..length]).is_err(), "cut at {length}");
    }
}

#[test]
fn what_follows_the_end_is_refused() {
    let mut bytes = archive(&[]);
    bytes.extend([0; 4096]);
    read_all(&bytes).unwrap();
    bytes.push(1);
    assert!(
        refused(&bytes).contains("something follows"),
        "{}",
        refused(&bytes)
    );
    let mut endless = archive(&[]);
    endless.resize(endless.len() + (2 << 20), 0);
    assert!(refused(&endless).contains("something follows"));
}

#[test]
fn a_description_that_claims_to_be_huge_is_refused_before_room_is_made_for_it() {
    for kind in [b'x', b'g', b'L', b'K'] {
        let mut header = ::tar::Header::new_ustar();
        header.set_entry_type(::tar::EntryType::new(kind));
        header.set_size(1 << 33);
        header.set_cksum();
        let error = refused(header.as_bytes());
        assert!(error.contains("longer than any"), "{error}");
    }
}

#[test]
fn descriptions_without_an_end_are_refused() {
    let mut header = ::tar::Header::new_ustar();
    header.set_entry_type(::tar::EntryType::XGlobalHeader);
    header.set_size(0);
    header.set_cksum();
    let error = refused(&header.as_bytes().repeat(100));
    assert!(error.contains("without a member"), "{error}");
}

#[test]
fn sparse_members_and_unknown_ones_are_refused() {
    for kind in [b'S', b'V', b'7'] {
        let mut header = ::tar::Header::new_gnu();
        header.set_entry_type(::tar::EntryType::new(kind));
        header.set_size(0);
        header.set_cksum();
        let error = refused(header.as_bytes());
        assert!(error.contains("not known here"), "{error}");
    }
    let mut bytes = Vec::new();
    let mut header = ::tar::Header::new_ustar();
    let record = b"22 GNU.sparse.major=1\n";
    header.set_entry_type(::tar::EntryType::XHeader);
    header.set_size(record.len() as u64);
    header.set_cksum();
    bytes.extend(header.as_bytes());
    bytes.extend(record);
    bytes.resize(2 * BLOCK_BYTES, 0);
    bytes.extend(head(&Member::file("a", 0)).unwrap());
    bytes.extend(END);
    assert!(refused(&bytes).contains("sparse"), "{}", refused(&bytes));
}

#[test]
fn a_changed_header_is_noticed_by_its_sum() {
    let mut bytes = archive(&[(Member::file("a", 0), Vec::new())]);
    bytes[0] = b'b';
    assert!(refused(&bytes).contains("sum is wrong"));
}
