//! Who may have the pages of memory that a container has left behind.

use tokio::io::DuplexStream;

use super::fake::NAME;
use super::world::World;
use crate::drain;
use crate::frame::{self, Frame};
use crate::journal::{Journal, Opened};
use crate::message::{Message, PageStream, VERSIONS};
use crate::options::MoveOptions;
use crate::pages::portion::Backlog;
use crate::phase::Role;
use crate::places::MigrationId;

impl Backlog for DuplexStream {
    fn unacknowledged(&self) -> u64 {
        0
    }
}

/// What a host that asks for pages is told first.
async fn told(world: &World, peer: &str, migration: &MigrationId) -> Message {
    let (mut near, far): (DuplexStream, DuplexStream) = tokio::io::duplex(1 << 16);
    let host = &world.source.host;
    let serve = drain::serve(host, far, peer, VERSIONS, migration, PageStream::Push);
    let hear = async {
        match frame::read(&mut near).await.unwrap() {
            Some(Frame::Message(message)) => *message,
            other => panic!("{other:?}"),
        }
    };
    let served = async {
        let _ = serve.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        message = hear => message,
        () = served => unreachable!(),
    }
}

#[tokio::test]
async fn pages_are_for_the_destination_that_the_journal_names_and_only_while_they_are_there() {
    let world = World::new();
    let host = &world.source.host;
    let migration = MigrationId::random().unwrap();
    assert!(
        matches!(told(&world, "hb", &migration).await, Message::Failed(_)),
        "an unknown move"
    );
    let container = host.engines.of("fake").unwrap().inspect(NAME).await.unwrap();
    let opened = Opened {
        migration: migration.clone(),
        role: Role::Source,
        peer: "hb".into(),
        container,
        options: MoveOptions::default(),
        archive: false,
    };
    Journal::open(&host.places, opened).await.unwrap();
    assert!(
        matches!(told(&world, "hb", &migration).await, Message::Failed(_)),
        "nothing is left behind"
    );
    let offering = host.board.expect(&migration);
    assert!(matches!(
        told(&world, "hb", &migration).await,
        Message::Welcome { .. }
    ));
    assert!(
        matches!(told(&world, "hc", &migration).await, Message::Failed(_)),
        "another peer"
    );
    drop(offering);
    assert!(
        matches!(told(&world, "hb", &migration).await, Message::Failed(_)),
        "the move has ended"
    );
}
