//! What a hostile or broken peer may send: nothing of it leaves the root, and every part of it is an error.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use proptest::prelude::*;

use super::super::operation::{Chunk, MAGIC, Metadata, NodeKind, Operation, Times};
use super::super::{Applied, DeltaError, MAX_RECORD_BYTES, Tree, apply};

fn metadata() -> Metadata<'static> {
    let times = Times {
        accessed: (1, 2),
        modified: (3, 4),
    };
    Metadata {
        mode: 0o755,
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        times,
        attributes: vec![(b"user.kind", b"test")],
    }
}

/// Builds streams operation by operation.
struct Stream {
    bytes: Vec<u8>,
    n_operations: u64,
}

impl Stream {
    fn new() -> Self {
        Self {
            bytes: MAGIC.to_vec(),
            n_operations: 0,
        }
    }

    fn put(mut self, operation: &Operation<'_>) -> Self {
        operation.encode(&mut self.bytes).unwrap();
        self.n_operations += 1;
        self
    }

    fn chunk(mut self, offset: u64, contents: &[u8]) -> Self {
        let len = contents.len();
        Chunk { offset, len }.encode(&mut self.bytes).unwrap();
        self.bytes.extend(contents);
        self
    }

    fn directory(self, path: &[u8]) -> Self {
        self.put(&Operation::Directory {
            path,
            empty: false,
            metadata: metadata(),
        })
    }

    fn file(self, path: &[u8], contents: &[u8]) -> Self {
        let size = contents.len() as u64;
        self.put(&Operation::File {
            path,
            size,
            metadata: metadata(),
        })
        .chunk(0, contents)
        .chunk(0, b"")
    }

    fn link(self, path: &[u8], target: &[u8]) -> Self {
        let metadata = Metadata {
            attributes: Vec::new(),
            ..metadata()
        };
        self.put(&Operation::SymbolicLink {
            path,
            target,
            metadata,
        })
    }

    fn end(self) -> Vec<u8> {
        let n_operations = self.n_operations;
        let end = Operation::End {
            metadata: metadata(),
            n_operations,
            n_sockets: 0,
        };
        self.put(&end).bytes
    }
}

fn small_stream() -> Vec<u8> {
    Stream::new()
        .put(&Operation::Remove { path: b"gone" })
        .directory(b"d")
        .file(b"d/f", b"contents")
        .link(b"d/l", b"/etc/passwd")
        .put(&Operation::HardLink {
            path: b"h",
            target: b"d/f",
        })
        .put(&Operation::Node {
            path: b"p",
            kind: NodeKind::Fifo,
            device: 0,
            metadata: Metadata {
                attributes: Vec::new(),
                ..metadata()
            },
        })
        .put(&Operation::DirectoryTimes {
            path: b"d",
            times: metadata().times,
        })
        .end()
}

/// Applies a stream to a fresh root beside which lies something to protect; fails if that is touched.
fn apply_to_fresh(mut bytes: &[u8]) -> Result<Applied, DeltaError> {
    let base = tempfile::tempdir_in("/var/tmp").unwrap();
    let (root, outside) = (base.path().join("root"), base.path().join("outside"));
    fs::create_dir(&root).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "kept").unwrap();
    symlink("../outside", root.join("way-out")).unwrap();
    let before = fs::metadata(&outside).unwrap();
    let result = apply(Tree::Layer(&root), &mut bytes);
    let after = fs::metadata(&outside).unwrap();
    assert_eq!(
        (before.ctime(), before.ctime_nsec()),
        (after.ctime(), after.ctime_nsec())
    );
    assert_eq!(fs::read_to_string(outside.join("precious")).unwrap(), "kept");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 2);
    result
}

fn assert_refused(stream: &[u8], why: &str) {
    let error = apply_to_fresh(stream).expect_err(why).to_string();
    assert!(error.contains(why), "{error:?} does not say {why:?}");
}

#[test]
fn a_stream_ends_where_it_says_and_nothing_behind_it_is_read() {
    let root = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut bytes = small_stream();
    bytes.extend(b"the next message");
    let mut input = bytes.as_slice();
    let applied = apply(Tree::Layer(root.path()), &mut input).unwrap();
    assert_eq!(input, b"the next message");
    assert_eq!((applied.n_operations, applied.content_bytes), (7, 8));
    let file = fs::metadata(root.path().join("h")).unwrap();
    assert_eq!(
        (file.nlink(), file.len(), file.mtime(), file.mtime_nsec()),
        (2, 8, 3, 4)
    );
    assert_eq!(fs::metadata(root.path().join("d")).unwrap().mtime(), 3);
    assert_eq!(
        fs::read_link(root.path().join("d/l")).unwrap(),
        Path::new("/etc/passwd")
    );
}

#[test]
fn a_stream_cut_at_any_byte_is_an_error_that_names_the_last_path() {
    let whole = small_stream();
    for length in 0..whole.len() {
        assert_refused(&whole[..length], "it ends early");
    }
    let error = apply_to_fresh(&whole[..whole.len() - 1]).unwrap_err().to_string();
    assert!(error.contains("after d:"), "{error}");
}

#[test]
fn paths_that_are_not_beneath_the_root_are_refused() {
    let long = [b'x'; 5000];
    let bad: [&[u8]; 11] = [
        b"",
        b"/",
        b"/etc",
        b"..",
        b"../outside/x",
        b"d/../../outside/x",
        b".",
        b"d/.",
        b"d//f",
        b"d/",
        &long,
    ];
    for path in bad {
        assert_refused(
            &Stream::new().directory(b"d").file(path, b"x").end(),
            "no path beneath the root",
        );
        assert_refused(&Stream::new().directory(path).end(), "no path beneath the root");
        assert_refused(
            &Stream::new().put(&Operation::Remove { path }).end(),
            "no path beneath the root",
        );
        let link = Operation::HardLink {
            path: b"h",
            target: path,
        };
        assert_refused(&Stream::new().put(&link).end(), "no path beneath the root");
    }
    assert_refused(
        &Stream::new().file(b"a\0b", b"x").end(),
        "no path beneath the root",
    );
}

#[test]
fn no_link_is_followed_whoever_made_it() {
    assert_refused(&Stream::new().file(b"way-out/evil", b"x").end(), "way-out/evil");
    // Nothing is at a path that leads through a link, so there is nothing to remove.
    let removal = Operation::Remove {
        path: b"way-out/precious",
    };
    apply_to_fresh(&Stream::new().put(&removal).end()).unwrap();
    assert_refused(
        &Stream::new()
            .link(b"l", b"../outside")
            .file(b"l/evil", b"x")
            .end(),
        "l/evil",
    );
    let times = Operation::DirectoryTimes {
        path: b"way-out",
        times: metadata().times,
    };
    assert_refused(&Stream::new().put(&times).end(), "takes a file for a directory");
    let steal = Operation::HardLink {
        path: b"mine",
        target: b"way-out/precious",
    };
    assert_refused(&Stream::new().put(&steal).end(), "way-out/precious");
    // As the last part of a path a link is replaced, not followed.
    apply_to_fresh(&Stream::new().directory(b"way-out").file(b"way-out/f", b"x").end()).unwrap();
    apply_to_fresh(&Stream::new().file(b"way-out", b"x").end()).unwrap();
}

#[test]
fn lengths_are_bounded_before_anything_is_allocated() {
    for length in [0, MAX_RECORD_BYTES as u32 + 1, u32::MAX] {
        let mut stream = Stream::new();
        stream.bytes.extend(length.to_le_bytes());
        assert_refused(&stream.bytes, "a record of");
    }
    let file = Operation::File {
        path: b"f",
        size: 10,
        metadata: metadata(),
    };
    for (offset, len) in [(0, u32::MAX), (0, 11), (u64::MAX, 1), (11, 1)] {
        let mut stream = Stream::new().put(&file);
        stream.bytes.extend(u64::to_le_bytes(offset));
        stream.bytes.extend(u32::to_le_bytes(len));
        assert_refused(&stream.bytes, "of a file of 10");
    }
    assert_refused(
        &Stream::new().put(&file).chunk(4, b"later").chunk(2, b"x").end(),
        "of a file of 10",
    );
    // A number of attributes far beyond the record: the last field of the record before it.
    let mut record = Vec::new();
    let removal = Operation::Directory {
        path: b"d",
        empty: false,
        metadata: Metadata {
            attributes: Vec::new(),
            ..metadata()
        },
    };
    removal.encode(&mut record).unwrap();
    record.pop();
    record.extend([0xff, 0xff, 0xff, 0xff, 0x0f]);
    let length = record.len() as u32 - 4;
    record[..4].copy_from_slice(&length.to_le_bytes());
    let mut stream = Stream::new();
    stream.bytes.extend(record);
    assert_refused(&stream.bytes, "makes no sense");
}

#[test]
fn values_with_a_second_meaning_are_refused() {
    let with = |change: &dyn Fn(&mut Metadata<'static>)| {
        let mut metadata = metadata();
        change(&mut metadata);
        let directory = Operation::Directory {
            path: b"d",
            empty: true,
            metadata,
        };
        Stream::new().put(&directory).end()
    };
    assert_refused(&with(&|metadata| metadata.uid = u32::MAX), "no file has");
    assert_refused(&with(&|metadata| metadata.mode = 0o40755), "no file has");
    assert_refused(
        &with(&|metadata| metadata.times.modified.1 = 0x3fff_ffff),
        "a time that is none",
    );
    let note: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");
    assert_refused(
        &with(&|metadata| metadata.attributes.push(note)),
        "only the overlay",
    );
    let same = Operation::HardLink {
        path: b"f",
        target: b"f",
    };
    assert_refused(
        &Stream::new().file(b"f", b"x").put(&same).end(),
        "links a file to itself",
    );
}

#[test]
fn what_is_too_much_or_too_little_is_refused() {
    let mut stream = small_stream();
    stream[7] = 2;
    assert_refused(&stream, "no delta of a version known here");
    let mut record = Vec::new();
    Operation::Remove { path: b"x" }.encode(&mut record).unwrap();
    record[0] += 1;
    record.push(0);
    assert_refused(&[MAGIC.as_slice(), &record].concat(), "1 bytes too many");
    let mut stream = Stream::new().directory(b"d");
    stream.n_operations += 1;
    assert_refused(&stream.end(), "should have 2 operations");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_stream_neither_panics_nor_leaves_the_root(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)
    ) {
        let mut bytes = small_stream();
        for (place, value) in damage {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        let _ = apply_to_fresh(&bytes);
    }
}
