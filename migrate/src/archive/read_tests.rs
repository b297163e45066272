//! Hostile archives: each is refused with its reason, and nothing is written outside the two places.

use std::fs;
use std::io::Write;

use tempfile::TempDir;

use super::super::compress::{Compression, Packer};
use super::super::manifest::{Listed, Manifest};
use super::super::write::Writer;
use super::*;
use crate::message::Offer;
use crate::tests::offer;

const ROOM: u64 = 1 << 20;

struct Host(TempDir);

impl Host {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["image", "files"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        Self(directory)
    }

    fn take(&self, archive: &[u8]) -> Result<Staged, ArchiveError> {
        let (image, files) = (self.0.path().join("image"), self.0.path().join("files"));
        let places = Places {
            image: &image,
            files: &files,
            image_room: ROOM,
            files_room: ROOM,
        };
        stage(archive, places, &Arc::default())
    }

    fn refuses(&self, archive: &[u8]) -> String {
        let error = self.take(archive).unwrap_err();
        assert!(matches!(error, ArchiveError::Refused(_)), "{error}");
        let names = fs::read_dir(self.0.path()).unwrap().count();
        assert_eq!(names, 2, "something lies beside the two places");
        error.to_string()
    }
}

fn listed(members: &[(&str, &[u8])]) -> Vec<Listed> {
    let listed = |(name, bytes): &(&str, &[u8])| Listed {
        name: (*name).into(),
        size: bytes.len() as u64,
    };
    members.iter().map(listed).collect()
}

const MEMBERS: [(&str, &[u8]); 4] = [
    (layout::SPEC, b"{}"),
    ("checkpoint/core-1.img", b"core"),
    ("checkpoint/pages-1.img", &[7; 100_000]),
    (layout::LAYER, &[0; 1024]),
];

/// An archive of ours that announces `announced` and has `members`.
fn ours(announced: &[(&str, &[u8])], members: &[(&str, &[u8])]) -> Vec<u8> {
    let manifest = Manifest::new("ha", false, offer(), listed(announced));
    let mut writer = Writer::new(Vec::new(), Arc::default());
    writer
        .note(layout::MANIFEST, &serde_json::to_vec(&manifest).unwrap())
        .unwrap();
    for (name, bytes) in members {
        writer.note(name, bytes).unwrap();
    }
    writer.finish(None).unwrap()
}

/// An archive of somebody else.
fn theirs(members: &[(Member, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (member, bytes) in members {
        archive.extend(tar::head(member).unwrap());
        archive.extend(*bytes);
        archive.resize(archive.len() + tar::padding(bytes.len() as u64), 0);
    }
    archive.extend(tar::END);
    archive
}

fn packed(archive: &[u8], compression: Compression) -> Vec<u8> {
    let mut packer = Packer::new(compression, Vec::new()).unwrap();
    packer.write_all(archive).unwrap();
    packer.finish().unwrap()
}

#[test]
fn an_archive_arrives_whole_however_it_is_packed() {
    for compression in [Compression::Zstd, Compression::Gzip, Compression::None] {
        let host = Host::new();
        let staged = host
            .take(&packed(&ours(&MEMBERS, &MEMBERS), compression))
            .unwrap();
        let told: &Offer = &staged.manifest.as_ref().unwrap().offer;
        assert_eq!(told.container.name, offer().container.name);
        let pages = fs::read(host.0.path().join("image/pages-1.img")).unwrap();
        assert!(pages == MEMBERS[2].1);
        assert_eq!(fs::read(staged.layer.unwrap()).unwrap(), MEMBERS[3].1);
        assert_eq!(staged.notes[layout::SPEC], b"{}");
    }
}

#[test]
fn one_that_somebody_else_made_is_taken_without_a_manifest() {
    let image = (Member::file("checkpoint/core-1.img", 4), &b"core"[..]);
    let directory = (Member::directory("checkpoint/"), &b""[..]);
    let log = (Member::file("ctr.log", 3), &b"log"[..]);
    let staged = Host::new().take(&theirs(&[directory, image, log])).unwrap();
    assert!(staged.manifest.is_none());
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for name in [
        "../evil",
        "/etc/cron.d/evil",
        "checkpoint/../../evil",
        "checkpoint/a/b",
        "volumes/../evil.tar",
        "evil",
    ] {
        let told = Host::new().refuses(&theirs(&[(Member::file(name, 1), b"x")]));
        assert!(told.contains("is no member of a container's archive"), "{told}");
    }
}

#[test]
fn what_is_no_file_is_refused_whatever_it_is_called() {
    let link = Member {
        kind: Kind::SymbolicLink,
        link: b"/etc/passwd".into(),
        ..Member::file("checkpoint/core-1.img", 0)
    };
    let device = Member {
        kind: Kind::BlockDevice,
        device: (8, 0),
        ..Member::file("rootfs-diff.tar", 0)
    };
    let hard = Member {
        kind: Kind::HardLink,
        link: b"../../etc/passwd".into(),
        ..Member::file("config.dump", 0)
    };
    for member in [link, device, hard, Member::directory("config.dump")] {
        let told = Host::new().refuses(&theirs(&[(member, b"")]));
        assert!(
            told.contains("is no file") || told.contains("is not what it is called"),
            "{told}"
        );
    }
}

#[test]
fn a_member_comes_once() {
    let member = (Member::file("checkpoint/core-1.img", 4), &b"core"[..]);
    let again = (Member::file("./checkpoint/core-1.img", 4), &b"evil"[..]);
    let told = Host::new().refuses(&theirs(&[member, again]));
    assert!(told.contains("comes twice"), "{told}");
    let told = Host::new().refuses(&ours(&MEMBERS, &[&MEMBERS[..], &MEMBERS[..1]].concat()));
    assert!(told.contains("comes twice"), "{told}");
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_written() {
    let host = Host::new();
    // Zeros that pack to next to nothing.
    let bomb = vec![0; ROOM as usize + 1];
    let pages = (
        Member::file("checkpoint/pages-1.img", bomb.len() as u64),
        &bomb[..],
    );
    let told = host.refuses(&packed(&theirs(&[pages]), Compression::Zstd));
    assert!(
        told.contains("does not fit into the 1 MB that are free"),
        "{told}"
    );
    assert!(!host.0.path().join("image/pages-1.img").exists());
    let announced = [("checkpoint/pages-1.img", &bomb[..])];
    let told = host.refuses(&ours(&announced, &[]));
    assert!(told.contains("its image does not fit"), "{told}");
    // Together more than any number here.
    let mut manifest = Manifest::new("ha", false, offer(), Vec::new());
    for name in ["checkpoint/pages-1.img", "checkpoint/pages-2.img"] {
        let (name, size) = (name.into(), u64::MAX);
        manifest.members.push(Listed { name, size });
    }
    let mut writer = Writer::new(Vec::new(), Arc::default());
    let manifest = serde_json::to_vec(&manifest).unwrap();
    writer.note(layout::MANIFEST, &manifest).unwrap();
    let told = host.refuses(&writer.finish(None).unwrap());
    assert!(told.contains("its image does not fit"), "{told}");
    let note = vec![b' '; (16 << 20) + 1];
    let told = host.refuses(&theirs(&[(
        Member::file("config.dump", note.len() as u64),
        &note,
    )]));
    assert!(told.contains("are allowed"), "{told}");
}

#[test]
fn an_archive_of_ours_has_what_it_announces_and_nothing_else() {
    let other = [("checkpoint/evil.img", &b"x"[..])];
    let told = Host::new().refuses(&ours(&MEMBERS, &[&MEMBERS[..], &other[..]].concat()));
    assert!(told.contains("evil.img is not in its manifest"), "{told}");
    let told = Host::new().refuses(&ours(&MEMBERS, &MEMBERS[1..]));
    assert!(told.contains("spec.dump is missing"), "{told}");
    let longer = [(layout::SPEC, &b"{ }"[..])];
    let told = Host::new().refuses(&ours(&MEMBERS, &longer));
    assert!(told.contains("has 3 bytes, its manifest says 2"), "{told}");
}

#[test]
fn a_changed_byte_is_noticed_by_the_sums() {
    let whole = ours(&MEMBERS, &MEMBERS);
    let at = whole.windows(4).position(|bytes| bytes == [7; 4]).unwrap() + 50_000;
    let mut damaged = whole.clone();
    damaged[at] ^= 1;
    let told = Host::new().refuses(&damaged);
    assert!(
        told.contains("pages-1.img is damaged: its sum is wrong"),
        "{told}"
    );
    // The record of the container has a sum as well.
    let at = whole.windows(4).position(|bytes| bytes == b"\"ha\"").unwrap() + 1;
    let mut damaged = whole;
    damaged[at] = b'x';
    let told = Host::new().refuses(&damaged);
    assert!(told.contains("godwit.manifest is damaged"), "{told}");
}

#[test]
fn an_archive_cut_anywhere_is_refused() {
    for compression in [Compression::Zstd, Compression::None] {
        let whole = packed(&ours(&MEMBERS, &MEMBERS), compression);
        // What ends it in a tar that is not packed are zeros that nobody misses.
        let end = if compression == Compression::None {
            whole.len() - 1024
        } else {
            whole.len()
        };
        for length in (0..end).step_by(511).chain([end - 1]) {
            assert!(
                Host::new().take(&whole[..length]).is_err(),
                "{compression} cut at {length}"
            );
        }
    }
    // A tar that ends where a member ends is no less cut.
    let mut early = ours(&MEMBERS, &MEMBERS);
    let digests = early
        .windows(14)
        .rposition(|bytes| bytes == layout::DIGESTS.as_bytes())
        .unwrap();
    early.truncate(digests);
    early.extend(tar::END);
    let told = Host::new().refuses(&early);
    assert!(told.contains("the sums of its members are missing"), "{told}");
}

#[test]
fn what_is_ours_stands_where_we_write_it() {
    let member = (Member::file("checkpoint/core-1.img", 4), &b"core"[..]);
    for name in [layout::MANIFEST, layout::DIGESTS] {
        let told = Host::new().refuses(&theirs(&[member.clone(), (Member::file(name, 2), b"{}")]));
        assert!(told.contains("stands where Godwit does not write it"), "{told}");
    }
}

/// An archive of ours with these members behind its sums.
fn ours_with(behind: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = ours(&MEMBERS, &MEMBERS);
    archive.truncate(archive.len() - tar::END.len());
    let behind: Vec<_> = behind
        .iter()
        .map(|(name, bytes)| (Member::file(*name, bytes.len() as u64), *bytes))
        .collect();
    archive.extend(theirs(&behind));
    archive
}

/// A signature in form; whose it is nobody asks here.
const SIGNATURE: &[u8] = b"-----BEGIN CERTIFICATE-----
AAAA
-----END CERTIFICATE-----
-----BEGIN GODWIT ARCHIVE SIGNATURE-----
AAAA
-----END GODWIT ARCHIVE SIGNATURE-----
";

#[test]
fn a_signature_stands_once_behind_the_sums_and_nothing_behind_it() {
    let signature = (layout::SIGNATURE, SIGNATURE);
    let staged = Host::new().take(&ours_with(&[signature])).unwrap();
    assert!(staged.signature.is_some());
    let dotted = ("./godwit.signature", SIGNATURE);
    for behind in [
        &[signature, signature][..],
        &[signature, dotted],
        &[signature, ("ctr.log", b"")],
        &[signature, (layout::DIGESTS, b"{}")],
        &[("ctr.log", b""), signature],
        &[(layout::SPEC, b"{}")],
    ] {
        let told = Host::new().refuses(&ours_with(behind));
        assert!(told.contains("something follows its last member"), "{told}");
    }
    for (early, announced) in [(signature, false), (signature, true), (dotted, false)] {
        let members = [&MEMBERS[..1], &[early], &MEMBERS[1..]].concat();
        let announced = if announced { &members[..] } else { &MEMBERS };
        let told = Host::new().refuses(&ours(announced, &members));
        assert!(
            told.contains("godwit.signature stands where Godwit does not write it"),
            "{told}"
        );
    }
    let first = (Member::file(layout::SIGNATURE, SIGNATURE.len() as u64), SIGNATURE);
    let told = Host::new().refuses(&theirs(&[first]));
    assert!(told.contains("stands where Godwit does not write it"), "{told}");
}

#[test]
fn a_signature_is_small_and_one_in_form() {
    let large = [SIGNATURE, &vec![b'\n'; 64 << 10]].concat();
    let told = Host::new().refuses(&ours_with(&[(layout::SIGNATURE, &large)]));
    assert!(told.contains("65536 are allowed"), "{told}");
    let told = Host::new().refuses(&ours_with(&[(layout::SIGNATURE, b"believe me")]));
    assert!(told.contains("godwit.signature: there is no signature"), "{told}");
}

#[test]
fn a_manifest_of_another_version_is_told_as_one() {
    let text = br#"{"version":9,"what":"ever"}"#;
    let told = Host::new().refuses(&theirs(&[(
        Member::file(layout::MANIFEST, text.len() as u64),
        text,
    )]));
    assert!(
        told.contains("it has version 9, and this Godwit reads 1"),
        "{told}"
    );
}
