//! A container goes into an archive on one host and comes out of it on the other, or is where it was, whatever fails and whoever
//! dies.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use godwit_runtime::tar;
use rustls::pki_types::UnixTime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::fake::{IMAGE, NAME, SOURCE_ID, Tasks};
use super::fake_volumes::VOLUMES;
use super::world::{IDENTITIES, PATIENCE, World};
use crate::archive::board::{Board, Brought};
use crate::archive::compress::Compression;
use crate::archive::origin::Origin;
use crate::archive::pipe::pipe;
use crate::archive::target::Target;
use crate::archive::{ExportOptions, ImportOptions, Summary, export, import, layout};
use crate::ca;
use crate::engine::Engine;
use crate::failure::{Cause, Failure};
use crate::places::MigrationId;
use crate::progress::Observer;
use crate::tls::Identity;

type Outcome = Result<Summary, Failure>;

/// How a client of an export behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    /// It stores all and says so.
    Stores,
    /// It goes away after so many pieces.
    Leaves(usize),
    /// It stores all, and never says so.
    Forgets,
}

async fn export_from(world: &World, options: ExportOptions, client: Client) -> (Outcome, Vec<u8>) {
    let (observer, _events) = Observer::new(CancellationToken::new());
    let (board, migration) = (Board::default(), MigrationId::random().unwrap());
    let target = Target::Client(board.export(&migration));
    let container = world.source.fake.inspect(NAME).await.unwrap();
    let host = Arc::clone(&world.source.host);
    let abort = observer.abort.clone();
    let run = tokio::spawn(export::run(
        host,
        observer,
        migration.clone(),
        container,
        options,
        target,
    ));
    let mut archive = Vec::new();
    let store = async {
        let Some(mut pieces) = board.read(&migration) else {
            return;
        };
        let mut n_pieces = 0;
        while let Some(piece) = pieces.recv().await {
            archive.extend_from_slice(&piece);
            n_pieces += 1;
            if client == Client::Leaves(n_pieces) {
                return abort.cancel();
            }
        }
        match client {
            // Once: who has read to the end is heard at once, and of one that failed there is nothing to be stored.
            Client::Stores => {
                board.store(&migration);
            }
            Client::Forgets | Client::Leaves(_) => abort.cancel(),
        }
    };
    store.await;
    let outcome = tokio::time::timeout(PATIENCE, run)
        .await
        .expect("an export does not end")
        .unwrap();
    (outcome, archive)
}

async fn import_to(world: &World, options: ImportOptions, archive: &[u8]) -> Outcome {
    let (observer, _events) = Observer::new(CancellationToken::new());
    let (board, migration) = (Board::default(), MigrationId::random().unwrap());
    let origin = Origin::Client(board.import(&migration));
    let host = Arc::clone(&world.destination.host);
    let run = tokio::spawn(import::run(host, observer, migration.clone(), options, origin));
    if let Some(brought) = board.bring(&migration) {
        let (bytes, pieces) = pipe();
        brought.send(Brought::Pieces(pieces)).unwrap();
        for piece in archive.chunks(100_000) {
            if bytes.send(piece.to_vec().into()).await.is_err() {
                break;
            }
        }
    }
    tokio::time::timeout(PATIENCE, run)
        .await
        .expect("an import does not end")
        .unwrap()
}

/// It takes as long as a client is waited for.
#[tokio::test]
async fn an_archive_that_nobody_brings_is_not_waited_for_ever() {
    let world = world();
    let (observer, _events) = Observer::new(CancellationToken::new());
    let (board, migration) = (Board::default(), MigrationId::random().unwrap());
    let origin = Origin::Client(board.import(&migration));
    let host = Arc::clone(&world.destination.host);
    let run = import::run(
        host,
        observer,
        migration.clone(),
        ImportOptions::default(),
        origin,
    );
    let failure = tokio::time::timeout(PATIENCE, run)
        .await
        .expect("an import does not end")
        .unwrap_err();
    assert!(failure.to_string().contains("nobody has brought"), "{failure}");
    assert!(board.bring(&migration).is_none());
    assert!(!world.destination.host.places.memory(&migration).exists());
}

fn world() -> World {
    let world = World::new();
    // An archive has no image.
    world.destination.fake.images.lock().unwrap().push(IMAGE.into());
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_comes_out_of_its_archive_with_all_it_had() {
    let world = world();
    let (outcome, archive) = export_from(&world, ExportOptions::default(), Client::Stores).await;
    assert!(!outcome.unwrap().runs);
    assert_eq!(world.source.fake.tasks(), Tasks::None, "it is stopped");
    assert!(
        *world.source.fake.armed.lock().unwrap(),
        "its restart policy is back"
    );
    assert!(
        world
            .source
            .fake
            .containers
            .lock()
            .unwrap()
            .contains_key(SOURCE_ID)
    );
    let summary = import_to(&world, ImportOptions::default(), &archive)
        .await
        .unwrap();
    assert_eq!((summary.container.as_str(), summary.runs), (NAME, true));
    assert_eq!(world.destination.fake.tasks(), Tasks::Running);
    let fake = &world.destination.fake;
    for name in ["first", "last"] {
        assert_eq!(std::fs::read_to_string(fake.rootfs().join(name)).unwrap(), name);
        for volume in VOLUMES {
            assert!(
                fake.volume(volume).join(name).exists(),
                "{name} of volume {volume}"
            );
        }
    }
    world.assert_nothing_left("imported");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_let_run_on_runs_on_and_comes_out_of_its_archive_too() {
    let world = world();
    let options = ExportOptions {
        leave_running: true,
        ..ExportOptions::default()
    };
    let (outcome, archive) = export_from(&world, options, Client::Stores).await;
    assert!(outcome.unwrap().runs);
    world.assert_at_source("let run on");
    // Elsewhere it may run besides, which the census does not know.
    world.source.fake.set_tasks(Tasks::None);
    let renamed = ImportOptions {
        name: Some("again".into()),
        ..ImportOptions::default()
    };
    assert_eq!(
        import_to(&world, renamed, &archive).await.unwrap().container,
        "again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_nobody_stores_leaves_the_container_running() {
    for client in [Client::Leaves(1), Client::Forgets] {
        let world = world();
        let (outcome, _) = export_from(&world, ExportOptions::default(), client).await;
        assert!(outcome.is_err(), "{client:?}");
        world.rest().await;
        world.assert_at_source(&format!("{client:?}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_fails_anywhere_leaves_the_container_running() {
    for call in ["find", "shim_inspect", "disarm_restart", "dump", "used_by"] {
        let world = world();
        world.source.fake.fail_at(call);
        let (outcome, _) = export_from(&world, ExportOptions::default(), Client::Stores).await;
        if world.source.fake.fault_is_pending() {
            continue;
        }
        assert!(outcome.is_err(), "{call}");
        world.rest().await;
        world.assert_at_source(call);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_fails_anywhere_leaves_nothing() {
    let world = world();
    let (_, archive) = export_from(&world, ExportOptions::default(), Client::Stores).await;
    for call in [
        "objections",
        "has_image",
        "create",
        "start",
        "restore",
        "finish_restore",
        "start_end",
    ] {
        world.destination.fake.fail_at(call);
        let outcome = import_to(&world, ImportOptions::default(), &archive).await;
        assert!(
            outcome.is_err() && !world.destination.fake.fault_is_pending(),
            "{call}: {outcome:?}"
        );
        assert_eq!(world.destination.fake.tasks(), Tasks::None, "{call}");
        assert!(
            world.destination.fake.containers.lock().unwrap().is_empty(),
            "{call}"
        );
        for volume in VOLUMES {
            assert!(!world.destination.fake.has_volume(volume), "{call}: {volume}");
        }
        world.assert_nothing_left(call);
    }
    import_to(&world, ImportOptions::default(), &archive)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_archive_touches_nothing() {
    let world = world();
    let (_, mut archive) = export_from(&world, ExportOptions::default(), Client::Stores).await;
    let middle = archive.len() / 2;
    archive.truncate(middle);
    let failure = import_to(&world, ImportOptions::default(), &archive)
        .await
        .unwrap_err();
    assert!(matches!(failure.cause, Cause::Refused(_)), "{failure}");
    world.assert_nothing_left("cut short");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_whose_image_is_not_here_is_refused_by_its_name() {
    let world = World::new();
    let (_, archive) = export_from(&world, ExportOptions::default(), Client::Stores).await;
    let failure = import_to(&world, ImportOptions::default(), &archive)
        .await
        .unwrap_err();
    assert!(
        failure
            .to_string()
            .contains("its image redis:8 (sha256:1) is not on this host"),
        "{failure}"
    );
    world.assert_nothing_left("no image");
}

/// Exports with a signature; one that is not packed.
async fn signed(world: &World) -> Vec<u8> {
    let options = ExportOptions {
        sign: true,
        compress: Compression::None,
        ..ExportOptions::default()
    };
    let (outcome, archive) = export_from(world, options, Client::Stores).await;
    assert_eq!(outcome.unwrap().signed_by.as_deref(), Some("ha"));
    archive
}

/// What hb says of an archive that it refuses for its signature, or for the lack of one; nothing of it is there.
async fn refused(world: &World, options: ImportOptions, archive: &[u8]) -> String {
    let failure = import_to(world, options, archive).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Refused(_)), "{failure}");
    world.assert_nothing_left("refused for its signature");
    failure.to_string()
}

/// What is before an archive's signature, and the rest.
fn split(archive: &[u8]) -> (&[u8], &[u8]) {
    let name = layout::SIGNATURE.as_bytes();
    let at = archive
        .windows(name.len())
        .rposition(|bytes| bytes == name)
        .unwrap();
    archive.split_at(at)
}

/// The archive without its signature.
fn stripped(archive: &[u8]) -> Vec<u8> {
    [split(archive).0, &tar::END].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_signature_an_archive_has_is_told_at_its_import() {
    let world = world();
    let archive = signed(&world).await;
    let required = ImportOptions {
        require_signature: true,
        ..ImportOptions::default()
    };
    let summary = import_to(&world, required, &archive).await.unwrap();
    assert_eq!(summary.signed_by.as_deref(), Some("ha"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_signature_is_refused_where_none_is_required_too() {
    let (world, other) = (world(), world());
    let (archive, other) = (signed(&world).await, signed(&other).await);
    // Sums that fit what is there, which is not what was signed.
    let forged = [split(&archive).0, split(&other).1].concat();
    let told = refused(&world, ImportOptions::default(), &forged).await;
    assert!(told.contains("ha has not signed this; get it anew"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_whose_signature_was_taken_off_is_one_that_has_none() {
    let world = world();
    let archive = stripped(&signed(&world).await);
    let required = ImportOptions {
        require_signature: true,
        ..ImportOptions::default()
    };
    let told = refused(&world, required, &archive).await;
    assert!(
        told.contains("it is not signed, and --require-signature asks for it; export it with --sign"),
        "{told}"
    );
    let summary = import_to(&world, ImportOptions::default(), &archive)
        .await
        .unwrap();
    assert_eq!(summary.signed_by, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_may_import_signed_archives_only() {
    let world = World::of(IDENTITIES.clone(), true);
    world.destination.fake.images.lock().unwrap().push(IMAGE.into());
    let archive = signed(&world).await;
    let told = refused(&world, ImportOptions::default(), &stripped(&archive)).await;
    assert!(
        told.contains("require_signature in this host's agent.toml"),
        "{told}"
    );
    import_to(&world, ImportOptions::default(), &archive)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_of_another_authority_is_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let [authority, own] = ["ca", "ha"].map(|name| directory.path().join(name));
    ca::init(&authority).unwrap();
    ca::issue(&authority, "ha", &[], &own).unwrap();
    let [_, hb] = IDENTITIES.clone();
    let world = World::of([Identity::load(&own).unwrap(), hb], false);
    let archive = signed(&world).await;
    let told = refused(&world, ImportOptions::default(), &archive).await;
    assert!(told.contains("of another authority than this host's"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_certificate_has_expired_signs_nothing_and_leaves_the_container_alone() {
    let directory = tempfile::tempdir().unwrap();
    let [authority, own] = ["ca", "ha"].map(|name| directory.path().join(name));
    ca::init(&authority).unwrap();
    let soon = SystemTime::now() + Duration::from_secs(2);
    ca::issue_until(&authority, "ha", &own, soon);
    let [_, hb] = IDENTITIES.clone();
    let world = World::of([Identity::load(&own).unwrap(), hb], false);
    let expired = async {
        while world.source.host.identity.check_time(UnixTime::now()).is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, expired)
        .await
        .expect("its certificate does not expire");
    let options = ExportOptions {
        sign: true,
        ..ExportOptions::default()
    };
    let (outcome, archive) = export_from(&world, options, Client::Stores).await;
    let failure = outcome.unwrap_err();
    assert!(matches!(failure.cause, Cause::Refused(_)), "{failure}");
    assert!(
        failure
            .to_string()
            .contains("host.pem has expired; issue it again"),
        "{failure}"
    );
    assert!(archive.is_empty());
    world.assert_at_source("not signed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_in_an_export_is_followed_by_one_that_undoes_it() {
    let world = world();
    let (observer, _events) = Observer::new(CancellationToken::new());
    let (board, migration) = (Board::default(), MigrationId::random().unwrap());
    let target = Target::Client(board.export(&migration));
    let container = world.source.fake.inspect(NAME).await.unwrap();
    let host = Arc::clone(&world.source.host);
    let options = ExportOptions::default();
    let run = tokio::spawn(export::run(
        host,
        observer,
        migration.clone(),
        container,
        options,
        target,
    ));
    let mut pieces = board.read(&migration).unwrap();
    while pieces.recv().await.is_some() {}
    assert_eq!(world.source.fake.tasks(), Tasks::Frozen);
    run.abort();
    assert!(run.await.unwrap_err().is_cancelled());
    world.recover().await;
    world.rest().await;
    world.assert_at_source("recovered");
}

/// Into an image, with nobody who reads or stores.
async fn export_into(world: &World, name: &str, leave_running: bool) -> Outcome {
    let run = begin_into(world, name, leave_running).await;
    tokio::time::timeout(PATIENCE, run)
        .await
        .expect("an export does not end")
        .unwrap()
}

async fn begin_into(world: &World, name: &str, leave_running: bool) -> JoinHandle<Outcome> {
    let (observer, _events) = Observer::new(CancellationToken::new());
    let options = ExportOptions {
        leave_running,
        image: Some(name.into()),
        ..ExportOptions::default()
    };
    let container = world.source.fake.inspect(NAME).await.unwrap();
    let (host, migration) = (Arc::clone(&world.source.host), MigrationId::random().unwrap());
    let target = Target::image(name.into());
    tokio::spawn(export::run(host, observer, migration, container, options, target))
}

async fn import_out_of(world: &World, name: &str) -> Outcome {
    let (observer, _events) = Observer::new(CancellationToken::new());
    let options = ImportOptions {
        image: Some(name.into()),
        ..ImportOptions::default()
    };
    let origin = Origin::Image {
        name: name.into(),
        engine: options.engine,
        namespace: None,
    };
    let (host, migration) = (
        Arc::clone(&world.destination.host),
        MigrationId::random().unwrap(),
    );
    import::run(host, observer, migration, options, origin).await
}

fn no_image(world: &World, what: &str) {
    assert!(
        world.source.fake.archives.lock().unwrap().is_empty(),
        "{what}: there is an image"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_comes_out_of_an_image_with_all_it_had() {
    let world = world();
    assert!(!export_into(&world, "one", false).await.unwrap().runs);
    assert_eq!(world.source.fake.tasks(), Tasks::None, "it is stopped");
    let images = world.source.fake.archives.lock().unwrap().clone();
    *world.destination.fake.archives.lock().unwrap() = images;
    assert_eq!(import_out_of(&world, "one").await.unwrap().container, NAME);
    assert_eq!(world.destination.fake.tasks(), Tasks::Running);
    let failure = import_out_of(&world, "another").await.unwrap_err();
    assert!(
        failure.to_string().contains("no engine of this host has"),
        "{failure}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_that_name_is_left_as_it_is() {
    let world = world();
    assert!(export_into(&world, "one", true).await.unwrap().runs);
    let before = world.source.fake.archives.lock().unwrap()["one"].mark.clone();
    let failure = export_into(&world, "one", false).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Refused(_)), "{failure}");
    world.assert_at_source("refused");
    assert_eq!(world.source.fake.archives.lock().unwrap()["one"].mark, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_into_an_image_that_fails_anywhere_leaves_the_container_running_and_no_image() {
    for call in [
        "find",
        "shim_inspect",
        "disarm_restart",
        "dump",
        "image_has",
        "image_make",
        "image_answer",
    ] {
        for leave_running in [false, true] {
            let world = world();
            world.source.fake.fail_at(call);
            let outcome = export_into(&world, "one", leave_running).await;
            assert!(
                outcome.is_err() && !world.source.fake.fault_is_pending(),
                "{call}"
            );
            world.rest().await;
            world.assert_at_source(call);
            no_image(&world, call);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_when_the_image_is_there_is_followed_by_one_that_removes_it() {
    let world = world();
    world.source.fake.fail_at("image_silence");
    let run = begin_into(&world, "one", false).await;
    while world.source.fake.archives.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    run.abort();
    assert!(run.await.unwrap_err().is_cancelled());
    world.recover().await;
    world.rest().await;
    world.assert_at_source("recovered");
    no_image(&world, "recovered");
}
