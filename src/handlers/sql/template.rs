//! SQL with places to fill in.
//!
//! `{{name}}` is replaced by a value. A section from a line `--{{if name}}` to a line `--{{end}}` is left out unless its
//! condition holds. Values are inserted as they are: what looks like a place in one of them stays text.

/// What a template is filled in with.
#[derive(Debug, Default)]
pub(super) struct Template<'t> {
    /// Values by the names of their places.
    pub(super) values: Vec<(&'t str, String)>,
    /// The conditions that hold.
    pub(super) conditions: Vec<&'t str>,
}

impl Template<'_> {
    /// The text with everything filled in.
    pub(super) fn fill(&self, text: &str) -> String {
        let mut filled = String::with_capacity(text.len() * 2);
        let mut is_wanted = true;
        for line in text.split_inclusive('\n') {
            match line.trim().strip_prefix("--{{").and_then(|mark| mark.strip_suffix("}}")) {
                Some("end") => is_wanted = true,
                Some(mark) if mark.starts_with("if ") => is_wanted = self.conditions.contains(&&mark[3..]),
                _ if is_wanted => self.fill_line(line, &mut filled),
                _ => {}
            }
        }
        filled
    }

    fn fill_line(&self, line: &str, filled: &mut String) {
        let mut rest = line;
        while let Some((before, name, behind)) = next_place(rest) {
            filled.push_str(before);
            let value = self.values.iter().find(|(known, _)| *known == name);
            debug_assert!(value.is_some(), "{name} is not filled in");
            filled.push_str(value.map_or("", |(_, value)| value));
            rest = behind;
        }
        filled.push_str(rest);
    }
}

/// What is before the first place, its name, and what is behind it.
fn next_place(text: &str) -> Option<(&str, &str, &str)> {
    let (before, from) = text.split_once("{{")?;
    let (name, behind) = from.split_once("}}")?;
    Some((before, name, behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_sections_are_filled_in_and_values_are_only_text() {
        let template = Template {
            values: vec![("a", "{{b}}".to_owned()), ("b", "2".to_owned())],
            conditions: vec!["wanted"],
        };
        let text = "select {{a}}, {{b}}\n  --{{if wanted}}\n  yes\n  --{{end}}\n--{{if not}}\nno\n--{{end}}\nlast {{b}}";
        assert_eq!(template.fill(text), "select {{b}}, 2\n  yes\nlast 2");
    }
}
