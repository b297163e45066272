//! Inspections of archives, as podman lays them out: whole ones, and ones that are cut.

use super::*;

/// An archive with the server's image in it, as podman lays it out.
fn archived() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        archive.append_data(&mut header, name, content).unwrap();
    };
    add(
        "config.dump",
        br#"{"id":"abc","rootfsImageName":"docker.io/library/server:1","runtime":"crun"}"#,
    );
    for (name, content) in server() {
        add(&format!("checkpoint/{name}"), &content);
    }
    add("rootfs-diff.tar", &[7; 5000]);
    add("some\u{1b}thing/else", b"x");
    archive.into_inner().unwrap()
}

fn read_archive(bytes: &[u8]) -> std::io::Result<Inspection> {
    archive::read_from(bytes, "a.tar".into()).map(|image| image.inspection)
}

#[test]
fn an_archive_is_told_as_its_image_however_it_is_packed() {
    use std::io::Write;

    let plain = archived();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let packed = [
        gzip.finish().unwrap(),
        zstd::encode_all(plain.as_slice(), 1).unwrap(),
        plain,
    ];
    for bytes in packed {
        let told = read_archive(&bytes).unwrap();
        let subject = &told.subject;
        assert_eq!(subject.kind, SubjectKind::Archive);
        assert_eq!(
            (subject.id.as_deref(), subject.image.as_deref()),
            (Some("abc"), Some("docker.io/library/server:1"))
        );
        assert_eq!(told.processes, read(&server()).unwrap().inspection.processes);
        assert_eq!(told.sizes.zero_bytes, Some(3 * PAGE));
        assert_eq!(told.sizes.parts["rootfs-diff.tar"], 5000);
        assert_eq!(told.sizes.parts.len(), 3, "{:?}", told.sizes.parts);
    }
}

#[test]
fn an_archive_that_is_cut_anywhere_is_an_error() {
    let whole = archived();
    for length in (0..whole.len() - 2048).step_by(509) {
        assert!(
            read_archive(&whole[..length]).is_err(),
            "{length} of {}",
            whole.len()
        );
    }
    assert!(read_archive(b"not an archive, but a text of some length").is_err());
}
