//! A move in which one call of engine or shim fails, on either side.

use super::fake::{NAME, Tasks};
use super::world::{Blow, Strike, World};
use crate::clock::Outcome;
use crate::failure::Cause;
use crate::phase::{Phase, Role};

const UNDISTURBED: Strike = Strike {
    at: 0,
    blow: Blow::None,
};

#[tokio::test]
async fn a_failed_call_at_the_source_before_the_commit_is_undone() {
    for call in [
        "find",
        "shim_inspect",
        "used_by",
        "find_volume",
        "export_image",
        "log_path",
        "disarm_restart",
        "dump",
    ] {
        let world = World::new();
        world.source.fake.fail_at(call);
        let failure = world.migrate(UNDISTURBED).await.unwrap().unwrap_err();
        assert!(!world.source.fake.fault_is_pending(), "{call} was not reached");
        assert_eq!(
            (failure.role, failure.host.as_str()),
            (Role::Source, "ha"),
            "{call}: {failure}"
        );
        assert!(failure.to_string().contains("injected"), "{call}: {failure}");
        world.rest().await;
        world.assert_at_source(call);
    }
}

#[tokio::test]
async fn a_failed_call_at_the_destination_before_the_commit_is_undone() {
    let calls = [
        "objections",
        "has_image",
        "import_image",
        "make_volume",
        "volume_paths",
        "create",
        "start",
        "log_path",
        "find",
        "shim_inspect",
        "restore",
    ];
    for call in calls {
        let world = World::new();
        world.destination.fake.fail_at(call);
        let failure = world.migrate(UNDISTURBED).await.unwrap().unwrap_err();
        assert!(
            !world.destination.fake.fault_is_pending(),
            "{call} was not reached"
        );
        assert_eq!(
            (failure.role, failure.host.as_str()),
            (Role::Destination, "hb"),
            "{call}: {failure}"
        );
        assert!(failure.to_string().contains("injected"), "{call}: {failure}");
        world.rest().await;
        world.assert_at_source(call);
    }
}

#[tokio::test]
async fn what_fails_after_the_commit_is_told_and_not_undone() {
    for call in ["finish_restore", "start_end"] {
        let world = World::new();
        world.destination.fake.fail_at(call);
        let report = world.migrate(UNDISTURBED).await.unwrap().unwrap();
        assert!(
            matches!(report.outcome, Outcome::CommittedUnconfirmed { .. }),
            "{call}: {:?}",
            report.outcome
        );
        world.rest().await;
        assert!(world.census.never_two());
        assert_eq!(
            world.source.fake.tasks(),
            Tasks::None,
            "{call}: the source took it back"
        );
        assert_eq!(
            world.source.fake.containers.lock().unwrap().len(),
            1,
            "{call}: the last copy of the files is gone"
        );
    }
    let world = World::new();
    world.source.fake.fail_at("remove");
    let report = world.migrate(UNDISTURBED).await.unwrap().unwrap();
    assert_eq!(report.outcome, Outcome::Moved);
    assert_eq!(report.remarks.len(), 1, "{:?}", report.remarks);
}

#[tokio::test]
async fn all_objections_of_both_hosts_are_told_at_once_and_nothing_is_touched() {
    let world = World::new();
    world
        .destination
        .fake
        .containers
        .lock()
        .unwrap()
        .insert("other".into(), NAME.into());
    world.source.fake.set_tasks(Tasks::None);
    let failure = world.migrate(UNDISTURBED).await.unwrap().unwrap_err();
    assert_eq!(failure.phase, Phase::Plan);
    let Cause::Refused(reasons) = failure.cause else {
        panic!("{failure}");
    };
    let text: String = reasons.iter().map(|reason| format!("{reason}\n")).collect();
    for part in ["ha: redis is not running", "hb: the name is taken"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert_eq!(
        reasons.len(),
        2,
        "a stopped container has no shim to speak of: {text}"
    );
    assert_eq!(world.destination.fake.containers.lock().unwrap().len(), 1);
    assert!(
        world.destination.fake.images.lock().unwrap().is_empty(),
        "layers were sent"
    );
}
