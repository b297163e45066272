//! Sends the shim's events to containerd, in order.
//!
//! Publishing puts an event in a queue and never waits. One task sends the queue's head until containerd has
//! taken it, so nothing overtakes; while containerd is away events wait. If the queue is full the new event is
//! dropped and logged: whoever comes back after that long asks for the state of every task anyway. An event whose
//! answer was lost with the connection is sent again, so containerd may see it twice, never not at all.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_shim::event::Event;
use containerd_shim::protos::protobuf::Message;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim::protos::shim::event::Envelope;
use containerd_shim::protos::shim::events::ForwardRequest;
use containerd_shim::protos::shim_async::{Client, EventsClient};
use containerd_shim::protos::ttrpc::{self, context};
use log::{error, warn};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

/// Events that wait for containerd; a pod makes a handful per second at most, so this is minutes of absence.
const QUEUE_BOUND: usize = 2048;

/// containerd answers in milliseconds; this long means that it hangs, and a new connection may do better.
const SEND_DEADLINE: Duration = Duration::from_secs(5);

/// First pause after a failure, doubled up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// When the shim ends, what is queued may still be delivered for this long; containerd no longer needs it to go on.
const DRAIN_DEADLINE: Duration = Duration::from_secs(3);

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
        let address = match address.strip_prefix("unix://") {
            Some(_) => address.to_owned(),
            None => format!("unix://{address}"),
        };
        tokio::spawn(send_all(address, events));
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
        if self.queue.try_send(Item::Event(Box::new(envelope))).is_err() {
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

async fn send_all(address: String, mut queue: mpsc::Receiver<Item>) {
    let mut client = None;
    while let Some(item) = queue.recv().await {
        let event = match item {
            Item::Event(event) => event,
            Item::Mark(mark) => {
                // Whoever waited may have given up.
                let _ = mark.send(());
                continue;
            }
        };
        let mut pause = FIRST_PAUSE;
        while let Err(error) = send(&address, &mut client, &event).await {
            warn!("event {} waits: {error}", event.topic);
            client = None;
            sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }
}

async fn send(address: &str, client: &mut Option<EventsClient>, event: &Envelope) -> ttrpc::Result<()> {
    let connection = match client {
        Some(connection) => connection,
        None => client.insert(EventsClient::new(Client::connect(address).await?)),
    };
    let request = ForwardRequest {
        envelope: Some(event.clone()).into(),
        ..Default::default()
    };
    let deadline = context::with_duration(SEND_DEADLINE);
    match timeout(SEND_DEADLINE, connection.forward(deadline, &request)).await {
        Ok(Ok(_)) => Ok(()),
        // containerd has read it and does not want it: sending it again would not help.
        Ok(Err(ttrpc::Error::RpcStatus(status))) if status.code() != ttrpc::Code::DEADLINE_EXCEEDED => {
            error!(
                "event {} is refused by containerd: {}",
                event.topic, status.message
            );
            Ok(())
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(ttrpc::Error::Others("containerd does not answer".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::os::unix::net::UnixListener;
    use std::sync::Arc;

    use async_trait::async_trait;
    use containerd_shim::protos::cgroups::metrics as v1;
    use containerd_shim::protos::cgroups_v2::metrics as v2;
    use containerd_shim::protos::events::task::{TaskExecStarted, TaskStart};
    use containerd_shim::protos::protobuf::MessageFull;
    use containerd_shim::protos::shim::oci::ProcessDetails;
    use containerd_shim::protos::shim_async::{Events, create_events};
    use containerd_shim::protos::types::empty::Empty;
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

    #[tokio::test]
    async fn events_published_while_containerd_is_away_arrive_once_and_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let publisher = Publisher::start("moby", path.to_str().unwrap());
        for pid in 0..50 {
            publisher.publish(&TaskStart {
                pid,
                ..Default::default()
            });
        }
        // Let the first attempts fail.
        sleep(FIRST_PAUSE * 2).await;
        let (taken, mut pids) = mpsc::unbounded_channel();
        let listener = Listener::try_from(UnixListener::bind(&path).unwrap()).unwrap();
        let service = create_events(Arc::new(Taken(taken)));
        let mut server = Server::new().add_listener(listener).register_service(service);
        server.start().await.unwrap();
        publisher.drain().await;
        let mut arrived = Vec::new();
        while let Ok(pid) = pids.try_recv() {
            arrived.push(pid);
        }
        assert_eq!(arrived, (0..50).collect::<Vec<_>>());
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
