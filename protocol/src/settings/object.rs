//! A JSON object of settings, and where each of them stands in its file.

use serde::Deserializer;
use serde::de::{Error, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

/// A text or a value that is no object of settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadObject {
    /// It is not JSON.
    #[error("is not JSON: {0}")]
    Syntax(String),
    /// It is something else in JSON.
    #[error("must be a JSON object, as {{\"model_url\": \"/models/m\"}}")]
    NotAnObject,
}

/// Settings by name, as people have written them in JSON.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    fields: Map<String, Value>,
    file: Option<File>,
}

#[derive(Debug, Clone, PartialEq)]
struct File {
    path: String,
    text: String,
}

impl Object {
    /// That of a file, which messages name by its path.
    ///
    /// # Errors
    /// [`BadObject`], with the line.
    pub fn parse(path: String, text: String) -> Result<Self, BadObject> {
        let value = serde_json::from_str(&text).map_err(|error| BadObject::Syntax(error.to_string()))?;
        let Value::Object(fields) = value else { return Err(BadObject::NotAnObject) };
        Ok(Self { fields, file: Some(File { path, text }) })
    }

    /// One that a program made.
    ///
    /// # Errors
    /// [`BadObject::NotAnObject`].
    pub fn from_value(value: &Value) -> Result<Self, BadObject> {
        let fields = value.as_object().ok_or(BadObject::NotAnObject)?.clone();
        Ok(Self { fields, file: None })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.fields.get(name)
    }

    /// How messages call a field: by its name, after the line where it stands if there is a file.
    pub(super) fn place(&self, name: &str) -> String {
        match &self.file {
            Some(File { path, text }) => format!("{path} line {}: {name}", line_of(name, text)),
            None => name.to_owned(),
        }
    }
}

/// The line of a field in an object's text; 0 if it is not there.
fn line_of(name: &str, text: &str) -> usize {
    let stopped = serde_json::Deserializer::from_str(text).deserialize_map(Until(name));
    stopped.map_or_else(|error| error.line(), |()| 0)
}

/// Reads an object up to a field, and fails there: the reader then tells the line.
struct Until<'a>(&'a str);

impl<'de> Visitor<'de> for Until<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if name == self.0 {
                return Err(A::Error::custom("here"));
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}
