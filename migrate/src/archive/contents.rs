//! The contents of an archive: what the thread writes that has a container standing still before it.
//!
//! All sizes are found out first, by a look at the files and the list of pages; then everything is read once and written once, in the
//! order of `docs/archive.md`. It decides nothing of the container.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use godwit_runtime::delta::{TarPlan, Tree, lower_dirs};
use godwit_runtime::image::{Manifest as ImageManifest, NetworkOwner};
use godwit_runtime::pages::layout::pids;
use godwit_runtime::pages::whole::{self, Pages, Piece};
use godwit_runtime::pages::wire::PAGE_BYTES;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::compress::{Compression, Packer, Summed};
use super::manifest::{Listed, Manifest};
use super::pipe::{Outlet, Whole};
use super::write::Writer;
use super::{ArchiveError, ExportOptions, bundle, layout, netns, stats};
use crate::clock::Step;
use crate::message::Offer;
use crate::pages::memory::Memory;
use crate::progress::Observer;
use crate::tls::Identity;
use crate::volumes;

/// Memory read at a time.
const BLOCK_BYTES: usize = 1 << 20;

/// What the thread needs.
pub(super) struct Work {
    pub(super) host: String,
    pub(super) image: PathBuf,
    pub(super) init: u32,
    pub(super) upper: PathBuf,
    pub(super) rootfs: PathBuf,
    pub(super) bundle: PathBuf,
    pub(super) offer: Offer,
    pub(super) options: ExportOptions,
    pub(super) signer: Option<Identity>,
    pub(super) steps: Vec<Step>,
    pub(super) observer: Observer,
    pub(super) whole: Whole,
}

impl Work {
    /// Writes the whole archive; the bytes of its members. Everything it reads stands still.
    pub(super) fn write(
        self,
        bytes: mpsc::Sender<axum::body::Bytes>,
        stop: CancellationToken,
    ) -> Result<u64, ArchiveError> {
        let failed = |error: godwit_runtime::delta::DeltaError| {
            ArchiveError::io("the container's files")(io::Error::other(error.to_string()))
        };
        let manifest = ImageManifest::read(&self.image).map_err(ArchiveError::io("the image"))?;
        let network = manifest.as_ref().map(|manifest| manifest.network);
        let pages = if manifest.is_some_and(|manifest| manifest.lazy) {
            whole::make(&self.image).map_err(ArchiveError::io("the memory of the frozen tasks"))?
        } else {
            Vec::new()
        };
        let lowers = lower_dirs(&self.rootfs).unwrap_or_default();
        let layer = TarPlan::new(Tree::Layer(&self.upper), &lowers).map_err(failed)?;
        let mut volumes = Vec::new();
        for (_, offered) in volumes::copied(&self.offer.volumes) {
            let plan = TarPlan::new(Tree::Plain(&offered.volume.path), &[]).map_err(failed)?;
            volumes.push((layout::of_volume(&offered.volume.name), plan));
        }
        let mut images = Images::list(&self.image, &pages)?;
        if network == Some(NetworkOwner::Engine) {
            images.add_network(&self.image)?;
        }
        let notes = self.notes(&layer, &images)?;

        let mut members: Vec<Listed> = Vec::new();
        let mut list = |name: &str, size: u64| {
            members.push(Listed {
                name: name.into(),
                size,
            });
        };
        notes
            .iter()
            .for_each(|(name, bytes)| list(name, bytes.len() as u64));
        images
            .0
            .iter()
            .for_each(|image| list(&image.member(), image.bytes));
        list(layout::LAYER, layer.bytes());
        volumes.iter().for_each(|(name, plan)| list(name, plan.bytes()));
        let mut manifest = Manifest::new(
            &self.host,
            self.options.leave_running,
            self.offer.clone(),
            members,
        );
        let deleted = layer.deleted().iter().filter(|path| path.to_str().is_none());
        manifest.deleted_bytes = deleted.map(|path| path.as_os_str().as_bytes().to_vec()).collect();
        self.observer.expect(manifest.bytes(""));

        let out = Outlet::new(bytes, stop);
        let packed = ArchiveError::io("writing the archive");
        let packer = Packer::new(self.options.compress, out).map_err(packed)?;
        // An image says what its layer is unpacked.
        let is_wanted = self.options.image.is_some() && self.options.compress != Compression::None;
        let mut writer = Writer::new(Summed::new(packer, is_wanted), self.observer.transfer());
        let mut write = || -> io::Result<()> {
            writer.note(layout::MANIFEST, &serde_json::to_vec(&manifest)?)?;
            for (name, bytes) in &notes {
                writer.note(name, bytes)?;
            }
            writer.directory(layout::IMAGE_DIR)?;
            let memory = if pages.is_empty() {
                None
            } else {
                Some(Memory::of_tasks(&pids(&self.image)?, self.init)?)
            };
            for image in &images.0 {
                writer.stream(&image.member(), image.bytes, |out| {
                    image.copy(memory.as_ref(), out)
                })?;
            }
            let whole = |plan: &TarPlan<'_>, out: &mut dyn Write| {
                plan.write(out)
                    .map_err(|error| io::Error::other(error.to_string()))
            };
            writer.stream(layout::LAYER, layer.bytes(), |out| whole(&layer, out))?;
            if !volumes.is_empty() {
                writer.directory(layout::VOLUME_DIR)?;
            }
            for (name, plan) in &volumes {
                writer.stream(name, plan.bytes(), |out| whole(plan, out))?;
            }
            Ok(())
        };
        write().map_err(ArchiveError::io("writing the archive"))?;
        let end = || -> io::Result<(Outlet, String)> {
            let (packer, digest) = writer.finish(self.signer.as_ref())?.finish();
            let mut out = packer.finish()?;
            out.flush()?;
            Ok((out, digest))
        };
        let (out, digest) = end().map_err(ArchiveError::io("writing the archive"))?;
        self.whole.note(digest);
        drop(out);
        Ok(manifest.bytes(""))
    }

    /// The small members.
    fn notes(
        &self,
        layer: &TarPlan<'_>,
        images: &Images,
    ) -> Result<Vec<(&'static str, Vec<u8>)>, ArchiveError> {
        let container = &self.offer.container;
        let spec = bundle::spec(container, &bundle::spec_of(&self.bundle)?);
        let json = |value: &serde_json::Value| serde_json::to_vec(value).map_err(io::Error::from);
        let deleted: Vec<String> = layer
            .deleted()
            .iter()
            .filter_map(|path| Some(format!("/{}", path.to_str()?)))
            .collect();
        let notes = || -> io::Result<Vec<(&'static str, Vec<u8>)>> {
            let mut notes = vec![
                (
                    layout::CONFIG,
                    json(&bundle::config(container, &spec, &self.offer.volumes))?,
                ),
                (layout::SPEC, json(&spec)?),
                (layout::NETWORK, json(&bundle::networks(container))?),
                (layout::STATS, stats::file(&self.steps, images.n_pages())?),
            ];
            if !deleted.is_empty() {
                notes.push((layout::DELETED, serde_json::to_vec(&deleted)?));
            }
            Ok(notes)
        };
        notes().map_err(ArchiveError::io("describing the container"))
    }
}

/// The files of the image, as the archive is to have them.
struct Images(Vec<Image>);

struct Image {
    path: PathBuf,
    name: String,
    bytes: u64,
    /// Of a file of pages that is put together.
    pieces: Option<Vec<Piece>>,
    /// Of one that is in no directory.
    content: Option<Vec<u8>>,
}

impl Images {
    fn list(image: &Path, pages: &[Pages]) -> Result<Self, ArchiveError> {
        let list = || -> io::Result<Vec<Image>> {
            let mut files: BTreeMap<String, Image> = BTreeMap::new();
            for entry in std::fs::read_dir(image)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let metadata = entry.metadata()?;
                if !metadata.is_file() {
                    return Err(io::Error::other(format!("{name} in the image is no file")));
                }
                let (path, bytes) = (entry.path(), metadata.len());
                let file = Image {
                    path,
                    bytes,
                    pieces: None,
                    content: None,
                    name: name.clone(),
                };
                files.insert(name, file);
            }
            for one in pages {
                let file = Image {
                    path: image.join(&one.name),
                    bytes: one.bytes(),
                    pieces: Some(one.pieces.clone()),
                    content: None,
                    name: one.name.clone(),
                };
                files.insert(one.name.clone(), file);
            }
            Ok(files.into_values().collect())
        };
        list().map(Self).map_err(ArchiveError::io("the image"))
    }

    /// Adds what podman must be told of the network.
    fn add_network(&mut self, image: &Path) -> Result<(), ArchiveError> {
        let (name, content) = netns::external(image).map_err(ArchiveError::io("the image's network"))?;
        self.0.push(Image {
            path: image.join(&name),
            name,
            bytes: content.len() as u64,
            pieces: None,
            content: Some(content),
        });
        Ok(())
    }

    fn n_pages(&self) -> u64 {
        let pages = self.0.iter().filter(|image| image.name.starts_with("pages-"));
        pages.map(|image| image.bytes).sum::<u64>() / PAGE_BYTES as u64
    }
}

impl Image {
    fn member(&self) -> String {
        format!("{}{}", layout::IMAGE_DIR, self.name)
    }

    fn copy(&self, memory: Option<&Memory>, out: &mut dyn Write) -> io::Result<()> {
        if let Some(content) = &self.content {
            return out.write_all(content);
        }
        let Some(pieces) = &self.pieces else {
            io::copy(&mut File::open(&self.path)?.take(self.bytes), &mut WriteAll(out))?;
            return Ok(());
        };
        let mut written = if self.path.exists() {
            Some(File::open(&self.path)?)
        } else {
            None
        };
        let mut block = vec![0; BLOCK_BYTES];
        for piece in pieces {
            match (piece, &mut written, memory) {
                (Piece::Written { bytes }, Some(file), _) => {
                    let n_copied = io::copy(&mut file.take(*bytes), &mut WriteAll(out))?;
                    if n_copied < *bytes {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                (Piece::Left { pid, range }, _, Some(memory)) => {
                    let mut address = range.start;
                    while address < range.end {
                        let length = (range.end - address).min(BLOCK_BYTES as u64) as usize;
                        memory.read_at(*pid, address, &mut block[..length])?;
                        out.write_all(&block[..length])?;
                        address += length as u64;
                    }
                }
                _ => return Err(io::ErrorKind::NotFound.into()),
            }
        }
        Ok(())
    }
}

/// For `io::copy`, which wants a size.
struct WriteAll<'a>(&'a mut dyn Write);

impl Write for WriteAll<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
