//! Moves of a container with volumes: what becomes of each, by what was asked for it and by what is there.

use std::fs;

use godwit_runtime::verdict::{self, Verdict};

use super::fake::NAME;
use super::fake_volumes::{ANONYMOUS, NAMED};
use super::world::{Blow, Strike, World};
use crate::engine::Engine;
use crate::failure::Cause;
use crate::finding::Code;
use crate::journal::{Journal, Mark, Opened};
use crate::options::MoveOptions;
use crate::phase::Role;
use crate::places::MigrationId;
use crate::volumes::arrive::Claim;
use crate::volumes::policy::{Policy, Wish};

const UNDISTURBED: Strike = Strike {
    at: 0,
    blow: Blow::None,
};

/// Two hosts and a user who said this of the volumes.
fn world(words: &[&str]) -> World {
    let mut world = World::new();
    world.options.volumes = words.iter().map(|word| word.parse::<Wish>().unwrap()).collect();
    world
}

#[tokio::test]
async fn a_named_volume_stays_at_the_source_and_an_anonymous_one_goes() {
    let world = World::new();
    let report = world.migrate(UNDISTURBED).await.unwrap().unwrap();
    world.assert_at_destination("volumes");
    let told: Vec<_> = report
        .volumes
        .iter()
        .map(|one| (one.name.as_str(), one.policy, one.stays_at_source, one.bytes > 0))
        .collect();
    assert_eq!(
        told,
        [
            (NAMED, Policy::Copy, true, true),
            (ANONYMOUS, Policy::Copy, false, true)
        ]
    );
    assert!(report.bytes.volumes > 0);
    assert!(world.source.fake.has_volume(NAMED));
    assert!(!world.source.fake.has_volume(ANONYMOUS));
}

#[tokio::test]
async fn what_is_skipped_is_made_empty_there_and_kept_here() {
    let world = world(&["skip"]);
    world.migrate(UNDISTURBED).await.unwrap().unwrap();
    for name in [NAMED, ANONYMOUS] {
        assert!(world.source.fake.volume(name).join("first").exists(), "{name}");
        assert!(
            !world.destination.fake.volume(name).join("first").exists(),
            "{name}"
        );
        assert!(world.destination.fake.has_volume(name), "{name}");
    }
}

#[tokio::test]
async fn what_is_shared_must_be_there_and_is_not_touched() {
    let world = world(&["data=shared"]);
    let failure = world.migrate(UNDISTURBED).await.unwrap().unwrap_err();
    assert!(
        failure
            .to_string()
            .contains("data, which is to be shared, does not exist"),
        "{failure}"
    );
    world.assert_at_source("refused");

    let there = &world.destination.fake;
    there.make_volume(NAMED);
    fs::write(there.volume(NAMED).join("theirs"), "").unwrap();
    world.migrate(UNDISTURBED).await.unwrap().unwrap();
    assert!(there.volume(NAMED).join("theirs").exists());
    assert!(!there.volume(NAMED).join("first").exists());
    assert!(there.volume(ANONYMOUS).join("last").exists());
}

#[tokio::test]
async fn nothing_is_copied_onto_a_volume_that_holds_something() {
    let world = World::new();
    let there = &world.destination.fake;
    there.make_volume(NAMED);
    fs::write(there.volume(NAMED).join("precious"), "").unwrap();
    let failure = world.migrate(UNDISTURBED).await.unwrap().unwrap_err();
    let Cause::Refused(reasons) = &failure.cause else {
        panic!("{failure}");
    };
    assert_eq!(reasons[0].code, Code::Volume);
    assert!(reasons[0].remedy.contains("docker volume rm data"), "{failure}");
    assert!(there.volume(NAMED).join("precious").exists());
}

#[tokio::test]
async fn a_volume_that_was_there_and_empty_is_so_again_after_a_move_that_failed() {
    let world = World::new();
    let there = &world.destination.fake;
    there.make_volume(NAMED);
    there.fail_at("restore");
    world.migrate(UNDISTURBED).await.unwrap().unwrap_err();
    world.rest().await;
    assert!(there.has_volume(NAMED), "it was not made by the move");
    assert_eq!(fs::read_dir(there.volume(NAMED)).unwrap().count(), 0);
    assert!(!there.has_volume(ANONYMOUS));
}

#[tokio::test]
async fn a_container_that_is_given_up_takes_the_volumes_along_that_were_made_for_it() {
    let world = World::new();
    let (host, there) = (&world.destination.host, &world.destination.fake);
    let migration = MigrationId::random().unwrap();
    let container = world.source.fake.inspect(NAME).await.unwrap();
    there.make_volume(NAMED);
    let created = there.create(&container).await.unwrap();
    let opened = Opened {
        migration: migration.clone(),
        role: Role::Destination,
        peer: "ha".into(),
        container,
        options: MoveOptions::default(),
        archive: false,
    };
    let journal = Journal::open(&host.places, opened).await.unwrap();
    let claim = Claim {
        name: NAMED.into(),
        is_new: true,
    };
    for mark in [
        Mark::Creating,
        Mark::Volume(claim),
        Mark::Created(created),
        Mark::Restoring,
        Mark::Broken("it does not run".into()),
        Mark::GivenUp,
    ] {
        journal.note(mark).await.unwrap();
    }
    verdict::decide(&host.places.verdict(&migration), Verdict::Committed).unwrap();
    world.recover().await;
    world.assert_at_source("given up");
}

#[tokio::test]
async fn a_misspelt_volume_is_refused() {
    let world = world(&["dta=skip"]);
    let failure = world.migrate(UNDISTURBED).await.unwrap().unwrap_err();
    assert!(
        failure
            .to_string()
            .contains("has no volume dta; its volumes are data, f00d"),
        "{failure}"
    );
    world.assert_at_source("refused");
}
