//! Sends the shim's events to containerd, in order.
//!
//! Publishing puts an event in a queue and never waits. One task sends the queue's head until containerd has
//! taken it, so nothing overtakes; while containerd is away events wait. If the queue is full the new event is
//! dropped and logged: whoever comes back after that long asks for the state of every task anyway. An event whose
//! answer was lost with the connection is sent again, so containerd may see it twice, never not at all.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_shim::event::Event;
use containerd_shim::protos::protobuf::MessageFull;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim::protos::shim::event::Envelope;
use containerd_shim::protos::shim::events::ForwardRequest;
use containerd_shim::protos::shim_async::{Client, EventsClient};
use containerd_shim::protos::ttrpc::{self, context};
use log::{error, warn};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

/// Events that wait for containerd; a pod makes a handful per second at most, so this is minutes of absence.
const QUEUE_BOUND: usize = 2048;

/// containerd answers in milliseconds; this long means that it hangs, and a new connection may do better.
const SEND_DEADLINE: Duration = Duration::from_secs(5);

/// First pause after a failure, doubled up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// When the shim ends, what is queued may still be delivered for this long; containerd no longer needs it to go on.
const DRAIN_DEADLINE: Duration = Duration::from_secs(3);

/// Where events go in. Clones share one queue.
#[derive(Clone)]
pub(crate) struct Publisher {
    namespace: String,
    queue: mpsc::Sender<Envelope>,
    sender: TaskTracker,
}

impl Publisher {
    /// Starts sending to containerd's ttrpc socket at `address`.
    pub(crate) fn start(namespace: &str, address: &str) -> Self {
        let (queue, events) = mpsc::channel(QUEUE_BOUND);
        let address = match address.strip_prefix("unix://") {
            Some(_) => address.to_owned(),
            None => format!("unix://{address}"),
        };
        let sender = TaskTracker::new();
        sender.spawn(send_all(address, events));
        sender.close();
        Self {
            namespace: namespace.to_owned(),
            queue,
            sender,
        }
    }

    /// Queues an event; returns at once.
    pub(crate) fn publish<M: MessageFull + Event>(&self, event: &M) {
        let topic = event.topic();
        let value = match event.write_to_bytes() {
            Ok(value) => value,
            Err(error) => return error!("event {topic} cannot be encoded: {error}"),
        };
        let envelope = Envelope {
            timestamp: Some(timestamp(SystemTime::now())).into(),
            namespace: self.namespace.clone(),
            topic: topic.clone(),
            event: Some(any::<M>(value)).into(),
            ..Default::default()
        };
        if self.queue.try_send(envelope).is_err() {
            error!("event {topic} is dropped: containerd has taken none for too long");
        }
    }

    /// Waits until all that was published is sent, or [`DRAIN_DEADLINE`].
    pub(crate) async fn drain(self) {
        let Self { queue, sender, .. } = self;
        drop(queue);
        if timeout(DRAIN_DEADLINE, sender.wait()).await.is_err() {
            warn!("some events were not delivered: containerd does not take them");
        }
    }
}

/// A message as containerd packs it: by its bare name.
pub(crate) fn any<M: MessageFull>(value: Vec<u8>) -> Any {
    Any {
        type_url: M::descriptor().full_name().to_owned(),
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

async fn send_all(address: String, mut events: mpsc::Receiver<Envelope>) {
    let mut client = None;
    while let Some(event) = events.recv().await {
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
