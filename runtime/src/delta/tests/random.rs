//! Random trees moved in random passes: after each the destination's tree is the source's.
//!
//! A failure is shrunk to the fewest acts that show it; each that was found stands in `histories` under its fear.

use proptest::prelude::*;

use super::acts::{Act, any_act, perform};
use super::overlay::Pair;

/// Trees of a plain test run: some ten seconds. `PROPTEST_CASES` asks for more.
const CASES: u32 = 64;

/// The acts before one pass, and whether that is made as moves make it or trusts every time.
#[derive(Clone, Debug)]
struct Round {
    acts: Vec<Act>,
    is_careful: bool,
}

fn any_round() -> impl Strategy<Value = Round> {
    let acts = prop::collection::vec(any_act(), 0..25);
    (acts, any::<bool>()).prop_map(|(acts, is_careful)| Round { acts, is_careful })
}

pub(super) fn config() -> ProptestConfig {
    let wanted = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    ProptestConfig {
        cases: wanted.unwrap_or(CASES),
        failure_persistence: None,
        max_shrink_iters: 600,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_destination_has_the_same_tree_after_every_pass(rounds in prop::collection::vec(any_round(), 1..=4)) {
        let Some(pair) = Pair::new() else { return Ok(()) };
        let mut index = None;
        for round in &rounds {
            for act in &round.acts {
                let _ = perform(&pair.source.merged, act);
            }
            index = Some(if round.is_careful {
                pair.careful_pass(index.as_ref())
            } else {
                pair.pass(index.as_ref()).0
            });
            pair.assert_same();
        }
    }
}
