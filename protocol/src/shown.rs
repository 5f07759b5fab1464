//! Text of a peer, as people are shown it.
//!
//! Keys, names, reasons and the texts of errors come from whoever reaches a port. Where they are shown — in a log, a table,
//! a terminal, an error, an event — they must not end a line, move a cursor, turn the order of what is read, or fill the
//! page. On the wire and in a database they stay as they are.

use std::fmt::{self, Display, Write};

/// The longest text that is shown of a peer unless something else is said, in bytes.
pub const MOST_BYTES: usize = 1024;

/// Shows a text of a peer: characters that are [`hidden`] as Rust escapes them, and no more than so many bytes.
#[derive(Debug, Clone, Copy)]
pub struct Shown<T> {
    text: T,
    most_bytes: usize,
}

impl<T: Display> Shown<T> {
    /// Shows `text`, up to [`MOST_BYTES`].
    pub const fn new(text: T) -> Self {
        Self::within(text, MOST_BYTES)
    }

    /// Shows `text`, up to so many bytes. An ellipsis follows what was cut.
    pub const fn within(text: T, most_bytes: usize) -> Self {
        Self { text, most_bytes }
    }
}

impl<T: Display> Display for Shown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = Escaped { out: &mut *f, left_bytes: self.most_bytes, cut: false };
        let written = write!(shown, "{}", self.text);
        if shown.cut { f.write_char('…') } else { written }
    }
}

/// Passes on what may be shown, and stops whoever writes more than there is room for.
struct Escaped<'a, W: Write> {
    out: &'a mut W,
    left_bytes: usize,
    cut: bool,
}

impl<W: Write> Write for Escaped<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut from = 0;
        for (at, character) in text.char_indices() {
            let escaped = hidden(character).then(|| character.escape_default());
            let bytes = escaped.as_ref().map_or(character.len_utf8(), ExactSizeIterator::len);
            let Some(left) = self.left_bytes.checked_sub(bytes) else {
                self.cut = true;
                self.out.write_str(&text[from..at])?;
                return Err(fmt::Error);
            };
            self.left_bytes = left;
            if let Some(escaped) = escaped {
                self.out.write_str(&text[from..at])?;
                write!(self.out, "{escaped}")?;
                from = at + character.len_utf8();
            }
        }
        self.out.write_str(&text[from..])
    }
}

/// Whether a character does something instead of being seen: a control character, an end of a line or a paragraph, or a
/// mark that turns the direction of text (those of Unicode's property `Bidi_Control`).
pub fn hidden(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_shown_escaped() {
        for (text, shown) in [
            ("/models/llama$decode", "/models/llama$decode"),
            ("模型 – modèle", "模型 – modèle"),
            ("one\ntwo\r\tthree", "one\\ntwo\\r\\tthree"),
            ("\u{1b}[2J\u{7}", "\\u{1b}[2J\\u{7}"),
            ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}"),
            ("safe\u{202e}txt.exe\u{2066}", "safe\\u{202e}txt.exe\\u{2066}"),
            ("a\u{2028}b", "a\\u{2028}b"),
        ] {
            assert_eq!(Shown::new(text).to_string(), shown);
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(Shown::within("abcdef", 6).to_string(), "abcdef");
        assert_eq!(Shown::within("abcdefg", 6).to_string(), "abcdef…");
        assert_eq!(Shown::within("äöü", 5).to_string(), "äö…");
        assert_eq!(Shown::within("a\n\n", 4).to_string(), "a\\n…");
        assert_eq!(Shown::new("x".repeat(1 << 20)).to_string().len(), MOST_BYTES + '…'.len_utf8());
    }

    proptest! {
        #[test]
        fn nothing_hidden_is_shown_and_the_length_holds(text in any::<String>(), most in 0_usize..40) {
            let shown = Shown::within(&text, most).to_string();
            prop_assert!(!shown.chars().any(hidden));
            let kept = shown.strip_suffix('…').filter(|_| !text.starts_with(&shown)).unwrap_or(&shown);
            prop_assert!(kept.len() <= most, "{shown:?} of {text:?}");
        }

        #[test]
        fn pieces_are_shown_as_the_whole(parts in proptest::collection::vec(any::<String>(), 0..5), most in 0_usize..40) {
            struct Pieces(Vec<String>);
            impl Display for Pieces {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    self.0.iter().try_for_each(|part| f.write_str(part))
                }
            }
            let whole = parts.concat();
            prop_assert_eq!(Shown::within(Pieces(parts), most).to_string(), Shown::within(whole, most).to_string());
        }
    }
}
