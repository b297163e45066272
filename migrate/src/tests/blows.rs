//! A move that is struck at each of its frames: cut, killed on either side, aborted.

use super::world::{Blow, Strike, World};
use crate::clock::{Outcome, Remains};
use crate::options::MoveOptions;

/// More frames than a move of these tests has.
const FRAMES: usize = 60;

/// Strikes at one frame, lets new agents recover, and looks who owns the container.
async fn strike(blow: Blow, at: usize, change: fn(&mut MoveOptions)) -> bool {
    let what = format!("{blow:?} at frame {at}");
    let mut world = World::new();
    change(&mut world.options);
    let outcome = world.migrate(Strike { at, blow }).await;
    world.recover().await;
    world.rest().await;
    match &outcome {
        Some(Ok(_)) => world.assert_at_destination(&what),
        Some(Err(failure)) => {
            assert!(failure.leftovers.is_empty(), "{what}: {failure}");
            world.assert_at_source(&what);
        }
        None if world.source.fake.tasks() == super::fake::Tasks::Running => world.assert_at_source(&what),
        None => world.assert_at_destination(&what),
    }
    matches!(outcome, Some(Ok(report)) if report.outcome == Outcome::Moved)
}

/// Strikes at every frame, all worlds side by side; returns how many moves went through unharmed.
async fn strike_everywhere(blow: Blow) -> usize {
    strike_everywhere_with(blow, |_| {}).await
}

async fn strike_everywhere_with(blow: Blow, change: fn(&mut MoveOptions)) -> usize {
    let mut worlds = tokio::task::JoinSet::new();
    for at in 1..=FRAMES {
        worlds.spawn(strike(blow, at, change));
    }
    let mut unharmed = 0;
    while let Some(ended) = worlds.join_next().await {
        unharmed += usize::from(ended.unwrap());
    }
    unharmed
}

#[tokio::test]
async fn an_undisturbed_move_takes_everything_along() {
    let world = World::new();
    let strike = Strike {
        at: 0,
        blow: Blow::None,
    };
    let report = world.migrate(strike).await.unwrap().unwrap();
    world.assert_at_destination("undisturbed");
    assert_eq!(
        (&report.outcome, report.source),
        (&Outcome::Moved, Remains::Nothing)
    );
    assert!(report.downtime_micros.unwrap() <= report.total_micros);
    assert!(
        report.bytes.image > 300_000 && report.bytes.files > 0,
        "{:?}",
        report.bytes
    );
    assert_eq!((report.bytes.log, report.bytes.layers), (8, 8));
    for name in ["dump-held", "send-image", "receive-image", "commit", "resume"] {
        assert!(
            report.steps.iter().any(|step| step.name == name),
            "{name} is not in {:?}",
            report.steps
        );
    }
}

#[tokio::test]
async fn a_link_cut_at_any_frame_leaves_exactly_one_owner() {
    let unharmed = strike_everywhere(Blow::Cut).await;
    assert!(
        (1..FRAMES - 10).contains(&unharmed),
        "{unharmed} moves did not notice"
    );
}

#[tokio::test]
async fn a_source_agent_killed_at_any_frame_leaves_exactly_one_owner() {
    strike_everywhere(Blow::KillSource).await;
}

#[tokio::test]
async fn a_source_that_keeps_its_container_keeps_it_whatever_is_killed_when() {
    let keep = |options: &mut MoveOptions| {
        options.keep_source = true;
        options.name = Some("moved".into());
    };
    for blow in [Blow::Cut, Blow::KillSource, Blow::KillBoth] {
        strike_everywhere_with(blow, keep).await;
    }
    let mut world = World::new();
    keep(&mut world.options);
    let undisturbed = Strike {
        at: 0,
        blow: Blow::None,
    };
    let report = world.migrate(undisturbed).await.unwrap().unwrap();
    world.assert_at_destination("kept");
    assert_eq!(
        (report.source, report.renamed.as_deref()),
        (Remains::Stopped, Some("moved"))
    );
}

#[tokio::test]
async fn a_destination_agent_killed_at_any_frame_leaves_exactly_one_owner() {
    strike_everywhere(Blow::KillDestination).await;
}

#[tokio::test]
async fn both_agents_killed_at_any_frame_leave_exactly_one_owner() {
    strike_everywhere(Blow::KillBoth).await;
}

#[tokio::test]
async fn an_abort_at_any_frame_is_undone_or_comes_too_late() {
    let unharmed = strike_everywhere(Blow::AbortSource).await;
    assert!(
        (1..FRAMES - 10).contains(&unharmed),
        "{unharmed} moves did not heed it"
    );
}

#[tokio::test]
async fn a_destination_stopped_at_any_frame_undoes_or_finishes() {
    strike_everywhere(Blow::StopDestination).await;
}

#[tokio::test]
async fn a_move_succeeds_after_one_that_failed() {
    let world = World::new();
    let cut = Strike {
        at: 12,
        blow: Blow::Cut,
    };
    world.migrate(cut).await.unwrap().unwrap_err();
    world.rest().await;
    world.assert_at_source("cut");
    let strike = Strike {
        at: 0,
        blow: Blow::None,
    };
    world.migrate(strike).await.unwrap().unwrap();
    world.assert_at_destination("the second try");
}
