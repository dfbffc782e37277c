//! JSON that is read as what it was written from, or is not written.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};

/// The value as JSON, which can be read as its type again.
///
/// # Errors
/// It cannot be written, or could not be read. What is stored stays, so whoever finds out later is stuck.
pub(crate) fn to_readable_json<T: Serialize + DeserializeOwned>(
    value: &T,
) -> Result<Box<RawValue>, serde_json::Error> {
    let json = to_raw_value(value)?;
    match serde_json::from_str::<T>(json.get()) {
        Ok(_) => Ok(json),
        Err(error) => Err(unreadable(&error)),
    }
}

/// Why something that can be written is not kept.
pub(crate) fn unreadable(error: &serde_json::Error) -> serde_json::Error {
    serde::ser::Error::custom(format!("it could not be read again: {error}"))
}
