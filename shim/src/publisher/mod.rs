//! Sends the shim's events to containerd, in order.
//!
//! Publishing puts an event in a queue and never waits. One task sends the queue's head until containerd has
//! taken it, so nothing overtakes; while containerd is away events wait. They are sent a little after it is back, when
//! those who listen to it have found back as well: Docker never asks for what it has missed.
//!
//! An event is sent again only if the connection ended before its answer. If containerd was killed in the very moment
//! between telling its listeners and answering, they may see it twice: which of the two it was, nobody can tell any
//! more, and an exit told twice does less harm than one never told.

mod connection;

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_shim::event::Event;
use containerd_shim::protos::protobuf::Message;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim::protos::shim::event::Envelope;
use log::{error, info, warn};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::task;
use connection::{Connection, ForwardError};

/// Events that wait for containerd, a few hundred bytes each: some MB at worst.
const QUEUE_BOUND: usize = 8192;

/// Room in the queue that is kept for what must not be lost. Without containerd nobody starts anything, so the ends of
/// processes are as many as the processes; but one container can run out of memory for ever.
const RESERVED_FOR_ENDS: usize = 4096;

/// The topics that others wait for and cannot make up for.
const ENDS: [&str; 2] = ["/tasks/exit", "/tasks/delete"];

/// First pause between attempts to connect, doubled up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// How long containerd has been back before events are sent: gRPC clients come back within 3 s and some jitter.
const LISTENERS_RETURN: Duration = Duration::from_secs(5);

/// When the shim ends, what is queued may still be delivered for this long. A containerd that starts deletes the tasks that
/// ended without it before it takes events, and may have much to load in between; [`LISTENERS_RETURN`] comes on top.
const DRAIN_DEADLINE: Duration = Duration::from_secs(60);

/// The package of the messages that describe events, and of the one that describes a process.
const EVENTS_PACKAGE: &str = "containerd.events";
pub(crate) const DETAILS_PACKAGE: &str = "containerd.runc.v1";

/// Where events go in. Clones share one queue.
#[derive(Clone)]
pub(crate) struct Publisher {
    namespace: String,
    queue: mpsc::Sender<Item>,
}

/// What is in the queue.
enum Item {
    Event(Box<Envelope>),
    /// Answered when all before it is sent.
    Mark(oneshot::Sender<()>),
}

impl Publisher {
    /// Starts sending to containerd's ttrpc socket at `address`.
    pub(crate) fn start(namespace: &str, address: &str) -> Self {
        let (queue, events) = mpsc::channel(QUEUE_BOUND);
        let path = PathBuf::from(address.strip_prefix("unix://").unwrap_or(address));
        task::spawn(send_all(Link::to(path), events));
        Self {
            namespace: namespace.to_owned(),
            queue,
        }
    }

    /// Queues an event; returns at once.
    pub(crate) fn publish<M: Message + Event>(&self, event: &M) {
        let topic = event.topic();
        let value = match event.write_to_bytes() {
            Ok(value) => value,
            Err(error) => return error!("event {topic} cannot be encoded: {error}"),
        };
        let envelope = Envelope {
            timestamp: Some(timestamp(SystemTime::now())).into(),
            namespace: self.namespace.clone(),
            topic: topic.clone(),
            event: Some(any::<M>(EVENTS_PACKAGE, value)).into(),
            ..Default::default()
        };
        let has_room = self.queue.capacity() > RESERVED_FOR_ENDS || ENDS.contains(&topic.as_str());
        if !has_room || self.queue.try_send(Item::Event(Box::new(envelope))).is_err() {
            error!("event {topic} is dropped: containerd has taken none for too long");
        }
    }

    /// Waits until all that was published so far is sent, or [`DRAIN_DEADLINE`].
    pub(crate) async fn drain(&self) {
        let (mark, reached) = oneshot::channel();
        let sent = async {
            // A mark that is lost means that nobody sends any more, and that is the end as well.
            if self.queue.send(Item::Mark(mark)).await.is_ok() {
                let _ = reached.await;
            }
        };
        if timeout(DRAIN_DEADLINE, sent).await.is_err() {
            warn!("some events were not delivered: containerd does not take them");
        }
    }
}

/// A message as containerd packs it: by its bare name, that of its `package` first.
///
/// The package is told, because a message's own descriptor is decoded when it is first asked for: half a megabyte that
/// every shim would keep.
pub(crate) fn any<M: Message>(package: &str, value: Vec<u8>) -> Any {
    Any {
        type_url: format!("{package}.{}", M::NAME),
        value,
        ..Default::default()
    }
}

/// A time as messages carry it.
pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
    let since_1970 = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: since_1970.as_secs().cast_signed(),
        nanos: since_1970.subsec_nanos().cast_signed(),
        ..Default::default()
    }
}

async fn send_all(mut link: Link, mut queue: mpsc::Receiver<Item>) {
    loop {
        let item = tokio::select! {
            item = queue.recv() => item,
            never = link.keep() => match never {},
        };
        match item {
            Some(Item::Event(event)) => link.send(&event).await,
            // Whoever waited may have given up.
            Some(Item::Mark(mark)) => drop(mark.send(())),
            None => return,
        }
    }
}

/// The way to containerd, over any number of connections.
struct Link {
    path: PathBuf,
    connection: Option<Connection>,
    /// containerd was away: who listens to it must find back first.
    was_away: bool,
    /// Nothing is sent before.
    open_at: Instant,
    pause: Duration,
}

impl Link {
    fn to(path: PathBuf) -> Self {
        Self {
            path,
            connection: None,
            was_away: false,
            open_at: Instant::now(),
            pause: FIRST_PAUSE,
        }
    }

    /// Sends an event until containerd has taken or refused it.
    async fn send(&mut self, event: &Envelope) {
        loop {
            self.connected().await;
            sleep_until(self.open_at).await;
            match self.connected().await.forward(event).await {
                Ok(()) => return,
                Err(ForwardError::Refused(why)) => {
                    return error!("event {} is refused by containerd: {why}", event.topic);
                }
                Err(ForwardError::Lost(why)) => {
                    warn!("event {} waits: {why}", event.topic);
                    self.lose();
                }
            }
        }
    }

    /// Between events: sees when containerd goes, and finds back to it. May be dropped at any time.
    async fn keep(&mut self) -> std::convert::Infallible {
        loop {
            self.connected().await.ended().await;
            self.lose();
        }
    }

    fn lose(&mut self) {
        self.connection = None;
        self.was_away = true;
    }

    /// The connection, a new one if there is none, however long that takes.
    async fn connected(&mut self) -> &mut Connection {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await,
        };
        self.connection.insert(connection)
    }

    async fn connect(&mut self) -> Connection {
        loop {
            if let Ok(connection) = Connection::open(&self.path).await {
                self.pause = FIRST_PAUSE;
                if self.was_away {
                    info!("containerd is back; events are sent in {LISTENERS_RETURN:?}");
                    self.open_at = Instant::now() + LISTENERS_RETURN;
                }
                return connection;
            }
            self.was_away = true;
            sleep(self.pause).await;
            self.pause = (self.pause * 2).min(LAST_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::VecDeque;
    use std::sync::Arc;

    use async_trait::async_trait;
    use containerd_shim::protos::cgroups::metrics as v1;
    use containerd_shim::protos::cgroups_v2::metrics as v2;
    use containerd_shim::protos::events::task::{TaskExecStarted, TaskExit, TaskOOM, TaskStart};
    use containerd_shim::protos::protobuf::MessageFull;
    use containerd_shim::protos::shim::events::ForwardRequest;
    use containerd_shim::protos::shim::oci::ProcessDetails;
    use containerd_shim::protos::shim_async::{Events, create_events};
    use containerd_shim::protos::ttrpc;
    use containerd_shim::protos::types::empty::Empty;
    use std::os::unix::net::UnixListener;
    use ttrpc::r#async::transport::Listener;
    use ttrpc::r#async::{Server, TtrpcContext};

    use crate::metrics;

    struct Taken(mpsc::UnboundedSender<u32>);

    #[async_trait]
    impl Events for Taken {
        async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            let event = TaskStart::parse_from_bytes(&request.envelope.event.value).unwrap();
            self.0.send(event.pid).unwrap();
            Ok(Empty::new())
        }
    }

    fn start_of(pid: u32) -> TaskStart {
        TaskStart {
            pid,
            ..Default::default()
        }
    }

    async fn containerd(path: &std::path::Path) -> (Server, mpsc::UnboundedReceiver<u32>) {
        let (taken, pids) = mpsc::unbounded_channel();
        let listener = Listener::try_from(UnixListener::bind(path).unwrap()).unwrap();
        let service = create_events(Arc::new(Taken(taken)));
        let mut server = Server::new().add_listener(listener).register_service(service);
        server.start().await.unwrap();
        (server, pids)
    }

    #[tokio::test]
    async fn events_published_while_containerd_is_away_arrive_once_and_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let publisher = Publisher::start("moby", path.to_str().unwrap());
        for pid in 0..50 {
            publisher.publish(&start_of(pid));
        }
        // Let the first attempts fail.
        sleep(FIRST_PAUSE * 2).await;
        let (_server, mut pids) = containerd(&path).await;
        publisher.drain().await;
        let arrived: Vec<u32> = std::iter::from_fn(|| pids.try_recv().ok()).collect();
        assert_eq!(arrived, (0..50).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_shim_that_ends_before_containerd_takes_events_again_delivers_its_last() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let publisher = Publisher::start("moby", path.to_str().unwrap());
        publisher.publish(&start_of(7));
        let back = async {
            sleep(Duration::from_secs(4)).await;
            containerd(&path).await
        };
        let ((_server, mut pids), ()) = tokio::join!(back, publisher.drain());
        assert_eq!(pids.try_recv().unwrap(), 7);
    }

    #[tokio::test]
    async fn an_event_whose_answer_is_slow_is_not_sent_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        tokio::spawn(async move { Link::to(path).send(&Envelope::default()).await });
        let (stream, _) = listener.accept().await.unwrap();
        // Nobody answers: all that comes is the one request, on the one connection.
        sleep(Duration::from_secs(6)).await;
        assert!(
            timeout(Duration::from_millis(1), listener.accept())
                .await
                .is_err()
        );
        let mut written = vec![0; 4096];
        let n_read = stream.try_read(&mut written).unwrap();
        let length = u32::from_be_bytes([written[0], written[1], written[2], written[3]]);
        assert_eq!(n_read, 10 + usize::try_from(length).unwrap());
    }

    #[tokio::test]
    async fn ends_have_room_in_a_queue_that_is_full_of_the_rest() {
        let (queue, mut events) = mpsc::channel(QUEUE_BOUND);
        let publisher = Publisher {
            namespace: "moby".to_owned(),
            queue,
        };
        for _ in 0..QUEUE_BOUND {
            publisher.publish(&TaskOOM::default());
        }
        publisher.publish(&TaskExit::default());
        let mut topics = VecDeque::new();
        while let Ok(Item::Event(event)) = events.try_recv() {
            topics.push_back(event.topic);
        }
        assert_eq!(topics.pop_back().unwrap(), "/tasks/exit");
        assert_eq!(topics.len(), QUEUE_BOUND - RESERVED_FOR_ENDS);
    }

    #[test]
    fn a_packed_message_bears_the_name_that_its_descriptor_has() {
        fn check<M: MessageFull>(package: &str) {
            assert_eq!(
                any::<M>(package, Vec::new()).type_url,
                M::descriptor().full_name()
            );
        }
        check::<TaskStart>(EVENTS_PACKAGE);
        check::<TaskExecStarted>(EVENTS_PACKAGE);
        check::<v1::Metrics>(metrics::V1_PACKAGE);
        check::<v2::Metrics>(metrics::V2_PACKAGE);
        check::<ProcessDetails>(DETAILS_PACKAGE);
    }
}
