//! What requests and answers are made of: ids, names and places, each checked when it is read.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::{
    IdError, LeaseId, MAX_LEASE_ID_BYTES, MAX_SEED_IDENTITY_BYTES, MAX_SEED_KEY_BYTES, SeedIdentity, SeedKey,
    hex,
};
use crate::shown::hidden;

/// A value that a field does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Empty, too long, or not printable.
    #[error("must be 1 to {0} bytes of text without control characters and marks of direction")]
    Text(usize),
    /// Not a [`Reason`].
    #[error("must be 1 to {MAX_REASON_BYTES} characters of a-z, 0-9, '_' and '-'")]
    Reason,
    /// Not an [`IdempotencyKey`]. What it is stays untold: it is a credential.
    #[error("must be 8 to 200 visible ASCII characters")]
    IdempotencyKey,
    /// Not a [`Cursor`].
    #[error("must be the `next` of an earlier answer")]
    Cursor,
    /// Bytes that are not written in hex.
    #[error("must be an even number of the digits 0-9 and a-f")]
    Hex,
    /// Not an id.
    #[error(transparent)]
    Id(#[from] IdError),
}

/// A text of 1 to `MOST` bytes without characters that are [`hidden`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Text<const MOST: usize>(String);

/// Names something for the planner: a zone, an instance, an incarnation, a content.
pub type Name = Text<256>;
/// Names something for people and metrics; it decides nothing but what rules of the settings say.
pub type Label = Text<{ crate::v1::MAX_LABEL_BYTES }>;

impl<const MOST: usize> Text<MOST> {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As much of `text` as is accepted, from its start; `None` when that is nothing.
    pub fn cut(text: &str) -> Option<Self> {
        let mut kept = String::new();
        for character in text.chars().filter(|character| !hidden(*character)) {
            if kept.len() + character.len_utf8() > MOST {
                break;
            }
            kept.push(character);
        }
        (!kept.is_empty()).then_some(Self(kept))
    }
}

impl<const MOST: usize> TryFrom<String> for Text<MOST> {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        if text.is_empty() || text.len() > MOST || text.chars().any(hidden) {
            return Err(ValueError::Text(MOST));
        }
        Ok(Self(text))
    }
}

impl<const MOST: usize> From<Text<MOST>> for String {
    fn from(text: Text<MOST>) -> Self {
        text.0
    }
}

impl<const MOST: usize> JsonSchema for Text<MOST> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Text{MOST}").into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "minLength": 1, "maxLength": MOST})
    }
}

/// The longest [`Reason`], in bytes.
const MAX_REASON_BYTES: usize = 64;

/// Why a transfer failed, in a word: `connection-lost`, `digest_mismatch`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reason(String);

impl Reason {
    /// The word.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Reason {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
        if text.is_empty() || text.len() > MAX_REASON_BYTES || !text.bytes().all(fits) {
            return Err(ValueError::Reason);
        }
        Ok(Self(text))
    }
}

impl From<Reason> for String {
    fn from(reason: Reason) -> Self {
        reason.0
    }
}

impl JsonSchema for Reason {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Reason".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": format!("^[a-z0-9_-]{{1,{MAX_REASON_BYTES}}}$")})
    }
}

/// Makes an acquisition repeatable: who sends the same request with the same key gets the same lease. It is a
/// credential, as the lease is: it must be unguessable, and it is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// Takes a key as a header carried it: 8 to 200 visible ASCII characters.
    ///
    /// # Errors
    /// [`ValueError::IdempotencyKey`].
    pub fn new(text: impl Into<String>) -> Result<Self, ValueError> {
        let text = text.into();
        if !(8..=200).contains(&text.len()) || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ValueError::IdempotencyKey);
        }
        Ok(Self(text))
    }

    /// The secret itself, for the wire only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdempotencyKey(hidden)")
    }
}

/// Where the next page of a list begins; only the planner that made it reads anything in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cursor(String);

/// The longest text that a cursor stands for, in bytes: a seed key is the longest.
const MAX_CURSOR_BYTES: usize = MAX_SEED_KEY_BYTES;

impl Cursor {
    /// A cursor that stands for these bytes, the first 8 KiB of them.
    pub fn of(bytes: &[u8]) -> Self {
        Self(hex(&bytes[..bytes.len().min(MAX_CURSOR_BYTES)]))
    }

    /// The bytes that it stands for.
    pub fn bytes(&self) -> Vec<u8> {
        unhex(&self.0).unwrap_or_default()
    }

    /// As it stands in an answer.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Cursor {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        match unhex(&text) {
            Some(bytes) if !bytes.is_empty() && bytes.len() <= MAX_CURSOR_BYTES => Ok(Self(text)),
            _ => Err(ValueError::Cursor),
        }
    }
}

impl From<Cursor> for String {
    fn from(cursor: Cursor) -> Self {
        cursor.0
    }
}

impl JsonSchema for Cursor {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Cursor".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^([0-9a-f]{2})+$", "maxLength": 2 * MAX_CURSOR_BYTES})
    }
}

/// The bytes that lower-case hex means.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect()
}

/// A place in a cluster; what is not known is left out. A seed that is nearer is better.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Location {
    /// The largest part that is told apart, a data centre or an availability zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Name>,
    /// A part of the zone that shares a switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<Name>,
    /// The machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Name>,
}

/// A string of its UTF-8 bytes, or `{"hex": …}` for bytes that are none.
impl Serialize for SeedKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Ok(text) = std::str::from_utf8(self.as_bytes()) {
            return serializer.serialize_str(text);
        }
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("hex", &hex(self.as_bytes()))?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for SeedKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrHex;
        impl<'de> Visitor<'de> for TextOrHex {
            type Value = SeedKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, or {\"hex\": \"…\"}")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<SeedKey, E> {
                SeedKey::new(text).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SeedKey, A::Error> {
                match map.next_key::<Cow<'de, str>>()? {
                    Some(key) if key == "hex" => {}
                    Some(key) => return Err(A::Error::unknown_field(&key, &["hex"])),
                    None => return Err(A::Error::missing_field("hex")),
                }
                let digits: String = map.next_value()?;
                if let Some(key) = map.next_key::<Cow<'de, str>>()? {
                    return Err(A::Error::unknown_field(&key, &["hex"]));
                }
                let bytes = unhex(&digits).ok_or_else(|| A::Error::custom(ValueError::Hex))?;
                SeedKey::new(bytes).map_err(A::Error::custom)
            }
        }
        deserializer.deserialize_any(TextOrHex)
    }
}

impl JsonSchema for SeedKey {
    fn schema_name() -> Cow<'static, str> {
        "SeedKey".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "What weights a seed holds: opaque bytes, compared exactly. A string stands for its \
                UTF-8 bytes; other bytes are written in hex. At most 8192 bytes.",
            "oneOf": [
                {"type": "string", "minLength": 1, "maxLength": MAX_SEED_KEY_BYTES},
                {
                    "type": "object",
                    "properties": {"hex": {
                        "type": "string", "pattern": "^([0-9a-f]{2})+$", "maxLength": 2 * MAX_SEED_KEY_BYTES
                    }},
                    "required": ["hex"],
                    "additionalProperties": false
                }
            ]
        })
    }
}

/// `host:port:rank`.
impl Serialize for SeedIdentity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SeedIdentity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for SeedIdentity {
    fn schema_name() -> Cow<'static, str> {
        "Seed".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A seed: host, port of its metadata service, and rank, joined with colons. An IPv6 \
                host stands in brackets. Of the forms of an address and a name each is taken, but for those that \
                resolvers read in different ways, and one is answered: that of RFC 5952, IPv4-mapped as IPv4, a \
                name in lower case without the dot at its end.",
            "type": "string",
            "pattern": "^[^ ]+:[1-9][0-9]{0,4}:(0|[1-9][0-9]{0,9})$",
            "maxLength": MAX_SEED_IDENTITY_BYTES,
            "examples": ["10.0.0.7:40123:3", "[fd00::7]:40123:0"]
        })
    }
}

/// The secret itself: what is made of this is for the wire, never for a log.
impl Serialize for LeaseId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.expose())
    }
}

impl<'de> Deserialize<'de> for LeaseId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl JsonSchema for LeaseId {
    fn schema_name() -> Cow<'static, str> {
        "LeaseId".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A lease: the right to read from one seed until it ends. A credential.",
            "type": "string",
            "pattern": "^[!-~]+$",
            "maxLength": MAX_LEASE_ID_BYTES
        })
    }
}
