//! What an archive's image says of the network namespace: that somebody outside of the image makes it, as podman's do.
//!
//! Of a container whose network its engine wires, our images say nothing of the namespace, and CRIU makes an empty one, which the engine
//! fills. Podman makes it before, and gives it to CRIU by the name that the image has for it. So an archive has that name in a
//! file of its own, and an import takes the file away again, from podman's archives as well.

use std::fs;
use std::io;
use std::path::Path;

use godwit_runtime::image_file::{self, Field, damaged};
use godwit_runtime::pages::layout::pids;
use protobuf::CodedOutputStream;

/// How the names of such files begin.
const PREFIX: &str = "netns-";

/// What they begin with: the number of all images, and of these (criu/include/magic.h).
const MAGIC: [u32; 2] = [0x5456_4319, 0x5593_3752];

/// The name that runC gives the namespace (libcontainer/criu_linux.go).
const EXTERNAL: &[u8] = b"extRootNetNS";

/// The number of that field (images/netdev.proto), and of a task's network namespace among its ids (images/core.proto).
const NAME_FIELD: u32 = 8;
const NETWORK_FIELD: u32 = 6;

/// The file to be added to an image that has none; its name and content.
pub(super) fn external(image: &Path) -> io::Result<(String, Vec<u8>)> {
    let first = pids(image)?.into_iter().next();
    let first = first.ok_or_else(|| damaged("no process"))?;
    let mut id = None;
    image_file::entries(&image.join(format!("ids-{first}.img")), |entry| {
        image_file::fields(entry, |number, value| {
            if let (NETWORK_FIELD, Field::Number(value)) = (number, value) {
                id = Some(value);
            }
        })
    })?;
    let id = id.ok_or_else(|| damaged("a process without a network"))?;
    let mut entry = Vec::new();
    let mut output = CodedOutputStream::vec(&mut entry);
    output.write_bytes(NAME_FIELD, EXTERNAL)?;
    output.flush()?;
    drop(output);
    let mut content: Vec<u8> = MAGIC.iter().flat_map(|magic| magic.to_le_bytes()).collect();
    content.extend(
        u32::try_from(entry.len())
            .map_err(io::Error::other)?
            .to_le_bytes(),
    );
    content.extend(entry);
    Ok((format!("{PREFIX}{id}.img"), content))
}

/// Takes what is said of the namespace away.
pub(super) fn remove(image: &Path) -> io::Result<()> {
    for entry in fs::read_dir(image)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(entry: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 8];
        bytes.extend((entry.len() as u32).to_le_bytes());
        bytes.extend(entry);
        bytes
    }

    #[test]
    fn the_namespace_is_named_as_podman_names_it_and_taken_away_again() {
        let image = tempfile::tempdir().unwrap();
        fs::write(image.path().join("pstree.img"), written(&[0x08, 1])).unwrap();
        fs::write(image.path().join("ids-1.img"), written(&[0x28, 9, 0x30, 10])).unwrap();
        let (name, content) = external(image.path()).unwrap();
        assert_eq!(name, "netns-10.img");
        // As podman 5.8.6 with CRIU 4.2.1 writes it.
        let theirs = b"\x19CVTR7\x93U\x0e\0\0\0B\x0cextRootNetNS";
        assert_eq!(content, theirs);
        fs::write(image.path().join(&name), content).unwrap();
        remove(image.path()).unwrap();
        assert!(!image.path().join(&name).exists());
        assert!(image.path().join("ids-1.img").exists());
    }
}
