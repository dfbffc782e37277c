//! The type of a field, as it is written: `Option<chrono::NaiveDate>`.

/// What is known without a path.
const KNOWN: &[&str] = &[
    "bool", "char", "f32", "f64", "i8", "i16", "i32", "i64", "i128", "isize", "u8", "u16", "u32", "u64",
    "u128", "usize", "Box", "Option", "String", "Uuid", "Vec",
];

/// Checks that a text is a type which is found where it is written: one that is always known, or one with its path.
pub(super) fn check(text: &str) -> Result<(), String> {
    let wrong = || format!("{text:?} is no type of Rust: write amount:u32");
    let spaceless: String = text.chars().filter(|c| *c != ' ').collect();
    let rest = read_type(&spaceless).ok_or_else(wrong)?;
    if !rest.is_empty() {
        return Err(wrong());
    }
    let is_part = |c: char| !"<>,".contains(c);
    let unknown = |path: &&str| !path.is_empty() && !path.contains("::") && !KNOWN.contains(path);
    match spaceless.split(|c| !is_part(c)).find(unknown) {
        None => Ok(()),
        Some(path) => Err(format!("say where {path} is, as in chrono::NaiveDate or crate::order::{path}")),
    }
}

/// Reads a type, and returns what is behind it.
fn read_type(text: &str) -> Option<&str> {
    let rest = read_path(text)?;
    let Some(mut rest) = rest.strip_prefix('<') else { return Some(rest) };
    loop {
        rest = read_type(rest)?;
        match rest.strip_prefix(',') {
            Some(next) => rest = next,
            None => return rest.strip_prefix('>'),
        }
    }
}

fn read_path(text: &str) -> Option<&str> {
    let rest = text.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic()) && rest.len() < text.len();
    match rest.strip_prefix("::") {
        _ if !begins => None,
        Some(next) => read_path(next),
        None => Some(rest),
    }
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn a_type_is_one_and_is_found() {
        for text in ["u32", "Option<String>", "Vec<Option<Uuid>>", "chrono::NaiveDate", "crate::order::Size"]
        {
            check(text).unwrap();
        }
        check("std::collections::BTreeMap<String, Vec<chrono::NaiveDate>>").unwrap();
        for text in ["", "u32}", "Vec<", "Vec<>", "Vec<u32>>", "a::", "::a", "a:b", "1", "Vec<u32", "a,b"] {
            assert!(check(text).unwrap_err().contains("no type of Rust"), "{text}");
        }
        for text in ["NaiveDate", "Option<NaiveDate>", "std::collections::BTreeMap<String, NaiveDate>"] {
            assert!(check(text).unwrap_err().contains("say where NaiveDate is"), "{text}");
        }
    }
}
