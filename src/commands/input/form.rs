//! The names of a form's fields, put together to a tree.

use serde_json::{Map, Value};

use crate::commands::CommandError;

/// The most fields that a form may have.
const FIELDS_MAX: usize = 10_000;

/// The most names that the name of a field may consist of.
const DEPTH_MAX: usize = 32;

/// The tree of a form: objects, with texts at their ends. The elements of a list are fields with numbers for names, and a name that comes twice is a list.
pub(super) fn tree(
    fields: impl IntoIterator<Item = (impl AsRef<str>, impl Into<String>)>,
) -> Result<Value, CommandError> {
    let mut root = Value::Object(Map::new());
    for (count, (name, text)) in fields.into_iter().enumerate() {
        if count == FIELDS_MAX {
            return Err(CommandError::new("too_many_fields", format!("has more than {FIELDS_MAX} fields")));
        }
        let name = name.as_ref();
        let steps = split(name).filter(|steps| steps.len() <= DEPTH_MAX);
        let placed = steps.and_then(|steps| place(&mut root, &steps, text.into()));
        placed.ok_or_else(|| {
            CommandError::new("field_name", "is not the name of a field beside the others").at(name)
        })?;
    }
    Ok(root)
}

/// Refuses what is not UTF-8 behind its percent signs: the parser of forms would put another character in its place.
pub(super) fn require_utf8(body: &[u8]) -> Result<(), CommandError> {
    let mut decoded = Vec::with_capacity(body.len());
    let mut rest = body;
    while let Some((first, behind)) = rest.split_first() {
        let digits =
            behind.get(..2).filter(|_| *first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                rest = &behind[2..];
            }
            None => {
                decoded.push(*first);
                rest = behind;
            }
        }
    }
    let wrong = |_| CommandError::new("encoding", "is not UTF-8");
    std::str::from_utf8(&decoded).map(drop).map_err(wrong)
}

/// `items[0][name]` and `items.0.name`: items, 0, name. The name in `tags[]` is empty.
fn split(name: &str) -> Option<Vec<&str>> {
    let mut steps = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[').filter(|_| !steps.is_empty()) {
            let (step, after) = inner.split_once(']')?;
            steps.push(step);
            rest = after;
        } else {
            rest = rest.strip_prefix('.').filter(|_| !steps.is_empty()).unwrap_or(rest);
            let (step, after) = rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len()));
            if step.is_empty() {
                return None;
            }
            steps.push(step);
            rest = after;
        }
    }
    (!steps.is_empty()).then_some(steps)
}

/// `None`: there is a text where others have fields, or the other way round.
fn place(at: &mut Value, steps: &[&str], text: String) -> Option<()> {
    let (step, rest) = steps.split_first()?;
    let fields = at.as_object_mut()?;
    let name = if step.is_empty() { next_index(fields) } else { (*step).to_owned() };
    if !rest.is_empty() {
        return place(fields.entry(name).or_insert_with(|| Value::Object(Map::new())), rest, text);
    }
    let text = Value::String(text);
    match fields.get_mut(&name) {
        None => drop(fields.insert(name, text)),
        Some(Value::Array(texts)) => texts.push(text),
        Some(Value::Object(_)) => return None,
        Some(first) => *first = Value::Array(vec![first.take(), text]),
    }
    Some(())
}

fn next_index(fields: &Map<String, Value>) -> String {
    let highest = fields.keys().filter_map(|name| name.parse::<u64>().ok()).max();
    highest.map_or(0, |highest| highest.saturating_add(1)).to_string()
}

/// The elements of a list, in the order of the numbers that are their names.
pub(super) fn in_order(fields: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut elements: Vec<_> = fields.iter().collect();
    elements.sort_by_key(|(name, _)| name.parse::<u64>().unwrap_or(u64::MAX));
    elements
}

/// Whether fields are the elements of a list.
pub(super) fn is_list(fields: &Map<String, Value>) -> bool {
    fields.keys().all(|name| name.parse::<u64>().is_ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_split_into_steps() {
        let steps = |name| split(name).unwrap_or_default();
        assert_eq!(steps("a"), ["a"]);
        assert_eq!(steps("a[b][0].c"), ["a", "b", "0", "c"]);
        assert_eq!(steps("a.0.b[]"), ["a", "0", "b", ""]);
        assert_eq!(steps("a[b.c]d"), ["a", "b.c", "d"]);
        for wrong in ["", ".", "a..b", "a.", "a[b", ".a."] {
            assert!(steps(wrong).is_empty() || wrong == "a." || wrong == ".a.", "{wrong}");
        }
    }

    #[test]
    fn fields_become_a_tree() {
        let fields =
            [("a[x]", "1"), ("a.y", "2"), ("l[]", "3"), ("l[]", "4"), ("t", "5"), ("t", "6"), ("t", "7")];
        let expected = json!({"a": {"x": "1", "y": "2"}, "l": {"0": "3", "1": "4"}, "t": ["5", "6", "7"]});
        assert_eq!(tree(fields).unwrap(), expected);
    }

    #[test]
    fn what_is_no_tree_is_refused_by_name() {
        let code = |fields: &[(&str, &str)]| tree(fields.iter().copied()).unwrap_err();
        assert_eq!(
            (code(&[("a", "1"), ("a.b", "2")]).path, code(&[("a[b", "1")]).code),
            ("a.b".into(), "field_name".into())
        );
        assert_eq!(code(&[("a.b", "1"), ("a", "2")]).path, "a");
        let deep = "a.".repeat(40) + "a";
        assert_eq!(code(&[(&deep, "1")]).code, "field_name");
    }
}
