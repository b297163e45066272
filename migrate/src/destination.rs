//! The destination's side of a move: takes a container over, or has never had it.
//!
//! The order is [`Destination::UNDOABLE`], the decision, [`Destination::FORWARD`]. The decision is the source's: from
//! the word `ready` on this side knows nothing by itself, and if the link is lost it asks until it has the answer.

mod end;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use godwit_runtime::control::create_private_dir;
use godwit_runtime::delta;

use crate::clock::Clock;
use crate::container_log::Reserve;
use crate::deadlines;
use crate::failure::{Failure, Problem};
use crate::host::Host;
use crate::image_stream;
use crate::journal::{Journal, Mark, Opened};
use crate::link::Link;
use crate::made::Made;
use crate::message::{Message, Offer, Purpose};
use crate::pages::relay::Relay;
use crate::pages::store::Store;
use crate::phase::{Phase, Role};
use crate::places::MigrationId;
use crate::plan;
use crate::progress::Observer;
use crate::protocol::Word;
use crate::protocol::destination::{Deed, Event, State};
use crate::recovery;
use crate::run::{self, Boxed, Row, Side};
use crate::volumes::arrive::Arriving;

/// One move, seen from its destination.
pub struct Destination {
    host: Arc<Host>,
    link: Link,
    observer: Observer,
    clock: Clock,
    migration: MigrationId,
    versions: Vec<u32>,
    offer: Option<Offer>,
    image_wanted: bool,
    post_copy: bool,
    pre_copy: bool,
    store: Option<Arc<Store>>,
    relay: Option<Relay>,
    state: State,
    made: Made,
    rootfs: PathBuf,
    volumes: Arriving,
    log: Option<Reserve>,
}

/// Takes a container over `link`, whose hello for `migration` was read.
///
/// On `Err` nothing of the container is on this host, except what the failure lists.
pub async fn run(
    host: Arc<Host>,
    mut link: Link,
    observer: Observer,
    migration: MigrationId,
    versions: Vec<u32>,
) -> Result<(), Failure> {
    link.count_in(observer.transfer());
    let mut destination = Destination {
        host,
        link,
        observer,
        clock: Clock::start(Role::Destination),
        migration,
        versions,
        offer: None,
        image_wanted: false,
        post_copy: false,
        pre_copy: false,
        store: None,
        relay: None,
        state: State::Unopened,
        made: Made::default(),
        rootfs: PathBuf::new(),
        volumes: Arriving::default(),
        log: None,
    };
    let outcome = run::run(&mut destination).await;
    destination.link.end().await;
    outcome
}

impl Side for Destination {
    const ROLE: Role = Role::Destination;

    const UNDOABLE: &'static [Row<Self, Result<(), Problem>>] = &[
        Row {
            phase: Phase::Hello,
            forward: |destination| Box::pin(destination.hello()),
        },
        Row {
            phase: Phase::Plan,
            forward: |destination| Box::pin(destination.plan()),
        },
        Row {
            phase: Phase::Prepare,
            forward: |destination| Box::pin(destination.prepare()),
        },
        Row {
            phase: Phase::Freeze,
            forward: |destination| Box::pin(destination.receive_rest()),
        },
        Row {
            phase: Phase::Restore,
            forward: |destination| Box::pin(destination.restore()),
        },
    ];

    const FORWARD: &'static [Row<Self, ()>] = &[
        Row {
            phase: Phase::Commit,
            forward: |destination| Box::pin(destination.resume()),
        },
        Row {
            phase: Phase::Drain,
            forward: |destination| Box::pin(destination.drain()),
        },
        Row {
            phase: Phase::Release,
            forward: |destination| Box::pin(destination.settle()),
        },
    ];

    type Event = Event;

    const GAVE_UP: Event = Event::GaveUp;

    fn decide(&mut self) -> Boxed<'_, Result<(), Problem>> {
        Box::pin(self.learn_decision())
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

impl Destination {
    async fn hello(&mut self) -> Result<(), Problem> {
        let versions = std::mem::take(&mut self.versions);
        recovery::welcome(&mut self.link, &versions).await
    }

    async fn plan(&mut self) -> Result<(), Problem> {
        let mut offer = match self.link.receive("offer", deadlines::PLAN).await? {
            Message::Offer(offer) => *offer,
            other => return Err(self.link.out_of_turn(&other)),
        };
        self.observer.name_container(&offer.container.name);
        let host = Arc::clone(&self.host);
        let answer = self.link.during(plan::judge(&host, &mut offer)).await?;
        self.offer = Some(offer);
        self.image_wanted = answer.image_wanted;
        self.link.send(Message::Answer(Box::new(answer))).await?;
        match self.link.receive("prepare", deadlines::PLAN).await? {
            Message::Prepare { post_copy, pre_copy } => {
                self.post_copy = post_copy;
                self.pre_copy = pre_copy;
                Ok(())
            }
            other => Err(self.link.out_of_turn(&other)),
        }
    }

    async fn prepare(&mut self) -> Result<(), Problem> {
        let offer = self
            .offer
            .take()
            .ok_or_else(|| Problem::protocol("nothing was offered"))?;
        self.step(Event::Did(Deed::Open))?;
        let opened = Opened {
            migration: self.migration.clone(),
            role: Role::Destination,
            peer: self.link.peer().into(),
            container: offer.container.clone(),
            options: offer.options.clone(),
            archive: false,
        };
        let noted = |error| Problem::io("the journal", &error);
        let journal = Journal::open(&self.host.places, opened).await.map_err(noted)?;
        create_private_dir(&self.image_dir()).map_err(|error| Problem::io("the image directory", &error))?;

        if self.image_wanted {
            self.receive_layers(&offer).await?;
        }
        self.step(Event::Did(Deed::NoteCreating))?;
        journal.note(Mark::Creating).await.map_err(noted)?;
        let engine = self.host.engines.of(&offer.container.engine)?;
        self.made.engine = Some(Arc::clone(&engine));
        self.step(Event::Did(Deed::Create))?;
        let making = self.volumes.make(offer.volumes, &engine, &journal);
        self.link.during(making).await?;
        let container = Arc::new(offer.container);
        let (creator, wanted) = (Arc::clone(&engine), Arc::clone(&container));
        self.made.creating = Some(tokio::spawn(async move { creator.create(&wanted).await }));
        let creating = self.made.finish_creating();
        let created = self.link.during(creating).await?;
        self.step(Event::Did(Deed::NoteCreated))?;
        journal
            .note(Mark::Created(created.clone()))
            .await
            .map_err(noted)?;

        let locating = self.volumes.locate(engine.as_ref(), &created);
        self.link.during(locating).await?;
        // The engine's description of a container that is being started may have to wait for the start.
        let log = engine.log_path(&created).await?;
        let log_wanted = log.is_some();
        self.link.send(Message::Made { log_wanted }).await?;
        if let Some(path) = log {
            self.receive_log(path).await?;
        }
        self.volumes.receive_first(&mut self.link).await?;
        self.step(Event::Did(Deed::Start))?;
        self.made
            .start(&self.host, &self.migration, &created, container)?;
        let wait = self.made.await_shim(&self.host, &created);
        self.rootfs = self.link.during(wait).await?;
        if self.pre_copy {
            let store = Store::create(&self.host.places.kept(&self.migration))
                .map_err(|error| Problem::io("where memory is kept", &error))?;
            self.store = Some(Arc::new(store));
        }
        if self.post_copy {
            // Before the freeze, which then need not wait for handshakes.
            let store = self.store.clone();
            let relay = Relay::open(&self.host, self.link.peer(), &self.migration, store).await?;
            self.relay = Some(relay);
        }

        self.link.send(Message::Prepared).await?;
        loop {
            match self.link.receive("stream", deadlines::SYNC).await? {
                Message::Bulk { purpose } => self.receive_bulk(purpose).await?,
                Message::RoundSent => self.link.send(Message::Kept).await?,
                Message::Freezing => break,
                other => return Err(self.link.out_of_turn(&other)),
            }
        }
        // From here on the source may come to commit, so from here on a restarted agent has to ask it.
        self.step(Event::Did(Deed::NoteRestoring))?;
        journal.note(Mark::Restoring).await.map_err(noted)?;
        self.link.send(Message::Synced).await
    }

    async fn receive_layers(&mut self, offer: &Offer) -> Result<(), Problem> {
        match self.link.receive("image layers", deadlines::PREPARE).await? {
            Message::Bulk {
                purpose: Purpose::Layers,
            } => {}
            other => return Err(self.link.out_of_turn(&other)),
        }
        let engine = self.host.engines.of(&offer.container.engine)?;
        let import = |reader| async { Ok(engine.import_image(&offer.container, Box::new(reader)).await?) };
        self.link.receive_bulk(import).await?;
        let image = &offer.container.image_id;
        if engine.has_image(&offer.container).await? {
            Ok(())
        } else {
            Err(Problem::failed(format!(
                "the engine took the image's layers, and image {image} is not there"
            )))
        }
    }

    /// Takes the log so far; the engine must not have opened its own yet.
    async fn receive_log(&mut self, path: PathBuf) -> Result<(), Problem> {
        match self.link.receive("log", deadlines::PREPARE).await? {
            Message::Bulk {
                purpose: Purpose::Log,
            } => {}
            other => return Err(self.link.out_of_turn(&other)),
        }
        let begin = move |input: &mut crate::bulk::ChunkReader| {
            Reserve::begin(&path, input).map_err(|error| Problem::io("writing the log", &error))
        };
        let (log, _) = self.link.receive_bulk_blocking(begin).await?;
        self.log = Some(log);
        Ok(())
    }

    /// Takes what the source sends while its container stands still; the image is the last of it.
    async fn receive_rest(&mut self) -> Result<(), Problem> {
        loop {
            match self.link.receive("stream", deadlines::DUMP).await? {
                Message::Bulk {
                    purpose: Purpose::Image,
                } => return self.receive_image().await,
                Message::Bulk { purpose } => self.receive_bulk(purpose).await?,
                other => return Err(self.link.out_of_turn(&other)),
            }
        }
    }

    async fn receive_image(&mut self) -> Result<(), Problem> {
        let since = Instant::now();
        let directory = self.image_dir();
        let room = crate::checks::room::free_bytes(&directory)
            .map_err(|error| Problem::io("the image directory", &error.into()))?;
        self.link
            .receive_bulk_blocking(move |input| {
                image_stream::receive(&directory, room, input)
                    .map_err(|error| Problem::failed(error.to_string()))
            })
            .await?;
        self.clock.step("receive-image", since);
        Ok(())
    }

    async fn receive_bulk(&mut self, purpose: Purpose) -> Result<(), Problem> {
        match purpose {
            Purpose::Files => {
                let root = self.rootfs.clone();
                let apply = move |input: &mut crate::bulk::ChunkReader| {
                    delta::apply(delta::Tree::Layer(&root), input)
                        .map_err(|error| Problem::failed(error.to_string()))
                };
                self.link.receive_bulk_blocking(apply).await?;
            }
            Purpose::Log => {
                let mut log = self
                    .log
                    .take()
                    .ok_or_else(|| Problem::protocol("a log was not wanted"))?;
                let fill = move |input: &mut crate::bulk::ChunkReader| {
                    let dropped = log
                        .fill(input)
                        .map_err(|error| Problem::io("writing the log", &error))?;
                    Ok((log, dropped))
                };
                let ((log, dropped), _) = self.link.receive_bulk_blocking(fill).await?;
                self.log = Some(log);
                if dropped > 0 {
                    log::warn!(
                        "migration {}: the last {dropped} bytes of the log found no room",
                        self.migration
                    );
                }
            }
            Purpose::Memory => {
                let store = self
                    .store
                    .clone()
                    .ok_or_else(|| Problem::protocol("no memory was to come beforehand"))?;
                let keep = move |input: &mut crate::bulk::ChunkReader| {
                    store
                        .take(input)
                        .map_err(|error| Problem::io("keeping memory", &error))
                };
                self.link.receive_bulk_blocking(keep).await?;
            }
            Purpose::Volume(number) => self.volumes.receive(&mut self.link, number).await?,
            Purpose::Layers | Purpose::Image => {
                return Err(Problem::protocol(format!("{purpose:?} came out of turn")));
            }
        }
        Ok(())
    }

    async fn restore(&mut self) -> Result<(), Problem> {
        let (image, verdict) = (self.image_dir(), self.host.places.verdict(&self.migration));
        let pages = self.host.places.pages_socket(&self.migration);
        let pages = self.relay.as_ref().map(|_| pages.as_path());
        self.step(Event::Did(Deed::Restore))?;
        let restore = self.made.restore(&image, &verdict, pages);
        let since = Instant::now();
        let steps = self.link.during(restore).await?;
        self.clock.extend_since(since, steps);
        let steps = self.clock.take_steps();
        self.link.send(Message::Ready { steps }).await?;
        Ok(self.step(Event::Did(Deed::Say(Word::Ready)))?)
    }

    fn image_dir(&self) -> PathBuf {
        self.host.places.image(&self.migration)
    }
}
