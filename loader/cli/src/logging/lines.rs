//! Lines of a log. What peers send is in them, so no field ends a line, commands a terminal or fills a disk.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use rfork_protocol::shown::{Shown, hidden};
use serde_json::Value;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, fmt};

/// The longest text of a field, in bytes.
const MOST_BYTES: usize = 4096;

/// Text for people, on standard error; with the module that logs where that helps them.
pub fn text<S>(target: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'span> LookupSpan<'span>,
{
    let fields = debug_fn(|writer, field, value| {
        let value = format_args!("{value:?}");
        let value = Shown::within(value, MOST_BYTES);
        match field.name() {
            "message" => write!(writer, "{value}"),
            name if writer.has_ansi_escapes() => write!(writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{value}"),
            name => write!(writer, "{name}={value}"),
        }
    });
    fmt::layer()
        .with_writer(io::stderr)
        .with_target(target)
        .with_ansi(io::stderr().is_terminal())
        .fmt_fields(fields.delimited(" "))
        .boxed()
}

/// An object a line, on standard error.
pub(super) fn json<S>() -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'span> LookupSpan<'span>,
{
    // The list ends with the current span.
    fmt::layer()
        .with_writer(|| JsonLines(io::stderr()))
        .with_target(false)
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .boxed()
}

/// Takes whole lines, as the layer writes them.
struct JsonLines<W>(W);

impl<W: Write> Write for JsonLines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_all(&shown(line)).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A line in which all texts may be shown; nearly always the line itself.
fn shown(line: &[u8]) -> Cow<'_, [u8]> {
    let is_plain = |text: &str| text.len() <= MOST_BYTES && !text.trim_end().contains(hidden);
    if str::from_utf8(line).is_ok_and(is_plain) {
        return line.into();
    }
    let Ok(mut value) = serde_json::from_slice::<Value>(line) else { return line.into() };
    show(&mut value);
    format!("{value}\n").into_bytes().into()
}

/// Depth is bounded: serde has read it.
fn show(value: &mut Value) {
    match value {
        Value::String(text) => *text = Shown::within(&*text, MOST_BYTES).to_string(),
        Value::Array(values) => values.iter_mut().for_each(show),
        Value::Object(fields) => fields.values_mut().for_each(show),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_json_is_left_or_shown() {
        let plain = b"{\"message\":\"the planner is ready\"}\n";
        assert!(matches!(shown(plain), Cow::Borrowed(line) if line == plain));
        let turned = "{\"key\":\"a\u{202e}b\",\"spans\":[{\"n\":1}]}\n";
        assert_eq!(
            shown(turned.as_bytes()),
            "{\"key\":\"a\\\\u{202e}b\",\"spans\":[{\"n\":1}]}\n".as_bytes()
        );
        let long = format!("{{\"error\":\"{}\"}}\n", "x".repeat(1 << 20));
        assert!(shown(long.as_bytes()).len() < MOST_BYTES + 64);
    }
}
