//! The rules with one mistake each. A model that would not find these would not find ours.

use godwit_runtime::verdict::{Fate, Verdict};
use stateright::{Checker, Model};

use super::Moves;
use super::rules::Rules;
use crate::protocol::destination::{self, Marks};
use crate::protocol::{Memory, source};

/// Checks changed rules; the names of the properties that do not hold.
fn violated(rules: Rules) -> Vec<&'static str> {
    let moves = Moves {
        rules,
        crashes: 1,
        restore_may_die: true,
        human_may_give_up: true,
    };
    let checker = moves.checker().threads(2).spawn_bfs().join();
    let mut names: Vec<_> = checker.discoveries().into_keys().collect();
    names.sort_unstable();
    names
}

#[track_caller]
fn assert_found(mistake: &str, rules: Rules, wanted: &str) {
    let found = violated(rules);
    assert!(
        found.contains(&wanted),
        "{mistake}: the model finds only {found:?}"
    );
}

#[test]
fn rules_without_a_mistake_violate_nothing() {
    assert_eq!(violated(Rules::REAL), Vec::<&str>::new());
}

#[test]
fn a_source_that_runs_on_after_its_commit_is_found() {
    let fate = |_, _| Fate::GivenBack;
    let rules = Rules { fate, ..Rules::REAL };
    assert_found("thaws whatever stands", rules, "never two copies run");
}

#[test]
fn a_destination_that_takes_silence_for_a_commit_is_found() {
    let destination_step = |state, event| match (state, event) {
        (destination::State::Ready, destination::Event::Lost) => Ok(destination::State::Given),
        _ => destination::State::step(state, event),
    };
    let rules = Rules {
        destination_step,
        ..Rules::REAL
    };
    assert_found("runs without a commit", rules, "never two copies run");
}

#[test]
fn a_destination_that_takes_silence_for_an_abort_is_found() {
    let destination_step = |state, event| match (state, event) {
        (destination::State::Ready, destination::Event::Lost) => Ok(destination::State::GivingUp),
        _ => destination::State::step(state, event),
    };
    let rules = Rules {
        destination_step,
        ..Rules::REAL
    };
    assert_found("undoes a commit", rules, "never is the last copy destroyed");
}

#[test]
fn a_restarted_destination_that_does_not_ask_is_found() {
    let destination_found = |marks: Marks, verdict| match destination::State::found(marks, verdict) {
        destination::State::Asking => destination::State::GivingUp,
        other => other,
    };
    let rules = Rules {
        destination_found,
        ..Rules::REAL
    };
    assert_found(
        "forgets that it was ready",
        rules,
        "never is the last copy destroyed",
    );
}

#[test]
fn a_source_that_answers_without_deciding_is_found() {
    let source_asked = |_| source::Answer::Say(Verdict::Aborted);
    let rules = Rules {
        source_asked,
        ..Rules::REAL
    };
    assert_found(
        "may commit after its answer",
        rules,
        "never is the last copy destroyed",
    );
}

#[test]
fn a_restarted_source_that_does_not_look_at_the_verdict_is_found() {
    let source_found = |marks| {
        source::State::found(source::Marks {
            freezing: false,
            ..marks
        })
    };
    let rules = Rules {
        source_found,
        ..Rules::REAL
    };
    let wanted = "no engine would start a container that was given away";
    assert_found("takes a frozen container for its own", rules, wanted);
}

#[test]
fn a_source_that_lets_go_of_memory_too_early_is_found() {
    let source_next = |state| match state {
        source::State::Committed {
            memory: Memory::Left,
            line: source::Line::Lost,
        } => source::Deed::NoteDrained,
        other => source::State::next(other),
    };
    let source_step = |state, event| match (state, event) {
        (source::State::Committed { line, .. }, source::Event::Did(source::Deed::NoteDrained)) => {
            Ok(source::State::Committed {
                memory: Memory::Gone,
                line,
            })
        }
        _ => source::State::step(state, event),
    };
    let rules = Rules {
        source_next,
        source_step,
        ..Rules::REAL
    };
    assert_found(
        "a lost link ends the drain",
        rules,
        "memory that is needed is kept",
    );
}

#[test]
fn a_source_that_removes_its_container_unconfirmed_is_found() {
    let source_step = |state, event| match source::State::step(state, event) {
        Ok(source::State::Finished {
            line: source::Line::Lost,
        }) => Ok(source::State::Settled { is_finished: true }),
        other => other,
    };
    let rules = Rules {
        source_step,
        ..Rules::REAL
    };
    let wanted = "files stay at the source until the container runs elsewhere";
    assert_found("a lost link is confirmation enough", rules, wanted);
}

#[test]
fn a_destination_that_calls_every_move_settled_is_found() {
    let destination_told = |_| destination::Answer::Settled;
    let rules = Rules {
        destination_told,
        ..Rules::REAL
    };
    let wanted = "files stay at the source until the container runs elsewhere";
    assert_found("settled before it runs", rules, wanted);
}

#[test]
fn a_holder_that_commits_at_its_deadline_is_found() {
    let rules = Rules {
        without_word: Verdict::Committed,
        ..Rules::REAL
    };
    assert_found("kills what nobody has", rules, "never is the last copy destroyed");
}

#[test]
fn a_holder_that_never_ends_is_found() {
    let fate = |verdict: Verdict, needed| match verdict {
        Verdict::Aborted => Fate::Kept,
        Verdict::Committed => verdict.fate(needed),
    };
    let rules = Rules { fate, ..Rules::REAL };
    let wanted = "whoever rests has brought it to its end";
    assert_found("nothing runs for ever", rules, wanted);
}

#[test]
fn a_verdict_file_that_goes_before_its_journal_is_found() {
    let rules = Rules {
        journal_goes_first: false,
        ..Rules::REAL
    };
    let wanted = "whoever rests has brought it to its end";
    assert_found("a journal without its verdict decides anew", rules, wanted);
}

#[test]
fn a_destination_that_says_it_gave_up_before_its_copy_is_gone_is_found() {
    let destination_told = |journal: Option<Marks>| match journal {
        Some(Marks { given_up: true, .. }) => destination::Answer::GivenUp,
        other => destination::told_committed(other),
    };
    let rules = Rules {
        destination_told,
        ..Rules::REAL
    };
    assert_found("given up while it runs", rules, "never two copies run");
}

#[test]
fn a_destination_that_forgets_that_it_gave_up_is_found() {
    let destination_step = |state, event| match (state, event) {
        (destination::State::Emptied, destination::Event::Did(_)) => Ok(destination::State::Undone),
        _ => destination::State::step(state, event),
    };
    let rules = Rules {
        destination_step,
        ..Rules::REAL
    };
    let wanted = "files stay at the source until the container runs elsewhere";
    assert_found("unheard, it is taken for settled", rules, wanted);
}
