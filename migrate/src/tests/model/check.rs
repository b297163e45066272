//! The rules as they are, checked.

use std::collections::HashMap;
use std::time::Instant;

use stateright::{Checker, Model};

use super::rules::Rules;
use super::world::World;
use super::{Moves, PROGRESS};

/// Each agent may crash this often in a move, and so meet what its own recovery has left half done.
const CRASHES: u8 = 2;

const REAL: Moves = Moves {
    rules: Rules::REAL,
    crashes: CRASHES,
    restore_may_die: true,
    human_may_give_up: true,
};

#[test]
fn no_order_of_faults_makes_two_copies_or_none() {
    let began = Instant::now();
    let checker = REAL.checker().threads(2).spawn_bfs().join();
    checker.assert_properties();
    let states = checker.unique_state_count();
    println!(
        "{states} states of a move, {} steps, longest way {}, {} ms",
        checker.state_count(),
        checker.max_depth(),
        began.elapsed().as_millis()
    );
    assert!(states > 10_000, "{states} states are not all of them");
}

/// The checker follows a path only to where it meets another, and would not see agents that go in circles.
#[test]
fn without_further_faults_every_move_comes_to_an_end() {
    let small = Moves { crashes: 1, ..REAL };
    let mut ends = HashMap::new();
    let mut seen: Vec<World> = small.init_states();
    let mut all: std::collections::HashSet<World> = seen.iter().copied().collect();
    while let Some(world) = seen.pop() {
        longest_way(&small, &world, &mut ends);
        let mut actions = Vec::new();
        small.actions(&world, &mut actions);
        let next = actions
            .into_iter()
            .filter_map(|action| small.step(&world, action));
        seen.extend(next.filter(|next| all.insert(*next)));
    }
    let longest = ends.values().flatten().max().copied().unwrap_or(0);
    assert!((10..200).contains(&longest), "{longest} steps");
    println!("from {} states at most {longest} steps to the end", all.len());
}

/// Steps to the end by progress alone; `None` in `ends` stands for a state whose ways are being walked.
fn longest_way(moves: &Moves, world: &World, ends: &mut HashMap<World, Option<u32>>) -> u32 {
    match ends.get(world) {
        Some(Some(steps)) => return *steps,
        Some(None) => panic!("a move goes in circles: {world:#?}"),
        None => {}
    }
    ends.insert(*world, None);
    let steps = PROGRESS
        .iter()
        .filter_map(|action| moves.step(world, *action))
        .map(|next| 1 + longest_way(moves, &next, ends))
        .max()
        .unwrap_or(0);
    ends.insert(*world, Some(steps));
    steps
}
