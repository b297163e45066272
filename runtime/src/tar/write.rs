//! From a member to the blocks that stand before its contents. Pure: it writes nowhere.

use std::io;

use tar::{EntryType, Header};

use super::{ATTRIBUTE, BLOCK_BYTES, Kind, MAX_RECORDS_BYTES, Member, OPAQUE, Time};

/// What an archive ends with.
pub const END: [u8; 2 * BLOCK_BYTES] = [0; 2 * BLOCK_BYTES];

/// Longest name in a header itself.
const NAME_BYTES: usize = 100;

/// Largest number in a header's fields of eight and of twelve digits; beyond, a record says it.
const MAX_ID: u32 = 0o777_7777;
const MAX_SIZE: u64 = 0o777_7777_7777;

/// Zeros that fill up the last block of `size` bytes.
pub fn padding(size: u64) -> usize {
    let used = (size % BLOCK_BYTES as u64) as usize;
    if used == 0 { 0 } else { BLOCK_BYTES - used }
}

/// The blocks before a member's contents. More records than an archive may have are an error of kind `InvalidData`.
pub fn head(member: &Member) -> io::Result<Vec<u8>> {
    let records = records(member);
    if records.len() > MAX_RECORDS_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut blocks = Vec::with_capacity(BLOCK_BYTES * 3);
    if !records.is_empty() {
        let size = records.len() as u64;
        let extended = Member::file(&b"./PaxHeaders/member"[..], size);
        blocks.extend_from_slice(header(&extended, EntryType::XHeader)?.as_bytes());
        blocks.extend_from_slice(&records);
        blocks.resize(blocks.len() + padding(size), 0);
    }
    blocks.extend_from_slice(header(member, entry_type(member.kind))?.as_bytes());
    Ok(blocks)
}

fn entry_type(kind: Kind) -> EntryType {
    match kind {
        Kind::File => EntryType::Regular,
        Kind::Directory => EntryType::Directory,
        Kind::SymbolicLink => EntryType::Symlink,
        Kind::HardLink => EntryType::Link,
        Kind::CharacterDevice => EntryType::Char,
        Kind::BlockDevice => EntryType::Block,
        Kind::Fifo => EntryType::Fifo,
    }
}

fn header(member: &Member, kind: EntryType) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    fill(&mut header.as_old_mut().name, &member.path);
    fill(&mut header.as_old_mut().linkname, &member.link);
    header.set_mode(member.mode);
    header.set_uid(member.uid.min(MAX_ID).into());
    header.set_gid(member.gid.min(MAX_ID).into());
    header.set_size(member.size.min(MAX_SIZE));
    header.set_mtime(u64::try_from(member.modified.0).unwrap_or(0).min(MAX_SIZE));
    if matches!(member.kind, Kind::CharacterDevice | Kind::BlockDevice) {
        header.set_device_major(member.device.0)?;
        header.set_device_minor(member.device.1)?;
    }
    header.set_cksum();
    Ok(header)
}

/// As much of a name as there is room for.
fn fill(field: &mut [u8; NAME_BYTES], name: &[u8]) {
    let length = name.len().min(NAME_BYTES);
    field[..length].copy_from_slice(&name[..length]);
}

/// What a header has no room for.
fn records(member: &Member) -> Vec<u8> {
    let mut records = Vec::new();
    let is_long = |name: &[u8]| name.len() > NAME_BYTES || !name.is_ascii();
    if is_long(&member.path) {
        record(&mut records, b"path", &member.path);
    }
    if is_long(&member.link) {
        record(&mut records, b"linkpath", &member.link);
    }
    for (key, id) in [(&b"uid"[..], member.uid), (b"gid", member.gid)] {
        if id > MAX_ID {
            record(&mut records, key, id.to_string().as_bytes());
        }
    }
    if member.size > MAX_SIZE {
        record(&mut records, b"size", member.size.to_string().as_bytes());
    }
    if member.modified.1 != 0 || member.modified.0 < 0 {
        record(&mut records, b"mtime", decimal(member.modified).as_bytes());
    }
    if let Some(accessed) = member.accessed {
        record(&mut records, b"atime", decimal(accessed).as_bytes());
    }
    for (name, value) in &member.attributes {
        record(&mut records, &[ATTRIBUTE, name].concat(), value);
    }
    if member.is_opaque {
        record(&mut records, OPAQUE, b"1");
    }
    records
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// A time as one number. Before 1970 the nanoseconds count back from the next second.
fn decimal((seconds, nanoseconds): Time) -> String {
    if seconds < 0 && nanoseconds > 0 {
        let (seconds, nanoseconds) = (-(seconds + 1), 1_000_000_000 - nanoseconds);
        return format!("-{seconds}.{nanoseconds:09}");
    }
    format!("{seconds}.{nanoseconds:09}")
}
