//! Which values a setting takes.

use std::fmt;

use serde_json::Value;

use crate::v2::Name;

/// Which values a setting takes. Shown, it completes "must be …".
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Takes {
    /// A text that is not empty.
    Text,
    /// A text whose reader has more to say of what it must be.
    Form(&'static str),
    /// A name as API v2 takes it.
    Name,
    /// One of these, in any case.
    OneOf(&'static [&'static str]),
    /// One of these numbers.
    NumberOf(&'static [u64]),
    /// A whole number within these bounds.
    Whole(u64, u64),
    /// A number greater than 0 and at most this.
    Positive(f64),
    /// The same, or 0.
    PositiveOrZero(f64),
    /// Yes or no.
    Switch,
    /// The same, as vLLM Ascend reads it: without the words yes and no.
    Bit,
    /// On or off, in these words or in those of a switch.
    OnOff,
}

impl Takes {
    /// What stands for a value in help.
    pub(super) const fn placeholder(self) -> &'static str {
        match self {
            Self::Text | Self::Form(_) | Self::OneOf(_) => "TEXT",
            Self::Name => "NAME",
            Self::NumberOf(_) | Self::Whole(..) | Self::Positive(_) | Self::PositiveOrZero(_) => "NUMBER",
            Self::Switch | Self::Bit => "BOOL",
            Self::OnOff => "on|off",
        }
    }

    /// Whether its flag may stand without a value, which then is true.
    pub fn is_switch(self) -> bool {
        matches!(self, Self::Switch | Self::Bit)
    }

    /// The value that a text means, in the one form that its reader knows; `None` if it means none.
    pub fn read_text(self, text: &str) -> Option<String> {
        let bare = text.trim();
        let number = |fits: &dyn Fn(f64) -> bool| {
            bare.parse().is_ok_and(|number: f64| number.is_finite() && fits(number)).then(|| bare.to_owned())
        };
        let whole = |fits: &dyn Fn(u64) -> bool| {
            bare.parse().is_ok_and(|number: u64| fits(number)).then(|| bare.to_owned())
        };
        let said = |words: &[(&str, bool)]| {
            words.iter().find(|(word, _)| word.eq_ignore_ascii_case(bare)).map(|(_, on)| *on)
        };
        let switch = |words| said(words).map(|on| on.to_string());
        match self {
            Self::Text | Self::Form(_) => (!text.is_empty()).then(|| text.to_owned()),
            Self::Name => Name::try_from(text.to_owned()).ok().map(String::from),
            Self::OneOf(words) => {
                words.iter().find(|word| word.eq_ignore_ascii_case(bare)).map(ToString::to_string)
            }
            Self::NumberOf(numbers) => whole(&|number| numbers.contains(&number)),
            Self::Whole(from, to) => whole(&|number| (from..=to).contains(&number)),
            Self::Positive(most) => number(&|number| number > 0.0 && number <= most),
            Self::PositiveOrZero(most) => number(&|number| (0.0..=most).contains(&number)),
            Self::Switch => switch(&SWITCH),
            Self::OnOff => said(&SWITCH)
                .or_else(|| said(&[("on", true), ("off", false)]))
                .map(|on| if on { "on" } else { "off" }.to_owned()),
            Self::Bit => switch(&[("1", true), ("true", true), ("0", false), ("false", false)]),
        }
    }

    /// The same for a value in JSON: numbers are numbers there, and not text, and switches are booleans.
    pub fn read_json(self, value: &Value) -> Option<String> {
        match (self, value) {
            (Self::Switch | Self::Bit, Value::Bool(on)) => Some(on.to_string()),
            (Self::OnOff, Value::Bool(on)) => self.read_text(&on.to_string()),
            (Self::NumberOf(_) | Self::Whole(..), Value::Number(number)) if number.is_u64() => {
                self.read_text(&number.to_string())
            }
            (Self::Positive(_) | Self::PositiveOrZero(_), Value::Number(number)) => {
                self.read_text(&number.to_string())
            }
            (Self::Text | Self::Form(_) | Self::Name | Self::OneOf(_) | Self::OnOff, Value::String(text)) => {
                self.read_text(text)
            }
            _ => None,
        }
    }
}

impl fmt::Display for Takes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Text => f.write_str("a text that is not empty"),
            Self::Form(what) => f.write_str(what),
            Self::Name => f.write_str("a text of 1 to 256 bytes without control characters"),
            Self::OneOf(words) => f.write_str(&listed(words)),
            Self::NumberOf(numbers) => f.write_str(&listed(numbers)),
            Self::Whole(from, to) if to == u64::from(u32::MAX) => {
                write!(f, "a whole number, {from} or more")
            }
            Self::Whole(from, to) => write!(f, "a whole number from {from} to {to}"),
            Self::Positive(f64::MAX) => f.write_str("a finite number greater than 0"),
            Self::Positive(most) => write!(f, "a number greater than 0, at most {most}"),
            Self::PositiveOrZero(most) => write!(f, "a number from 0 to {most}"),
            Self::Switch => f.write_str("1, 0, true, false, yes or no"),
            Self::Bit => f.write_str("0, 1, true or false"),
            Self::OnOff => f.write_str("on, off, 1, 0, true, false, yes or no"),
        }
    }
}

/// The words of a switch.
const SWITCH: [(&str, bool); 6] =
    [("1", true), ("true", true), ("yes", true), ("0", false), ("false", false), ("no", false)];

/// `a, b or c`.
fn listed<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    match items.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => items.concat(),
    }
}
