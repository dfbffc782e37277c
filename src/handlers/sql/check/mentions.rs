//! Which tables a text mentions, and whether it changes them, as far as its words show it.

use crate::postgres::lexer::{self, Token, TokenKind};

/// A table that a text mentions.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mention {
    pub(super) name: String,
    /// The schema that is written before it.
    pub(super) schema: Option<String>,
    /// The name as it stands in the text.
    pub(super) written: String,
    /// Byte offset in the text.
    pub(super) offset: usize,
    /// Whether it is changed, and not only read.
    pub(super) is_written: bool,
}

/// The tables that a text mentions, also in texts that it executes.
pub(super) fn mentions(text: &str) -> Vec<Mention> {
    let tokens = lexer::tokens(text).unwrap_or_default();
    let mut found = mentioned(&tokens);
    for statement in lexer::statements(&tokens) {
        let executes = statement.iter().skip_while(|token| !token.is_word("execute"));
        for literal in executes {
            let executed = literal.content().map(|content| lexer::tokens(content).unwrap_or_default());
            let mentioned = mentioned(&executed.unwrap_or_default());
            found.extend(mentioned.into_iter().map(|mention| Mention { offset: literal.start, ..mention }));
        }
    }
    found
}

/// The last part of each name that stands where SQL names a table.
fn mentioned(tokens: &[Token<'_>]) -> Vec<Mention> {
    const BEFORE_A_TABLE: [&str; 8] =
        ["into", "update", "from", "join", "table", "only", "truncate", "using"];
    let mut found = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        if !BEFORE_A_TABLE.iter().any(|word| token.is_word(word)) {
            continue;
        }
        let is_written = writes(&tokens[..=index]);
        let mut at = index + 1;
        while let Some((mention, next)) = read_mention(tokens, at, is_written) {
            found.push(mention);
            // `truncate a, b`; behind `from`, what follows may be anything.
            let is_list = ["table", "truncate"].iter().any(|word| token.is_word(word));
            if !is_list || tokens.get(next).is_none_or(|comma| comma.text != ",") {
                break;
            }
            at = next + 1;
        }
    }
    found
}

/// The table that is named at this token, and the number of the token behind its name.
fn read_mention(tokens: &[Token<'_>], at: usize, is_written: bool) -> Option<(Mention, usize)> {
    // `drop table if exists t`.
    let is_condition = |token: &Token<'_>| ["if", "not", "exists"].iter().any(|word| token.is_word(word));
    let first = at + tokens.get(at..)?.iter().take_while(|token| is_condition(token)).count();
    let mut at = first;
    while tokens.get(at + 1).is_some_and(|dot| dot.kind == TokenKind::Symbol && dot.text == ".") {
        at += 2;
    }
    let table = tokens.get(at)?;
    let schema = if at > first { tokens[at - 2].name() } else { None };
    let (name, written) = (table.name()?, table.text.to_owned());
    Some((Mention { name, schema, written, offset: table.start, is_written }, at + 1))
}

/// Whether the words before a table, of which the last ones are these, say that it is changed.
fn writes(before: &[Token<'_>]) -> bool {
    let verb =
        before.iter().rposition(|token| !token.is_word("only")).map_or(before, |last| &before[..=last]);
    match verb {
        [.., first, last] if last.is_word("from") => first.is_word("delete"),
        [.., last] => !["from", "join", "using"].iter().any(|word| last.is_word(word)),
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_is_read_is_told_from_one_that_is_written() {
        let found = |text: &str| {
            let all = mentions(text).into_iter().map(|mention| (mention.name, mention.is_written));
            all.collect::<Vec<_>>()
        };
        for (text, name, is_written) in [
            ("insert into t values (1)", "t", true),
            ("update only public.t set a = 1", "t", true),
            ("delete from t", "t", true),
            ("delete from only t", "t", true),
            ("truncate t", "t", true),
            ("truncate table \"t\"", "t", true),
            ("drop table if exists public.t cascade", "t", true),
            ("drop table s, public.t", "t", true),
            ("alter table if exists only t add x int", "t", true),
            ("execute 'delete from ' || 't'", "", true),
            ("execute 'delete from t'", "t", true),
            ("if true then execute format($$update t set a = %L$$, 1); end if", "t", true),
            ("perform from t", "t", false),
            ("perform 'delete from t'", "", false),
            ("select a into b from only t", "t", false),
            ("select a into b from x join t on true", "t", false),
            ("delete from x using t where x.a = t.a", "t", false),
        ] {
            let mentioned = found(text);
            let last = mentioned.iter().rfind(|(known, _)| known == "t");
            assert_eq!(last, (!name.is_empty()).then(|| (name.to_owned(), is_written)).as_ref(), "{text}");
        }
    }
}
