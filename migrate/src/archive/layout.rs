//! The names of an archive's members, and what each of them is for. What has another name is refused.
//!
//! The names are those of podman's `container checkpoint --export` (libpod, `pkg/checkpoint`), which CRI-O and checkpointctl share.

/// Ours, and the first of all: whose archive it is, and what it will have.
pub const MANIFEST: &str = "godwit.manifest";
/// Ours, and the last of all but for a signature: the sums of the others.
pub const DIGESTS: &str = "godwit.digests";
/// Ours, and behind the sums: a host's signature over them.
pub const SIGNATURE: &str = "godwit.signature";
/// The container's configuration as podman has it.
pub const CONFIG: &str = "config.dump";
/// The container's OCI configuration.
pub const SPEC: &str = "spec.dump";
/// Its networks as podman has them.
pub const NETWORK: &str = "network.status";
/// CRIU's statistics of the dump.
pub const STATS: &str = "stats-dump";
/// What the container changed in its image.
pub const LAYER: &str = "rootfs-diff.tar";
/// What it removed from it.
pub const DELETED: &str = "deleted.files";
/// The content of a `/dev/shm` that the engine had made outside of the container.
pub const SHM: &str = "devshm-checkpoint.tar";
/// CRIU's image.
pub const IMAGE_DIR: &str = "checkpoint/";
/// The contents of volumes, one archive for each.
pub const VOLUME_DIR: &str = "volumes/";
const VOLUME_SUFFIX: &str = ".tar";

/// Small members, each with the bytes it has at most: what is read into memory whole.
const NOTES: [(&str, u64); 9] = [
    (MANIFEST, 16 << 20),
    (DIGESTS, 32 << 20),
    // A certificate has some 600 bytes, one of RSA some 2000.
    (SIGNATURE, 64 << 10),
    (CONFIG, 16 << 20),
    (SPEC, 16 << 20),
    (NETWORK, 16 << 20),
    (STATS, 1 << 20),
    (DELETED, 64 << 20),
    // CRI-O's list of what it mounts.
    ("bind.mounts", 16 << 20),
];

/// What others write and nobody needs for a restore: logs, and what was attached to the archive.
const PASSED_OVER: [&str; 5] = ["ctr.log", "container.log", "dump.log", "restore.log", "status"];
const PASSED_OVER_DIR: &str = "artifacts/";

/// Longest name that Linux has.
const MAX_NAME_BYTES: usize = 255;

/// What a member is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Read into memory, so many bytes at most.
    Note(&'static str, u64),
    /// A file of CRIU's image.
    Image(String),
    /// The writable layer.
    Layer,
    /// The content of `/dev/shm`.
    Shm,
    /// The content of this volume.
    Volume(String),
    /// A directory that is there for what is in it.
    Directory,
    /// Nothing that is needed here.
    PassedOver,
}

/// What the member of this name is for; `None` if nothing is called so.
pub fn place(path: &[u8]) -> Option<Place> {
    let path = std::str::from_utf8(path).ok()?;
    let path = path.strip_prefix("./").unwrap_or(path);
    if let Some((name, limit)) = NOTES.iter().find(|(name, _)| *name == path) {
        return Some(Place::Note(name, *limit));
    }
    match path {
        "" | IMAGE_DIR | "checkpoint" | VOLUME_DIR | "volumes" | PASSED_OVER_DIR | "artifacts" => {
            return Some(Place::Directory);
        }
        LAYER => return Some(Place::Layer),
        SHM => return Some(Place::Shm),
        _ if PASSED_OVER.contains(&path) || path.starts_with(PASSED_OVER_DIR) => {
            return Some(Place::PassedOver);
        }
        _ => {}
    }
    if let Some(name) = path.strip_prefix(IMAGE_DIR) {
        return is_plain(name).then(|| Place::Image(name.into()));
    }
    let volume = path.strip_prefix(VOLUME_DIR)?.strip_suffix(VOLUME_SUFFIX)?;
    is_plain(volume).then(|| Place::Volume(volume.into()))
}

/// The member that a volume's content is in.
pub fn of_volume(name: &str) -> String {
    format!("{VOLUME_DIR}{name}{VOLUME_SUFFIX}")
}

/// Whether it is the name of a file directly in a directory.
fn is_plain(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() <= MAX_NAME_BYTES && !name.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_known_by_their_names_alone() {
        assert_eq!(
            place(b"./checkpoint/core-1.img"),
            Some(Place::Image("core-1.img".into()))
        );
        assert_eq!(
            place(of_volume("data").as_bytes()),
            Some(Place::Volume("data".into()))
        );
        assert_eq!(place(b"rootfs-diff.tar"), Some(Place::Layer));
        assert!(matches!(place(b"config.dump"), Some(Place::Note(CONFIG, _))));
        assert_eq!(place(b"checkpoint/"), Some(Place::Directory));
        assert_eq!(place(b"ctr.log"), Some(Place::PassedOver));
    }

    #[test]
    fn what_leads_elsewhere_is_no_name() {
        for path in [
            "checkpoint/../../etc/passwd",
            "checkpoint/a/b",
            "checkpoint/..",
            "/checkpoint/core-1.img",
            "../config.dump",
            "volumes/../x.tar",
            "volumes/.tar",
            "volumes/data",
            "etc/passwd",
            "././config.dump",
        ] {
            assert_eq!(place(path.as_bytes()), None, "{path}");
        }
        assert_eq!(place(b"checkpoint/\xff"), None);
    }
}
