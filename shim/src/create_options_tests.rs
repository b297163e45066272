//! Options as engines send them, byte by byte where no library of ours writes their type.

use super::*;

fn any(type_url: &str, value: &[u8]) -> Any {
    Any {
        type_url: type_url.into(),
        value: value.into(),
        ..Default::default()
    }
}

fn decode(type_url: &str, value: &[u8]) -> Result<CreateOptions, ShimError> {
    CreateOptions::decode(Some(&any(type_url, value)))
}

/// `runtimeoptions.v1.Options` with its type, path and body.
fn generic(type_url: &str, file: &str, body: &[u8]) -> Result<CreateOptions, ShimError> {
    let mut bytes = Vec::new();
    for (tag, content) in [(0x0a, type_url.as_bytes()), (0x12, file.as_bytes()), (0x1a, body)] {
        if !content.is_empty() {
            bytes.push(tag);
            let mut length = content.len();
            while length > 0x7f {
                bytes.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
                length >>= 7;
            }
            bytes.push(u8::try_from(length).unwrap());
            bytes.extend_from_slice(content);
        }
    }
    decode(GENERIC_TYPE, &bytes)
}

fn refused(result: Result<CreateOptions, ShimError>, naming: &str) {
    match result {
        Err(ShimError::InvalidArgument(text)) => assert!(text.contains(naming), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_stock_type_is_taken_with_and_without_a_host() {
    let sent = Options {
        binary_name: "/bin/crun".into(),
        root: "/var/run/docker/runtime-runc".into(),
        systemd_cgroup: true,
        no_pivot_root: true,
        no_new_keyring: true,
        shim_cgroup: "/shims".into(),
        io_uid: 7,
        io_gid: 8,
        criu_image_path: "/image".into(),
        criu_work_path: "/work".into(),
        task_api_address: "ttrpc+unix:///s".into(),
        task_api_version: 3,
        ..Default::default()
    };
    let bytes = sent.write_to_bytes().unwrap();
    for url in [RUNC_TYPE, "type.googleapis.com/containerd.runc.v1.Options"] {
        let options = decode(url, &bytes).unwrap();
        let settings = options.runc_settings("moby");
        assert_eq!(settings.binary, Path::new("/bin/crun"));
        assert_eq!(settings.root, Path::new("/var/run/docker/runtime-runc/moby"));
        assert!(settings.systemd_cgroup && options.no_pivot_root && options.no_new_keyring);
        assert_eq!(
            (options.io_uid, options.io_gid, options.shim_cgroup.as_str()),
            (7, 8, "/shims")
        );
        assert_eq!(options.criu_image_path.as_deref(), Some(Path::new("/image")));
        assert_eq!(options.criu_work_path.as_deref(), Some(Path::new("/work")));
    }
}

#[test]
fn no_options_are_the_defaults() {
    let settings = CreateOptions::decode(None).unwrap().runc_settings("default");
    assert_eq!(settings.binary, Path::new("runc"));
    assert_eq!(settings.root, Path::new("/run/containerd/runc/default"));
    assert!(!settings.systemd_cgroup);
    assert_eq!(decode("", b"anything").unwrap(), CreateOptions::default());
}

#[test]
fn the_legacy_type_is_taken_with_what_it_says_of_restores() {
    // open_tcp = true, file_locks = true, shim_cgroup = "/s", io_uid = 1000, criu_work_path = "/w", criu_image_path = "/i"
    let bytes = [
        0x10, 1, 0x28, 1, 0x4a, 2, b'/', b's', 0x50, 0xe8, 0x07, 0x62, 2, b'/', b'w', 0x6a, 2, b'/', b'i',
    ];
    let options = decode(LEGACY_TYPE, &bytes).unwrap();
    assert_eq!(options.shim_cgroup, "/s");
    assert_eq!(options.io_uid, 1000);
    assert_eq!(options.criu_work_path.as_deref(), Some(Path::new("/w")));
    assert_eq!(options.criu_image_path.as_deref(), Some(Path::new("/i")));
    assert_eq!(options.restore.tcp, Some(Tcp::Established));
    assert_eq!(options.restore.file_locks, Some(true));
    assert_eq!(options.restore.external_unix_sockets, None);
}

#[test]
fn what_cannot_be_honoured_is_refused_by_its_name() {
    refused(decode(RUNC_TYPE, &[0x42, 1, b'/']), "criu_path");
    refused(decode(RUNC_TYPE, &[0xf0, 1, 1]), "number 30");
    refused(decode(RUNC_TYPE, &[0x68, 4]), "task_api_version = 4");
    refused(decode(LEGACY_TYPE, &[0x32, 1, b'x']), "empty_namespaces");
    refused(decode(LEGACY_TYPE, &[0x3a, 1, b'x']), "cgroups_mode");
    refused(decode(LEGACY_TYPE, &[0x70, 1]), "number 14");
    refused(decode("some.other.Options", b""), "some.other.Options");
    refused(generic("io.containerd.kata.v2.options", "", b""), "kata");
}

#[test]
fn bytes_that_are_no_message_are_refused() {
    for kind in [RUNC_TYPE, LEGACY_TYPE, GENERIC_TYPE] {
        refused(decode(kind, &[0x0a, 0xff]), kind);
        refused(decode(kind, &[0xff, 0xff, 0xff]), kind);
    }
}

#[test]
fn containerds_configuration_is_a_table_in_the_generic_body() {
    let table = b"BinaryName = \"/usr/bin/crun\"\nRoot = \"/run/x\"\nSystemdCgroup = false\nIoUid = 5\nNoPivotRoot = true\n";
    for type_url in ["", RUNC_TYPE, GENERIC_TYPE] {
        let options = generic(type_url, "", table).unwrap();
        assert_eq!(options.binary_name, "/usr/bin/crun");
        assert_eq!(options.runc_settings("k8s.io").root, Path::new("/run/x/k8s.io"));
        assert_eq!((options.io_uid, options.no_pivot_root), (5, true));
    }
    assert_eq!(generic("", "", b"").unwrap(), CreateOptions::default());
    assert_eq!(
        generic("", "", b"binary_name = \"crun\"").unwrap().binary_name,
        "crun"
    );
}

#[test]
fn a_table_is_read_strictly() {
    refused(generic("", "", b"BinaryNam = \"crun\""), "BinaryNam");
    refused(generic("", "", b"BinaryName = 5"), "a text");
    refused(generic("", "", b"IoUid = -1"), "IoUid");
    refused(generic("", "", b"CriuPath = \"/sbin/criu\""), "CriuPath");
    refused(
        generic("", "", b"TypeUrl = \"io.containerd.runsc.v1.options\""),
        "runsc",
    );
    refused(generic("", "", b"BinaryName ="), "body");
    refused(generic("", "", b"\xff\xfe"), "body");
}

#[test]
fn a_message_in_the_generic_body_is_what_its_type_names() {
    let sent = Options {
        binary_name: "crun".into(),
        ..Default::default()
    };
    let bytes = sent.write_to_bytes().unwrap();
    assert_eq!(generic(RUNC_TYPE, "", &bytes).unwrap().binary_name, "crun");
    // shim_cgroup = "/s"
    let legacy = generic(LEGACY_TYPE, "", &[0x4a, 2, b'/', b's']).unwrap();
    assert_eq!(legacy.shim_cgroup, "/s");
}

#[test]
fn a_configuration_file_counts_in_place_of_the_body() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("runc.toml");
    let name = file.to_str().unwrap();
    refused(generic("", name, b""), name);
    fs::write(&file, "BinaryName = \"crun\"\n").unwrap();
    assert_eq!(
        generic("", name, b"BinaryName = \"runc\"").unwrap().binary_name,
        "crun"
    );
    fs::write(&file, "BinaryNam = \"crun\"\n").unwrap();
    refused(generic("", name, b""), "BinaryNam");
    refused(generic("", "runc.toml", b""), "absolute");
    fs::write(&file, " ".repeat(100_000)).unwrap();
    refused(generic("", name, b""), "too many");
}
