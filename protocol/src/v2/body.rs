//! A request's body: JSON bytes to a checked type, or which field is wrong and why.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::Name;
use crate::manifest::content::Origin;
use crate::shown::Shown;

/// A body that is not the request that the route takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Not JSON.
    #[error("the body is not JSON: {reason}")]
    NotJson {
        /// What is wrong, and where.
        reason: String,
    },
    /// JSON, but not an object with the right fields.
    #[error("{field}: {reason}")]
    Invalid {
        /// The path of the field, such as `seeds[3].seed_key`; `.` for the body itself.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads a request.
///
/// # Errors
/// [`BodyError`], which names the field at fault.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, BodyError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let Object(request) = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| refusal(&error.path().to_string(), error.inner()))?;
    json.end().map_err(|error| refusal(".", &error))?;
    Ok(request)
}

fn refusal(field: &str, error: &serde_json::Error) -> BodyError {
    // The client's own texts appear in both, and may be long.
    let field = Shown::within(field, 200).to_string();
    let reason = Shown::within(error, 300).to_string();
    if error.is_data() { BodyError::Invalid { field, reason } } else { BodyError::NotJson { reason } }
}

/// A struct that is read from an object only; serde would take its fields in order from an array as well.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfObject<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OfObject<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(OfObject(PhantomData))
    }
}

/// An optional object.
pub(super) fn object<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|Object(object)| object))
}

/// An object that has to be there.
pub(super) fn needed_object<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Object::deserialize(deserializer).map(|Object(object)| object)
}

/// What names bytes that have no content id.
pub(super) fn origin<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Name>, D::Error> {
    let name = Option::<Name>::deserialize(deserializer)?;
    match name.as_ref().map(|name| name.as_str().parse::<Origin>()) {
        Some(Err(error)) => Err(D::Error::custom(error)),
        _ => Ok(name),
    }
}

/// A list of `LEAST` to `MOST` objects.
pub(super) fn objects<'de, const LEAST: usize, const MOST: usize, D, T>(
    deserializer: D,
) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let objects: Vec<Object<T>> = list::<LEAST, MOST, D, Object<T>>(deserializer)?;
    Ok(objects.into_iter().map(|Object(object)| object).collect())
}

/// A list of `LEAST` to `MOST` values. What is too long is refused before it is read to its end.
pub(super) fn list<'de, const LEAST: usize, const MOST: usize, D, T>(
    deserializer: D,
) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Bounded<T, const LEAST: usize, const MOST: usize>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>, const LEAST: usize, const MOST: usize> Visitor<'de>
        for Bounded<T, LEAST, MOST>
    {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of {LEAST} to {MOST}")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<T>, A::Error> {
            let mut values = Vec::new();
            while let Some(value) = sequence.next_element()? {
                if values.len() == MOST {
                    return Err(A::Error::invalid_length(MOST + 1, &self));
                }
                values.push(value);
            }
            if values.len() < LEAST {
                return Err(A::Error::invalid_length(values.len(), &self));
            }
            Ok(values)
        }
    }
    deserializer.deserialize_seq(Bounded::<T, LEAST, MOST>(PhantomData))
}
