//! The one place where a list of phases is run and unwound.
//!
//! Each side has two lists. Rows of the first can fail, and then all that was done is undone, in the order that the side's
//! lifecycle says. Between the lists stands the decision: the point of no return. Rows of the second cannot fail by their
//! type: what goes wrong there is told in the report, and nothing is undone. This module does not know what a phase does.

use std::future::Future;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::time::{Duration, Instant};

use crate::failure::{Cause, Failure, Problem};
use crate::phase::{Phase, Role};
use crate::progress::{Event, Observer, PhaseState};

/// What a phase returns.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A phase of the side `R`, and what comes of it.
pub struct Row<R, T> {
    /// Its name.
    pub phase: Phase,
    /// What it does. Before the decision it may be dropped at any await: whatever it has begun, `undo_next` must find
    /// noted in `R`.
    pub forward: for<'a> fn(&'a mut R) -> Boxed<'a, T>,
}

/// One side of a move.
pub trait Side: Sized + Send + 'static {
    /// Which side this is.
    const ROLE: Role;
    /// The phases before the decision, in order.
    const UNDOABLE: &'static [Row<Self, Result<(), Problem>>];
    /// The phases after it, in order.
    const FORWARD: &'static [Row<Self, ()>];
    /// What happens to its lifecycle.
    type Event: Send;
    /// That the move is given up.
    const GAVE_UP: Self::Event;

    /// Makes, or learns, the decision: `Ok` is commit, from which there is no way back. Never dropped half-way.
    fn decide(&mut self) -> Boxed<'_, Result<(), Problem>>;

    /// When this side gives up what is not decided by then.
    fn deadline(&self) -> Option<Deadline> {
        None
    }

    /// Tells the peer that this side gives up; best effort, must not wait.
    fn tell_failure(&mut self, failure: &Failure);

    /// Where to tell of progress; also carries the wish to abort.
    fn observer(&self) -> &Observer;

    /// The name of this host.
    fn host(&self) -> &str;

    /// Takes this event in, does what is to be undone next, and says what came of it; `None` if nothing is left to undo.
    /// As much is undone as was done, nothing included. `Err` says what could not be, in words.
    fn undo_next(&mut self, event: Self::Event) -> Boxed<'_, Result<Option<Self::Event>, String>>;
}

/// An end that a user has set to a move.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
    seconds: NonZeroU32,
}

impl Deadline {
    /// So many seconds from now.
    pub fn after(seconds: NonZeroU32) -> Self {
        Self {
            at: Instant::now() + Duration::from_secs(seconds.get().into()),
            seconds,
        }
    }
}

/// Returns when the deadline has passed; never without one.
async fn passed(deadline: Option<Deadline>) -> Problem {
    let Some(Deadline { at, seconds }) = deadline else {
        return std::future::pending().await;
    };
    tokio::time::sleep_until(at.into()).await;
    Problem::failed(format!(
        "not committed within {seconds} s, as was asked for (--timeout)"
    ))
}

/// Runs one side through all its phases. On `Err` everything that this side did is undone.
pub async fn run<S: Side>(side: &mut S) -> Result<(), Failure> {
    for row in S::UNDOABLE {
        let began = begin(side, row.phase);
        let (abort, deadline) = (side.observer().abort.clone(), side.deadline());
        let outcome = tokio::select! {
            // An abort that was asked for before the phase must not let it begin.
            biased;
            () = abort.cancelled() => Err(Problem::Here(Cause::Aborted)),
            problem = passed(deadline) => Err(problem),
            outcome = (row.forward)(side) => outcome,
        };
        end(side, row.phase, began, outcome.is_ok());
        if let Err(problem) = outcome {
            return Err(unwind(side, row.phase, problem).await);
        }
    }
    if let Err(problem) = side.decide().await {
        return Err(unwind(side, Phase::Commit, problem).await);
    }
    // The point of no return: the container belongs to the destination, whatever happens from here on.
    for row in S::FORWARD {
        let began = begin(side, row.phase);
        (row.forward)(side).await;
        end(side, row.phase, began, true);
    }
    Ok(())
}

/// The one place where anything is undone. What fails is left to recovery, with the journal.
async fn unwind<S: Side>(side: &mut S, phase: Phase, problem: Problem) -> Failure {
    let mut failure = match problem {
        Problem::There(failure) => failure,
        Problem::Here(cause) => {
            let failure = Failure::new(S::ROLE, side.host(), phase, cause);
            side.tell_failure(&failure);
            failure
        }
    };
    log::warn!("{}: {failure}; undoing", S::ROLE);
    let mut event = Some(S::GAVE_UP);
    while let Some(happened) = event.take() {
        match side.undo_next(happened).await {
            Ok(next) => event = next,
            Err(leftover) => failure.leftovers.push(leftover),
        }
    }
    failure
}

fn begin<S: Side>(side: &S, phase: Phase) -> Instant {
    side.observer().tell(Event::Phase {
        phase,
        state: PhaseState::Begin,
        ms: 0,
        bytes: side.observer().bytes(),
    });
    Instant::now()
}

fn end<S: Side>(side: &S, phase: Phase, began: Instant, succeeded: bool) {
    let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let state = if succeeded {
        PhaseState::End
    } else {
        PhaseState::Failed
    };
    let bytes = side.observer().bytes();
    log::debug!(
        "{} {phase}: {state:?} after {ms} ms, {bytes} bytes so far",
        S::ROLE
    );
    side.observer().tell(Event::Phase {
        phase,
        state,
        ms,
        bytes,
    });
}
