//! What a running move tells about itself, and how it hears that it is to stop.
//!
//! Telling never waits: a viewer that does not read loses events, the move loses nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::archive::Summary;
use crate::clock::Report;
use crate::failure::Failure;
use crate::pages::rounds::Round;
use crate::phase::Phase;

/// Events kept for a slow viewer: a move has some thirty, so none is lost in practice.
pub const EVENTS_BOUND: usize = 64;

/// Where a phase stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PhaseState {
    /// It begins.
    Begin,
    /// It is done.
    End,
    /// It failed and is being undone.
    Failed,
}

/// A phase of a move that is or was under way, as its runner saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseSpan {
    /// Which.
    pub phase: Phase,
    /// `begin` as long as it lasts.
    pub state: PhaseState,
    /// When it began, since the begin of the move.
    pub at_micros: u64,
    /// How long it took; 0 as long as it lasts.
    pub micros: u64,
    /// Bytes sent in the move by its end.
    pub bytes: u64,
}

/// One line of a move's progress, as the local API and `godwit migrate --json` print it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Event {
    /// The first line: the move's name, for `DELETE /v1/migrations/ID`.
    Started {
        /// The move's id.
        migration: String,
        /// The container's name.
        container: String,
        /// The host it goes to.
        destination: String,
    },
    /// A phase begins or ends.
    Phase {
        /// Which.
        phase: Phase,
        /// Begin, end or failure.
        state: PhaseState,
        /// How long it took; 0 at its begin.
        ms: u64,
        /// Bytes sent in this move so far.
        bytes: u64,
    },
    /// Between phases' events: how far the transfer is.
    Transfer {
        /// Bytes sent in this move so far.
        transferred: u64,
        /// Bytes expected in all, as far as is known; 0 if not.
        expected: u64,
    },
    /// A round of memory is over, and what it could not cover is known.
    Round {
        /// What was measured.
        round: Round,
        /// What the downtime would be if the container were frozen now, in milliseconds.
        predicted_downtime_ms: u64,
    },
    /// The last line of a move that succeeded.
    Report {
        /// All figures.
        report: Box<Report>,
    },
    /// The last line of an export or import that succeeded.
    Archive {
        /// What it came to.
        archive: Summary,
    },
    /// The last line of one that did not.
    Error {
        /// Where and why.
        error: Failure,
        /// The same in one sentence.
        message: String,
    },
}

/// The move's end of the telling.
#[derive(Clone, Debug)]
pub struct Observer {
    events: mpsc::Sender<Event>,
    phase: Arc<watch::Sender<Option<Phase>>>,
    began: Instant,
    spans: Arc<Mutex<Vec<PhaseSpan>>>,
    subject: Arc<OnceLock<String>>,
    transfer: Arc<Transfer>,
    /// Cancelled when somebody wants the move to be given up; heeded up to the commit.
    pub abort: CancellationToken,
    /// Cancelled when somebody wants the move to wait no longer for its rounds to get small.
    pub hurry: CancellationToken,
}

/// Byte counters that viewers read whenever they like.
#[derive(Debug, Default)]
pub struct Transfer {
    transferred: AtomicU64,
    expected: AtomicU64,
}

impl Transfer {
    /// Bytes moved so far, and expected in all (0: unknown).
    pub fn read(&self) -> (u64, u64) {
        (
            self.transferred.load(Ordering::Relaxed),
            self.expected.load(Ordering::Relaxed),
        )
    }

    /// Counts `bytes` as moved.
    pub fn add(&self, bytes: u64) {
        self.transferred.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Observer {
    /// An observer and the receiving end of its events.
    pub fn new(abort: CancellationToken) -> (Self, mpsc::Receiver<Event>) {
        let (events, receiver) = mpsc::channel(EVENTS_BOUND);
        let observer = Self {
            events,
            phase: Arc::default(),
            began: Instant::now(),
            spans: Arc::default(),
            subject: Arc::default(),
            transfer: Arc::default(),
            abort,
            hurry: CancellationToken::new(),
        };
        (observer, receiver)
    }

    /// Tells whoever looks.
    pub fn tell(&self, event: Event) {
        if let Event::Phase { phase, .. } = &event {
            self.phase.send_replace(Some(*phase));
        }
        self.note_span(&event);
        let _ = self.events.try_send(event);
    }

    fn note_span(&self, event: &Event) {
        let Event::Phase {
            phase, state, bytes, ..
        } = event
        else {
            return;
        };
        let now = self.elapsed_micros();
        // Nothing is left half-done under this lock, so a panic elsewhere spoils nothing.
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        match (state, spans.last_mut()) {
            (PhaseState::End | PhaseState::Failed, Some(last)) if last.phase == *phase => {
                (last.state, last.bytes) = (*state, *bytes);
                last.micros = now - last.at_micros;
            }
            _ => spans.push(PhaseSpan {
                phase: *phase,
                state: *state,
                at_micros: now,
                micros: 0,
                bytes: *bytes,
            }),
        }
    }

    /// The phases that were begun, in order.
    pub fn spans(&self) -> Vec<PhaseSpan> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Microseconds since the begin of the move.
    pub fn elapsed_micros(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Tells the container's name, where it is learned on the way.
    pub fn name_container(&self, name: &str) {
        let _ = self.subject.set(name.into());
    }

    /// The container's name; empty as long as it was not told.
    pub fn container(&self) -> String {
        self.subject.get().cloned().unwrap_or_default()
    }

    /// The phase it is in, once it has begun.
    pub fn phase(&self) -> Option<Phase> {
        *self.phase.borrow()
    }

    /// The counters, for the transport to count in and viewers to read.
    pub fn transfer(&self) -> Arc<Transfer> {
        Arc::clone(&self.transfer)
    }

    /// Bytes moved so far.
    pub fn bytes(&self) -> u64 {
        self.transfer.read().0
    }

    /// Says that `bytes` more are going to be moved.
    pub fn expect(&self, bytes: u64) {
        let (transferred, _) = self.transfer.read();
        self.transfer
            .expected
            .store(transferred + bytes, Ordering::Relaxed);
    }
}
