//! The header of a safetensors file, and the index over several.
//!
//! An input is up to three files, apart by a byte of 0, which no JSON has: the header of `a.safetensors`, that of
//! `b.safetensors`, and an index. The data behind a header is as long as its last digits say that it ends, so that a
//! header that is right is one of a whole file.

use std::fs;
use std::path::Path;

use rfork_loader::storage::{Checkpoint, StorageError};
use safetensors::SafeTensors;

use super::{Target, in_directory, is_one_line};

/// The entry point.
pub const TARGET: Target =
    Target { name: "checkpoint", run, executions: 4_000, most_bytes: |input| 128 * input + (512 << 10) };

/// The longest data of a file here, in bytes.
const MOST_DATA_BYTES: usize = 1 << 10;

/// Tries one input.
///
/// # Panics
/// When a promise is broken.
pub fn run(data: &[u8]) {
    in_directory(|home| opened(data, home));
}

fn opened(data: &[u8], home: &Path) {
    let mut parts = data.split(|byte| *byte == 0);
    for name in ["a.safetensors", "b.safetensors"] {
        let bytes = parts.next().map(file).unwrap_or_default();
        let path = home.join(name);
        fs::write(&path, &bytes).unwrap();
        match Checkpoint::open(&path) {
            Ok(checkpoint) => is_read_by_others(&checkpoint, &bytes),
            Err(error) => is_told(&error, home),
        }
    }
    let Some(index) = parts.next() else { return };
    fs::write(home.join("model.safetensors.index.json"), index).unwrap();
    match Checkpoint::open(home) {
        Ok(checkpoint) => {
            let inside = |file: &Path| file.parent() == Some(home);
            assert!(checkpoint.files().all(inside), "an index leads out of its directory");
        }
        Err(error) => is_told(&error, home),
    }
}

/// A file of that header, and of as much data.
fn file(header: &[u8]) -> Vec<u8> {
    let from = header.iter().rposition(u8::is_ascii_digit).map_or(0, |last| {
        let digits = header[..=last].iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
        last + 1 - digits
    });
    let digits: String =
        header[from..].iter().map_while(|byte| byte.is_ascii_digit().then_some(*byte as char)).collect();
    let data_bytes = digits.parse().unwrap_or(0).min(MOST_DATA_BYTES);
    let length = (header.len() as u64).to_le_bytes();
    [&length, header, &vec![7; data_bytes]].concat()
}

/// The format's own crate reads what is read here, as the same.
fn is_read_by_others(checkpoint: &Checkpoint, bytes: &[u8]) {
    let others = SafeTensors::deserialize(bytes).expect("the format's own crate reads it");
    for tensor in checkpoint.manifest().tensors() {
        let view = others.tensor(&tensor.name).expect("it has this tensor");
        assert_eq!(view.data().len() as u64, tensor.bytes());
        assert_eq!(view.shape().len(), tensor.shape.as_ref().map_or(0, Vec::len));
    }
    let with_bytes = others.iter().filter(|(_, view)| !view.data().is_empty()).count();
    assert_eq!(checkpoint.manifest().tensors().len(), with_bytes);
}

/// An error is one line, and names the file.
fn is_told(error: &StorageError, home: &Path) {
    is_one_line(error);
    assert!(error.to_string().contains(&home.display().to_string()), "{error}");
}
