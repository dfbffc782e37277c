//! Where a value is in what came in.

use std::fmt;

use serde_json::Value;
use serde_path_to_error::{Path, Segment};

/// The way to a value from the whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Field(String),
    Index(usize),
    /// Within something that is read in one piece.
    Unknown,
}

impl Place {
    /// The place that a reader was at.
    pub(super) fn of(path: &Path) -> Self {
        let step = |segment: &Segment| match segment {
            Segment::Seq { index } => Step::Index(*index),
            Segment::Map { key } | Segment::Enum { variant: key } => Step::Field(key.clone()),
            Segment::Unknown => Step::Unknown,
        };
        Self(path.iter().map(step).collect())
    }

    /// A field of what is here. A reader that is at the field already stays.
    pub(super) fn field(mut self, name: &str) -> Self {
        let field = Step::Field(name.to_owned());
        if self.0.last() != Some(&field) {
            self.0.push(field);
        }
        self
    }

    /// Puts a value here. Returns whether there is such a place.
    pub(super) fn put(&self, root: &mut Value, value: Value) -> bool {
        let Some((last, way)) = self.0.split_last() else {
            *root = value;
            return true;
        };
        match (way.iter().try_fold(root, |at, step| enter(at, step)), last) {
            (Some(Value::Object(fields)), Step::Field(name)) => {
                fields.insert(name.clone(), value);
                true
            }
            (Some(at), step) => enter(at, step).map(|at| *at = value).is_some(),
            (None, _) => false,
        }
    }

    /// Takes the field that is here away. Returns whether there was one.
    pub(super) fn remove(&self, root: &mut Value) -> bool {
        let Some((Step::Field(name), way)) = self.0.split_last() else { return false };
        let parent = way.iter().try_fold(root, |at, step| enter(at, step));
        parent.and_then(Value::as_object_mut).is_some_and(|fields| fields.remove(name).is_some())
    }

    /// Whether this is the whole.
    pub(super) fn is_root(&self) -> bool {
        self.0.is_empty()
    }
}

fn enter<'v>(at: &'v mut Value, step: &Step) -> Option<&'v mut Value> {
    match (at, step) {
        (Value::Object(fields), Step::Field(name)) => fields.get_mut(name),
        (Value::Array(items), Step::Index(index)) => items.get_mut(*index),
        // A list of a form: its elements are named by numbers.
        (Value::Object(fields), Step::Index(index)) => {
            let name = super::form::in_order(fields).get(*index).map(|(name, _)| (*name).clone())?;
            fields.get_mut(&name)
        }
        // A list of one, which is written without an index.
        (only, Step::Index(0)) => Some(only),
        _ => None,
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, step) in self.0.iter().enumerate() {
            let dot = if n == 0 { "" } else { "." };
            match step {
                Step::Field(name) => write!(f, "{dot}{name}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Unknown => write!(f, "{dot}?")?,
            }
        }
        Ok(())
    }
}
