//! What a move that has been committed still does for its memory, by the runner or by an agent that took over from it.
//!
//! The source's tasks stand still until the destination has every page: a file in the memory-backed directory of the move
//! tells CRIU's holder there, and nothing else does. A destination that comes back finds the pager waiting and goes on. A
//! source that comes back finds the tasks and serves them again. Nothing here can give the container to anybody.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use godwit_runtime::image::Manifest;
use godwit_runtime::pages::left_out;
use godwit_runtime::verdict::{self, Verdict};
use tokio::io::AsyncWriteExt;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::bandwidth::Pacer;
use crate::deadlines;
use crate::engine::{Container, Created};
use crate::failure::{Cause, Failure, Problem};
use crate::frame::{self, Frame};
use crate::host::{Duplex, Host};
use crate::journal::Found;
use crate::message::{Message, PageStream, VERSIONS, negotiate};
use crate::options::MoveOptions;
use crate::pages::memory::Memory;
use crate::pages::portion::Backlog;
use crate::pages::relay::Relay;
use crate::pages::serve::{self, Offering, Pages};
use crate::phase::{Phase, Role};
use crate::places::MigrationId;
use crate::progress::Transfer;
use crate::recovery;

/// Source: the pages that the lazy dump in `image` has left in the tasks of the container whose first process is `init`.
pub async fn open(image: &Path, init: u32, transfer: Arc<Transfer>, pacer: Pacer) -> io::Result<Pages> {
    let image = image.to_owned();
    let open = move || {
        left_out::list(&image)?;
        Ok(Pages::new(Memory::open(&image, init)?, transfer, pacer))
    };
    spawn_blocking(open).await.map_err(io::Error::other)?
}

/// Source: nobody needs the tasks any more; the holder lets CRIU end.
pub fn note_drained(host: &Host, migration: &MigrationId) -> io::Result<()> {
    File::create(host.places.drained(migration)).map(drop)
}

/// Source, after an agent's death: serves the pages of a committed move again, if it left any. `None`: it did not.
pub async fn offer_again(
    host: &Host,
    migration: &MigrationId,
    container: &Container,
    options: &MoveOptions,
) -> Result<Option<Offering>, String> {
    let image = host.places.image(migration);
    let is_lazy = Manifest::read(&image)
        .map_err(|error| error.to_string())?
        .is_some_and(|manifest| manifest.lazy);
    if !is_lazy || host.places.drained(migration).exists() {
        return Ok(None);
    }
    let shim = host
        .shims
        .find(Role::Source, &container.namespace, &container.id)
        .await
        .map_err(|error| error.to_string())?;
    // Without a shim there are no tasks: whatever of their memory had not gone over is lost.
    let Some(shim) = shim else { return Ok(None) };
    let view = shim.inspect().await.map_err(|error| error.to_string())?;
    let pages = open(&image, view.pid, Arc::default(), host.pacer(options))
        .await
        .map_err(|error| format!("finding the memory of the frozen tasks: {error}"))?;
    let offering = host.board.expect(migration);
    offering.open(pages);
    offering.begin();
    Ok(Some(offering))
}

/// Destination: returns when every page is there, or when the container that needs them is not.
///
/// Also when a human has given it up, who may know that the pages are nowhere any more.
pub async fn wait(host: &Host, created: &Created, relay: &Relay, migration: &MigrationId) {
    let gone = async {
        while !is_given_up(host, migration) && is_fetching(host, created).await {
            sleep(deadlines::LOOK_AT_PAGER).await;
        }
    };
    tokio::select! {
        () = relay.drained() => {}
        () = gone => {}
    }
}

/// Destination: whether a human has given the container up, says the journal.
pub fn is_given_up(host: &Host, migration: &MigrationId) -> bool {
    let found = Found::read(&host.places.of(migration));
    found.is_ok_and(|found| found.is_some_and(|found| found.destination_marks().given_up))
}

/// Destination: whether memory of a container that runs here is still on its way. A shim that does not answer may need
/// it.
pub async fn is_fetching(host: &Host, created: &Created) -> bool {
    let found = host
        .shims
        .find(Role::Destination, &created.namespace, &created.id)
        .await;
    match found {
        Ok(Some(shim)) => shim.inspect().await.map_or(true, |view| view.fetching_memory),
        Ok(None) => false,
        Err(_) => true,
    }
}

/// Source: answers a destination that wants pages, until it has them or goes.
pub async fn serve(
    host: &Host,
    mut stream: impl Duplex + Backlog,
    peer: &str,
    versions: &[u32],
    migration: &MigrationId,
    kind: PageStream,
) -> io::Result<()> {
    let mut shelf = match admit(host, peer, versions, migration) {
        Ok(shelf) => shelf,
        Err(problem) => {
            let failure = match problem {
                Problem::There(failure) => failure,
                Problem::Here(cause) => Failure::new(Role::Source, &host.name, Phase::Drain, cause),
            };
            say(&mut stream, Message::Failed(failure.clone())).await?;
            return Err(io::Error::other(failure.to_string()));
        }
    };
    say(&mut stream, Message::Welcome { version: VERSIONS[0] }).await?;
    let pages = timeout(deadlines::DUMP, serve::wait(&mut shelf))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    match kind {
        PageStream::Push => serve::while_offered(&mut shelf, serve::push(stream, pages)).await,
        PageStream::Urgent => serve::while_offered(&mut shelf, serve::answer(stream, pages)).await,
    }
}

/// Whether `peer` may have the pages of a move: it is the destination that the journal names.
fn admit(
    host: &Host,
    peer: &str,
    versions: &[u32],
    migration: &MigrationId,
) -> Result<serve::Shelf, Problem> {
    if negotiate(versions, VERSIONS).is_none() {
        return Err(Problem::protocol(format!(
            "{peer} speaks versions {versions:?} of the protocol and this agent {VERSIONS:?}"
        )));
    }
    if !recovery::belongs(host, migration, Role::Source, peer)? {
        return Err(Problem::failed(format!(
            "migration {migration} is none of this host's"
        )));
    }
    if verdict::read(&host.places.verdict(migration)).ok().flatten() == Some(Verdict::Aborted) {
        return Err(Problem::failed(format!("migration {migration} was aborted")));
    }
    host.board.shelf(migration).ok_or_else(|| {
        Problem::Here(Cause::Failed(format!(
            "the memory of migration {migration} is not to be had here now"
        )))
    })
}

async fn say(stream: &mut impl Duplex, message: Message) -> io::Result<()> {
    frame::write(stream, &Frame::Message(Box::new(message)))
        .await
        .map_err(io::Error::other)?;
    stream.flush().await
}
