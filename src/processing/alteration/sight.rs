//! Whether a handler can see that a table has gained columns: it sees whole rows, counts columns, or uses a name that would now be
//! another thing.

use super::AddedColumn;
use super::columns;
use crate::postgres::lexer::{self, Token, TokenKind};
use crate::processing::declaration::ProcessorDeclaration;

/// Words with which a handler sees what is not written in it. `natural` joins by all columns that two tables share.
const SEEING: [&str; 10] = [
    "execute",
    "rowtype",
    "natural",
    "merge",
    "copy",
    "information_schema",
    "ts_stat",
    "ts_rewrite",
    "cursor_to_xml",
    "query_to_xml",
];

/// What may follow a table, or its alias, where its columns are meant by their names alone.
#[rustfmt::skip]
const FOLLOWERS: [&str; 30] = [
    "", ";", ")", ",", "where", "on", "using", "set", "join", "left", "right", "full", "inner", "cross", "group", "order",
    "limit", "offset", "fetch", "for", "having", "window", "union", "except", "intersect", "returning", "into", "loop",
    "values", "default",
];

/// Words after which a star stands for columns.
const BEFORE_STAR: [&str; 8] = ["select", "returning", "distinct", "all", "perform", "query", "into", "as"];

/// Words before which a star stands for columns: no value begins with them.
const BEHIND_STAR: [&str; 16] = [
    "from",
    "into",
    "where",
    "union",
    "except",
    "intersect",
    "order",
    "limit",
    "group",
    "having",
    "for",
    "fetch",
    "offset",
    "window",
    "loop",
    "on",
];

/// Words that end the items of a select.
const ENDS_ITEMS: [&str; 10] =
    ["where", "returning", "union", "except", "intersect", "group", "order", "limit", "having", "window"];

/// A table that has gained columns.
pub(super) struct Widened<'d> {
    table: &'d str,
    /// The names of its former columns.
    kept: Vec<String>,
    /// The names of the columns that all declared tables had before.
    any_kept: Vec<String>,
    added: Vec<&'d str>,
}

impl<'d> Widened<'d> {
    /// `added`: the columns that all tables of the declaration gain.
    pub(super) fn new(
        table: &'d str,
        declaration: &'d ProcessorDeclaration,
        added: &'d [AddedColumn],
    ) -> Self {
        let of = |table: &str| {
            let is_added = |name: &String| added.iter().any(|one| one.table == table && one.column == *name);
            let declared = declaration.tables.iter().find(|one| one.name == table);
            let names = declared.map(columns::names).unwrap_or_default();
            names.into_iter().filter(|name| !is_added(name)).collect::<Vec<_>>()
        };
        Self {
            table,
            kept: of(table),
            any_kept: declaration.tables.iter().flat_map(|declared| of(&declared.name)).collect(),
            added: added.iter().filter(|one| one.table == table).map(|one| one.column.as_str()).collect(),
        }
    }

    /// An error says what in the handler may see the columns.
    pub(super) fn require_unseen_by(&self, handler: &str) -> Result<(), String> {
        let tokens = lexer::tokens(handler).map_err(|unclosed| unclosed.to_string())?;
        Reader::new(self, &tokens).read()
    }
}

/// Reads one handler.
struct Reader<'r, 'a> {
    of: &'r Widened<'r>,
    tokens: &'r [Token<'a>],
    names: Vec<Option<String>>,
}

impl<'r, 'a> Reader<'r, 'a> {
    fn new(of: &'r Widened<'r>, tokens: &'r [Token<'a>]) -> Self {
        Self { of, tokens, names: tokens.iter().map(Token::name).collect() }
    }

    fn read(&self) -> Result<(), String> {
        let table = self.of.table;
        let mut aliases = Vec::new();
        for at in 0..self.tokens.len() {
            if self.text(at) == "*" && self.is_star(at) {
                return Err(format!("a handler has a star, which may stand for the columns of {table}"));
            }
            if self.tokens[at].is_word("u") && self.text(at + 1) == "&" {
                return Err("a handler has names or strings that are written with escapes".to_owned());
            }
            self.require_no_text_about_table(at)?;
            let Some(name) = &self.names[at] else { continue };
            if self.sees_more_than_written(at, name) {
                return Err(format!("a handler has `{name}`, which may see the columns of {table}"));
            }
            if self.of.added.contains(&name.as_str()) && !self.is_of_event(at) {
                return Err(format!("a handler names {name}"));
            }
            if name == "excluded" && !self.is_column_of(at, &self.of.any_kept) {
                return Err(format!("a handler may see whole rows of {table}, as excluded"));
            }
            if name == table {
                aliases.extend(self.read_table(at)?);
            }
        }
        self.require_columns_of(&aliases)
    }

    /// A text may be run, be a row, or be the name of the table or of the type of its rows.
    fn require_no_text_about_table(&self, at: usize) -> Result<(), String> {
        let token = &self.tokens[at];
        let text = if token.kind == TokenKind::Literal { token.text.to_lowercase() } else { String::new() };
        let table = self.of.table.to_lowercase();
        let is_name = |word: &str| word == table || word.strip_prefix('_') == Some(&table);
        // With a backslash, a text is other than it is written.
        match text.contains('\\') || text.split(|one: char| !one.is_alphanumeric() && one != '_').any(is_name)
        {
            true => Err(format!("a handler has a text that may be about {}", self.of.table)),
            false => Ok(()),
        }
    }

    /// Whether this name is of something that sees what is not written in the handler: code in a text, the catalog, or rows as a type.
    fn sees_more_than_written(&self, at: usize, name: &str) -> bool {
        let is_block = name == "do" && !self.is_one_of(at + 1, &["nothing", "update"]);
        // What PostgreSQL calls the type of arrays of its rows.
        let is_array_of_rows = name.strip_prefix('_').is_some_and(|rest| rest == self.of.table);
        SEEING.contains(&name)
            || is_block
            || is_array_of_rows
            || name.starts_with("pg_")
            || ["_to_xml", "_privilege", "_description"].iter().any(|part| name.contains(part))
    }

    /// Every use of an alias is one of a former column. `aliases` are the places at which they are introduced.
    fn require_columns_of(&self, aliases: &[usize]) -> Result<(), String> {
        let is_alias = |at: usize| aliases.iter().any(|alias| self.names[*alias] == self.names[at]);
        let sees = |at: &usize| {
            self.names[*at].is_some()
                && is_alias(*at)
                && !aliases.contains(at)
                && self.before(*at) != "."
                && !self.is_column_of(*at, &self.of.kept)
        };
        match (0..self.tokens.len()).find(sees) {
            Some(at) => {
                Err(format!("a handler may see whole rows of {}, as {}", self.of.table, self.text(at)))
            }
            None => Ok(()),
        }
    }

    /// A place at which the table is named. Returns the place of its alias, if it has one.
    fn read_table(&self, at: usize) -> Result<Option<usize>, String> {
        let table = self.of.table;
        if self.before(at) != "." && self.is_column_of(at, &self.of.kept) {
            return Ok(None);
        }
        if self.follows(at, &["into"]) && self.follows(at - 1, &["insert"]) {
            let (alias, behind) = self.alias(at);
            if self.counts_columns(behind) {
                return Err(format!(
                    "a handler inserts into {table} without naming columns, and may have values for more of them"
                ));
            }
            return Ok(alias);
        }
        let is_only = self.follows(at, &["only"]);
        let before = if is_only { at - 1 } else { at };
        // `is distinct from` has no table behind it.
        let is_distinct = before > 0 && self.follows(before - 1, &["distinct"]);
        if self.follows(before, &["from", "join", "using", "update"]) && !is_distinct {
            let (alias, behind) = self.alias(at);
            if self.is_one_of(behind, &FOLLOWERS) {
                return Ok(alias);
            }
        }
        Err(format!("a handler may see whole rows of {table}"))
    }

    /// The alias of a table, and the place behind both.
    fn alias(&self, at: usize) -> (Option<usize>, usize) {
        let named = if self.is_one_of(at + 1, &["as"]) { at + 2 } else { at + 1 };
        let is_alias = self.names.get(named).is_some_and(Option::is_some)
            && (named == at + 2
                || !self.is_one_of(named, &FOLLOWERS)
                    && !self.is_one_of(named, &["select", "overriding", "with", "table"]));
        if is_alias { (Some(named), named + 1) } else { (None, at + 1) }
    }

    /// Whether an insert may count on how many columns the table has. `at` is behind the table.
    fn counts_columns(&self, at: usize) -> bool {
        if self.is_one_of(at, &["default"]) {
            return false;
        }
        if self.text(at) == "(" {
            // Names, or a query in parentheses.
            return self.is_one_of(at + 1, &["select", "values", "with", "table", "("]);
        }
        let items = if self.is_one_of(at, &["values"]) && self.text(at + 1) == "(" {
            self.items(at + 2)
        } else if self.is_one_of(at, &["select"]) {
            self.items(at + 1)
        } else {
            return true;
        };
        items > self.of.kept.len()
    }

    /// How many values stand between the commas from here on.
    fn items(&self, from: usize) -> usize {
        let (mut depth, mut items) = (0, 1);
        for at in from..self.tokens.len() {
            match self.text(at) {
                "(" | "[" => depth += 1,
                ")" | "]" if depth == 0 => break,
                ")" | "]" => depth -= 1,
                "," if depth == 0 => items += 1,
                ";" => break,
                _ if depth == 0 && self.ends_items(at) => break,
                _ => {}
            }
        }
        items
    }

    fn ends_items(&self, at: usize) -> bool {
        self.is_one_of(at, &ENDS_ITEMS)
            || self.is_one_of(at, &["from"]) && !self.follows(at, &["distinct"])
            || self.is_one_of(at, &["on"]) && self.is_one_of(at + 1, &["conflict"])
    }

    /// Whether a star stands for columns, and not for a product or `count(*)`.
    fn is_star(&self, at: usize) -> bool {
        let (before, behind) = (self.before(at), self.text(at + 1));
        if before == "(" && behind == ")" {
            return false;
        }
        let has_left = at > 0 && !matches!(before, "." | "," | "(" | ";") && !self.follows(at, &BEFORE_STAR);
        let has_right = !matches!(behind, "" | "," | ")" | ";") && !self.is_one_of(at + 1, &BEHIND_STAR);
        !has_left || !has_right
    }

    /// Whether a name is a field of the event.
    fn is_of_event(&self, at: usize) -> bool {
        at > 1 && self.before(at) == "." && self.tokens[at - 2].is_word("event")
    }

    /// Whether a column with one of these names follows, as in `orders.n`.
    fn is_column_of(&self, at: usize, columns: &[String]) -> bool {
        let name = self.names.get(at + 2).and_then(Option::as_ref);
        self.text(at + 1) == "." && name.is_some_and(|name| columns.contains(name))
    }

    fn text(&self, at: usize) -> &'a str {
        self.tokens.get(at).map_or("", |token| token.text)
    }

    fn before(&self, at: usize) -> &'a str {
        at.checked_sub(1).map_or("", |before| self.text(before))
    }

    /// Whether one of these words stands directly before a place.
    fn follows(&self, at: usize, words: &[&str]) -> bool {
        at.checked_sub(1).is_some_and(|before| self.is_one_of(before, words))
    }

    /// Whether one of these words or signs stands at a place. `""` is the end.
    fn is_one_of(&self, at: usize, words: &[&str]) -> bool {
        let is_quoted = self.tokens.get(at).is_some_and(|token| token.kind == TokenKind::Quoted);
        !is_quoted && words.iter().any(|word| self.text(at).eq_ignore_ascii_case(word))
    }
}
