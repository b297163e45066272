//! What a container does to its files, one act at a time, and how a random test chooses them.
//!
//! Most fail now and then, as in life: nobody relies on any of them.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FallocateFlags, RenameFlags, Timespec, Timestamps, XattrFlags};

/// One act. Paths are relative to the container's root.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Write(PathBuf, u16),
    /// Longer than one chunk of the stream.
    WriteLarge(PathBuf, u8),
    Append(PathBuf),
    /// May leave a hole before it.
    Patch(PathBuf, u16),
    Resize(PathBuf, u16),
    Hollow(PathBuf, u32),
    PunchHole(PathBuf, u32, u32),
    /// Allocated and never written.
    Reserve(PathBuf, u32),
    Directory(PathBuf),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
    Exchange(PathBuf, PathBuf),
    HardLink(PathBuf, PathBuf),
    SymbolicLink(PathBuf, OsString),
    Fifo(PathBuf),
    Device(PathBuf, bool, (u32, u32)),
    Socket(PathBuf),
    Mode(PathBuf, u32),
    Owner(PathBuf, u32),
    /// Of a symbolic link its own; seconds and nanoseconds.
    Times(PathBuf, i64, u32),
    Attribute(PathBuf, u8),
    Capability(PathBuf),
    DefaultAcl(PathBuf),
    NoAttribute(PathBuf),
}

const ACL_OF_TWO_USERS: [u8; 44] = [
    2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 6, 0, 210, 4, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255, 16,
    0, 7, 0, 255, 255, 255, 255, 32, 0, 1, 0, 255, 255, 255, 255,
];
const NET_BIND_SERVICE: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A name as long as a name may be.
const LONG_NAME: [u8; 255] = [b'l'; 255];

/// Does it below `root`.
pub(super) fn perform(root: &Path, act: &Act) -> io::Result<()> {
    let node = |path: &Path, kind, device| {
        mknod(&root.join(path), kind, Mode::from_bits_truncate(0o640), device).map_err(Into::into)
    };
    let set = |path: &Path, name: &str, value: &[u8]| {
        rustix::fs::lsetxattr(root.join(path), name, value, XattrFlags::empty()).map_err(Into::into)
    };
    match act {
        Act::Write(path, length) => fs::write(
            file_below(root, path)?,
            length.to_string().repeat(usize::from(*length)),
        ),
        Act::WriteLarge(path, byte) => fs::write(
            file_below(root, path)?,
            vec![*byte; 300_000 + usize::from(*byte) * 1000],
        ),
        Act::Append(path) => {
            let mut file = OpenOptions::new().append(true).open(file_below(root, path)?)?;
            file.write_all(b"one more line\n")
        }
        Act::Patch(path, at) => writable(root, path)?.write_all_at(b"patched", u64::from(*at)),
        Act::Resize(path, size) => writable(root, path)?.set_len(u64::from(*size)),
        Act::Hollow(path, size) => {
            let file = File::create(file_below(root, path)?)?;
            file.set_len(u64::from(*size) * 2 + 9)?;
            file.write_all_at(b"in the middle", u64::from(*size))
        }
        Act::PunchHole(path, at, length) => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let (at, length) = (u64::from(*at), u64::from(*length) + 1);
            Ok(rustix::fs::fallocate(writable(root, path)?, flags, at, length)?)
        }
        Act::Reserve(path, length) => {
            let length = u64::from(*length) + 1;
            Ok(rustix::fs::fallocate(
                writable(root, path)?,
                FallocateFlags::empty(),
                0,
                length,
            )?)
        }
        Act::Directory(path) => fs::create_dir(root.join(path)),
        Act::Remove(path) => {
            let path = root.join(path);
            if path.symlink_metadata()?.is_dir() {
                fs::remove_dir_all(path)
            } else {
                fs::remove_file(path)
            }
        }
        Act::Rename(from, to) => fs::rename(root.join(from), root.join(to)),
        Act::Exchange(one, other) => {
            let (one, other) = (root.join(one), root.join(other));
            Ok(rustix::fs::renameat_with(
                CWD,
                one,
                CWD,
                other,
                RenameFlags::EXCHANGE,
            )?)
        }
        Act::HardLink(from, to) => fs::hard_link(root.join(from), root.join(to)),
        Act::SymbolicLink(path, target) => symlink(target, root.join(path)),
        Act::Fifo(path) => node(path, SFlag::S_IFIFO, 0),
        Act::Device(path, is_character, (major, minor)) => {
            let kind = if *is_character {
                SFlag::S_IFCHR
            } else {
                SFlag::S_IFBLK
            };
            node(path, kind, makedev(u64::from(*major), u64::from(*minor)))
        }
        Act::Socket(path) => UnixListener::bind(root.join(path)).map(|_| ()),
        Act::Mode(path, mode) if root.join(path).symlink_metadata()?.is_symlink() => {
            lchown(root.join(path), Some(*mode), None)
        }
        Act::Mode(path, mode) => fs::set_permissions(root.join(path), fs::Permissions::from_mode(*mode)),
        Act::Owner(path, owner) => lchown(root.join(path), Some(*owner), Some(owner - owner / 2)),
        Act::Times(path, seconds, nanoseconds) => {
            let at = |seconds| Timespec {
                tv_sec: seconds,
                tv_nsec: (*nanoseconds).into(),
            };
            let times = Timestamps {
                last_access: at(seconds / 2),
                last_modification: at(*seconds),
            };
            let path = root.join(path);
            Ok(rustix::fs::utimensat(
                CWD,
                path,
                &times,
                AtFlags::SYMLINK_NOFOLLOW,
            )?)
        }
        Act::Attribute(path, value) => {
            let long = vec![*value; usize::from(*value) * 8];
            set(path, "user.some", &long).or_else(|_| set(path, "trusted.x", b""))
        }
        Act::Capability(path) => set(path, "security.capability", &NET_BIND_SERVICE),
        Act::DefaultAcl(path) => {
            set(path, "system.posix_acl_access", &ACL_OF_TWO_USERS)?;
            set(path, "system.posix_acl_default", &ACL_OF_TWO_USERS)
        }
        Act::NoAttribute(path) => rustix::fs::lremovexattr(root.join(path), "user.some").map_err(Into::into),
    }
}

/// A path that may be opened: a fifo would wait for its other end, and a device is not ours. A link may lead out of the
/// root, to where the tests have no business.
fn file_below(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let full = root.join(path);
    let refused = || Err(io::ErrorKind::InvalidInput.into());
    match fs::symlink_metadata(&full) {
        Ok(metadata) if metadata.is_symlink() => match full.canonicalize() {
            Ok(real) if real.starts_with(root) && real.is_file() => Ok(real),
            _ => refused(),
        },
        Ok(metadata) if !metadata.is_file() && !metadata.is_dir() => refused(),
        _ => Ok(full),
    }
}

fn writable(root: &Path, path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(file_below(root, path)?)
}

fn any_name() -> impl Strategy<Value = &'static [u8]> {
    prop_oneof![
        20 => prop::sample::select(vec![b"a".as_slice(), b"b", b"c", b"\xff"]),
        1 => prop::sample::select(vec![LONG_NAME.as_slice(), b"\n", b" ", b".wh.a", b"%", "ä".as_bytes()]),
    ]
}

/// One to three names deep: few enough that acts meet.
fn any_path() -> impl Strategy<Value = PathBuf> {
    prop::collection::vec(any_name(), 1..=3)
        .prop_map(|names| names.into_iter().map(OsStr::from_bytes).collect())
}

/// What a symbolic link says is nobody's business but its reader's.
fn any_target() -> impl Strategy<Value = OsString> {
    prop_oneof![
        any_path().prop_map(PathBuf::into_os_string),
        Just(OsString::from("../a/b")),
        Just(OsString::from("/absolute/and/absent")),
        prop::collection::vec(1..=255_u8, 1..300).prop_map(OsString::from_vec),
    ]
}

/// Owners of a host, of a mapped range, and the last there is.
fn any_owner() -> impl Strategy<Value = u32> {
    prop_oneof![
        0..70_000_u32,
        100_000..165_536_u32,
        Just(65_534),
        Just(u32::MAX - 1)
    ]
}

/// One act on a random path.
pub(super) fn any_act() -> impl Strategy<Value = Act> {
    let path = any_path;
    let device_number = || (0..4096_u32, 0..(1_u32 << 20));
    let change_contents = prop_oneof![
        4 => (path(), 0..3000_u16).prop_map(|(path, length)| Act::Write(path, length)),
        1 => (path(), any::<u8>()).prop_map(|(path, byte)| Act::WriteLarge(path, byte)),
        2 => path().prop_map(Act::Append),
        2 => (path(), 0..3000_u16).prop_map(|(path, at)| Act::Patch(path, at)),
        1 => (path(), any::<u16>()).prop_map(|(path, size)| Act::Resize(path, size)),
        1 => (path(), 0..400_000_u32).prop_map(|(path, size)| Act::Hollow(path, size)),
        1 => (path(), 0..400_000_u32, 0..400_000_u32)
            .prop_map(|(path, at, length)| Act::PunchHole(path, at, length)),
        1 => (path(), 0..400_000_u32).prop_map(|(path, length)| Act::Reserve(path, length)),
    ];
    let change_names = prop_oneof![
        4 => path().prop_map(Act::Directory),
        5 => path().prop_map(Act::Remove),
        4 => (path(), path()).prop_map(|(from, to)| Act::Rename(from, to)),
        1 => (path(), path()).prop_map(|(one, other)| Act::Exchange(one, other)),
        4 => (path(), path()).prop_map(|(from, to)| Act::HardLink(from, to)),
        2 => (path(), any_target()).prop_map(|(path, target)| Act::SymbolicLink(path, target)),
        1 => path().prop_map(Act::Fifo),
        1 => (path(), any::<bool>(), device_number())
            .prop_map(|(path, is_character, number)| Act::Device(path, is_character, number)),
        1 => path().prop_map(Act::Socket),
    ];
    let change_notes = prop_oneof![
        2 => (path(), 0..0o10000_u32).prop_map(|(path, mode)| Act::Mode(path, mode)),
        2 => (path(), any_owner()).prop_map(|(path, owner)| Act::Owner(path, owner)),
        2 => (path(), -1_000_000_000..10_000_000_000_i64, 0..1_000_000_000_u32)
            .prop_map(|(path, seconds, nanoseconds)| Act::Times(path, seconds, nanoseconds)),
        2 => (path(), any::<u8>()).prop_map(|(path, value)| Act::Attribute(path, value)),
        1 => path().prop_map(Act::Capability),
        1 => path().prop_map(Act::DefaultAcl),
        1 => path().prop_map(Act::NoAttribute),
    ];
    prop_oneof![3 => change_contents, 5 => change_names, 2 => change_notes]
}
