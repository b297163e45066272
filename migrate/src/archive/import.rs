//! An import: the destination's half of a move, with a file, or an image of an engine's, in place of a source.
//!
//! The archive is taken in and checked whole before anything is done by it; then the container is made and started, and waits for
//! its image as in a move. The decision is this host's alone. A container that does not run in the end is removed again,
//! whatever the verdict: the archive still has it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_runtime::control::create_private_dir;
use godwit_runtime::delta::{Permitted, Tree, apply_tar};
use godwit_runtime::image::Manifest as ImageManifest;
use godwit_runtime::options::Tcp;
use godwit_runtime::verdict::Verdict;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::origin::{Origin, Until};
use super::read::{Places, Staged, stage};
use super::{ArchiveError, ImportOptions, PEER, Summary, bundle, foreign, layout, netns, publish};
use crate::checks::{connections, room};
use crate::deadlines;
use crate::engine::set::Choice;
use crate::engine::{Container, docker};
use crate::failure::{Cause, Failure, Problem};
use crate::finding::{self, Code, Finding};
use crate::host::Host;
use crate::journal::{Journal, Mark, Opened};
use crate::made::Made;
use crate::message::Offer;
use crate::options::MoveOptions;
use crate::phase::{Phase, Role};
use crate::places::MigrationId;
use crate::plan;
use crate::progress::Observer;
use crate::recovery;
use crate::run::{self, Boxed, Row, Side};
use crate::tcp::{Fate, Treatment};
use crate::volumes::arrive::Arriving;
use crate::volumes::{self, policy::Policy};

/// For an archive to come here: a terabyte at 1 Gbit/s. A client that goes away is noticed at once.
const STAGE_DEADLINE: Duration = Duration::from_secs(3 * 3600);

/// The capability without which nobody makes a node of a device.
const MAKES_NODES: &str = "CAP_MKNOD";

struct Import {
    host: Arc<Host>,
    observer: Observer,
    migration: MigrationId,
    options: ImportOptions,
    origin: Origin,
    began: Instant,
    staged: Staged,
    offer: Option<Offer>,
    made: Made,
    volumes: Arriving,
    rootfs: PathBuf,
    is_opened: bool,
    verdict: Option<Verdict>,
    connections: (usize, usize),
    /// Who has signed the archive, if that was found to be so.
    signed_by: Option<String>,
    /// Why a container does not run that was to.
    broken: Option<String>,
}

/// Makes a container of an archive. On `Err` nothing of it is on this host.
pub async fn run(
    host: Arc<Host>,
    observer: Observer,
    migration: MigrationId,
    options: ImportOptions,
    origin: Origin,
) -> Result<Summary, Failure> {
    let name = host.name.clone();
    let mut import = Import {
        host,
        observer,
        migration,
        options,
        origin,
        began: Instant::now(),
        staged: Staged::default(),
        offer: None,
        made: Made::default(),
        volumes: Arriving::default(),
        rootfs: PathBuf::new(),
        is_opened: false,
        verdict: None,
        connections: (0, 0),
        signed_by: None,
        broken: None,
    };
    run::run(&mut import).await?;
    if let Some(reason) = import.broken.take() {
        let mut failure = Failure::new(Role::Destination, &name, Phase::Commit, Cause::Failed(reason));
        failure.leftovers.extend(import.remove().await.err());
        return Err(failure);
    }
    let container = import.offer.map(|offer| offer.container);
    let container = container.ok_or_else(|| {
        let cause = Cause::Failed("nothing was imported".into());
        Failure::new(Role::Destination, &name, Phase::Commit, cause)
    })?;
    Ok(Summary {
        container: container.name,
        engine: container.engine,
        id: import.made.created.map(|created| created.id).unwrap_or_default(),
        runs: true,
        bytes: import.staged.bytes,
        down_micros: u64::try_from(import.began.elapsed().as_micros()).unwrap_or(u64::MAX),
        connections_kept: import.connections.0,
        connections_closed: import.connections.1,
        signed_by: import.signed_by,
        remarks: Vec::new(),
    })
}

impl Side for Import {
    const ROLE: Role = Role::Destination;

    const UNDOABLE: &'static [Row<Self, Result<(), Problem>>] = &[
        Row {
            phase: Phase::Hello,
            forward: |import| Box::pin(import.take_in()),
        },
        Row {
            phase: Phase::Plan,
            forward: |import| Box::pin(import.plan()),
        },
        Row {
            phase: Phase::Prepare,
            forward: |import| Box::pin(import.prepare()),
        },
        Row {
            phase: Phase::Restore,
            forward: |import| Box::pin(import.restore()),
        },
    ];

    const FORWARD: &'static [Row<Self, ()>] = &[
        Row {
            phase: Phase::Commit,
            forward: |import| Box::pin(import.resume()),
        },
        Row {
            phase: Phase::Release,
            forward: |import| Box::pin(import.settle()),
        },
    ];

    type Event = ();

    const GAVE_UP: () = ();

    fn decide(&mut self) -> Boxed<'_, Result<(), Problem>> {
        Box::pin(self.write_verdict())
    }

    fn tell_failure(&mut self, _failure: &Failure) {}

    fn observer(&self) -> &Observer {
        &self.observer
    }

    fn host(&self) -> &str {
        &self.host.name
    }

    fn undo_next(&mut self, (): ()) -> Boxed<'_, Result<Option<()>, String>> {
        Box::pin(async { self.remove().await.map(|()| None) })
    }
}

impl Import {
    /// Has the whole archive here, checked.
    async fn take_in(&mut self) -> Result<(), Problem> {
        let (image, files) = (self.image_dir(), self.files_dir());
        create_private_dir(&image).map_err(|error| Problem::io("the image directory", &error))?;
        create_private_dir(&files).map_err(|error| Problem::io("the directory for files", &error))?;
        let room =
            |path: &Path| room::free_bytes(path).map_err(|error| Problem::io(path.display(), &error.into()));
        let (image_room, files_room) = (room(&image)?, room(&files)?);
        let opened = timeout(STAGE_DEADLINE, self.origin.open(&self.host.engines)).await;
        let input = opened.map_err(|_| Problem::failed("nobody has brought an archive"))??;
        let input = input.map_err(|reason| {
            let told = Finding::problem(Code::Archive, reason, "");
            self.refused(&[told])
        })?;
        let stop = CancellationToken::new();
        let input = Until::new(input, stop.clone());
        let _stopped = stop.drop_guard();
        let transfer = self.observer.transfer();
        let work = spawn_blocking(move || {
            let places = Places {
                image: &image,
                files: &files,
                image_room,
                files_room,
            };
            stage(input, places, &transfer)
        });
        let staged = timeout(STAGE_DEADLINE, work)
            .await
            .map_err(|_| Problem::failed("nobody has brought an archive"))?
            .map_err(|error| Problem::failed(error.to_string()))?;
        self.staged = staged.map_err(|error| match error {
            ArchiveError::Refused(reason) => self.refused(&[Finding::problem(
                Code::Archive,
                format!("the archive is refused: {reason}"),
                "",
            )]),
            error => Problem::failed(error.to_string()),
        })?;
        self.signed_by = self
            .signer()
            .map_err(|sentence| self.refused(&[Finding::of_sentence(Code::Archive, &sentence)]))?;
        Ok(())
    }

    /// The host that has signed the archive. A signature that is there is checked, whether one is required or not: a wrong one
    /// tells that somebody has changed the archive.
    fn signer(&self) -> Result<Option<String>, String> {
        let digests = self.staged.notes.get(layout::DIGESTS);
        if let (Some(signature), Some(manifest), Some(digests)) =
            (&self.staged.signature, &self.staged.manifest, digests)
        {
            let checked = signature.check(&self.host.identity, &manifest.host, digests);
            return match checked {
                Ok(()) => Ok(Some(manifest.host.clone())),
                Err(error) => Err(format!("the archive is refused: {error}")),
            };
        }
        let required = match (self.options.require_signature, self.host.require_signature) {
            (_, true) => "require_signature in this host's agent.toml asks for it",
            (true, false) => "--require-signature asks for it",
            (false, false) => return Ok(None),
        };
        Err(format!(
            "the archive is refused: it is not signed, and {required}; export it with --sign"
        ))
    }

    /// Every reason why not.
    async fn plan(&mut self) -> Result<(), Problem> {
        let (mut offer, left_running) = match &self.staged.manifest {
            Some(manifest) => {
                netns::remove(&self.image_dir()).map_err(|error| Problem::io("the image", &error))?;
                (manifest.offer.clone(), manifest.left_running)
            }
            None => {
                let engine = self.host.engines.of(docker::NAME)?;
                let offer = foreign::offer(engine.as_ref(), &self.staged).await?;
                foreign::adapt(&self.image_dir(), &offer)
                    .map_err(|error| Problem::io("the image of another engine", &error))?;
                // How it went on there is not known; its addresses stay there in any case.
                (offer, true)
            }
        };
        self.observer.name_container(&offer.container.name);
        let mut findings = Vec::new();
        let is_chosen = self.options.image.is_none() && self.options.engine != Choice::Auto;
        if is_chosen && self.options.engine.to_string() != offer.container.engine {
            findings.push(Finding::problem(
                Code::Engine,
                format!("it was a container of {}", offer.container.engine),
                format!("leave --engine away, or say {}", offer.container.engine),
            ));
        }
        if let Err(reason) = publish::publish(&mut offer.container, &self.options.publish) {
            findings.push(Finding::problem(Code::Port, reason, "leave --publish away"));
        }
        offer.options = MoveOptions {
            name: self.options.name.clone(),
            tcp: self.options.tcp,
            ..MoveOptions::default()
        };
        let answer = plan::judge(&self.host, &mut offer).await?;
        findings.extend(answer.findings);
        if answer.image_wanted {
            let (name, id) = (&offer.container.image_name, &offer.container.image_id);
            findings.push(Finding::problem(
                Code::Image,
                format!("its image {name} ({id}) is not on this host"),
                "load or pull it first: an archive has none",
            ));
        }
        for one in offer.volumes.iter().filter(|one| one.policy == Policy::Copy) {
            if !self.staged.volumes.contains_key(&one.volume.name) {
                let text = format!("the content of volume {} is not in the archive", one.volume.name);
                findings.push(Finding::problem(Code::Volume, text, ""));
            }
        }
        let objections = finding::problems(&findings);
        if !objections.is_empty() {
            return Err(self.refused(&objections));
        }
        self.settle_connections(&offer.container, left_running)?;
        self.offer = Some(offer);
        Ok(())
    }

    fn refused(&self, objections: &[Finding]) -> Problem {
        Problem::Here(Cause::Refused(finding::on(
            &self.host.name,
            objections.iter().cloned(),
        )))
    }

    /// Notes in the image what becomes of connections. Those of a container that ran on elsewhere are that one's.
    fn settle_connections(&mut self, container: &Container, left_running: bool) -> Result<(), Problem> {
        let image = self.image_dir();
        let failed = |error: std::io::Error| Problem::io("deciding what becomes of connections", &error);
        let found = godwit_runtime::connections::in_image(&image).map_err(failed)?;
        let told = connections::told(container).map_err(Problem::failed)?;
        let treatment = match self.options.tcp.treatment(told.tcp) {
            Treatment::ByAddress if left_running => Treatment::Close,
            treatment => treatment,
        };
        let fate = treatment.fate(found.iter().any(|one| !connections::moves(container, one)));
        self.connections = match fate {
            Fate::Kept => (found.len(), 0),
            Fate::Closed => (0, found.len()),
        };
        let Some(mut manifest) = ImageManifest::read(&image).map_err(failed)? else {
            return Ok(());
        };
        manifest.options.tcp = Some(match fate {
            Fate::Kept => Tcp::Established,
            Fate::Closed => Tcp::Close,
        });
        manifest.write(&image).map_err(failed)
    }

    /// The container waits for its image, with its files.
    async fn prepare(&mut self) -> Result<(), Problem> {
        let offer = self
            .offer
            .clone()
            .ok_or_else(|| Problem::failed("nothing was planned"))?;
        let noted = |error| Problem::io("the journal", &error);
        let opened = Opened {
            migration: self.migration.clone(),
            role: Role::Destination,
            peer: PEER.into(),
            container: offer.container.clone(),
            options: offer.options.clone(),
            archive: true,
        };
        self.is_opened = true;
        let journal = Journal::open(&self.host.places, opened).await.map_err(noted)?;
        journal.note(Mark::Creating).await.map_err(noted)?;
        let engine = self.host.engines.of(&offer.container.engine)?;
        self.made.engine = Some(Arc::clone(&engine));
        self.volumes
            .make(offer.volumes.clone(), &engine, &journal)
            .await?;
        let container = Arc::new(offer.container);
        let (creator, wanted) = (Arc::clone(&engine), Arc::clone(&container));
        self.made.creating = Some(tokio::spawn(async move { creator.create(&wanted).await }));
        let created = self.made.finish_creating().await?;
        journal
            .note(Mark::Created(created.clone()))
            .await
            .map_err(noted)?;
        self.volumes.locate(engine.as_ref(), &created).await?;
        for (number, offered) in volumes::copied(&offer.volumes) {
            let (Some(path), Some(archive)) = (
                self.volumes.path(number),
                self.staged.volumes.get(&offered.volume.name),
            ) else {
                continue;
            };
            let called = offered.called();
            // Other containers may come to use it.
            fill(
                path.into(),
                false,
                archive.clone(),
                Vec::new(),
                Permitted::NoDevices,
            )
            .await
            .map_err(|reason| Problem::failed(format!("volume {called}: {reason}")))?;
        }
        self.made
            .start(&self.host, &self.migration, &created, container)?;
        self.rootfs = self.made.await_shim(&self.host, &created).await?;
        if let Some(shm) = self.staged.shm.clone() {
            self.fill_shm(shm).await?;
        }
        if let Some(layer) = self.staged.layer.clone() {
            let deleted = self.deleted().map_err(Problem::failed)?;
            fill(self.rootfs.clone(), true, layer, deleted, self.permitted())
                .await
                .map_err(Problem::failed)?;
        }
        if self.staged.manifest.is_none() {
            let root = |error: std::io::Error| Problem::io("the mode of the container's root", &error);
            if let Some(mode) = foreign::root_mode(&self.image_dir()).map_err(root)? {
                std::fs::set_permissions(&self.rootfs, Permissions::from_mode(mode)).map_err(root)?;
            }
        }
        Ok(())
    }

    /// A `/dev/shm` from outside of the container is no part of its image.
    async fn fill_shm(&self, archive: PathBuf) -> Result<(), Problem> {
        let shim = self.made.shim.clone();
        let view = match shim {
            Some(shim) => shim.inspect().await?,
            None => return Ok(()),
        };
        let spec = bundle::spec_of(&view.bundle).map_err(|error| Problem::failed(error.to_string()))?;
        let mut mounts = spec["mounts"].as_array().into_iter().flatten();
        let outside = mounts.find(|mount| mount["destination"] == "/dev/shm" && mount["type"] == "bind");
        let Some(source) = outside.and_then(|mount| mount["source"].as_str()) else {
            return Ok(());
        };
        fill(source.into(), false, archive, Vec::new(), Permitted::NoDevices)
            .await
            .map_err(|reason| Problem::failed(format!("/dev/shm: {reason}")))
    }

    /// What the container removed from its image.
    fn deleted(&self) -> Result<Vec<Vec<u8>>, String> {
        let mut deleted: Vec<Vec<u8>> = Vec::new();
        if let Some(list) = self.staged.notes.get(layout::DELETED) {
            let names: Vec<String> = serde_json::from_slice(list)
                .map_err(|error| format!("the archive is refused: {}: {error}", layout::DELETED))?;
            deleted.extend(names.into_iter().map(String::into_bytes));
        }
        if let Some(manifest) = &self.staged.manifest {
            deleted.extend(manifest.deleted_bytes.iter().cloned());
        }
        Ok(deleted)
    }

    /// A container that can make nodes of devices may have made some; who cannot gets none by way of an archive.
    fn permitted(&self) -> Permitted {
        let spec = self.staged.notes.get(layout::SPEC);
        let spec: serde_json::Value = spec
            .and_then(|spec| serde_json::from_slice(spec).ok())
            .unwrap_or_default();
        let bounding = spec["process"]["capabilities"]["bounding"].as_array();
        if bounding.is_some_and(|all| all.iter().any(|one| one == MAKES_NODES)) {
            Permitted::Devices
        } else {
            Permitted::NoDevices
        }
    }

    async fn restore(&mut self) -> Result<(), Problem> {
        let (image, verdict) = (self.image_dir(), self.host.places.verdict(&self.migration));
        self.made.restore(&image, &verdict, None).await.map(drop)
    }

    async fn write_verdict(&mut self) -> Result<(), Problem> {
        let path = self.host.places.verdict(&self.migration);
        let standing = recovery::decide(&path, Verdict::Committed)
            .await
            .map_err(|error| Problem::io("writing the verdict", &error))?;
        self.verdict = Some(standing);
        match standing {
            Verdict::Committed => Ok(()),
            Verdict::Aborted => Err(Problem::failed("the import was given up")),
        }
    }

    async fn resume(&mut self) {
        let Some(created) = self.made.created.clone() else {
            return;
        };
        let shim = self.made.shim.clone();
        if let Err(reason) = recovery::finish_restore(&self.host, &created, shim).await {
            self.broken = Some(reason);
        }
    }

    async fn settle(&mut self) {
        if self.broken.is_some() {
            return;
        }
        if let Some(starting) = self.made.starting.take() {
            self.broken = match timeout(deadlines::SETTLED, starting).await {
                Ok(Ok(Ok(()))) => None,
                Ok(Ok(Err(error))) => Some(error.to_string()),
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("the engine does not come to an end of its start".into()),
            };
        }
        self.made.lease = None;
        if self.broken.is_none()
            && let Err(reason) = recovery::remove_places(&self.host, &self.migration).await
        {
            log::warn!("import {}: {reason}", self.migration);
        }
    }

    /// Nothing of the container stays.
    async fn remove(&mut self) -> Result<(), String> {
        if self.is_opened && self.verdict.is_none() {
            let path = self.host.places.verdict(&self.migration);
            let standing = recovery::decide(&path, Verdict::Aborted).await;
            self.verdict = Some(standing.map_err(|error| format!("the verdict cannot be written: {error}"))?);
        }
        let _ = self.volumes.finish_making().await;
        self.made.remove_all().await?;
        volumes::arrive::undo(&self.host, &self.migration).await?;
        recovery::remove_places(&self.host, &self.migration).await
    }

    fn image_dir(&self) -> PathBuf {
        self.host.places.image(&self.migration)
    }

    fn files_dir(&self) -> PathBuf {
        self.host.places.of(&self.migration).join("files")
    }
}

/// Carries an archive of files out beneath `top`.
async fn fill(
    top: PathBuf,
    is_layer: bool,
    archive: PathBuf,
    deleted: Vec<Vec<u8>>,
    permitted: Permitted,
) -> Result<(), String> {
    let work = move || {
        let mut archive = std::fs::File::open(&archive).map_err(|error| error.to_string())?;
        let tree = if is_layer {
            Tree::Layer(&top)
        } else {
            Tree::Plain(&top)
        };
        apply_tar(tree, &deleted, permitted, &mut archive).map_err(|error| error.to_string())
    };
    spawn_blocking(work)
        .await
        .map_err(|error| error.to_string())?
        .map(drop)
}
