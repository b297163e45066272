//! Where the memory is, drawn: a frame for each process, and in it a rectangle for each file and sort of memory, as large as it
//! is. As SVG, or as a page with the same picture and a list of the largest.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::treemap::{Rect, squarified};
use super::view::{Inspection, MemoryKind, Process, printable, size, total};
use crate::timeline::{escaped, label};

const WIDTH: f64 = 1000.0;
const MARGIN: f64 = 20.0;
/// Where the picture begins, below its title and the explanation of its colours.
const TOP: f64 = 84.0;
const HEIGHT: f64 = 560.0;
/// A process' name above its memory.
const HEADING: f64 = 16.0;
/// A letter's width, about: a text stands where it fits.
const LETTER: f64 = 6.2;
/// The same of the larger letters above.
const LEGEND_LETTER: f64 = 7.0;
const LINE: f64 = 14.0;
/// More of either cannot be told apart; the smallest are put together.
const MAX_PROCESSES: usize = 60;
const MAX_GROUPS: usize = 80;
/// Rows of the page's list.
const MAX_ROWS: usize = 40;

/// What is drawn as one rectangle.
struct Group {
    class: &'static str,
    name: String,
    bytes: u64,
}

/// The colours, and what they mean.
const CLASSES: [(&str, &str, &str); 5] = [
    ("anonymous", "#9ec5e8", "anonymous"),
    ("zeros", "#dfe3e8", "zeros"),
    ("file", "#81b29a", "of files"),
    ("shared", "#f2cc8f", "shared"),
    ("kernel", "#b8a1d9", "the kernel's"),
];

/// Draws an inspection's memory.
pub fn svg(inspection: &Inspection) -> String {
    let mut out = String::new();
    let height = TOP + HEIGHT + MARGIN;
    let styles: String = CLASSES
        .iter()
        .map(|(class, color, _)| format!(".{class}{{fill:{color}}}"))
        .collect();
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\">\n<style>{styles}.process{{fill:#f6f7f9;stroke:#8a9099;stroke-width:1}}\
         .name{{fill:#1b1b1b}}.in{{fill:#1b1b1b}}.area{{stroke:#fff;stroke-width:1}}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{}\n",
        label(MARGIN, 28.0, "name", 16, &title(inspection)),
    );
    legend(&mut out, inspection);
    let area = Rect {
        x: MARGIN,
        y: TOP,
        width: WIDTH - 2.0 * MARGIN,
        height: HEIGHT,
    };
    let mut processes: Vec<(String, Vec<Group>)> = inspection
        .processes
        .iter()
        .map(|process| {
            (
                format!("{} {}", process.pid, printable(&process.name)),
                groups(process),
            )
        })
        .collect();
    processes.retain(|(_, groups)| sum(groups) > 0);
    if processes.is_empty() {
        out += &label(MARGIN, TOP + 20.0, "name", 12, "no memory");
    }
    processes.sort_by_key(|(_, groups)| std::cmp::Reverse(sum(groups)));
    if processes.len() > MAX_PROCESSES {
        let others = processes.split_off(MAX_PROCESSES - 1);
        let name = format!("{} more processes", others.len());
        processes.push((name, merged(others.into_iter().flat_map(|(_, groups)| groups))));
    }
    let weights: Vec<u64> = processes.iter().map(|(_, groups)| sum(groups)).collect();
    for ((name, groups), rect) in processes.iter().zip(squarified(&weights, area)) {
        frame(&mut out, name, groups, rect);
    }
    out + "</svg>\n"
}

/// A page with the picture and a list.
pub fn html(inspection: &Inspection) -> String {
    let mut rows: Vec<(String, Group)> = Vec::new();
    for process in &inspection.processes {
        let owner = format!("{} {}", process.pid, printable(&process.name));
        rows.extend(groups(process).into_iter().map(|group| (owner.clone(), group)));
    }
    rows.sort_by_key(|(_, group)| std::cmp::Reverse(group.bytes));
    let mut list = String::new();
    for (owner, group) in rows.iter().take(MAX_ROWS) {
        let _ = writeln!(
            list,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"bytes\">{}</td></tr>",
            escaped(owner),
            told(group.class),
            escaped(&group.name),
            size(group.bytes)
        );
    }
    let more = match rows.len().saturating_sub(MAX_ROWS) {
        0 => String::new(),
        more => format!("<p>and {more} more</p>\n"),
    };
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n\
         <style>body{{font-family:sans-serif;max-width:1000px;margin:1em auto}}table{{border-collapse:collapse;width:100%;\
         font-size:14px}}td,th{{text-align:left;padding:2px 8px;border-bottom:1px solid #ddd}}.bytes{{text-align:right}}\
         svg{{max-width:100%;height:auto}}</style></head>\n<body>\n{picture}\
         <table><tr><th>process</th><th>kind</th><th>what</th><th class=\"bytes\">memory</th></tr>\n{list}</table>\n{more}</body></html>\n",
        title = escaped(&title(inspection)),
        picture = svg(inspection),
    )
}

fn title(inspection: &Inspection) -> String {
    let n_processes = inspection.processes.len();
    let plural = if n_processes == 1 { "" } else { "es" };
    format!(
        "{}: {} of memory, {n_processes} process{plural}",
        printable(&inspection.subject.name),
        size(inspection.sizes.memory_bytes)
    )
}

fn told(class: &str) -> &'static str {
    CLASSES
        .iter()
        .find(|(known, _, _)| *known == class)
        .map_or("", |(_, _, told)| told)
}

/// What each colour means, with its sum.
fn legend(out: &mut String, inspection: &Inspection) {
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for group in inspection.processes.iter().flat_map(groups) {
        let sum = sums.entry(group.class).or_default();
        *sum = sum.saturating_add(group.bytes);
    }
    let mut x = MARGIN;
    for (class, _, told) in CLASSES {
        let Some(bytes) = sums.get(class) else {
            continue;
        };
        let text = format!("{told} {}", size(*bytes));
        let _ = writeln!(
            out,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"44\" width=\"14\" height=\"14\"/>{}",
            label(x + 20.0, 56.0, "name", 12, &text)
        );
        x += 44.0 + LEGEND_LETTER * text.chars().count() as f64;
    }
}

/// The memory of a process: what is of one file or one sort together, and its zeros apart.
fn groups(process: &Process) -> Vec<Group> {
    let parts = process.memory.iter().flat_map(|mapping| {
        let zeros = mapping.zero_bytes.unwrap_or(0).min(mapping.memory_bytes);
        let name = match (mapping.name.as_str(), mapping.kind) {
            ("", MemoryKind::Shared) => "shared".to_owned(),
            ("", _) => "anonymous".to_owned(),
            (name, _) => printable(name),
        };
        let class = mapping.kind.as_str();
        let filled = Group {
            class,
            name: name.clone(),
            bytes: mapping.memory_bytes - zeros,
        };
        [
            filled,
            Group {
                class: "zeros",
                name,
                bytes: zeros,
            },
        ]
    });
    let mut groups = merged(parts);
    if groups.len() > MAX_GROUPS {
        let rest = groups.split_off(MAX_GROUPS - CLASSES.len());
        groups.extend(merged(rest.into_iter().map(|group| Group {
            name: "others".into(),
            ..group
        })));
    }
    groups
}

/// Groups of the same name and class as one, the largest first.
fn merged(groups: impl Iterator<Item = Group>) -> Vec<Group> {
    let mut sums: BTreeMap<(String, &'static str), u64> = BTreeMap::new();
    for group in groups.filter(|group| group.bytes > 0) {
        let sum = sums.entry((group.name, group.class)).or_default();
        *sum = sum.saturating_add(group.bytes);
    }
    let mut merged: Vec<Group> = sums
        .into_iter()
        .map(|((name, class), bytes)| Group { class, name, bytes })
        .collect();
    merged.sort_by_key(|group| std::cmp::Reverse(group.bytes));
    merged
}

fn sum(groups: &[Group]) -> u64 {
    total(groups.iter().map(|group| group.bytes))
}

/// A process, with its memory in it.
fn frame(out: &mut String, name: &str, groups: &[Group], rect: Rect) {
    let heading = format!("{name}  {}", size(sum(groups)));
    let _ = writeln!(out, "{}", area("process", rect, &heading));
    let has_heading = rect.height > 2.5 * HEADING && rect.width > 40.0;
    if has_heading {
        out.push_str(&fitting(
            &heading,
            rect.x + 4.0,
            rect.y + 13.0,
            12,
            rect.width - 8.0,
        ));
        out.push('\n');
    }
    let margin = if rect.width.min(rect.height) > 12.0 {
        2.0
    } else {
        0.0
    };
    let inner = rect.within(margin, if has_heading { HEADING } else { 0.0 });
    let weights: Vec<u64> = groups.iter().map(|group| group.bytes).collect();
    for (group, rect) in groups.iter().zip(squarified(&weights, inner)) {
        let what = if group.class == "zeros" {
            format!("zeros: {}", group.name)
        } else {
            group.name.clone()
        };
        let _ = writeln!(
            out,
            "{}",
            area(
                &format!("{} area", group.class),
                rect,
                &format!("{what} {}", size(group.bytes))
            )
        );
        if rect.height > LINE + 4.0 && rect.width > 40.0 {
            let width = rect.width - 8.0;
            let short = what.rsplit('/').next().unwrap_or(&what);
            out.push_str(&fitting(short, rect.x + 4.0, rect.y + 12.0, 11, width));
            if rect.height > 2.0 * LINE + 6.0 {
                out.push_str(&fitting(
                    &size(group.bytes),
                    rect.x + 4.0,
                    rect.y + 12.0 + LINE,
                    11,
                    width,
                ));
            }
            out.push('\n');
        }
    }
}

fn area(class: &str, rect: Rect, what: &str) -> String {
    format!(
        "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
        rect.x,
        rect.y,
        rect.width,
        rect.height,
        escaped(what)
    )
}

/// As much of a text as there is room for.
fn fitting(text: &str, x: f64, y: f64, font: u32, width: f64) -> String {
    let n_letters = (width / LETTER).max(0.0) as usize;
    if text.chars().count() <= n_letters {
        return label(x, y, "in", font, text);
    }
    match n_letters {
        0..4 => String::new(),
        n_letters => {
            let cut: String = text.chars().take(n_letters - 1).chain(['…']).collect();
            label(x, y, "in", font, &cut)
        }
    }
}
