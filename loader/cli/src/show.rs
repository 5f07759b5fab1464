//! How figures and tables look.

use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use rfork_protocol::shown::Shown;

/// Bytes in GiB a second.
pub(crate) fn gib_per_s(bytes: u64, duration: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 30) / duration.as_secs_f64().max(1e-9)
}

/// Bytes for people: `512.0 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// A table with these columns.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header);
    for row in rows {
        // What planners and seeds say of others, and of themselves.
        table.add_row(row.map(|cell| Shown::new(cell).to_string()));
    }
    table
}
