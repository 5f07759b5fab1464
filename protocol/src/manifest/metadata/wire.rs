//! The JSON itself, field for field: what is read ([`InfoDocument`]) and what is served ([`Served`]).

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, SerializeTuple};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::super::{MAX_DIMENSIONS, MAX_NAME_BYTES, MAX_TENSORS, Tensor};
use super::EntryFields;

// What is read.

#[derive(Deserialize)]
#[allow(clippy::struct_field_names)] // The protocol's names.
pub(super) struct InfoDocument<'a> {
    #[serde(default)]
    pub(super) rfork_protocol_version: Option<u64>,
    #[serde(default)]
    pub(super) rfork_transfer_engine_info: Option<InfoIn>,
    #[serde(default)]
    #[serde(borrow)]
    pub(super) rfork_transfer_engine_shape_info: Option<Named<'a, Shape>>,
    #[serde(default)]
    #[serde(borrow)]
    pub(super) rfork_transfer_engine_format_info: Option<Named<'a, i64>>,
    #[serde(default)]
    #[serde(borrow)]
    pub(super) rfork_rs: Option<ExtensionIn<'a>>,
}

#[derive(Deserialize)]
pub(super) struct ShapesIn<'a> {
    #[serde(default)]
    #[serde(borrow)]
    pub(super) rfork_transfer_engine_shape_info: Option<Named<'a, Shape>>,
}

#[derive(Deserialize)]
pub(super) struct InfoIn(pub(super) String, pub(super) EntriesIn);

#[derive(Deserialize)]
pub(super) struct ExtensionIn<'a> {
    pub(super) engine: String,
    #[serde(default)]
    pub(super) engine_version: Option<String>,
    #[serde(default)]
    pub(super) content_id: Option<String>,
    #[serde(default)]
    pub(super) origin: Option<String>,
    pub(super) digest_algorithm: String,
    pub(super) chunk_bytes: u64,
    #[serde(default)]
    pub(super) chunk_digests: Option<String>,
    #[serde(default)]
    #[serde(borrow)]
    pub(super) dtypes: Option<Named<'a, String>>,
}

/// A name that is the text's own bytes, unless it has escapes: a manifest names each tensor several times.
pub(super) struct Name<'a>(pub(super) Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a tensor's name")
            }
            fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<Name<'de>, E> {
                bounded(text).map(|text| Name(Cow::Borrowed(text)))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Name<'de>, E> {
                bounded(text).map(|text| Name(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// A name no longer than a tensor's may be.
fn bounded<E: serde::de::Error>(name: &str) -> Result<&str, E> {
    if name.len() > MAX_NAME_BYTES {
        return Err(E::custom(format_args!("a name has more than {MAX_NAME_BYTES} bytes")));
    }
    Ok(name)
}

/// A tensor's dimensions, no more than it may have: two bytes of text are one number of eight.
pub(super) struct Shape(pub(super) Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dimensions;
        impl<'de> Visitor<'de> for Dimensions {
            type Value = Shape;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a tensor's dimensions")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut dimensions: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(dimension) = dimensions.next_element()? {
                    if shape.len() == MAX_DIMENSIONS {
                        return Err(A::Error::custom(format_args!(
                            "a shape has more than {MAX_DIMENSIONS} dimensions"
                        )));
                    }
                    shape.push(dimension);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(Dimensions)
    }
}

/// A JSON object as a list, so that a name that stands twice is seen.
pub(super) struct Named<'a, T>(pub(super) Vec<(Name<'a>, T)>);

impl<'de: 'a, 'a, T: Deserialize<'de>> Deserialize<'de> for Named<'a, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        members(deserializer, |name, value| (name, value)).map(Self)
    }
}

/// The tensors of an info object, unsorted.
pub(super) struct EntriesIn(pub(super) Vec<Tensor>);

impl<'de> Deserialize<'de> for EntriesIn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let tensor = |name: Name<'de>, entry: EntryIn| Tensor { name: name.0.into_owned(), ..entry.0 };
        members(deserializer, tensor).map(Self)
    }
}

/// What `make` makes of each member of an object, which has no more than there may be tensors.
fn members<'de, D: Deserializer<'de>, T: Deserialize<'de>, U>(
    deserializer: D,
    make: impl Fn(Name<'de>, T) -> U,
) -> Result<Vec<U>, D::Error> {
    struct Members<T, F>(F, PhantomData<T>);
    impl<'de, T: Deserialize<'de>, U, F: Fn(Name<'de>, T) -> U> Visitor<'de> for Members<T, F> {
        type Value = Vec<U>;
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("an object with a member for each tensor")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<U>, A::Error> {
            let mut made = Vec::new();
            while let Some((name, value)) = map.next_entry()? {
                // Said before the next is read: what is refused later has taken its memory by then.
                if made.len() == MAX_TENSORS {
                    return Err(A::Error::custom(format_args!("it lists more than {MAX_TENSORS} tensors")));
                }
                made.push(self.0(name, value));
            }
            Ok(made)
        }
    }
    deserializer.deserialize_map(Members(make, PhantomData))
}

/// One entry of three to five fields; its name is still empty.
struct EntryIn(Tensor);

impl<'de> Deserialize<'de> for EntryIn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = EntryIn;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("[address, count, element size], with shape and dtype at most")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut fields: A) -> Result<EntryIn, A::Error> {
                let required = |field: Option<u64>, at| {
                    field.ok_or_else(|| A::Error::invalid_length(at, &"at least 3 fields"))
                };
                let address = required(fields.next_element()?, 0)?;
                let count = required(fields.next_element()?, 1)?;
                let element_bytes = required(fields.next_element()?, 2)?;
                let shape = fields.next_element::<Option<Shape>>()?.flatten().map(|shape| shape.0);
                let dtype = fields.next_element()?.flatten();
                if fields.next_element::<serde::de::IgnoredAny>()?.is_some() {
                    return Err(A::Error::custom("an entry has more than 5 fields"));
                }
                let name = String::new();
                Ok(EntryIn(Tensor { name, address, count, element_bytes, shape, dtype, format: None }))
            }
        }
        deserializer.deserialize_seq(Fields)
    }
}

// What is served.

#[derive(Serialize)]
#[allow(clippy::struct_field_names)] // The protocol's names.
pub(super) struct Served<'a> {
    pub(super) rfork_protocol_version: u64,
    pub(super) rfork_transfer_engine_info: Option<(&'a str, EntriesOut<'a>)>,
    pub(super) rfork_transfer_engine_shape_info: Option<ShapesOut<'a>>,
    pub(super) rfork_transfer_engine_format_info: Option<FormatsOut<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rfork_rs: Option<ExtensionOut<'a>>,
}

#[derive(Serialize)]
pub(super) struct ExtensionOut<'a> {
    pub(super) engine: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) engine_version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) origin: Option<String>,
    pub(super) digest_algorithm: &'a str,
    pub(super) chunk_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) chunk_digests: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dtypes: Option<DtypesOut<'a>>,
}

pub(super) struct EntriesOut<'a> {
    pub(super) tensors: &'a [Tensor],
    pub(super) fields: EntryFields,
}

impl Serialize for EntriesOut<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.tensors.iter().map(|t| (&t.name, EntryOut(t, self.fields))))
    }
}

struct EntryOut<'a>(&'a Tensor, EntryFields);

impl Serialize for EntryOut<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(tensor, fields) = self;
        let mut entry = serializer.serialize_tuple(if *fields == EntryFields::Three { 3 } else { 5 })?;
        entry.serialize_element(&tensor.address)?;
        entry.serialize_element(&tensor.count)?;
        entry.serialize_element(&tensor.element_bytes)?;
        if *fields == EntryFields::Five {
            entry.serialize_element(&tensor.shape)?;
            entry.serialize_element(&tensor.dtype)?;
        }
        entry.end()
    }
}

/// Declares a map from tensor names to one of their properties, leaving out what is not known.
macro_rules! property_map {
    ($name:ident, $property:ident) => {
        pub(super) struct $name<'a>(pub(super) &'a [Tensor]);
        impl Serialize for $name<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut map = serializer.serialize_map(None)?;
                for tensor in self.0 {
                    if let Some(value) = &tensor.$property {
                        map.serialize_entry(&tensor.name, value)?;
                    }
                }
                map.end()
            }
        }
    };
}
property_map!(ShapesOut, shape);
property_map!(FormatsOut, format);
property_map!(DtypesOut, dtype);
