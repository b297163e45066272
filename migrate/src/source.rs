//! The source's side of a move: gives a running container away, or has it running as before.
//!
//! The order is [`Source::UNDOABLE`], the decision, [`Source::FORWARD`]; what stands in the freeze is only what cannot
//! stand before it. The decision is the verdict file: with `committed` in it the container is the destination's, and
//! nothing that happens afterwards lets it run here again.

mod end;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_runtime::control::create_private_dir;
use godwit_runtime::delta::{self, Index, Tree};
use godwit_runtime::verdict::Verdict;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::bandwidth::Pacer;
use crate::clock::{Bytes, Clock, Outcome, Remains, Report};
use crate::container_log::Tail;
use crate::deadlines;
use crate::drain;
use crate::engine::{Container, Created, Engine, EngineError};
use crate::failure::{Cause, Failure, Problem};
use crate::finding::{self, Level};
use crate::host::Host;
use crate::image_stream;
use crate::journal::{Journal, Mark, Opened};
use crate::link::{Link, joined};
use crate::message::{Intent, Message, Purpose, VERSIONS};
use crate::mode::{Mode, POST_NEEDS};
use crate::options::MoveOptions;
use crate::pages::relay::Figures;
use crate::pages::serve::Offering;
use crate::pages::tracker::SoftDirty;
use crate::phase::{Phase, Role};
use crate::places::MigrationId;
use crate::plan;
use crate::precopy::{PreCopy, Rest, Rounds};
use crate::progress::Observer;
use crate::protocol::source::{Deed, Event, State};
use crate::protocol::{OutOfTurn, Word};
use crate::recovery;
use crate::run::{self, Boxed, Deadline, Row, Side};
use crate::shim::{DumpOrder, ShimClient};
use crate::tcp::{Account, Treatment};
use crate::volumes::depart::Departing;

/// Rounds of files before the freeze at most: a container that writes faster than the link would go on for ever.
const MAX_SYNC_ROUNDS: u32 = 4;

/// A round of files this small is not worth another before the freeze: it takes some milliseconds.
const SMALL_ROUND_BYTES: u64 = 1 << 20;

/// One move, seen from its source.
pub struct Source {
    host: Arc<Host>,
    link: Link,
    observer: Observer,
    clock: Clock,
    migration: MigrationId,
    container: Container,
    shim: Option<Arc<dyn ShimClient>>,
    init: u32,
    upper: PathBuf,
    treatment: Treatment,
    connections: Account,
    volumes: Departing,
    sent_files: Option<Index>,
    log: Option<Tail>,
    image_wanted: bool,
    options: MoveOptions,
    mode: Mode,
    downtime: Duration,
    /// What of the memory that the rounds leave may follow the container, if there are rounds.
    rest: Rest,
    rounds: Option<Rounds>,
    pre_copy: Option<PreCopy>,
    pacer: Pacer,
    deadline: Option<Deadline>,
    offering: Option<Offering>,
    memory: Option<Figures>,
    state: State,
    bytes: Bytes,
    outcome: Outcome,
    remains: Remains,
    remarks: Vec<String>,
}

/// Moves `container`, which the engine has just described, over `link`.
///
/// On `Err` the container runs here as before. On `Ok` it belongs to the destination.
pub async fn run(
    host: Arc<Host>,
    mut link: Link,
    observer: Observer,
    migration: MigrationId,
    container: Container,
    options: MoveOptions,
) -> Result<Report, Failure> {
    link.count_in(observer.transfer());
    let pacer = host.pacer(&options);
    link.pace_by(pacer.clone());
    let mut source = Source {
        clock: Clock::start(Role::Source),
        shim: None,
        init: 0,
        upper: PathBuf::new(),
        treatment: Treatment::Keep,
        connections: Account::default(),
        volumes: Departing::default(),
        sent_files: None,
        log: None,
        image_wanted: false,
        mode: options.mode,
        downtime: options.downtime(),
        deadline: options.timeout_seconds.map(Deadline::after),
        options,
        pacer,
        rest: Rest::Now,
        rounds: None,
        pre_copy: None,
        offering: None,
        memory: None,
        state: State::Unopened,
        bytes: Bytes::default(),
        outcome: Outcome::Moved,
        remains: Remains::Stopped,
        remarks: Vec::new(),
        host,
        link,
        observer,
        migration,
        container,
    };
    let outcome = run::run(&mut source).await;
    source.link.end().await;
    outcome.map(|()| source.report())
}

impl Side for Source {
    const ROLE: Role = Role::Source;

    const UNDOABLE: &'static [Row<Self, Result<(), Problem>>] = &[
        Row {
            phase: Phase::Hello,
            forward: |source| Box::pin(source.hello()),
        },
        Row {
            phase: Phase::Plan,
            forward: |source| Box::pin(source.plan()),
        },
        Row {
            phase: Phase::Prepare,
            forward: |source| Box::pin(source.prepare()),
        },
        Row {
            phase: Phase::Freeze,
            forward: |source| Box::pin(source.freeze()),
        },
        Row {
            phase: Phase::Restore,
            forward: |source| Box::pin(source.await_restore()),
        },
    ];

    const FORWARD: &'static [Row<Self, ()>] = &[
        Row {
            phase: Phase::Commit,
            forward: |source| Box::pin(source.tell_commit()),
        },
        Row {
            phase: Phase::Drain,
            forward: |source| Box::pin(source.drain()),
        },
        Row {
            phase: Phase::Release,
            forward: |source| Box::pin(source.release()),
        },
    ];

    type Event = Event;

    const GAVE_UP: Event = Event::GaveUp;

    fn decide(&mut self) -> Boxed<'_, Result<(), Problem>> {
        Box::pin(self.write_verdict())
    }

    fn deadline(&self) -> Option<Deadline> {
        self.deadline
    }

    fn tell_failure(&mut self, failure: &Failure) {
        self.link.try_send(Message::Failed(failure.clone()));
    }

    fn observer(&self) -> &Observer {
        &self.observer
    }

    fn host(&self) -> &str {
        &self.host.name
    }

    fn undo_next(&mut self, event: Event) -> Boxed<'_, Result<Option<Event>, String>> {
        Box::pin(self.undo(event))
    }
}

impl Source {
    async fn hello(&mut self) -> Result<(), Problem> {
        let intent = Intent::Move {
            migration: self.migration.clone(),
        };
        self.link
            .send(Message::Hello {
                versions: VERSIONS.to_vec(),
                intent,
            })
            .await?;
        match self.link.receive("welcome", deadlines::HELLO).await? {
            Message::Welcome { version } if VERSIONS.contains(&version) => Ok(()),
            other => Err(self.link.out_of_turn(&other)),
        }
    }

    /// Asks both hosts for every reason why not, and only then says no.
    async fn plan(&mut self) -> Result<(), Problem> {
        let own = plan::look(&self.host, &self.container, &self.options).await?;
        self.shim = own.shim;
        self.init = own.init;
        self.upper = own.upper;
        self.treatment = own.connections;
        self.volumes = Departing::new(&own.offer.volumes);
        let source = own.offer.source.clone();
        let answer = plan::ask(&mut self.link, own.offer).await?;
        self.image_wanted = answer.image_wanted;
        let mode = self.mode.settle(&source.modes(&answer.facts));
        let theirs = finding::on(self.link.peer(), answer.findings);
        let mut findings = [own.findings, theirs].concat();
        match mode {
            Ok(mode) => {
                if (self.mode, mode) == (Mode::Auto, Mode::Stop) {
                    self.remarks
                        .push(format!("memory went in the freeze: {POST_NEEDS}"));
                }
                if self.mode == Mode::Auto {
                    self.rest = Rest::NowIfShort;
                }
                self.mode = mode;
            }
            Err(objection) => findings.push(objection),
        }
        for warning in findings.iter().filter(|finding| finding.level == Level::Warning) {
            log::warn!("migration {}: {warning}", self.migration);
        }
        let objections = finding::problems(&findings);
        if objections.is_empty() {
            Ok(())
        } else {
            Err(Problem::Here(Cause::Refused(objections)))
        }
    }

    /// Everything that can be done while the container runs.
    async fn prepare(&mut self) -> Result<(), Problem> {
        self.step(Event::Did(Deed::Open))?;
        let opened = Opened {
            migration: self.migration.clone(),
            role: Role::Source,
            peer: self.link.peer().into(),
            container: self.container.clone(),
            options: self.options.clone(),
            archive: false,
        };
        let journal = Journal::open(&self.host.places, opened)
            .await
            .map_err(|error| Problem::io("the journal", &error))?;
        create_private_dir(&self.image_dir()).map_err(|error| Problem::io("the image directory", &error))?;

        if matches!(self.mode, Mode::Pre | Mode::Post) {
            self.offering = Some(self.host.board.expect(&self.migration));
        }
        if self.mode == Mode::Pre {
            let tracker = Box::new(SoftDirty::of(self.init));
            self.rounds = Some(Rounds::new(tracker, self.downtime));
        }
        let (post_copy, pre_copy) = (self.offering.is_some(), self.rounds.is_some());
        self.link.send(Message::Prepare { post_copy, pre_copy }).await?;
        if self.image_wanted {
            let layers = self.engine()?.export_image(&self.container).await?;
            self.bytes.layers = self.link.send_stream(Purpose::Layers, layers).await?;
        }
        match self.link.receive("made", deadlines::PREPARE).await? {
            Message::Made { log_wanted: false } => {}
            Message::Made { log_wanted: true } => self.begin_log().await?,
            other => return Err(self.link.out_of_turn(&other)),
        }
        // Before the destination's engine starts the container, which it does with all it mounts in its place.
        self.send_volumes().await?;
        match self.link.receive("prepared", deadlines::PREPARE).await? {
            Message::Prepared => {}
            other => return Err(self.link.out_of_turn(&other)),
        }
        for _ in 0..MAX_SYNC_ROUNDS {
            let since = Instant::now();
            let sent = self.send_files().await? + self.send_volumes().await?;
            self.clock.step("files-round", since);
            if sent < SMALL_ROUND_BYTES || self.observer.hurry.is_cancelled() {
                break;
            }
        }
        if let Some(rounds) = &mut self.rounds {
            rounds
                .run(&mut self.link, &self.observer, &mut self.clock)
                .await?;
            // They may have taken long, and a round of files is short now.
            self.send_files().await?;
            self.send_volumes().await?;
        }

        let noted = |error| Problem::io("the journal", &error);
        self.step(Event::Did(Deed::NoteDisarming))?;
        journal.note(Mark::Disarming).await.map_err(noted)?;
        self.step(Event::Did(Deed::Disarm))?;
        self.engine()?.disarm_restart(&self.container).await?;
        self.step(Event::Did(Deed::NoteFreezing))?;
        journal.note(Mark::Freezing).await.map_err(noted)?;
        self.link.send(Message::Freezing).await?;
        match self.link.receive("synced", deadlines::SYNC).await? {
            Message::Synced => Ok(()),
            other => Err(self.link.out_of_turn(&other)),
        }
    }

    /// The container is given back as far as it was taken.
    async fn undo(&mut self, event: Event) -> Result<Option<Event>, String> {
        self.step(event).map_err(|error| error.to_string())?;
        let deed = self.state.next();
        let (host, migration) = (&self.host, &self.migration);
        match deed {
            Deed::Decide(wanted) => {
                let standing = recovery::decide(&host.places.verdict(migration), wanted).await;
                return standing.map(Event::Stands).map(Some).map_err(|error| {
                    format!(
                        "the verdict cannot be written ({error}); the container runs on by itself within {} s",
                        host.hold.as_secs()
                    )
                });
            }
            Deed::Resume => recovery::resume_source(self.shim.clone()).await?,
            Deed::Rearm => recovery::rearm_restart(host, &self.container)
                .await
                .map_err(|error| format!("the restart policy of {} is `no`: {error}", self.container.name))?,
            Deed::RemovePlaces => recovery::remove_places(host, migration).await?,
            Deed::Rest => return Ok(None),
            _ => return Err("the container was committed to the destination".into()),
        }
        Ok(Some(Event::Did(deed)))
    }

    /// The container stands still from here to the verdict.
    async fn freeze(&mut self) -> Result<(), Problem> {
        let shim = self.shim()?;
        let (image, verdict) = (self.image_dir(), self.host.places.verdict(&self.migration));
        self.step(Event::Did(Deed::Dump))?;
        let since = Instant::now();
        self.clock.frozen();
        let drained = self.host.places.drained(&self.migration);
        let drained = self.offering.as_ref().map(|_| drained.as_path());
        let dump = shim.dump(DumpOrder {
            image: &image,
            verdict: &verdict,
            hold: self.host.hold,
            drained,
            tcp: self.treatment.of_dump(),
        });
        let steps = self.link.during(async { Ok(dump.await?) }).await?;
        self.clock.step("dump-held", since);
        self.clock.extend_since(since, steps);
        if self.offering.is_some() {
            let since = Instant::now();
            let mut pages = drain::open(&image, self.init, self.observer.transfer(), self.pacer.clone())
                .await
                .map_err(|error| Problem::io("finding the memory of the frozen tasks", &error))?;
            self.clock.step("open-memory", since);
            if let Some(rounds) = &mut self.rounds {
                let since = Instant::now();
                let (following, account) = rounds.finish(&mut self.link, pages.tasks(), self.rest).await?;
                self.mode = if following.is_empty() {
                    Mode::Pre
                } else {
                    Mode::Post
                };
                self.bytes.memory += account.sent;
                self.pre_copy = Some(account);
                pages.keep(&following);
                self.clock.step("send-memory", since);
            }
            self.observer.expect(pages.bytes());
            match &self.offering {
                Some(offering) if self.mode == Mode::Post => offering.open(pages),
                // Nobody will ask for any: the destination has them all.
                _ => self.offering = None,
            }
        }

        let settled = self.settle_connections(&image);
        let since = Instant::now();
        self.send_files().await?;
        self.clock.step("send-files", since);
        if self.volumes.are_copied() {
            let since = Instant::now();
            self.send_volumes().await?;
            self.clock.step("send-volumes", since);
        }
        let settled = joined(settled);
        self.connections = self.link.during(settled).await?;
        if self.log.is_some() {
            let since = Instant::now();
            self.send_log().await?;
            self.clock.step("send-log", since);
        }
        let since = Instant::now();
        let size = image_stream::measure(&image).map_err(|error| Problem::failed(error.to_string()))?;
        self.observer.expect(size.bytes);
        let send = move |out: &mut dyn Write| {
            image_stream::send(&image, out).map_err(|error| Problem::failed(error.to_string()))
        };
        (_, self.bytes.image) = self.link.send_bulk(Purpose::Image, send).await?;
        self.clock.step("send-image", since);
        Ok(())
    }

    /// Decides what becomes of the connections of the tasks, which stand still, while files travel.
    fn settle_connections(&self, image: &Path) -> JoinHandle<Result<Account, Problem>> {
        let (treatment, container, init) = (self.treatment, self.container.clone(), self.init);
        let image = image.to_owned();
        spawn_blocking(move || {
            treatment
                .settle(&container, init, &image)
                .map_err(|error| Problem::io("deciding what becomes of connections", &error))
        })
    }

    async fn await_restore(&mut self) -> Result<(), Problem> {
        let since = Instant::now();
        match self.link.receive("ready", self.host.hold).await? {
            Message::Ready { steps } => {
                self.clock.step("await-ready", since);
                self.clock.extend(steps);
                if self.mode == Mode::Pre {
                    // Before the decision: from then on nothing of this host is needed, nor need its agent be alive.
                    drain::note_drained(&self.host, &self.migration)
                        .map_err(|error| Problem::io("noting that all memory is there", &error))?;
                }
                Ok(self.step(Event::Heard(Word::Ready))?)
            }
            other => Err(self.link.out_of_turn(&other)),
        }
    }

    /// The decision. An error means that `committed` does not stand.
    async fn write_verdict(&mut self) -> Result<(), Problem> {
        let since = Instant::now();
        let Deed::Decide(wanted) = self.state.next() else {
            return Err(Problem::failed("nothing is to be decided"));
        };
        let path = self.host.places.verdict(&self.migration);
        let standing = recovery::decide(&path, wanted)
            .await
            .map_err(|error| Problem::io("writing the verdict", &error))?;
        self.step(Event::Stands(standing))?;
        match standing {
            Verdict::Committed => {
                self.clock.step("commit", since);
                Ok(())
            }
            Verdict::Aborted => Err(Problem::failed(format!(
                "the container was let run on before the commit: it was held for {} s, or the destination lost us",
                self.host.hold.as_secs()
            ))),
        }
    }

    fn step(&mut self, event: Event) -> Result<(), OutOfTurn> {
        self.state = self.state.step(event)?;
        Ok(())
    }

    async fn send_files(&mut self) -> Result<u64, Problem> {
        let (upper, since) = (self.upper.clone(), self.sent_files.take());
        let write = move |out: &mut dyn Write| {
            delta::write(Tree::Layer(&upper), since.as_ref(), out)
                .map_err(|error| Problem::failed(error.to_string()))
        };
        let (index, bytes) = self.link.send_bulk(Purpose::Files, write).await?;
        self.sent_files = Some(index);
        self.bytes.files += bytes;
        Ok(bytes)
    }

    /// Sends one round of the volumes that are copied.
    async fn send_volumes(&mut self) -> Result<u64, Problem> {
        let bytes = self.volumes.send(&mut self.link).await?;
        self.bytes.volumes += bytes;
        Ok(bytes)
    }

    /// Sends the log so far.
    async fn begin_log(&mut self) -> Result<(), Problem> {
        let own = Created {
            id: self.container.id.clone(),
            namespace: self.container.namespace.clone(),
        };
        let Some(path) = self.engine()?.log_path(&own).await? else {
            return Err(Problem::failed(
                "the destination keeps a log of a kind that is not kept here",
            ));
        };
        self.log = Some(Tail::open(&path).map_err(|error| Problem::io("opening the log", &error))?);
        self.send_log().await
    }

    /// Sends what was added to the log since.
    async fn send_log(&mut self) -> Result<(), Problem> {
        let Some(mut log) = self.log.take() else {
            return Ok(());
        };
        let send = move |out: &mut dyn Write| {
            log.copy_rest(out)
                .map_err(|error| Problem::io("sending the log", &error))?;
            Ok(log)
        };
        let (log, bytes) = self.link.send_bulk(Purpose::Log, send).await?;
        self.log = Some(log);
        self.bytes.log += bytes;
        Ok(())
    }

    fn engine(&self) -> Result<Arc<dyn Engine>, EngineError> {
        self.host.engines.of(&self.container.engine)
    }

    fn shim(&self) -> Result<Arc<dyn ShimClient>, Problem> {
        self.shim
            .clone()
            .ok_or_else(|| Problem::failed("the container has no shim of ours"))
    }

    fn image_dir(&self) -> PathBuf {
        self.host.places.image(&self.migration)
    }

    fn report(self) -> Report {
        let mut clock = self.clock;
        Report {
            migration: self.migration.to_string(),
            container: self.container.name,
            from: self.host.name.clone(),
            to: self.link.peer().into(),
            renamed: self.options.name,
            outcome: self.outcome,
            source: self.remains,
            downtime_micros: clock.downtime_micros(),
            total_micros: clock.total_micros(),
            mode: self.mode,
            pre_copy: self.pre_copy,
            bytes: self.bytes,
            memory: self.memory,
            connections: self.connections,
            volumes: self.volumes.report(self.remains),
            steps: clock.take_steps(),
            remarks: self.remarks,
        }
    }
}
