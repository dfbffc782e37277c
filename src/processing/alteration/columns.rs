//! The columns that a table gains.

use std::collections::BTreeSet;

use super::spelled;
use crate::postgres::lexer::{self, Token, TokenKind};
use crate::processing::declaration::TableDeclaration;

/// A column that a table gains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AddedColumn {
    pub(crate) table: String,
    /// The column's own name.
    pub(crate) column: String,
    /// Its type, as it is declared.
    pub(crate) data_type: String,
    /// The whole column, as it is declared.
    pub(crate) definition: String,
}

impl AddedColumn {
    /// The definition in one line.
    pub(crate) fn in_a_line(&self) -> String {
        self.definition.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// The words that begin a part of a table that is no column.
const CONSTRAINTS: [&str; 7] = ["constraint", "primary", "unique", "check", "foreign", "exclude", "like"];

/// Words that make more of a column than a type and a constant.
const NO_TYPE: [&str; 16] = [
    "serial",
    "bigserial",
    "smallserial",
    "serial2",
    "serial4",
    "serial8",
    "primary",
    "unique",
    "references",
    "check",
    "generated",
    "collate",
    "constraint",
    "storage",
    "compression",
    "setof",
];

/// Strings with one of these may be another time each day.
const MOVING: [&str; 4] = ["now", "today", "tomorrow", "yesterday"];

/// The types whose strings are what is written.
const TEXTS: [&str; 7] = ["text", "varchar", "character", "char", "bpchar", "json", "jsonb"];

/// The types whose strings are names, such as those of tables: another thing in each schema.
const NAMES: [&str; 11] = [
    "regclass",
    "regcollation",
    "regconfig",
    "regdictionary",
    "regnamespace",
    "regoper",
    "regoperator",
    "regproc",
    "regprocedure",
    "regrole",
    "regtype",
];

/// What may follow the type of a column.
const ENDS_TYPE: [&str; 3] = ["default", "not", "null"];

/// What stands between two commas.
type Element<'a> = Vec<Token<'a>>;

/// The columns that a table gains; an error says why it is more than that.
pub(super) fn compare(
    before: &TableDeclaration,
    after: &TableDeclaration,
) -> Result<Vec<AddedColumn>, String> {
    if before.identity() == after.identity() {
        return Ok(Vec::new());
    }
    let name = &after.name;
    let options = |table: &TableDeclaration| table.options.as_ref().map(|options| options.text.clone());
    if options(before) != options(after) {
        return Err(format!("the options of {name} have changed"));
    }
    let unread = || format!("what is declared of {name} is not a plain list of columns");
    let old = elements(&before.columns.text).ok_or_else(unread)?;
    let new = elements(&after.columns.text).ok_or_else(unread)?;
    let (old_columns, old_rest) = divide(&old);
    let (new_columns, new_rest) = divide(&new);
    let plain = |all: &[&Element<'_>]| all.iter().map(|element| spelled(element)).collect::<Vec<_>>();
    if plain(&old_rest) != plain(&new_rest) {
        return Err(format!("the constraints of {name} have changed"));
    }
    if !plain(&new_columns).starts_with(&plain(&old_columns)) {
        return Err(format!("{name} has changed in more than columns behind its others"));
    }
    let gained = &new_columns[old_columns.len()..];
    gained
        .iter()
        .map(|element| {
            let column = constant_column(after, element);
            column.ok_or_else(|| {
                format!("column {} of {name} is more than a type and a constant", element[0].text)
            })
        })
        .collect()
}

/// The names of a table's columns, but for those that `like` copies; none where that cannot be told.
pub(super) fn names(table: &TableDeclaration) -> Vec<String> {
    let elements = elements(&table.columns.text).unwrap_or_default();
    divide(&elements).0.into_iter().filter_map(|element| element[0].name()).collect()
}

/// The names of all columns that a table has when it is made; `None`: only the database knows them, because it takes some from
/// elsewhere, or what is declared is no plain list.
pub(crate) fn own_columns(table: &TableDeclaration) -> Option<Vec<String>> {
    for text in table.texts() {
        let tokens = lexer::tokens(&text.text).ok()?;
        if tokens.iter().any(|token| token.is_word("inherits") || token.is_word("like")) {
            return None;
        }
    }
    let elements = elements(&table.columns.text)?;
    divide(&elements).0.into_iter().map(|element| element[0].name()).collect()
}

/// The columns of the primary key that a table is declared with; none: it has none. `None`: nobody can tell.
pub(crate) fn primary_key(table: &TableDeclaration) -> Option<Vec<String>> {
    own_columns(table)?;
    let elements = elements(&table.columns.text)?;
    let found = elements.iter().find_map(|element| {
        let at = element.windows(2).position(|two| two[0].is_word("primary") && two[1].is_word("key"))?;
        Some((element, at))
    });
    let Some((element, at)) = found else { return Some(Vec::new()) };
    if !CONSTRAINTS.iter().any(|word| element[0].is_word(word)) {
        return Some(vec![element[0].name()?]);
    }
    let columns = element[at..].iter().skip_while(|token| token.text != "(");
    Some(columns.take_while(|token| token.text != ")").filter_map(Token::name).collect())
}

/// The columns of a table that are a type and a constant, or null.
pub(crate) fn constant_columns(table: &TableDeclaration) -> Vec<AddedColumn> {
    let elements = elements(&table.columns.text).unwrap_or_default();
    let (columns, _) = divide(&elements);
    columns.into_iter().filter_map(|element| constant_column(table, element)).collect()
}

/// The first of these tables whose row something in the declaration of a table may be about.
pub(super) fn find_row_of<'t>(table: &TableDeclaration, of: &BTreeSet<&'t str>) -> Option<&'t str> {
    let tokens = lexer::tokens(&table.columns.text).unwrap_or_default();
    let is_row = |at: usize| {
        let refers = at > 0 && tokens[at - 1].is_word("references");
        tokens[at].name().filter(|_| !refers).and_then(|name| of.get(name.as_str()).copied())
    };
    (0..tokens.len()).find_map(is_row)
}

/// What is between the commas of a table's columns; `None`: nobody can tell.
fn elements(text: &str) -> Option<Vec<Element<'_>>> {
    let tokens = lexer::tokens(text).ok()?;
    let (mut depth, mut elements) = (0, vec![Vec::new()]);
    for token in tokens {
        match token.text {
            "(" | "[" => depth += 1,
            ")" | "]" => depth -= 1,
            "," if depth == 0 => {
                elements.push(Vec::new());
                continue;
            }
            _ => {}
        }
        elements.last_mut()?.push(token);
    }
    // What is declared with its parentheses, or with `unlogged`, begins otherwise than with a name.
    let is_whole = elements[0].first().is_none_or(|token| token.text == "(" || token.is_word("unlogged"));
    (!is_whole && elements.iter().all(|element| !element.is_empty())).then_some(elements)
}

/// The columns, and the rest.
fn divide<'e, 'a>(elements: &'e [Element<'a>]) -> (Vec<&'e Element<'a>>, Vec<&'e Element<'a>>) {
    elements.iter().partition(|element| !CONSTRAINTS.iter().any(|word| element[0].is_word(word)))
}

/// A column that is a type and a constant, or null.
fn constant_column(table: &TableDeclaration, element: &[Token<'_>]) -> Option<AddedColumn> {
    let (name, rest) = element.split_first()?;
    let types: Vec<&Token<'_>> = rest.iter().take_while(|token| !ends_type(token)).collect();
    let (first, last) = (types.first()?, types.last()?);
    if !types.iter().all(|token| is_of_type(token)) {
        return None;
    }
    let is_text = TEXTS.iter().any(|word| first.is_word(word));
    let (mut rest, mut required, mut value) = (&rest[types.len()..], false, false);
    while let Some((word, behind)) = rest.split_first() {
        rest = behind;
        if word.is_word("default") {
            (value, rest) = constant(behind, is_text)?;
        } else if word.is_word("not") {
            let (null, behind) = behind.split_first()?;
            if !null.is_word("null") {
                return None;
            }
            (required, rest) = (true, behind);
        } else if !word.is_word("null") {
            return None;
        }
    }
    if value && types.iter().any(|token| is_of_names(token)) {
        return None;
    }
    let text = &table.columns.text;
    (!required || value).then_some(AddedColumn {
        table: table.name.clone(),
        column: name.name()?,
        data_type: text[first.start..last.end].to_owned(),
        definition: text[name.start..element[element.len() - 1].end].to_owned(),
    })
}

fn ends_type(token: &Token<'_>) -> bool {
    ENDS_TYPE.iter().any(|word| token.is_word(word))
}

fn is_of_type(token: &Token<'_>) -> bool {
    match token.kind {
        TokenKind::Word => !NO_TYPE.iter().any(|word| token.is_word(word)),
        TokenKind::Literal => token.text.bytes().all(|byte| byte.is_ascii_digit()),
        TokenKind::Symbol => ["(", ")", "[", "]", ","].contains(&token.text),
        TokenKind::Quoted | TokenKind::Semicolon => false,
    }
}

/// A constant at the beginning of what stands behind `default`: whether it is a value, and what follows.
fn constant<'t, 'a>(tokens: &'t [Token<'a>], is_text: bool) -> Option<(bool, &'t [Token<'a>])> {
    let (first, behind) = tokens.split_first()?;
    let is_number = |token: &Token<'_>| {
        token.kind == TokenKind::Literal && token.text.starts_with(|first: char| first.is_ascii_digit())
    };
    let (has_value, behind) = match first.content() {
        Some(text) if !is_text && is_moving(text) => return None,
        Some(_) => (true, behind),
        None if is_number(first) => (true, behind),
        None if first.text == "-" && behind.first().is_some_and(is_number) => (true, &behind[1..]),
        None if first.is_word("true") || first.is_word("false") => (true, behind),
        None if first.is_word("null") => (false, behind),
        None => return None,
    };
    let is_cast = behind.len() > 2 && behind[0].text == ":" && behind[1].text == ":";
    if !is_cast {
        return Some((has_value, behind));
    }
    let of_type: Vec<_> =
        behind[2..].iter().take_while(|token| is_of_type(token) && !ends_type(token)).collect();
    // A cast may be to another type than that of the column.
    let stands = first.content().is_none_or(|text| !is_moving(text));
    let stands = stands && !of_type.iter().any(|token| is_of_names(token));
    (stands && !of_type.is_empty()).then(|| (has_value, &behind[2 + of_type.len()..]))
}

fn is_of_names(token: &Token<'_>) -> bool {
    NAMES.iter().any(|word| token.is_word(word))
}

fn is_moving(text: &str) -> bool {
    let text = text.to_lowercase();
    MOVING.iter().any(|word| text.contains(word))
}
