//! Inspections of images that are made here: small ones that are as they should be, and ones that nobody should have made.

use std::collections::BTreeMap;

use protobuf::CodedOutputStream;

use super::collected::Collected;
use super::picture;
use super::view::{Inspection, MemoryKind, State, Subject, SubjectKind};
use super::*;
use crate::checks::facts::Facts;
use crate::checks::proc::recorded::Recorded;
use crate::finding::Code;

mod archives;

const PAGE: u64 = 4096;

/// A field of a message.
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}
use Value::{Bytes, Number};

fn message(fields: &[(u32, Value<'_>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut output = CodedOutputStream::vec(&mut bytes);
    for (number, value) in fields {
        match value {
            Number(value) => output.write_uint64(*number, *value).unwrap(),
            Bytes(value) => output.write_bytes(*number, value).unwrap(),
        }
    }
    output.flush().unwrap();
    drop(output);
    bytes
}

fn file(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![0; 8];
    for entry in entries {
        bytes.extend(u32::try_from(entry.len()).unwrap().to_le_bytes());
        bytes.extend(entry);
    }
    bytes
}

fn process(pid: u64, parent: u64) -> Vec<u8> {
    message(&[
        (1, Number(pid)),
        (2, Number(parent)),
        (3, Number(pid)),
        (4, Number(1)),
        (5, Number(pid)),
    ])
}

fn core(name: &str, state: u64) -> Vec<u8> {
    let task = message(&[(1, Number(state)), (6, Bytes(name.as_bytes()))]);
    let extended = message(&[(1, Number(7)), (2, Number(1)), (6, Number(1)), (7, Number(1))]);
    let registers = message(&[(1, Number(0)), (13, Bytes(&extended))]);
    let machine = message(&[(3, Bytes(&registers))]);
    file(&[message(&[
        (1, Number(1)),
        (2, Bytes(&machine)),
        (3, Bytes(&task)),
    ])])
}

/// Start, number of pages, number of the file, flags of `mmap(2)`, status.
fn mapping((start, pages, id, flags, status): (u64, u64, u64, u64, u64)) -> Vec<u8> {
    message(&[
        (1, Number(start)),
        (2, Number(start + pages * PAGE)),
        (4, Number(id)),
        (5, Number(3)),
        (6, Number(flags)),
        (7, Number(status)),
    ])
}

fn memory(mappings: &[(u64, u64, u64, u64, u64)]) -> Vec<u8> {
    let inner: Vec<Vec<u8>> = mappings.iter().map(|one| mapping(*one)).collect();
    let fields: Vec<(u32, Value<'_>)> = inner.iter().map(|one| (14, Bytes(one))).collect();
    file(&[message(&fields)])
}

fn pagemap(pages_id: u64, runs: &[(u64, u64)]) -> Vec<u8> {
    let head = message(&[(1, Number(pages_id))]);
    let runs = runs.iter().map(|(start, pages)| {
        message(&[
            (1, Number(*start)),
            (2, Number(*pages)),
            (4, Number(4)),
            (5, Number(*pages)),
        ])
    });
    file(&[head].into_iter().chain(runs).collect::<Vec<_>>())
}

fn pages(filled: &[bool]) -> Vec<u8> {
    filled
        .iter()
        .flat_map(|filled| vec![u8::from(*filled); PAGE as usize])
        .collect()
}

/// A server with a child, a zombie and memory of each kind.
fn server() -> BTreeMap<String, Vec<u8>> {
    let reg = message(&[(1, Number(7)), (3, Number(42)), (6, Bytes(b"/usr/bin/server"))]);
    let address = u64::from(u32::from_ne_bytes([127, 0, 0, 1]));
    let listener = message(&[
        (2, Number(99)),
        (5, Number(6)),
        (6, Number(10)),
        (7, Number(80)),
        (8, Number(0)),
        (11, Number(address)),
        (12, Number(0)),
    ]);
    let unix = message(&[(4, Number(10)), (11, Bytes(b"\0bus\0"))]);
    let entry =
        |kind, id, field, inner: &[u8]| message(&[(1, Number(kind)), (2, Number(id)), (field, Bytes(inner))]);
    let open = |id, kind, descriptor| {
        message(&[
            (1, Number(id)),
            (2, Number(0)),
            (3, Number(kind)),
            (4, Number(descriptor)),
        ])
    };
    let mount = |kind, path: &[u8], flags| {
        message(&[
            (1, Number(kind)),
            (5, Number(flags)),
            (6, Bytes(b"/")),
            (7, Bytes(path)),
            (8, Bytes(b"src")),
        ])
    };
    let private = 0x22;
    [
        ("inventory.img", file(&[message(&[(1, Number(2))])])),
        ("pstree.img", file(&[process(9, 7), process(1, 0), process(7, 1)])),
        ("core-1.img", core("server", 1)),
        ("core-7.img", core("worker", 3)),
        ("core-9.img", core("gone", 6)),
        ("ids-1.img", file(&[message(&[(1, Number(1)), (2, Number(5))])])),
        ("ids-7.img", file(&[message(&[(1, Number(1)), (2, Number(6))])])),
        (
            "mm-1.img",
            memory(&[
                (0x1000, 4, 7, 0x2, 1 << 6),
                (0x8000, 8, 0, private, (1 << 5) | (1 << 9)),
                (0x2_0000, 2, 33, 0x21, 1 << 8),
                (0x3_0000, 1, 0, 0x22, 1 << 3),
            ]),
        ),
        ("mm-7.img", memory(&[(0x2_0000, 2, 33, 0x21, 1 << 8)])),
        ("pagemap-1.img", pagemap(1, &[(0x2000, 1), (0x8000, 4)])),
        ("pagemap-7.img", pagemap(2, &[])),
        ("pagemap-shmem-33.img", pagemap(3, &[(0, 2)])),
        ("pages-1.img", pages(&[true, true, false, false, true])),
        ("pages-3.img", pages(&[true, false])),
        (
            "files.img",
            file(&[
                entry(1, 7, 3, &reg),
                entry(4, 8, 4, &listener),
                entry(5, 9, 16, &unix),
                entry(6, 10, 8, &[]),
            ]),
        ),
        (
            "fdinfo-5.img",
            file(&[open(10, 6, 5), open(7, 1, 3), open(8, 4, 4), open(9, 5, 6)]),
        ),
        (
            "mountpoints-2.img",
            file(&[mount(17, b"/", 0), mount(23, b"/sys/fs/cgroup", 1)]),
        ),
    ]
    .map(|(name, content)| (name.to_owned(), content))
    .into()
}

fn subject() -> Subject {
    Subject {
        kind: SubjectKind::Directory,
        name: "one".into(),
        id: None,
        engine: None,
        image: None,
        state: None,
        signed_by: None,
    }
}

fn read(files: &BTreeMap<String, Vec<u8>>) -> std::io::Result<Image> {
    let mut collected = Collected::default();
    for (name, content) in files {
        collected.add(name, content.len() as u64, &mut content.as_slice())?;
    }
    Image::read(subject(), &collected)
}

fn with(name: &str, content: Vec<u8>) -> std::io::Result<Image> {
    let mut files = server();
    files.insert(name.into(), content);
    read(&files)
}

#[test]
fn processes_are_told_in_the_order_of_their_tree() {
    let told = read(&server()).unwrap().inspection;
    let processes: Vec<(u32, u32, &str, State)> = told
        .processes
        .iter()
        .map(|one| (one.pid, one.parent, one.name.as_str(), one.state))
        .collect();
    assert_eq!(
        processes,
        [
            (1, 0, "server", State::Alive),
            (7, 1, "worker", State::Stopped),
            (9, 7, "gone", State::Zombie)
        ]
    );
    assert_eq!(told.depths(), [0, 1, 2]);
    let origin = told.origin.unwrap();
    assert_eq!(origin.architecture.as_deref(), Some("x86_64"));
    assert_eq!(origin.cpu_flags, ["avx", "avx512f"]);
    assert_eq!(origin.cgroup_version, Some(2));
    assert!(!origin.sealed);
}

#[test]
fn pages_are_counted_with_the_mapping_that_they_belong_to_and_zeros_apart() {
    let told = read(&server()).unwrap().inspection;
    let first: Vec<(&str, MemoryKind, &str, u64, Option<u64>)> = told.processes[0]
        .memory
        .iter()
        .map(|one| {
            (
                one.start.as_str(),
                one.kind,
                one.name.as_str(),
                one.memory_bytes / PAGE,
                one.zero_bytes.map(|n| n / PAGE),
            )
        })
        .collect();
    assert_eq!(
        first,
        [
            ("1000", MemoryKind::File, "/usr/bin/server", 1, Some(0)),
            ("8000", MemoryKind::Anonymous, "[heap]", 4, Some(2)),
            ("20000", MemoryKind::Shared, "", 2, Some(1)),
            ("30000", MemoryKind::Kernel, "[vdso]", 0, Some(0)),
        ]
    );
    assert_eq!(
        told.processes[1].memory[0].memory_bytes, 0,
        "shared memory counts once"
    );
    assert_eq!(told.sizes.memory_bytes, 7 * PAGE);
    assert_eq!(told.sizes.zero_bytes, Some(3 * PAGE));
    assert_eq!(told.sizes.pages_bytes, Some(7 * PAGE));
}

#[test]
fn what_is_open_and_mounted_is_told() {
    let told = read(&server()).unwrap().inspection;
    let process = &told.processes[0];
    let files: Vec<(u32, &str, &str, Option<u64>)> = process
        .files
        .iter()
        .map(|one| (one.descriptor, one.kind.as_str(), one.name.as_str(), one.position))
        .collect();
    assert_eq!(
        files,
        [(3, "file", "/usr/bin/server", Some(42)), (5, "eventfd", "", None)]
    );
    let sockets: Vec<(u32, &str, &str, &str, &str)> = process
        .sockets
        .iter()
        .map(|one| {
            (
                one.descriptor,
                one.protocol.as_str(),
                one.state.as_str(),
                one.local.as_str(),
                one.remote.as_str(),
            )
        })
        .collect();
    assert_eq!(
        sockets,
        [
            (4, "tcp", "listen", "127.0.0.1:80", ""),
            (6, "unix", "listen", "@bus", "")
        ]
    );
    let mounts: Vec<(&str, &str, bool)> = told
        .mounts
        .iter()
        .map(|one| (one.path.as_str(), one.kind.as_str(), one.read_only))
        .collect();
    assert_eq!(
        mounts,
        [("/", "overlay", false), ("/sys/fs/cgroup", "cgroup2", true)]
    );
}

#[test]
fn a_log_that_lies_beside_the_image_tells_what_made_it() {
    let log = "(00.000021) Version: 4.2.1 (gitid 0)\n(00.000035) Running on ha Linux 6.12.1 #1 SMP x86_64\n";
    let image = with("dump.log", log.into()).unwrap();
    let origin = image.inspection.origin.unwrap();
    assert_eq!(
        (origin.criu.as_deref(), origin.kernel.as_deref()),
        (Some("4.2.1"), Some("6.12.1"))
    );
    assert!(with("dump.log", b"(00.1) Running on ".to_vec()).is_ok());
}

#[test]
fn a_tree_that_goes_in_a_circle_is_refused() {
    for circle in [
        vec![process(1, 7), process(7, 1), process(9, 0)],
        vec![process(1, 1), process(7, 0), process(9, 0)],
        vec![process(1, 0), process(9, 1), process(9, 1)],
    ] {
        let error = with("pstree.img", file(&circle)).unwrap_err();
        assert!(error.to_string().contains("no tree"), "{error}");
    }
}

#[test]
fn a_tree_as_deep_as_it_has_processes_is_told() {
    let mut files = server();
    let n_processes: u64 = 20_000;
    let chain: Vec<Vec<u8>> = (1..=n_processes).map(|pid| process(pid, pid - 1)).collect();
    for pid in 1..=n_processes {
        files.insert(format!("core-{pid}.img"), core("x", 1));
    }
    files.insert("pstree.img".into(), file(&chain));
    let told = read(&files).unwrap().inspection;
    assert_eq!(told.depths().last(), Some(&(n_processes as usize - 1)));
}

#[test]
fn a_file_that_is_cut_anywhere_is_no_panic_and_one_that_lies_about_lengths_is_an_error() {
    for (name, content) in server() {
        for length in 0..content.len().min(400) {
            let _ = with(&name, content[..length].to_vec());
        }
        if name.starts_with("pages-") {
            continue;
        }
        let mut long = content.clone();
        long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        let told = with(&name, long);
        // What the inventory says is not told; that it is there is all that counts.
        assert!(name == "inventory.img" || told.is_err(), "{name}");
    }
    for name in ["inventory.img", "pstree.img", "core-1.img"] {
        let mut files = server();
        files.remove(name);
        let error = read(&files).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn memory_that_cannot_be_is_refused() {
    let private = (0x22, 1 << 9);
    for mappings in [
        [
            (0x2000, 2, 0, private.0, private.1),
            (0x1000, 1, 0, private.0, private.1),
        ],
        [
            (0x2000, 2, 0, private.0, private.1),
            (0x3000, 1, 0, private.0, private.1),
        ],
        [
            (0x2000, 0, 0, private.0, private.1),
            (0x3000, 1, 0, private.0, private.1),
        ],
    ] {
        assert!(with("mm-1.img", memory(&mappings)).is_err());
    }
    assert!(
        with("pagemap-1.img", pagemap(1, &[(0x8000, 2), (0x9000, 1)])).is_err(),
        "the same page twice"
    );
    assert!(
        with("pagemap-7.img", pagemap(1, &[])).is_err(),
        "a file of pages that two lists name"
    );
}

#[test]
fn pages_that_are_missing_are_told_and_all_else_as_well() {
    let image = with("pages-1.img", pages(&[true])).unwrap();
    let damage = image.damage.unwrap();
    assert!(
        damage.contains("pages-1.img has 4096 bytes of 5 pages"),
        "{damage}"
    );
    assert_eq!(image.inspection.processes.len(), 3);
}

#[test]
fn a_host_is_judged_by_what_the_image_tells() {
    let mut image = read(&server()).unwrap();
    let here = |cgroup_version, flags: &[&str]| Facts {
        architecture: "x86_64".into(),
        cgroup_version,
        cpu_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        ..Facts::default()
    };
    let codes = |image: &Image, here: &Facts| -> Vec<Code> {
        let found = judge::of_image(image, here);
        found
            .iter()
            .filter(|one| one.is_problem())
            .map(|one| one.code)
            .collect()
    };
    assert_eq!(codes(&image, &here(2, &["avx", "avx512f", "avx2"])), []);
    assert_eq!(codes(&image, &here(1, &["avx"])), [Code::CpuFlags, Code::Cgroups]);
    image.damage = Some("half of it is missing".into());
    let other = Facts {
        architecture: "aarch64".into(),
        ..here(2, &["avx", "avx512f"])
    };
    assert_eq!(codes(&image, &other), [Code::Checkpoint, Code::Architecture]);
}

#[test]
fn names_from_an_image_steer_neither_a_picture_nor_a_page() {
    let mut files = server();
    files.insert("core-1.img".into(), core("\u{1b}[2J<script>&\u{202e}", 1));
    let told = read(&files).unwrap().inspection;
    for drawn in [picture::svg(&told), picture::html(&told)] {
        assert!(
            !drawn.contains("<script") && drawn.contains("&lt;script&gt;&amp;"),
            "{drawn}"
        );
        assert!(!drawn.contains(['\u{1b}', '\u{202e}']), "{drawn}");
    }
}

#[test]
fn a_picture_has_each_kind_of_memory_in_its_colour_and_size() {
    let drawn = picture::svg(&read(&server()).unwrap().inspection);
    for (class, told) in [
        ("anonymous", "anonymous 8.00 KiB"),
        ("zeros", "zeros 12.00 KiB"),
        ("file", "of files 4.00 KiB"),
        ("shared", "shared 4.00 KiB"),
    ] {
        assert!(drawn.contains(&format!("class=\"{class} area\"")), "{class}");
        assert!(drawn.contains(told), "{told} is not in {drawn}");
    }
    assert!(!drawn.contains("7 worker"), "it has none of its own");
    let mut files = server();
    files.retain(|name, _| !name.starts_with("page") && !name.starts_with("mm"));
    assert!(picture::svg(&read(&files).unwrap().inspection).contains("no memory"));
}

/// A process of a recorded `/proc`.
fn recorded() -> Recorded {
    let recorded = Recorded::new(&[10, 11]);
    let status = |pid, parent, inside| {
        format!("Name:\tx\nState:\tS (sleeping)\nPPid:\t{parent}\nThreads:\t3\nNSpid:\t{pid}\t{inside}\n")
    };
    recorded.file(10, "status", &status(10, 4, 1));
    recorded.file(11, "status", &status(11, 10, 8));
    recorded.file(10, "cmdline", "server\0--port\080\0");
    recorded.file(
        10,
        "smaps",
        "7f0000-7f2000 rw-p 00000000 00:00 0                          [heap]\nSize:   8 kB\nPss:    3 kB\nSwapPss:   1 kB\n\
         VmFlags: rd wr\n7f2000-7f3000 r-xp 00000000 08:01 99         /SYSV b\nPss:   4 kB\n\
         7f3000-7f4000 rw-s 00000000 00:01 12       /dev/zero (deleted)\nPss:   2 kB\n",
    );
    recorded.link(10, "fd/3", "/data/a file");
    recorded.file(10, "fdinfo/3", "pos:\t17\nflags:\t0100000\n");
    recorded.link(10, "fd/4", "socket:[77]");
    recorded.link(10, "fd/5", "anon_inode:[eventpoll]");
    recorded.link(10, "fd/6", "socket:[78]");
    recorded.file(
        10,
        "net/tcp",
        "  sl  local_address\n   0: 0100007F:1F90 00000000:0000 0A 0:0 0:0 0 0 0 77 1 0 100\n",
    );
    recorded.file(
        10,
        "net/unix",
        "Num\n0000: 00000002 00000000 00010000 0001 01    78 /run/a socket\n",
    );
    recorded.file(
        10,
        "mountinfo",
        "36 35 0:5 /a\\040b /mnt ro,noatime master:1 - tmpfs none rw\n",
    );
    recorded
}

#[test]
fn a_running_container_is_told_in_its_own_numbers() {
    let told: Inspection = running::look(&recorded().proc(), subject(), 10).unwrap();
    let processes: Vec<(u32, Option<u32>, u32)> = told
        .processes
        .iter()
        .map(|one| (one.pid, one.host_pid, one.parent))
        .collect();
    assert_eq!(processes, [(1, Some(10), 0), (8, Some(11), 1)]);
    let first = &told.processes[0];
    assert_eq!(first.command.as_deref(), Some("server --port 80"));
    assert_eq!(first.threads, 3);
    let memory: Vec<(MemoryKind, &str, u64, u64)> = first
        .memory
        .iter()
        .map(|one| (one.kind, one.name.as_str(), one.size_bytes, one.memory_bytes))
        .collect();
    assert_eq!(
        memory,
        [
            (MemoryKind::Anonymous, "[heap]", 0x2000, 4096),
            (MemoryKind::File, "/SYSV b", 0x1000, 4096),
            (MemoryKind::Shared, "", 0x1000, 2048),
        ]
    );
    assert_eq!(
        (first.files[0].name.as_str(), first.files[0].position),
        ("/data/a file", Some(17))
    );
    assert_eq!(first.files[1].kind, "epoll");
    let sockets: Vec<(u32, &str, &str)> = first
        .sockets
        .iter()
        .map(|one| (one.descriptor, one.state.as_str(), one.local.as_str()))
        .collect();
    assert_eq!(
        sockets,
        [(4, "listen", "127.0.0.1:8080"), (6, "listen", "/run/a socket")]
    );
    assert_eq!(
        (told.mounts[0].root.as_str(), told.mounts[0].read_only),
        ("/a b", true)
    );
    assert_eq!(told.sizes.zero_bytes, None);
}

#[test]
fn the_form_of_an_inspection_is_stable() {
    let told = read(&server()).unwrap().inspection;
    let json = serde_json::to_value(&told).unwrap();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["subject"]["kind"], "directory");
    assert_eq!(json["processes"][0]["memory"][1]["kind"], "anonymous");
    assert_eq!(json["processes"][2]["state"], "zombie");
    assert_eq!(serde_json::from_value::<Inspection>(json).unwrap(), told);
}
