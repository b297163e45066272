//! A checkpoint image in a directory, as `docker checkpoint create`, `ctr`, runC and podman leave one.
//!
//! Only regular files directly in it are read, and no symbolic link is followed: a directory may be somebody else's.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::collected::Collected;
use super::image::Image;
use super::view::{Subject, SubjectKind};

/// What every image has.
const INVENTORY: &str = "inventory.img";

/// Where an archive that was unpacked has its image.
const WITHIN: &str = "checkpoint";

/// Reads the image in `directory`, or in its directory `checkpoint`.
pub fn read(directory: &Path) -> io::Result<Image> {
    let place = place(directory)?;
    let mut collected = Collected::default();
    for entry in fs::read_dir(&place)? {
        let entry = entry?;
        if !entry.file_type()?.is_file() {
            continue;
        }
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", entry.path().display()));
        let mut file = fs::File::options()
            .read(true)
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
            .open(entry.path())
            .map_err(named)?;
        let metadata = file.metadata()?;
        if metadata.is_file() {
            let name = entry.file_name().to_string_lossy().into_owned();
            collected.add(&name, metadata.len(), &mut file).map_err(named)?;
        }
    }
    let subject = Subject {
        kind: SubjectKind::Directory,
        name: directory.display().to_string(),
        id: None,
        engine: None,
        image: None,
        state: None,
        signed_by: None,
    };
    let mut image = Image::read(subject, &collected)?;
    if image.damage.is_none()
        && let Some(manifest) = &image.manifest
    {
        // The sizes are right; what was written may be not.
        image.damage = manifest.check(&place).err().map(|error| error.to_string());
    }
    Ok(image)
}

fn place(directory: &Path) -> io::Result<PathBuf> {
    let has_image = |place: &Path| place.join(INVENTORY).is_file();
    let within = directory.join(WITHIN);
    if has_image(directory) {
        Ok(directory.into())
    } else if has_image(&within) {
        Ok(within)
    } else {
        let text = format!(
            "{} holds no checkpoint image: it has no {INVENTORY}",
            directory.display()
        );
        Err(io::Error::new(io::ErrorKind::NotFound, text))
    }
}
