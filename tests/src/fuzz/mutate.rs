//! Inputs made of a corpus, where no fuzzer is: seeded, so that each is made again from its number.

use fastrand::Rng;

/// The longest input that is made, in bytes.
const MOST_BYTES: usize = 16 << 10;
/// Numbers at which types and limits end.
const EDGES: [&str; 12] = [
    "0",
    "1",
    "-1",
    "255",
    "65535",
    "65536",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
];
/// What has a meaning in some format, or breaks a text.
const PIECES: [&[u8]; 14] = [
    b"\"",
    b"{}",
    b"[]",
    b"null",
    b"true",
    b"\\u0000",
    b"\\ud800",
    b"\r\n",
    b"\0",
    b"\xff\xfe",
    b"\x1b[2J",
    "\u{202e}".as_bytes(),
    b"%00",
    b"..",
];

/// An input made of one of the corpus by one to six changes.
pub fn mutated(random: &mut Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = some_of(random, corpus).to_vec();
    for _ in 0..random.usize(1..=6) {
        change(random, &mut bytes, corpus);
    }
    bytes.truncate(MOST_BYTES);
    bytes
}

fn some_of<'a>(random: &mut Rng, corpus: &'a [Vec<u8>]) -> &'a [u8] {
    random.choice(corpus).map_or(&[], Vec::as_slice)
}

fn change(random: &mut Rng, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let (start, end) = range(random, bytes.len());
    match random.u8(..9) {
        0 => drop(bytes.drain(start..end)),
        1 => {
            let again = bytes[start..end].to_vec();
            insert(bytes, end, &again);
        }
        2 => {
            let other = some_of(random, corpus);
            let (from, to) = range(random, other.len());
            bytes.splice(start..end, other[from..to].iter().copied());
        }
        3 => insert(bytes, start, random.choice(PIECES).unwrap_or_default()),
        4 => edge(random, bytes),
        5 => bytes.truncate(start),
        6 => {
            let many = [random.u8(..)].repeat(random.usize(1..600));
            insert(bytes, start, &many);
        }
        7 => bytes[start..end].iter_mut().for_each(|byte| *byte = random.u8(..)),
        _ => {
            if let Some(byte) = bytes.get_mut(start) {
                *byte ^= 1 << random.u8(..8);
            }
        }
    }
}

/// A place in so many bytes, and one behind it that is mostly near.
fn range(random: &mut Rng, len: usize) -> (usize, usize) {
    let start = random.usize(..=len);
    let most = if random.u8(..8) == 0 { len } else { 8 };
    (start, len.min(start + random.usize(..=most)))
}

fn insert(bytes: &mut Vec<u8>, at: usize, more: &[u8]) {
    bytes.splice(at..at, more.iter().copied());
}

/// Puts a number at which something ends in the place of one that stands there as text.
fn edge(random: &mut Rng, bytes: &mut Vec<u8>) {
    let from = random.usize(..=bytes.len());
    let Some(start) = bytes[from..].iter().position(u8::is_ascii_digit).map(|at| from + at) else { return };
    let digits = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let edge = random.choice(EDGES).unwrap_or_default();
    bytes.splice(start..start + digits, edge.bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_made_again_from_its_number_and_they_differ() {
        let corpus = [b"{\"a\": 1}".to_vec(), vec![0; 40]];
        let made = |seed| mutated(&mut Rng::with_seed(seed), &corpus);
        let all: std::collections::BTreeSet<_> = (0..500).map(made).collect();
        assert!(all.len() > 250, "{} of 500 differ", all.len());
        assert!((0..50).all(|seed| made(seed) == made(seed)));
        mutated(&mut Rng::with_seed(1), &[]);
    }
}
