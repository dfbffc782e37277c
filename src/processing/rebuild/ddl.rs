//! What the DDL of a version makes, by kind and name: it changes places with the tables, although nothing of it need depend on one.

use crate::postgres::lexer::{self, Token};
use crate::processing::declaration::ProcessorDeclaration;

/// Something that DDL makes. The kinds are those of [`OBJECTS`](super::place::OBJECTS).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) kind: &'static str,
    pub(super) name: String,
}

const KINDS: [(&str, &str); 10] = [
    ("function", "routine"),
    ("procedure", "routine"),
    ("aggregate", "routine"),
    ("type", "type"),
    ("domain", "domain"),
    ("sequence", "sequence"),
    ("statistics", "statistics"),
    ("foreign", "foreign table"),
    ("view", "view"),
    ("table", "table"),
];

/// What a declaration's DDL makes, as it is written.
pub(super) fn made_by_ddl(declaration: &ProcessorDeclaration) -> Vec<Made> {
    let mut made = Vec::new();
    for text in &declaration.ddl {
        let tokens = lexer::tokens(&text.text).unwrap_or_default();
        made.extend(lexer::statements(&tokens).filter_map(made_by));
    }
    made
}

/// What `create [or replace] … kind [if not exists] [schema.]name` makes.
fn made_by(statement: &[Token<'_>]) -> Option<Made> {
    let mut words = statement.iter();
    words.next().filter(|first| first.is_word("create"))?;
    let kind_of = |token: &Token<'_>| KINDS.iter().find(|(word, _)| token.is_word(word));
    let is_materialized = statement.iter().take(4).any(|token| token.is_word("materialized"));
    let kind = words.by_ref().take(4).find_map(kind_of)?.1;
    let is_noise =
        |token: &&Token<'_>| ["table", "if", "not", "exists"].iter().any(|word| token.is_word(word));
    let mut rest = words.skip_while(is_noise);
    let first = rest.next()?.name()?;
    let name = match rest.next() {
        Some(dot) if dot.text == "." => rest.next()?.name()?,
        _ => first,
    };
    Some(Made { kind: if is_materialized { "materialized view" } else { kind }, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ddl_makes_is_known_by_kind_and_name() {
        let made = |text: &str| {
            let tokens = lexer::tokens(text).unwrap();
            lexer::statements(&tokens)
                .filter_map(made_by)
                .map(|made| (made.kind, made.name))
                .collect::<Vec<_>>()
        };
        let one = |kind, name: &str| vec![(kind, name.to_owned())];
        assert_eq!(
            made("create or replace function Price(n int) returns int as $$ create view x $$ language sql"),
            one("routine", "price")
        );
        assert_eq!(made("create type \"Mood\" as enum ('a'); insert into t values (1)"), one("type", "Mood"));
        assert_eq!(made("create sequence if not exists public.numbers"), one("sequence", "numbers"));
        assert_eq!(made("create materialized view v as select 1"), one("materialized view", "v"));
        assert_eq!(made("create foreign table f (id int) server s"), one("foreign table", "f"));
        assert_eq!(made("create statistics s on a, b from orders"), one("statistics", "s"));
        assert_eq!(made("create unique index i on orders (table_number)"), vec![]);
    }
}
