//! Parameters as the database takes them: JSON text as it is, and the types of events that there may be.

use serde_json::value::RawValue;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo};
use sqlx::types::Json;
use sqlx::{Encode, Postgres, Type};

/// Of these types, those that an event may have. None has one with a NUL, which the database would refuse instead of finding nothing.
pub(super) fn types(types: &[String]) -> Vec<&str> {
    types.iter().map(String::as_str).filter(|name| !name.contains('\0')).collect()
}

/// A jsonb parameter. The text is copied as it is: nothing here looks into it.
pub(super) struct Jsonb<'a>(pub(super) &'a RawValue);

impl Type<Postgres> for Jsonb<'_> {
    fn type_info() -> PgTypeInfo {
        <Json<()> as Type<Postgres>>::type_info()
    }
}

impl PgHasArrayType for Jsonb<'_> {
    fn array_type_info() -> PgTypeInfo {
        <Json<()> as PgHasArrayType>::array_type_info()
    }
}

impl Encode<'_, Postgres> for Jsonb<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        // The version of jsonb's binary format, then the text.
        buffer.push(1);
        buffer.extend_from_slice(self.0.get().as_bytes());
        Ok(IsNull::No)
    }

    fn size_hint(&self) -> usize {
        self.0.get().len() + 1
    }
}
