//! What an agent counts of its moves, in the text format of Prometheus.
//!
//! Counted is what is over, when it is over, from its record; moves under way are looked at when somebody asks. Nothing is
//! kept over a restart: a counter that begins anew is what scrapers expect of one.

use std::fmt;
use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::history::Record;
use crate::progress::PhaseState;

/// What [`Metrics::text`] is served as.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// An agent's counters; cheap to update, and safe from any task.
pub struct Metrics {
    registry: Registry,
    under_way: Gauge<i64, AtomicI64>,
    moves: Family<Labels, Counter>,
    phases: Histograms,
    downtime: Histogram,
    bytes: Family<Labels, Counter>,
    pages: Family<Labels, Counter>,
    urgent: Counter,
}

/// Phases take from a millisecond to hours.
fn phase_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 4.0, 12))
}

/// Downtimes lie between 50 ms and some minutes; what matters most is below a second.
fn downtime_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.05, 1.6, 16))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("godwit");
        let metrics = Self {
            under_way: Gauge::default(),
            moves: Family::default(),
            phases: Family::new_with_constructor(phase_buckets),
            downtime: downtime_buckets(),
            bytes: Family::default(),
            pages: Family::default(),
            urgent: Counter::default(),
            registry: Registry::default(),
        };
        registry.register(
            "moves_under_way",
            "Moves under way, recovery included",
            metrics.under_way.clone(),
        );
        registry.register(
            "moves",
            "Moves that are over, by role and ending",
            metrics.moves.clone(),
        );
        registry.register_with_unit(
            "phase",
            "Phases that were done",
            Unit::Seconds,
            metrics.phases.clone(),
        );
        registry.register_with_unit(
            "downtime",
            "From the begin of the freeze to the word that the container runs; of the source",
            Unit::Seconds,
            metrics.downtime.clone(),
        );
        registry.register_with_unit(
            "sent",
            "What sources have sent, by kind",
            Unit::Bytes,
            metrics.bytes.clone(),
        );
        registry.register_with_unit(
            "memory",
            "Pages that came after the container ran, by the form in which they travelled",
            Unit::Bytes,
            metrics.pages.clone(),
        );
        registry.register(
            "urgent_pages",
            "Pages that a task waited for",
            metrics.urgent.clone(),
        );
        Self { registry, ..metrics }
    }
}

impl Metrics {
    /// Counts a move that is over.
    pub fn count(&self, record: &Record) {
        let role = record.role.to_string();
        let labels = |name, value: &str| vec![("role", role.clone()), (name, value.to_owned())];
        self.moves
            .get_or_create(&labels("ending", record.ending.as_str()))
            .inc();
        for span in record.phases.iter().filter(|span| span.state == PhaseState::End) {
            self.phases
                .get_or_create(&labels("phase", &span.phase.to_string()))
                .observe(span.micros as f64 / 1e6);
        }
        let Some(report) = &record.report else { return };
        if let Some(micros) = report.downtime_micros {
            self.downtime.observe(micros as f64 / 1e6);
        }
        let bytes = &report.bytes;
        for (kind, count) in [
            ("layers", bytes.layers),
            ("files", bytes.files),
            ("volumes", bytes.volumes),
            ("log", bytes.log),
            ("image", bytes.image),
        ] {
            self.bytes
                .get_or_create(&vec![("kind", kind.into())])
                .inc_by(count);
        }
        let Some(memory) = &report.memory else { return };
        for (form, count) in [
            ("raw", memory.raw),
            ("zero", memory.zero),
            ("lz4", memory.lz4),
            ("zstd", memory.zstd),
        ] {
            self.pages
                .get_or_create(&vec![("form", form.into())])
                .inc_by(count);
        }
        self.urgent.inc_by(memory.urgent);
    }

    /// All of it, while `under_way` moves are.
    pub fn text(&self, under_way: usize) -> Result<String, fmt::Error> {
        self.under_way.set(i64::try_from(under_way).unwrap_or(i64::MAX));
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Ending;
    use crate::phase::{Phase, Role};
    use crate::places::MigrationId;
    use crate::progress::PhaseSpan;

    #[test]
    fn a_move_is_counted_with_its_phases() {
        let metrics = Metrics::default();
        let migration = MigrationId::random().unwrap();
        let mut record = Record::new(&migration, Role::Destination, "hb", "ha", "redis", Ending::Failed);
        let span = |phase, state| PhaseSpan {
            phase,
            state,
            at_micros: 0,
            micros: 30_000,
            bytes: 0,
        };
        record.phases = vec![
            span(Phase::Plan, PhaseState::End),
            span(Phase::Prepare, PhaseState::Failed),
        ];
        metrics.count(&record);
        metrics.count(&record);
        let text = metrics.text(3).unwrap();
        for line in [
            "godwit_moves_under_way 3",
            "godwit_moves_total{role=\"destination\",ending=\"failed\"} 2",
            "godwit_phase_seconds_count{role=\"destination\",phase=\"plan\"} 2",
            "godwit_phase_seconds_bucket{le=\"0.064\",role=\"destination\",phase=\"plan\"} 2",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is not in\n{text}"
            );
        }
        assert!(
            !text.contains("phase=\"prepare\""),
            "a phase that failed took no time\n{text}"
        );
        assert!(text.ends_with("# EOF\n"));
    }
}
