//! Reads values, those of JSON as they are, the texts of forms as what the fields are.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{self, DeserializeSeed, EnumAccess, IntoDeserializer, Unexpected, VariantAccess, Visitor};
use serde_json::{Map, Value};

use super::form;
use super::read_error::ReadError;

/// A value to be read.
#[derive(Clone, Copy)]
pub(super) struct Reader<'v> {
    pub(super) value: &'v Value,
    /// Whether texts are converted.
    pub(super) is_text: bool,
}

impl<'v> Reader<'v> {
    fn at(self, value: &'v Value) -> Self {
        Self { value, ..self }
    }

    /// The text, if texts are converted here.
    fn text(self) -> Option<&'v str> {
        self.value.as_str().filter(|_| self.is_text)
    }

    fn is_blank(self) -> bool {
        self.text().is_some_and(|text| text.trim().is_empty())
    }

    fn map<V: Visitor<'v>>(self, fields: &'v Map<String, Value>, visitor: V) -> Result<V::Value, ReadError> {
        let entries = fields.iter().map(move |(name, value)| (name.as_str(), self.at(value)));
        visitor.visit_map(MapDeserializer::new(entries))
    }

    fn seq<'s, V: Visitor<'v>>(
        self,
        values: impl Iterator<Item = &'v Value> + 's,
        visitor: V,
    ) -> Result<V::Value, ReadError>
    where
        'v: 's,
    {
        visitor.visit_seq(SeqDeserializer::new(values.map(move |value| self.at(value))))
    }

    /// A whole number that is written as a text.
    fn integer<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let Some(text) = self.text().map(str::trim) else {
            return if is_huge(self.value) { Err(out_of_range()) } else { self.deserialize(visitor) };
        };
        if text.is_empty() {
            return Err(missing());
        }
        let is_whole =
            text.strip_prefix(['+', '-']).unwrap_or(text).bytes().all(|byte| byte.is_ascii_digit());
        match (text.parse::<u64>(), text.parse::<i64>(), text.parse::<i128>()) {
            (Ok(number), _, _) => visitor.visit_u64(number),
            (_, Ok(number), _) => visitor.visit_i64(number),
            (_, _, Ok(number)) => visitor.visit_i128(number),
            _ if is_whole && text.len() > 1 => Err(out_of_range()),
            _ => Err(ReadError::new("integer", "must be a whole number")),
        }
    }

    fn number<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let Some(text) = self.text().map(str::trim) else { return self.deserialize(visitor) };
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => visitor.visit_f64(number),
            _ if text.is_empty() => Err(missing()),
            _ => Err(ReadError::new("number", "must be a number")),
        }
    }

    fn boolean<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let Some(text) = self.text().map(str::trim) else { return self.deserialize(visitor) };
        match text.to_ascii_lowercase().as_str() {
            "true" | "on" | "1" | "yes" => visitor.visit_bool(true),
            "false" | "off" | "0" | "no" => visitor.visit_bool(false),
            "" => Err(missing()),
            _ => Err(ReadError::new("boolean", "must be true or false")),
        }
    }

    /// Whatever the value is by itself.
    fn deserialize<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(is) => visitor.visit_bool(*is),
            Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(number), _, _) => visitor.visit_u64(number),
                (_, Some(number), _) => visitor.visit_i64(number),
                (_, _, number) => visitor.visit_f64(number.unwrap_or(f64::NAN)),
            },
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Array(values) => self.seq(values.iter(), visitor),
            Value::Object(fields) => self.map(fields, visitor),
        }
    }
}

/// Whether this is a number beyond all whole numbers that are read as such: JSON has it as a float.
fn is_huge(value: &Value) -> bool {
    const FIRST: f64 = 9_223_372_036_854_775_808.0;
    value.is_f64() && value.as_f64().is_some_and(|number| number.abs() >= FIRST)
}

fn out_of_range() -> ReadError {
    ReadError::new("integer_range", "is too large or too small")
}

/// There is an empty text where a value is asked for.
fn missing() -> ReadError {
    ReadError::new("missing", "is missing")
}

macro_rules! forward {
    ($to:ident: $($method:ident)*) => {
        $(fn $method<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, ReadError> { self.$to(visitor) })*
    };
}

impl<'v> de::Deserializer<'v> for Reader<'v> {
    type Error = ReadError;

    forward!(integer: deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128);
    forward!(number: deserialize_f32 deserialize_f64);
    forward!(boolean: deserialize_bool);
    forward!(deserialize: deserialize_char deserialize_str deserialize_string deserialize_bytes
        deserialize_byte_buf deserialize_identifier deserialize_map deserialize_ignored_any);

    fn deserialize_any<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.value {
            Value::Object(fields) if self.is_text && !fields.is_empty() && form::is_list(fields) => {
                self.deserialize_seq(visitor)
            }
            _ => self.deserialize(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, ReadError> {
        if self.value.is_null() || self.is_blank() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_unit<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, ReadError> {
        if self.is_blank() { visitor.visit_unit() } else { self.deserialize(visitor) }
    }

    fn deserialize_unit_struct<V: Visitor<'v>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'v>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.value {
            Value::Object(fields) if self.is_text && form::is_list(fields) => {
                self.seq(form::in_order(fields).into_iter().map(|(_, value)| value), visitor)
            }
            Value::String(_) if self.is_blank() => self.seq(std::iter::empty(), visitor),
            Value::String(_) if self.is_text => self.seq(std::iter::once(self.value), visitor),
            _ => self.deserialize(visitor),
        }
    }

    fn deserialize_tuple<V: Visitor<'v>>(self, _: usize, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'v>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_struct<V: Visitor<'v>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        match self.value {
            Value::Object(fields) => self.map(fields, visitor),
            _ => Err(de::Error::invalid_type(Unexpected::Other("value"), &"an object")),
        }
    }

    fn deserialize_enum<V: Visitor<'v>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        match self.value {
            Value::String(name) => visitor.visit_enum(Variant { name, content: None }),
            Value::Object(fields) => match fields.iter().next().filter(|_| fields.len() == 1) {
                Some((name, value)) => visitor.visit_enum(Variant { name, content: Some(self.at(value)) }),
                None => {
                    Err(de::Error::invalid_type(Unexpected::Map, &"the name of a variant with its content"))
                }
            },
            _ => Err(de::Error::invalid_type(Unexpected::Other("value"), &"the name of a variant")),
        }
    }
}

impl<'v> IntoDeserializer<'v, ReadError> for Reader<'v> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// A variant, with what it has.
struct Variant<'v> {
    name: &'v str,
    content: Option<Reader<'v>>,
}

impl<'v> EnumAccess<'v> for Variant<'v> {
    type Error = ReadError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'v>>(self, seed: V) -> Result<(V::Value, Self), ReadError> {
        let name: serde::de::value::BorrowedStrDeserializer<'v, ReadError> =
            serde::de::value::BorrowedStrDeserializer::new(self.name);
        seed.deserialize(name).map(|variant| (variant, self))
    }
}

impl<'v> Variant<'v> {
    fn content(self) -> Result<Reader<'v>, ReadError> {
        self.content
            .ok_or_else(|| de::Error::invalid_type(Unexpected::UnitVariant, &"a variant with its content"))
    }
}

impl<'v> VariantAccess<'v> for Variant<'v> {
    type Error = ReadError;

    fn unit_variant(self) -> Result<(), ReadError> {
        self.content.map_or(Ok(()), serde::Deserialize::deserialize)
    }

    fn newtype_variant_seed<T: DeserializeSeed<'v>>(self, seed: T) -> Result<T::Value, ReadError> {
        seed.deserialize(self.content()?)
    }

    fn tuple_variant<V: Visitor<'v>>(self, _: usize, visitor: V) -> Result<V::Value, ReadError> {
        de::Deserializer::deserialize_seq(self.content()?, visitor)
    }

    fn struct_variant<V: Visitor<'v>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.content()?.deserialize(visitor)
    }
}
