//! An export: the source's half of a move, with a file, or an image of the engine's, in place of a destination.
//!
//! The container is dumped and held as for a move whose memory follows: the pages stay in the frozen tasks, and go from there into
//! the archive, so that neither memory nor a disk of this host holds them twice. The verdict is `committed` once the archive
//! is stored, and the container is left stopped; with `leave_running` it is `aborted`, the verdict that lets it run on.
//! Whatever fails before comes to `aborted` too.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use godwit_runtime::control::create_private_dir;
use godwit_runtime::verdict::Verdict;
use rustls::pki_types::UnixTime;
use tokio::task::spawn_blocking;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::contents::Work;
use super::target::Target;
use super::{ExportOptions, PEER, Summary, recovery};
use crate::checks::tools::LAZY_FEATURE;
use crate::clock::{Clock, Step};
use crate::drain;
use crate::engine::Container;
use crate::failure::{Cause, Failure, Problem};
use crate::finding::{self, Code, Finding, Level};
use crate::host::Host;
use crate::journal::{Journal, Mark, Opened};
use crate::options::MoveOptions;
use crate::phase::{Phase, Role};
use crate::places::MigrationId;
use crate::plan::{self, Own};
use crate::progress::Observer;
use crate::recovery as of_moves;
use crate::run::{self, Boxed, Row, Side};
use crate::shim::DumpOrder;

/// How long a container is held for its archive: the client's disk sets the pace, and whoever asked for it looks on. An agent that
/// is gone lets it run on when it is started again.
const HOLD: Duration = Duration::from_secs(3600);

/// How far an export has come, for what is to be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing is written down.
    Unopened,
    /// There is a journal.
    Opened,
    /// The engine may have been told not to start the container again.
    Disarming,
    /// The shim may have been told to dump.
    Dumping,
    /// A verdict stands.
    Decided(Verdict),
}

struct Export {
    host: Arc<Host>,
    observer: Observer,
    migration: MigrationId,
    container: Container,
    options: ExportOptions,
    target: Target,
    own: Option<Own>,
    clock: Clock,
    dump_steps: Vec<Step>,
    state: State,
    remarks: Vec<String>,
    bytes: u64,
    writing: Option<DropGuard>,
}

/// Exports `container`, which the engine has just described. On `Err` it runs as before, there is no image of it, and what a client
/// has of the archive is to be thrown away.
pub async fn run(
    host: Arc<Host>,
    observer: Observer,
    migration: MigrationId,
    container: Container,
    options: ExportOptions,
    target: Target,
) -> Result<Summary, Failure> {
    let mut export = Export {
        host,
        observer,
        migration,
        container,
        options,
        target,
        own: None,
        clock: Clock::start(Role::Source),
        dump_steps: Vec::new(),
        state: State::Unopened,
        remarks: Vec::new(),
        bytes: 0,
        writing: None,
    };
    run::run(&mut export).await?;
    Ok(Summary {
        container: export.container.name,
        engine: export.container.engine,
        id: export.container.id,
        runs: export.options.leave_running,
        bytes: export.bytes,
        down_micros: export.clock.downtime_micros().unwrap_or_default(),
        connections_kept: 0,
        connections_closed: 0,
        signed_by: export.options.sign.then(|| export.host.name.clone()),
        remarks: export.remarks,
    })
}

impl Side for Export {
    const ROLE: Role = Role::Source;

    const UNDOABLE: &'static [Row<Self, Result<(), Problem>>] = &[
        Row {
            phase: Phase::Plan,
            forward: |export| Box::pin(export.plan()),
        },
        Row {
            phase: Phase::Prepare,
            forward: |export| Box::pin(export.prepare()),
        },
        Row {
            phase: Phase::Freeze,
            forward: |export| Box::pin(export.freeze()),
        },
    ];

    const FORWARD: &'static [Row<Self, ()>] = &[Row {
        phase: Phase::Release,
        forward: |export| Box::pin(export.release()),
    }];

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
        Box::pin(self.undo())
    }
}

impl Export {
    async fn plan(&mut self) -> Result<(), Problem> {
        let options = MoveOptions {
            volumes: self.options.volumes.clone(),
            // As a move that leaves the container behind: one that its engine removes when it stops cannot be stopped.
            keep_source: !self.options.leave_running,
            ..MoveOptions::default()
        };
        let engine = self.host.engines.of(&self.container.engine)?;
        self.options.compress = self.target.compression(engine.as_ref(), self.options.compress);
        let mut own = plan::look(&self.host, &self.container, &options).await?;
        let objection = self.target.objection(engine.as_ref(), &self.container).await?;
        own.findings.extend(finding::on(&self.host.name, objection));
        for warning in own
            .findings
            .iter()
            .filter(|finding| finding.level == Level::Warning)
        {
            log::warn!("export {}: {warning}", self.migration);
        }
        let mut objections = finding::problems(&own.findings);
        self.own = Some(own);
        if self.options.sign
            && let Err(error) = self.host.identity.check_time(UnixTime::now())
        {
            let told = Finding::of_sentence(Code::Certificates, &error.to_string());
            objections.extend(finding::on(&self.host.name, [told]));
        }
        if objections.is_empty() {
            Ok(())
        } else {
            Err(Problem::Here(Cause::Refused(objections)))
        }
    }

    async fn prepare(&mut self) -> Result<(), Problem> {
        let noted = |error| Problem::io("the journal", &error);
        let opened = Opened {
            migration: self.migration.clone(),
            role: Role::Source,
            peer: PEER.into(),
            container: self.container.clone(),
            options: MoveOptions::default(),
            archive: true,
        };
        self.state = State::Opened;
        let journal = Journal::open(&self.host.places, opened).await.map_err(noted)?;
        create_private_dir(&self.image_dir()).map_err(|error| Problem::io("the image directory", &error))?;
        let engine = self.host.engines.of(&self.container.engine)?;
        if let Some(image) = &self.options.image {
            journal.note(Mark::Image(image.clone())).await.map_err(noted)?;
        }
        // Nothing stands still for somebody who does not take it.
        let compress = self.options.compress;
        let opened = self
            .target
            .open(Arc::clone(&engine), &self.container, &self.migration, compress);
        opened.await?;
        self.state = State::Disarming;
        journal.note(Mark::Disarming).await.map_err(noted)?;
        engine.disarm_restart(&self.container).await?;
        journal.note(Mark::Freezing).await.map_err(noted)
    }

    /// The container stands still from here to the verdict.
    async fn freeze(&mut self) -> Result<(), Problem> {
        let own = self
            .own
            .as_ref()
            .ok_or_else(|| Problem::failed("nothing was planned"))?;
        let shim = own
            .shim
            .clone()
            .ok_or_else(|| Problem::failed("the container has no shim of ours"))?;
        let view = shim.inspect().await?;
        let (image, verdict) = (self.image_dir(), self.host.places.verdict(&self.migration));
        let drained = self.host.places.drained(&self.migration);
        let is_lazy = own.offer.source.criu_features.contains(LAZY_FEATURE);
        self.state = State::Dumping;
        self.clock.frozen();
        let order = DumpOrder {
            image: &image,
            verdict: &verdict,
            hold: HOLD,
            drained: is_lazy.then_some(drained.as_path()),
            tcp: own.connections.of_dump(),
        };
        self.dump_steps = shim.dump(order).await?;

        let stop = CancellationToken::new();
        self.writing = Some(stop.clone().drop_guard());
        let pipe = self.target.pipe();
        let (bytes, whole) = pipe.ok_or_else(|| Problem::failed("the archive was written already"))?;
        let work = Work {
            host: self.host.name.clone(),
            image,
            init: own.init,
            upper: own.upper.clone(),
            rootfs: view.rootfs,
            bundle: view.bundle,
            offer: own.offer.clone(),
            options: self.options.clone(),
            signer: self.options.sign.then(|| self.host.identity.clone()),
            steps: self.dump_steps.clone(),
            observer: self.observer.clone(),
            whole,
        };
        let written = spawn_blocking(move || work.write(bytes, stop)).await;
        let written = written.map_err(|error| Problem::failed(error.to_string()))?;
        self.bytes = match written {
            Ok(bytes) => bytes,
            Err(error) => {
                let refusal = if error.is_hang_up() {
                    self.target.refusal().await
                } else {
                    None
                };
                return Err(refusal.unwrap_or_else(|| Problem::failed(error.to_string())));
            }
        };
        self.writing = None;
        self.target.stored(self.options.leave_running).await
    }

    async fn write_verdict(&mut self) -> Result<(), Problem> {
        let wanted = if self.options.leave_running {
            Verdict::Aborted
        } else {
            // The pages are in the archive: nobody needs the tasks for them.
            drain::note_drained(&self.host, &self.migration)
                .map_err(|error| Problem::io("noting that all memory is stored", &error))?;
            Verdict::Committed
        };
        let path = self.host.places.verdict(&self.migration);
        let standing = of_moves::decide(&path, wanted)
            .await
            .map_err(|error| Problem::io("writing the verdict", &error))?;
        self.state = State::Decided(standing);
        if standing == wanted {
            return Ok(());
        }
        Err(Problem::failed(format!(
            "the container was let run on before the archive was stored: it was held for {} s",
            HOLD.as_secs()
        )))
    }

    /// The archive is stored: the container runs on, or is left stopped.
    async fn release(&mut self) {
        let State::Decided(verdict) = self.state else {
            return;
        };
        let released = async {
            self.let_go(verdict).await?;
            of_moves::remove_places(&self.host, &self.migration).await
        };
        if let Err(reason) = released.await {
            self.remarks.push(reason);
        }
        self.clock.resumed();
    }

    async fn undo(&mut self) -> Result<Option<()>, String> {
        self.writing = None;
        match self.state {
            State::Unopened => return Ok(None),
            State::Opened => {}
            State::Disarming => of_moves::rearm_restart(&self.host, &self.container).await?,
            State::Dumping => {
                let standing = of_moves::decide(&self.host.places.verdict(&self.migration), Verdict::Aborted)
                    .await
                    .map_err(|error| {
                        format!(
                            "the verdict cannot be written ({error}); the container runs on within {} s",
                            HOLD.as_secs()
                        )
                    })?;
                self.state = State::Decided(standing);
                self.let_go(standing).await?;
            }
            State::Decided(standing) => self.let_go(standing).await?,
        }
        if self.state != State::Decided(Verdict::Committed) {
            let engine = self.host.engines.of(&self.container.engine);
            let engine = engine.map_err(|error| error.to_string())?;
            self.target
                .undo(engine.as_ref(), &self.container, &self.migration)
                .await?;
        }
        of_moves::remove_places(&self.host, &self.migration).await?;
        Ok(None)
    }

    async fn let_go(&self, verdict: Verdict) -> Result<(), String> {
        let shim = self.own.as_ref().and_then(|own| own.shim.clone());
        recovery::release(&self.host, &self.container, &self.migration, verdict, shim).await
    }

    fn image_dir(&self) -> PathBuf {
        self.host.places.image(&self.migration)
    }
}
