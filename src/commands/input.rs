//! What came in: the fields of a command, not yet read.

mod conversion;
mod form;
mod json;
mod place;
mod read_error;
mod reading;

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use validator::Validate;

use super::CommandError;
use place::Place;

/// The fields of a command, as JSON or as a form has them.
///
/// ```
/// use espd::commands::Input;
/// use validator::Validate;
///
/// #[derive(Debug, PartialEq, serde::Deserialize, Validate)]
/// struct Order {
///     #[validate(nested, length(min = 1))]
///     items: Vec<Item>,
///     is_gift: bool,
///     note: Option<String>,
/// }
///
/// #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize, Validate)]
/// struct Item {
///     #[validate(length(min = 2))]
///     name: String,
///     amount: u32,
/// }
///
/// let form = [("items[0][name]", "tea"), ("items[0][amount]", "12"), ("is_gift", "on"), ("note", "")];
/// let order: Order = Input::form(form)?.read().unwrap();
/// assert_eq!(order, Order { items: vec![Item { name: "tea".into(), amount: 12 }], is_gift: true, note: None });
///
/// let errors = Input::form([("items.0.name", "x"), ("items.0.amount", "many")])?.read::<Order>().unwrap_err();
/// let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
/// assert_eq!(shown, ["items[0].amount: must be a whole number", "is_gift: is missing", "items[0].name: must have a length of at least 2"]);
/// # Ok::<(), espd::commands::CommandError>(())
/// ```
#[derive(Clone)]
pub struct Input {
    value: Value,
    /// Whether every value is a text, which is converted to what the field is.
    is_text: bool,
}

impl Input {
    /// The fields of a JSON object.
    ///
    /// # Errors
    /// The text is no JSON: the code is `json`. A field is there twice: `duplicate`.
    pub fn json(text: impl AsRef<[u8]>) -> Result<Self, CommandError> {
        json::parse(text.as_ref()).map(Self::value)
    }

    /// The fields of a JSON object that is parsed already.
    pub fn value(value: Value) -> Self {
        Self { value, is_text: false }
    }

    /// The fields of a form: names and texts. `address[street]` and `address.street` name a field of a field, `items[0][name]` one of an element
    /// of a list, `tags[]`, or a name that comes twice, the next element. Texts become what the fields are: numbers, `on`, `true`, `1` and `yes` for true, dates
    /// as ISO 8601 writes them; an empty one becomes nothing where the field is optional, and an empty list where it is a list.
    ///
    /// # Errors
    /// A name cannot be understood (`field_name`), or there are too many (`too_many_fields`).
    pub fn form(
        fields: impl IntoIterator<Item = (impl AsRef<str>, impl Into<String>)>,
    ) -> Result<Self, CommandError> {
        form::tree(fields).map(|value| Self { value, is_text: true })
    }

    /// The same from the body of a request, or the query of a URL: `application/x-www-form-urlencoded`.
    ///
    /// # Errors
    /// As [`Self::form`]; `encoding`: it is not UTF-8.
    pub fn form_encoded(body: impl AsRef<[u8]>) -> Result<Self, CommandError> {
        form::require_utf8(body.as_ref())?;
        Self::form(form_urlencoded::parse(body.as_ref()))
    }

    /// The same with another field, for example the id that the path of a URL has. It counts, and not what was sent under this name.
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        if !self.value.is_object() {
            self.value = Value::Object(serde_json::Map::new());
        }
        if let Some(fields) = self.value.as_object_mut() {
            fields.insert(field.to_owned(), value.into());
        }
        self
    }

    /// Reads and validates: a command, or anything else.
    ///
    /// # Errors
    /// All that is wrong: fields that cannot be read first, then what the rules say about the others.
    pub fn read<T: DeserializeOwned + Validate>(self) -> Result<T, Vec<CommandError>> {
        reading::read(self.value, self.is_text)
    }
}

impl From<Value> for Input {
    fn from(value: Value) -> Self {
        Self::value(value)
    }
}

/// It shows the names of the fields only: their values may be secrets.
impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&String> =
            self.value.as_object().into_iter().flat_map(serde_json::Map::keys).collect();
        f.debug_struct("Input").field("fields", &names).field("is_text", &self.is_text).finish()
    }
}

/// What the rules say about a command.
pub(super) fn validate(command: &impl Validate) -> Result<(), Vec<CommandError>> {
    command.validate().map_err(|errors| super::fault::found(&errors))
}

/// The command as JSON, as it is recorded.
pub(super) fn to_json(command: &impl Serialize) -> Result<Value, serde_json::Error> {
    serde_json::to_value(command)
}
