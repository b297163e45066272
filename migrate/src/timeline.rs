//! A move's record as a picture: SVG text with the whole move above and its freeze, enlarged, below.
//!
//! A bar is a phase or a step as it was measured. The destination's steps stand by its own clock, which begins with the
//! hello as the source's does; the two differ by the time that a hello takes.

use std::fmt::Write;

use crate::clock::Step;
use crate::history::Record;
use crate::phase::{Phase, Role};
use crate::progress::PhaseState;

const WIDTH: f64 = 1000.0;
/// Room for the rows' names.
const LEFT: f64 = 150.0;
const RIGHT: f64 = 30.0;
const ROW: f64 = 26.0;
const BAR: f64 = 18.0;
/// A letter's width, about: the text of a bar stands in it only where it fits.
const LETTER: f64 = 6.6;
/// A bar that is shorter can hardly be seen.
const THINNEST: f64 = 1.5;

/// One bar: microseconds since the begin of the move.
struct Bar {
    name: String,
    from: u64,
    to: u64,
    class: &'static str,
}

struct Row {
    name: String,
    bars: Vec<Bar>,
}

/// Draws a record.
pub fn svg(record: &Record) -> String {
    let steps = record.report.as_ref().map_or(&[][..], |report| &report.steps);
    let freeze = freeze(record);
    let whole = whole(record, steps, freeze);
    let end = whole
        .iter()
        .flat_map(|row| &row.bars)
        .map(|bar| bar.to)
        .max()
        .unwrap_or(0)
        .max(record.total_micros)
        .max(1);
    let mut out = String::new();
    let mut y = 70.0;
    panel(&mut out, &mut y, "the whole move", 0, end, &whole);
    if let Some((from, to)) = freeze.filter(|_| !steps.is_empty()) {
        let rows = enlarged(steps, from, to);
        y += 24.0;
        panel(&mut out, &mut y, "the freeze", from, to, &rows);
    }
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <style>.prepare{{fill:#9ec5e8}}.freeze{{fill:#e07a5f}}.send{{fill:#f2cc8f}}.restore{{fill:#81b29a}}\
         .resume{{fill:#3d8b63}}.drain{{fill:#b8a1d9}}.failed{{fill:#b00020}}.other{{fill:#c9ccd1}}\
         .axis{{stroke:#d0d3d8;stroke-width:1}}.name{{fill:#333}}.in{{fill:#1b1b1b;font-size:11px}}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        height = y + 16.0,
    );
    let _ = writeln!(
        text,
        "{}",
        label(LEFT.min(20.0), 24.0, "name", 16, &title(record))
    );
    let _ = writeln!(text, "{}", label(20.0, 44.0, "name", 12, &subtitle(record)));
    text + &out + "</svg>\n"
}

fn title(record: &Record) -> String {
    let (from, to) = match record.role {
        Role::Source => (&record.host, &record.peer),
        Role::Destination => (&record.peer, &record.host),
    };
    format!(
        "{} from {from} to {to}: {}",
        record.container,
        record.ending.as_str()
    )
}

fn subtitle(record: &Record) -> String {
    let mut told = format!(
        "migration {}, {} in all",
        record.migration,
        time(record.total_micros)
    );
    if let Some(report) = &record.report {
        let bytes = &report.bytes;
        let _ = write!(
            told,
            ", mode {}, {} sent",
            report.mode,
            size(bytes.layers + bytes.files + bytes.volumes + bytes.log + bytes.image)
        );
        if let Some(downtime) = report.downtime_micros {
            let _ = write!(told, ", down for {}", time(downtime));
        }
        if let Some(memory) = &report.memory {
            let _ = write!(told, ", {} of memory after it ran", size(memory.wire));
        }
    }
    if let Some(failure) = &record.failure {
        let _ = write!(told, ": {}", shortened(&failure.to_string()));
    }
    told
}

/// From the begin of the phase freeze to the word that the container runs, or to where it was given up.
fn freeze(record: &Record) -> Option<(u64, u64)> {
    let of = |wanted: Phase| record.phases.iter().find(|span| span.phase == wanted);
    let from = of(Phase::Freeze)?.at_micros;
    let downtime = record.report.as_ref().and_then(|report| report.downtime_micros);
    let to = match downtime {
        Some(downtime) => from + downtime,
        None => [Phase::Freeze, Phase::Restore, Phase::Commit]
            .into_iter()
            .filter_map(of)
            .map(|span| span.at_micros + span.micros)
            .max()?,
    };
    (to > from).then_some((from, to))
}

fn whole(record: &Record, steps: &[Step], freeze: Option<(u64, u64)>) -> Vec<Row> {
    let phases = record
        .phases
        .iter()
        .map(|span| Bar {
            name: span.phase.to_string(),
            from: span.at_micros,
            to: span.at_micros + span.micros,
            class: match span.state {
                PhaseState::Failed => "failed",
                PhaseState::Begin | PhaseState::End => phase_class(span.phase),
            },
        })
        .collect();
    let mut rows = vec![Row {
        name: format!("{} ({})", record.host, record.role),
        bars: phases,
    }];
    let is_round = |step: &&Step| step.name.ends_with("-round");
    let rounds: Vec<Bar> = steps.iter().filter(is_round).filter_map(bar).collect();
    if !rounds.is_empty() {
        rows.push(Row {
            name: "rounds".into(),
            bars: rounds,
        });
    }
    if let Some((from, to)) = freeze {
        rows.push(Row {
            name: "container".into(),
            bars: vec![Bar {
                name: "stands still".into(),
                from,
                to,
                class: "freeze",
            }],
        });
    }
    rows
}

/// One row for each step, in the order in which they began.
fn enlarged(steps: &[Step], from: u64, to: u64) -> Vec<Row> {
    let mut inside: Vec<&Step> = steps
        .iter()
        .filter(|step| {
            step.at_micros
                .is_some_and(|at| at + step.micros > from && at < to)
        })
        .collect();
    inside.sort_by_key(|step| step.at_micros);
    inside
        .into_iter()
        .map(|step| Row {
            name: format!(
                "{} ({})",
                step.name,
                if step.by == Role::Source { "src" } else { "dst" }
            ),
            bars: bar(step).into_iter().collect(),
        })
        .collect()
}

fn bar(step: &Step) -> Option<Bar> {
    let from = step.at_micros?;
    Some(Bar {
        name: step.name.clone(),
        from,
        to: from + step.micros,
        class: step_class(&step.name),
    })
}

fn phase_class(phase: Phase) -> &'static str {
    match phase {
        Phase::Hello | Phase::Plan | Phase::Prepare => "prepare",
        Phase::Freeze => "freeze",
        Phase::Restore => "restore",
        Phase::Commit => "resume",
        Phase::Drain => "drain",
        Phase::Release => "other",
    }
}

fn step_class(name: &str) -> &'static str {
    match name {
        _ if name.starts_with("send") || name.starts_with("receive") => "send",
        _ if name.contains("dump") || name.contains("freez") => "freeze",
        _ if name.contains("restore") || name == "await-ready" => "restore",
        "commit" | "resume" => "resume",
        "drain" => "drain",
        _ if name.contains("round") => "prepare",
        _ => "other",
    }
}

/// Draws rows over a span of time and moves `y` below them.
fn panel(out: &mut String, y: &mut f64, name: &str, from: u64, to: u64, rows: &[Row]) {
    let span = (to - from).max(1) as f64;
    let x_of = |at: u64| {
        let share = (at.clamp(from, to) - from) as f64 / span;
        LEFT + share * (WIDTH - LEFT - RIGHT)
    };
    let _ = writeln!(out, "{}", label(20.0, *y, "name", 13, name));
    *y += 10.0;
    let height = ROW * rows.len() as f64;
    let step = scale(to - from);
    let mut at = 0;
    while at <= to - from {
        let x = x_of(from + at);
        let _ = writeln!(
            out,
            "<line class=\"axis\" x1=\"{x:.1}\" y1=\"{y:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\"/>{}",
            *y + height,
            label(x, *y + height + 14.0, "name", 10, &time(at)),
        );
        at += step;
    }
    for row in rows {
        let _ = writeln!(out, "{}", label(20.0, *y + BAR - 1.0, "name", 12, &row.name));
        for bar in &row.bars {
            let (left, right) = (x_of(bar.from), x_of(bar.to));
            let width = (right - left).max(THINNEST);
            let told = format!("{} {}", bar.name, time(bar.to - bar.from));
            let _ = write!(
                out,
                "<rect class=\"{}\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\">\
                 <title>{}</title></rect>",
                bar.class,
                *y + 4.0,
                escaped(&told),
            );
            let letters = |text: &str| LETTER * text.chars().count() as f64 + 8.0;
            if let Some(fitting) = [&told, &bar.name].into_iter().find(|text| letters(text) < width) {
                let _ = write!(out, "{}", label(left + 4.0, *y + BAR - 1.0, "in", 11, fitting));
            } else if row.bars.len() == 1 {
                // Beside it, on the side where there is room.
                let x = if right + letters(&told) < WIDTH - RIGHT {
                    right + 4.0
                } else {
                    left - letters(&told)
                };
                let _ = write!(out, "{}", label(x, *y + BAR - 1.0, "in", 11, &told));
            }
            out.push('\n');
        }
        *y += ROW;
    }
    *y += 28.0;
}

/// Some round number of microseconds, of which at most ten are in `span`.
fn scale(span: u64) -> u64 {
    let mut step = 1;
    while span / step > 10 {
        step *= match step.to_string().as_bytes()[0] {
            b'2' => 5,
            _ => 2,
        };
        if step.to_string().starts_with('4') {
            step = step / 4 * 5;
        }
    }
    step
}

pub(crate) fn label(x: f64, y: f64, class: &str, size: u32, text: &str) -> String {
    format!(
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\">{}</text>",
        escaped(text)
    )
}

pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// The head of a sentence that fits into a line.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 90;
    if text.chars().count() <= LONGEST {
        return text.into();
    }
    text.chars().take(LONGEST).chain(['…']).collect()
}

fn time(micros: u64) -> String {
    match micros {
        0 => "0".into(),
        1..1_000 => format!("{micros} µs"),
        1_000..10_000 => format!("{:.1} ms", micros as f64 / 1e3),
        10_000..1_000_000 => format!("{} ms", micros / 1_000),
        _ => format!("{:.1} s", micros as f64 / 1e6),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{Cause, Failure};
    use crate::history::Ending;
    use crate::places::MigrationId;
    use crate::progress::PhaseSpan;

    fn record() -> Record {
        let migration = MigrationId::random().unwrap();
        let mut record = Record::new(&migration, Role::Source, "ha", "hb", "<redis>", Ending::Failed);
        record.phases = vec![
            PhaseSpan {
                phase: Phase::Prepare,
                state: PhaseState::End,
                at_micros: 10,
                micros: 400,
                bytes: 0,
            },
            PhaseSpan {
                phase: Phase::Freeze,
                state: PhaseState::Failed,
                at_micros: 410,
                micros: 90,
                bytes: 0,
            },
        ];
        record
    }

    #[test]
    fn a_move_that_failed_shows_where_and_why() {
        let failure = Failure::new(Role::Source, "ha", Phase::Freeze, Cause::Failed("a < b".into()));
        let drawn = svg(&record().with_failure(failure));
        assert!(drawn.contains("class=\"failed\""), "{drawn}");
        assert!(drawn.contains("&lt;redis&gt; from ha to hb: failed"), "{drawn}");
        assert!(drawn.contains("a &lt; b") && !drawn.contains("a < b"), "{drawn}");
    }

    #[test]
    fn a_bar_stands_where_it_was_measured() {
        let drawn = svg(&record());
        // 410 of 500 µs, on the 820 points between the names and the edge.
        let x = LEFT + 0.82 * (WIDTH - LEFT - RIGHT);
        assert!(
            drawn.contains(&format!("class=\"failed\" x=\"{x:.1}\"")),
            "{drawn}"
        );
    }

    #[test]
    fn an_axis_has_at_most_ten_round_marks() {
        for span in [1, 9, 10, 11, 99, 1_234, 56_789, 400_000, 12_345_678] {
            let step = scale(span);
            assert!(span / step <= 10, "{span}: {step}");
            let digits = step.to_string();
            assert!(
                matches!(digits.as_bytes()[0], b'1' | b'2' | b'5'),
                "{span}: {step}"
            );
            assert!(digits[1..].bytes().all(|digit| digit == b'0'), "{span}: {step}");
        }
    }
}
