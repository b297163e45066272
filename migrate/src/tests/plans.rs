//! A plan without a move: both hosts are heard, and nothing is touched on either.

use super::fake::{NAME, Tasks};
use super::world::World;
use crate::finding::Code;
use crate::journal::Found;
use crate::options::MoveOptions;
use crate::plan;

async fn planned(world: &World) -> plan::Plan {
    let container = world
        .source
        .host
        .engines
        .of("fake")
        .unwrap()
        .inspect(NAME)
        .await
        .unwrap();
    let planned = plan::run(&world.source.host, container, "hb", &MoveOptions::default())
        .await
        .unwrap();
    for place in [&world.source, &world.destination] {
        assert!(Found::read_all(&place.host.places).is_empty(), "a journal");
        assert!(!place.host.places.run.exists(), "a directory for images");
    }
    planned
}

#[tokio::test]
async fn a_container_that_can_move_stays_as_it_is() {
    let world = World::new();
    let plan = planned(&world).await;
    assert!(plan.possible, "{plan:?}");
    assert_eq!(plan.image_wanted, Some(true));
    assert_eq!(plan.files_bytes, 5);
    // The fake CRIU says yes to every question.
    assert_eq!(plan.modes, ["stop", "pre", "post"]);
    assert_eq!(world.source.fake.tasks(), Tasks::Running);
    assert!(world.destination.fake.containers.lock().unwrap().is_empty());
    assert!(world.destination.fake.images.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_both_hosts_object_to_comes_first_and_names_its_host() {
    let world = World::new();
    let taken = &world.destination.fake.containers;
    taken.lock().unwrap().insert("other".into(), NAME.into());
    world.source.fake.set_tasks(Tasks::None);
    let plan = planned(&world).await;
    assert!(!plan.possible);
    let first: Vec<_> = plan.findings[..2]
        .iter()
        .map(|one| (one.host.as_str(), one.code))
        .collect();
    assert_eq!(first, [("ha", Code::NotRunning), ("hb", Code::Name)]);
    assert!(plan.findings[2..].iter().all(|one| !one.is_problem()), "{plan:?}");
}

#[tokio::test]
async fn a_failure_at_the_other_host_names_it() {
    let world = World::new();
    world.destination.fake.fail_at("objections");
    let container = world
        .source
        .host
        .engines
        .of("fake")
        .unwrap()
        .inspect(NAME)
        .await
        .unwrap();
    let failure = plan::run(&world.source.host, container, "hb", &MoveOptions::default())
        .await
        .unwrap_err();
    assert_eq!(failure.host, "hb", "{failure}");
    assert!(failure.to_string().contains("injected"), "{failure}");
}

#[tokio::test]
async fn a_doctor_hears_the_other_host_and_compares() {
    let world = World::new();
    let tls = std::path::Path::new("/nonexistent");
    let diagnosis = crate::doctor::diagnose(&world.source.host, tls, Some("hb")).await;
    for (host, code) in [
        ("ha", Code::Kernel),
        ("hb", Code::Kernel),
        ("ha", Code::Agent),
        ("ha", Code::CpuFlags),
        ("ha", Code::Clock),
    ] {
        let found = diagnosis
            .findings
            .iter()
            .any(|one| one.host == host && one.code == code && !one.is_problem());
        assert!(found, "{host} {code:?} in {:?}", diagnosis.findings);
    }
    let certificates = diagnosis
        .findings
        .iter()
        .filter(|one| one.code == Code::Certificates);
    assert_eq!(certificates.filter(|one| one.is_problem()).count(), 2);
    assert!(!diagnosis.healthy);
}
