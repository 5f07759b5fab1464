//! Transfers as a picture: a line for each worker, on it a bar for each source that it read from, in the colour of that
//! source's line. PURE.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use rfork_protocol::shown::Shown;

use super::{STORAGE, Transfer};

/// Sizes, in the picture's units.
const WIDTH: f64 = 1_200.0;
const NAMES: f64 = 260.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 40.0;
const LINE: f64 = 24.0;
const BAR: f64 = 16.0;
/// Bytes of a name that are shown.
const MOST_OF_A_NAME: usize = 36;
/// Marks on the axis of time, about.
const MARKS: f64 = 10.0;

/// Draws transfers, as SVG. Names are shown escaped, whoever made them up.
pub(super) fn draw(transfers: &[Transfer]) -> String {
    let workers = workers(transfers);
    let lines: HashMap<&str, usize> = workers.iter().copied().zip(0..).collect();
    let line_of = |name: &str| lines.get(name).copied().unwrap_or_default();
    let end = transfers.iter().map(|transfer| transfer.to_seconds).fold(0.0, f64::max).max(0.001);
    let x = |seconds: f64| NAMES + (WIDTH - NAMES - RIGHT) * seconds / end;
    let y = |line: usize| TOP + LINE * line as f64;
    let height = y(workers.len()) + 10.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for seconds in marks(end) {
        let at = x(seconds);
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" y1=\"{:.1}\" x2=\"{at:.1}\" y2=\"{height:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555\">{seconds} s</text>",
            TOP - 8.0,
            TOP - 14.0
        );
    }
    for (line, name) in workers.iter().enumerate() {
        let _ = writeln!(
            svg,
            "<rect x=\"8\" y=\"{:.1}\" width=\"12\" height=\"12\" fill=\"{}\"/><text x=\"28\" y=\"{:.1}\">{}</text>",
            y(line) + 4.0,
            colour(name, line),
            y(line) + 14.0,
            text(name)
        );
    }
    for transfer in transfers {
        let Transfer { source, reader, from_seconds, to_seconds, bytes, ended } = transfer;
        let (line, from) = (line_of(reader), line_of(source));
        let (left, top) = (x(*from_seconds), y(line) + (LINE - BAR) / 2.0);
        let told = bytes.map(crate::show::bytes).unwrap_or_default();
        if source != STORAGE {
            let _ = writeln!(
                svg,
                "<line x1=\"{left:.1}\" y1=\"{:.1}\" x2=\"{left:.1}\" y2=\"{:.1}\" stroke=\"{}\" stroke-dasharray=\"2 3\"/>",
                y(from) + LINE / 2.0,
                y(line) + LINE / 2.0,
                colour(source, from)
            );
        }
        let _ = writeln!(
            svg,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{}\" stroke=\"#333\" \
             stroke-width=\"0.5\"{}><title>{} reads from {}: {from_seconds:.2} to {to_seconds:.2} s, {told} {ended}</title></rect>",
            (x(*to_seconds) - left).max(1.0),
            colour(source, from),
            if *ended == "well" { "" } else { " fill-opacity=\"0.4\"" },
            text(reader),
            text(source),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// Everybody who gave or read: each behind whom it read from first, those who began first before others.
fn workers(transfers: &[Transfer]) -> Vec<&str> {
    let mut readers: HashMap<&str, Vec<&str>> = HashMap::new();
    let mut has_source = HashSet::new();
    for transfer in transfers {
        if has_source.insert(transfer.reader.as_str()) {
            readers.entry(&transfer.source).or_default().push(&transfer.reader);
        }
    }
    let named = || transfers.iter().flat_map(|transfer| [transfer.source.as_str(), transfer.reader.as_str()]);
    let (mut workers, mut seen) = (Vec::new(), HashSet::new());
    // Whoever is in a circle has no first one before it, and comes last.
    for first in named().filter(|name| !has_source.contains(name)).chain(named()) {
        let mut next = vec![first];
        while let Some(name) = next.pop() {
            if seen.insert(name) {
                workers.push(name);
                next.extend(readers.get(name).into_iter().flatten().rev());
            }
        }
    }
    workers
}

/// Times that are marked: multiples of 1, 2 or 5 times a power of ten.
fn marks(end: f64) -> impl Iterator<Item = f64> {
    let power = 10_f64.powf((end / MARKS).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * power).into_iter().find(|step| end / step <= MARKS);
    let step = step.unwrap_or(end);
    (0..=20).map(move |at| (f64::from(at) * step * 1e6).round() / 1e6).take_while(move |at| *at <= end)
}

/// A colour of its own for each line, apart from its neighbours'.
fn colour(name: &str, line: usize) -> String {
    if name == STORAGE {
        "#999".into()
    } else {
        format!("hsl({} 65% {}%)", line * 137 % 360, [60, 45, 72][line % 3])
    }
}

fn text(name: &str) -> String {
    let shown = Shown::within(name, MOST_OF_A_NAME).to_string();
    shown.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn transfer(source: &str, reader: &str, from_seconds: f64, to_seconds: f64) -> Transfer {
        Transfer {
            source: source.into(),
            reader: reader.into(),
            from_seconds,
            to_seconds,
            bytes: Some(1 << 20),
            ended: "well",
        }
    }

    #[test]
    fn each_worker_has_a_line_and_each_transfer_a_bar() {
        let svg = draw(&[
            transfer(STORAGE, "a", 0.0, 8.0),
            transfer("a", "b", 1.0, 9.0),
            transfer("b", "c", 1.5, 10.0),
        ]);
        assert_eq!(svg.matches("<title>").count(), 3);
        for name in [STORAGE, "a", "b", "c"] {
            assert_eq!(svg.matches(&format!("\">{name}</text>")).count(), 1, "{name}");
        }
        assert!(svg.contains("b reads from a: 1.00 to 9.00 s, 1.00 MiB well"), "{svg}");
        assert!(svg.contains(">10 s</text>") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn a_reader_s_line_is_behind_that_of_its_first_source_and_circles_are_drawn() {
        let all = [
            transfer("b", "c", 0.0, 1.0),
            transfer("a", "b", 0.0, 1.0),
            transfer(STORAGE, "a", 0.0, 1.0),
            transfer("a", "c", 2.0, 3.0),
            transfer("x", "y", 2.0, 3.0),
            transfer("y", "x", 2.0, 3.0),
        ];
        assert_eq!(workers(&all), [STORAGE, "a", "b", "c", "x", "y"]);
    }

    #[test]
    fn nothing_is_a_picture_too() {
        assert!(draw(&[]).ends_with("</svg>\n"));
    }

    proptest! {
        /// Names are text and never a part of the picture, and no figure is missing, whatever was told.
        #[test]
        fn whatever_peers_are_called_the_picture_is_one(
            names in prop::collection::vec(("\\PC{0,50}", "[<>&\"'/a]{0,9}", 0.0f64..1e7, 0.0f64..1e7), 0..9),
        ) {
            let transfers: Vec<_> =
                names.iter().map(|(source, reader, from, to)| transfer(source, reader, *from, *to)).collect();
            let svg = draw(&transfers);
            prop_assert!(!svg.contains("NaN") && !svg.contains("inf"));
            let tags = ["svg", "rect", "line", "text", "title"];
            for piece in svg.split('<').skip(1) {
                let name = piece.trim_start_matches('/').split([' ', '>', '/']).next().unwrap();
                prop_assert!(tags.contains(&name), "{piece}");
            }
            prop_assert_eq!(svg.matches("<title>").count(), transfers.len());
        }
    }
}
