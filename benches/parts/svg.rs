//! Charts, readable on light and on dark.

use std::fmt::Write;

const STYLE: &str = "<style>text{font:13px sans-serif;fill:#24292f}.t{font-weight:600;font-size:15px}.n{fill:#57606a}\
.own{fill:#1a7f64}.peer{fill:#7d8fa5}.floor{fill:#c8a02b}line{stroke:#8c959f}polyline{fill:none;stroke-width:2}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.n{fill:#9ea7b3}.own{fill:#3fb994}.peer{fill:#6e7f94}}</style>";

/// Of whom a bar tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ink {
    Own,
    Peer,
    Floor,
}

impl Ink {
    fn class(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Peer => "peer",
            Self::Floor => "floor",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) ink: Ink,
}

const WIDTH: u32 = 720;
const ROW: u32 = 24;
/// Of the names.
const LEFT: u32 = 190;
/// Of the values behind the longest bar.
const RIGHT: u32 = 80;

/// Lying bars under a title.
pub(crate) fn bars(title: &str, bars: &[Bar]) -> String {
    let rows = u32::try_from(bars.len()).expect("a few bars");
    let longest = bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
    let mut text = head(title, 40 + rows * ROW);
    for (row, bar) in (0..).zip(bars) {
        let top = 34 + row * ROW;
        let length = (bar.value / longest).max(0.0) * f64::from(WIDTH - LEFT - RIGHT);
        let (name, class, middle) = (&bar.name, bar.ink.class(), top + 14);
        writeln!(
            text,
            "<text x=\"{x}\" y=\"{middle}\" text-anchor=\"end\">{name}</text>\
             <rect class=\"{class}\" x=\"{LEFT}\" y=\"{top}\" width=\"{length:.1}\" height=\"18\" rx=\"2\"/>\
             <text class=\"n\" x=\"{end:.1}\" y=\"{middle}\">{value}</text>",
            x = LEFT - 8,
            end = f64::from(LEFT) + length + 6.0,
            value = shown(bar.value),
        )
        .expect("a string takes all");
    }
    text + "</svg>\n"
}

/// One line of a plot: its name, its ink, and values at the places named on the axis.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) color: &'static str,
    pub(crate) values: Vec<f64>,
}

const PLOT_HEIGHT: u32 = 260;
const PLOT_BOTTOM: f64 = 226.0;
const PLOT_TOP: f64 = 44.0;
const PLOT_LEFT: f64 = 60.0;
/// Of the names of the lines.
const PLOT_RIGHT: f64 = 500.0;

/// Lines over places at equal distances, from 0 up.
pub(crate) fn plot(title: &str, places: &[String], lines: &[Line]) -> String {
    let highest = lines.iter().flat_map(|line| &line.values).copied().fold(f64::MIN_POSITIVE, f64::max) * 1.1;
    let across = |place: usize| PLOT_LEFT + (PLOT_RIGHT - PLOT_LEFT) * place as f64 / (places.len().max(2) - 1) as f64;
    let up = |value: f64| PLOT_BOTTOM - (PLOT_BOTTOM - PLOT_TOP) * value / highest;
    let mut text = head(title, PLOT_HEIGHT);
    for part in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let (y, value) = (up(highest * part), shown(highest * part));
        write!(
            text,
            "<line x1=\"{PLOT_LEFT}\" x2=\"{PLOT_RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke-opacity=\".3\"/>"
        )
        .expect("a string takes all");
        writeln!(text, "<text class=\"n\" x=\"52\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>", y + 4.0)
            .expect("a string takes all");
    }
    for (place, name) in places.iter().enumerate() {
        writeln!(text, "<text class=\"n\" x=\"{:.1}\" y=\"246\" text-anchor=\"middle\">{name}</text>", across(place))
            .expect("a string takes all");
    }
    for line in lines {
        let points: Vec<String> = line
            .values
            .iter()
            .enumerate()
            .map(|(place, value)| format!("{:.1},{:.1}", across(place), up(*value)))
            .collect();
        let end = up(line.values.last().copied().unwrap_or(0.0)) + 4.0;
        writeln!(
            text,
            "<polyline stroke=\"{}\" points=\"{}\"/><text x=\"{}\" y=\"{end:.1}\">{}</text>",
            line.color,
            points.join(" "),
            PLOT_RIGHT + 8.0,
            line.name
        )
        .expect("a string takes all");
    }
    text + "</svg>\n"
}

fn head(title: &str, height: u32) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\">{STYLE}\n\
         <text class=\"t\" x=\"8\" y=\"20\">{title}</text>\n"
    )
}

/// Three digits that matter, as far as they are behind the point.
fn shown(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
