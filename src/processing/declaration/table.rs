//! A table declaration says what a processor's table is created from.

use serde::{Deserialize, Serialize};

use super::SourceText;
use crate::postgres::lexer::{self, Token, TokenKind};
use crate::postgres::quote::quote_literal;

/// A table that a processor owns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableDeclaration {
    /// Unique among the tables of all processors: `[a-z_][a-z0-9_]{0,47}`.
    pub name: String,
    /// The text between the parentheses of `create table`; or, with the parentheses, all that stands behind the name. The
    /// word `unlogged` may stand before the parentheses.
    pub columns: SourceText,
    /// What stands behind the parentheses, such as `partition by range (day)` or `with (fillfactor = 70)`. The word
    /// `unlogged` may come first.
    #[serde(default)]
    pub options: Option<SourceText>,
    /// The comment on the table.
    #[serde(default)]
    pub comment: Option<String>,
}

/// A statement that creates a table.
pub(crate) struct CreateTable<'t> {
    pub(crate) statement: String,
    /// The declared texts in it, each with the byte offset at which it stands there, in ascending order.
    pub(crate) places: Vec<(usize, &'t SourceText)>,
}

/// Says that the rows of a table need not survive a crash. In `create table` it stands before the name.
const UNLOGGED: &str = "unlogged";

impl TableDeclaration {
    /// Declares a table by its columns, or by all that stands behind its name in `create table`.
    pub fn new(name: impl Into<String>, columns: SourceText) -> Self {
        Self { name: name.into(), columns, options: None, comment: None }
    }

    /// The statement that creates the table under this qualified name.
    pub(crate) fn create(&self, qualified_name: &str) -> CreateTable<'_> {
        let is_whole = is_whole(&self.columns.text);
        let options = self.options.as_ref().map(|options| (options, without_unlogged(&options.text, true)));
        let (columns, unlogged) = without_unlogged(&self.columns.text, is_whole);
        let unlogged = unlogged || options.as_ref().is_some_and(|(_, (_, unlogged))| *unlogged);
        let kind = if unlogged { "unlogged table" } else { "table" };
        let open = if is_whole { "" } else { "(\n" };
        let mut statement = format!("create {kind} {qualified_name} {open}");
        let mut places = vec![(statement.len(), &self.columns)];
        statement.push_str(&columns);
        statement.push_str(if is_whole { "\n" } else { "\n) " });
        if let Some((source, (text, _))) = options {
            places.push((statement.len(), source));
            statement.push_str(&text);
        }
        CreateTable { statement, places }
    }

    /// The statement that gives the table its comment, if it has one.
    pub(crate) fn comment_on(&self, qualified_name: &str) -> Option<String> {
        let comment = self.comment.as_ref()?;
        Some(format!("comment on table {qualified_name} is {}", quote_literal(comment)))
    }

    /// All declared SQL.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &SourceText> {
        [&self.columns].into_iter().chain(&self.options)
    }

    /// A semicolon that would end `create table`, so that other statements could follow, with its byte offset in one of the texts.
    pub(crate) fn find_semicolon(&self) -> Option<(&SourceText, usize)> {
        let last = self.options.as_ref().unwrap_or(&self.columns);
        let is_whole = is_whole(&self.columns.text);
        // It may stand at the end of all that is declared, but not inside of the parentheses.
        let may_close = |source: &SourceText| source == last && (is_whole || self.options.is_some());
        self.texts().find_map(|source| Some((source, semicolon(&source.text, may_close(source))?)))
    }

    /// All that shapes the table, as one text.
    pub(crate) fn identity(&self) -> String {
        let texts = [self.name.as_str()].into_iter().chain(self.texts().map(|source| source.text.as_str()));
        texts.collect::<Vec<_>>().join("\u{1}")
    }
}

/// Whether a text is all that stands behind a table's name, and not only what is between the parentheses.
fn is_whole(text: &str) -> bool {
    let tokens = lexer::tokens(text).unwrap_or_default();
    let opens = |index: usize| tokens.get(index).is_some_and(|token| token.text == "(");
    opens(0) || tokens.first().is_some_and(|token| token.is_word(UNLOGGED)) && opens(1)
}

/// The offset of a semicolon; of one at the end only where it may not stand there.
fn semicolon(text: &str, may_close: bool) -> Option<usize> {
    let is_semicolon = |token: &Token<'_>| token.kind == TokenKind::Semicolon;
    let mut tokens = lexer::tokens(text).unwrap_or_default();
    while may_close && tokens.last().is_some_and(is_semicolon) {
        tokens.pop();
    }
    tokens.iter().find(|token| is_semicolon(token)).map(|token| token.start)
}

/// The text with the word `unlogged` at its beginning blanked out, if it may stand there, and whether it did. Every
/// character stays where it is.
fn without_unlogged(text: &str, may_stand: bool) -> (String, bool) {
    let first = lexer::tokens(text).unwrap_or_default().into_iter().next();
    let mut blanked = text.to_owned();
    match first.filter(|token| may_stand && token.is_word(UNLOGGED)) {
        None => (blanked, false),
        Some(token) => {
            blanked.replace_range(token.start..token.end, &" ".repeat(UNLOGGED.len()));
            (blanked, true)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn created(columns: &str, options: Option<&str>) -> String {
        let table = TableDeclaration::new("t", SourceText::unplaced(columns));
        let table = TableDeclaration { options: options.map(SourceText::unplaced), ..table };
        let CreateTable { statement, places } = table.create("t");
        for (start, source) in &places {
            let last = source.text.chars().last().unwrap();
            assert_eq!(statement.as_bytes()[start + source.text.len() - 1], last as u8, "{statement}");
        }
        statement.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_table_is_created_as_it_is_declared() {
        assert_eq!(created("id int", None), "create table t ( id int )");
        assert_eq!(created("unlogged int", None), "create table t ( unlogged int )");
        assert_eq!(
            created("(id int) with (fillfactor = 70)", None),
            "create table t (id int) with (fillfactor = 70)"
        );
        assert_eq!(created("Unlogged\n (id int)", None), "create unlogged table t (id int)");
        assert_eq!(created("-- (\nid int", None), "create table t ( -- ( id int )");
        let parted = created("id int", Some("unlogged partition by hash (id)"));
        assert_eq!(parted, "create unlogged table t ( id int ) partition by hash (id)");
        assert_eq!(
            created("(id int)", Some("with (fillfactor = 70)")),
            "create table t (id int) with (fillfactor = 70)"
        );
    }

    #[test]
    fn a_semicolon_before_the_end_is_found() {
        let end = |columns: &str, options: Option<&str>| {
            let table = TableDeclaration::new("t", SourceText::unplaced(columns));
            let table = TableDeclaration { options: options.map(SourceText::unplaced), ..table };
            table.find_semicolon().map(|(source, offset)| source.text[offset..].to_owned())
        };
        let sound = [
            ("id int, check (id > 0), n text default ';)' -- );\n", None),
            ("(id int) with (fillfactor = 70);\n", None),
            ("(id int)", Some("with (fillfactor = 70) ;")),
            ("unlogged (id int)", None),
            ("n int) inherits (others", None),
        ];
        for (columns, options) in sound {
            assert_eq!(end(columns, options), None, "{columns}");
        }
        assert_eq!(
            end("id int); delete from a; create table b (id int", None).unwrap(),
            "; delete from a; create table b (id int"
        );
        assert_eq!(end("(id int); delete from a", None).unwrap(), "; delete from a");
        assert_eq!(end("(id int);", Some("with (fillfactor = 70)")).unwrap(), ";");
        assert_eq!(end("id int;", None).unwrap(), ";");
        assert_eq!(end("id int", Some("with (fillfactor = 70); drop table a")).unwrap(), "; drop table a");
    }

    #[test]
    fn options_belong_to_the_identity_and_a_comment_does_not() {
        let table = TableDeclaration::new("t", SourceText::unplaced("id int"));
        assert_eq!(table.identity(), "t\u{1}id int");
        let comment = TableDeclaration { comment: Some("c".into()), ..table.clone() };
        assert_eq!(comment.identity(), table.identity());
        let options = TableDeclaration { options: Some(SourceText::unplaced("x")), ..table };
        assert_eq!(options.identity(), "t\u{1}id int\u{1}x");
    }
}
