//! Texts of a declaration that are never shown, also where somebody else repeats them.

use std::fmt;

/// What is shown in the place of a secret.
pub(super) const HIDDEN: &str = "***";

/// What follows a text that was cut.
const CUT: &str = " …";

/// Words that are no secrets, and would be found everywhere.
const WORDS: [&str; 2] = ["true", "false"];

/// Texts that must not be shown.
#[derive(Clone, Default)]
pub(crate) struct HiddenTexts(Vec<String>);

impl HiddenTexts {
    /// A text shorter than four characters is no secret, and would be found everywhere.
    pub(super) fn new(mut texts: Vec<String>) -> Self {
        texts.retain(|text| text.len() >= 4 && !WORDS.contains(&text.as_str()));
        // A text may be a part of another one.
        texts.sort_by(|one, other| other.len().cmp(&one.len()).then_with(|| one.cmp(other)));
        texts.dedup();
        Self(texts)
    }

    /// Returns a text without them. It has to be a complete one: of what was cut in two, the halves are not recognized.
    pub(crate) fn conceal(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, hidden| text.replace(hidden, HIDDEN))
    }

    /// Returns an excerpt without them. Where it was cut, which ` …` shows, or ends, what may be the beginning of one is hidden as well.
    pub(crate) fn conceal_excerpt(&self, excerpt: &str) -> String {
        // The end first: of two that begin alike, the shorter one would be found in the beginning of the longer one.
        let excerpt = match excerpt.rsplit_once(CUT) {
            Some((before, after)) => format!("{}{CUT}{after}", self.conceal_end(before)),
            None => self.conceal_end(excerpt),
        };
        self.conceal(&excerpt)
    }

    /// The text, without an end that is the beginning of one of them.
    fn conceal_end(&self, text: &str) -> String {
        let begun = |hidden: &String| {
            let mut ends = (4..hidden.len()).rev().filter(|end| hidden.is_char_boundary(*end));
            ends.find(|end| text.ends_with(&hidden[..*end]))
        };
        match self.0.iter().filter_map(begun).max() {
            Some(length) => format!("{}{HIDDEN}", &text[..text.len() - length]),
            None => text.to_owned(),
        }
    }
}

impl fmt::Debug for HiddenTexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HiddenTexts({})", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_hidden_also_where_it_is_cut() {
        let hidden =
            HiddenTexts::new(["hunter2secret", "hunter2", "abc", "true"].map(str::to_owned).to_vec());
        for (text, shown) in
            [("401 for hunter2secret, not hunter2", "401 for ***, not ***"), ("abc is true", "abc is true")]
        {
            assert_eq!(
                (hidden.conceal(text), hidden.conceal_excerpt(text)),
                (shown.to_owned(), shown.to_owned())
            );
        }
        for (text, shown) in [
            ("401 for hunte", "401 for ***"),
            ("401 for hunter2secr …", "401 for *** …"),
            ("401 for hun …", "401 for hun …"),
            ("", ""),
        ] {
            assert_eq!(hidden.conceal_excerpt(text), shown);
        }
    }
}
