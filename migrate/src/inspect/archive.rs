//! An archive, read over from its first byte to its last: the image in it as that of a directory, the sizes of all else.
//!
//! Nothing is written anywhere, and of what is large nothing is kept. That an archive is what its maker wrote is checked where it is
//! used (`archive::read`): here its sums are not, and what has an unknown name is told as it is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use godwit_runtime::tar::{self, Kind};
use serde::Deserialize;

use super::budget::{Budget, oversized};
use super::collected::Collected;
use super::image::Image;
use super::view::{Origin, Subject, SubjectKind};
use crate::archive::layout::{self, Place};
use crate::archive::manifest::Manifest;
use crate::archive::signature::Signature;
use crate::archive::{ArchiveError, compress};

/// Members at most: an image has some ten, and some for each task.
const MAX_MEMBERS: usize = 1_000_000;

/// Descriptions that are read: ours, and podman's of the container.
const NOTES: [&str; 3] = [layout::MANIFEST, layout::CONFIG, layout::SIGNATURE];

/// What podman, CRI-O and others say of a container.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    id: Option<String>,
    #[serde(alias = "rootfsImageName")]
    rootfs_image_name: Option<String>,
}

/// Reads the archive in a file.
pub fn read(path: &Path) -> io::Result<Image> {
    let input = BufReader::new(File::open(path)?);
    read_from(input, path.display().to_string())
}

/// Reads an archive of this name.
pub fn read_from(input: impl Read, name: String) -> io::Result<Image> {
    let mut archive = tar::Reader::new(compress::unpack(input)?);
    let (mut collected, mut budget) = (Collected::default(), Budget::default());
    let (mut parts, mut notes) = (BTreeMap::new(), BTreeMap::new());
    let mut n_members = 0;
    while let Some(member) = archive.next_member()? {
        n_members += 1;
        if n_members > MAX_MEMBERS {
            return Err(oversized("it has more members than any"));
        }
        if !matches!(member.kind, Kind::File) {
            continue;
        }
        match layout::place(&member.path) {
            Some(Place::Image(name)) => {
                collected.add(&name, member.size, &mut (&mut archive).take(member.size))?;
                continue;
            }
            Some(Place::Note(name, limit)) if NOTES.contains(&name) && member.size <= limit => {
                let mut text = Vec::new();
                (&mut archive).take(member.size).read_to_end(&mut text)?;
                notes.insert(name, text);
            }
            _ => {}
        }
        parts.insert(budget.entry(&member.path)?, member.size);
    }
    let config: Config = notes
        .get(layout::CONFIG)
        .and_then(|text| serde_json::from_slice(text).ok())
        .unwrap_or_default();
    let subject = Subject {
        kind: SubjectKind::Archive,
        name,
        id: config.id,
        engine: None,
        image: config.rootfs_image_name,
        state: None,
        signed_by: None,
    };
    let mut image = Image::read(subject, &collected)?;
    image.inspection.sizes.parts = parts;
    if let Some(text) = notes.get(layout::MANIFEST) {
        let unreadable = |error: ArchiveError| io::Error::other(error.to_string());
        let manifest = Manifest::parse(text).map_err(unreadable)?;
        if let Some(member) = notes.get(layout::SIGNATURE) {
            Signature::parse(member).map_err(unreadable)?;
            image.inspection.subject.signed_by = Some(manifest.host.clone());
        }
        told(&mut image, manifest);
    }
    Ok(image)
}

/// What Godwit says of the host and the container.
fn told(image: &mut Image, manifest: Manifest) {
    let (container, source) = (manifest.offer.container, manifest.offer.source);
    image.inspection.subject.id = Some(container.id);
    image.inspection.subject.image = Some(container.image_name);
    image.inspection.subject.engine = Some(container.engine);
    let seen = image.inspection.origin.take().unwrap_or_default();
    image.inspection.origin = Some(Origin {
        architecture: Some(source.architecture),
        kernel: Some(source.kernel),
        criu: source.criu,
        runc: source.runc,
        cpu_flags: source.cpu_flags.into_iter().collect(),
        ..seen
    });
}
