//! What `ddl` of the serving version has made and that of another one does not.

use crate::postgres::source_text::SourceText;

/// Beginnings of statements whose loss changes nothing of what is read.
const UNREAD: [&str; 5] =
    ["create index ", "create unique index ", "create statistics ", "comment on ", "analyze "];

/// How much of a statement is shown.
const SHOWN: usize = 60;

/// The statements of `former` that `present` lacks, each by its beginning. An index is not one of them, nor what else nobody reads.
pub(crate) fn list_lost(former: &[SourceText], present: &[SourceText]) -> Vec<String> {
    let of = |ddl: &[SourceText]| -> Vec<String> {
        ddl.iter().map(|statement| on_one_line(&statement.text)).collect()
    };
    let present = of(present);
    let is_read = |statement: &String| {
        let lower = statement.to_lowercase();
        !UNREAD.iter().any(|beginning| lower.starts_with(beginning))
    };
    let lost = of(former).into_iter().filter(|statement| !present.contains(statement) && is_read(statement));
    lost.map(|statement| begin(&statement)).collect()
}

/// As a part of a sentence.
pub(crate) fn describe_lost(statement: &str) -> String {
    format!("what `{statement}` has made would be gone, or another")
}

fn on_one_line(statement: &str) -> String {
    let words: Vec<&str> = statement.split_whitespace().collect();
    words.join(" ").trim_end_matches([';', ' ']).to_owned()
}

fn begin(statement: &str) -> String {
    match statement.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &statement[..end]),
        None => statement.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    fn declared(ddl: &[&str]) -> Vec<SourceText> {
        ddl.iter().map(|text| SourceText::unplaced(text)).collect()
    }

    #[test]
    fn what_was_made_and_is_not_made_any_more_is_told_and_indexes_are_not() {
        let former = declared(&[
            "create view a as\n  select 1;",
            "CREATE INDEX i on t (a)",
            "create function f(n int) returns int language sql as 'select n, and so on for very long'",
        ]);
        assert_eq!(list_lost(&former, &former), [""; 0]);
        let present = declared(&["create view  a as select 1", "create view b as select 2"]);
        let lost = list_lost(&former, &present);
        assert_eq!(lost, ["create function f(n int) returns int language sql as 'select…"]);
    }
}
