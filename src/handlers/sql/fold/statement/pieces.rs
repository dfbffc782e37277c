//! Cuts the tokens of a statement into the pieces of the grammar.

use crate::handlers::sql::event_source::COLUMNS;
use crate::handlers::sql::fold::expression;
use crate::postgres::lexer::{Token, TokenKind};

/// Why a statement is not folded that says more than the grammar knows.
pub(super) const MORE: &str = "it is more than a plain statement on one row by its key";

pub(super) type Tokens<'t, 'a> = &'t [Token<'a>];

/// The author's text of some tokens. A comment in it would hide what stands behind.
pub(super) fn text_of(source: &str, tokens: Tokens<'_, '_>) -> Result<String, String> {
    let (Some(first), Some(last)) = (tokens.first(), tokens.last()) else { return Err(MORE.to_owned()) };
    for pair in tokens.windows(2) {
        if !source[pair[0].end..pair[1].start].trim().is_empty() {
            return Err("there is a comment inside of the statement".to_owned());
        }
        let joined = pair[0].end == pair[1].start;
        if joined && pair[0].kind == TokenKind::Word && pair[1].kind == TokenKind::Literal {
            return Err("a string with a prefix is not folded".to_owned());
        }
    }
    if tokens.iter().any(|token| token.kind == TokenKind::Literal && token.text.starts_with('$')) {
        return Err("a dollar-quoted string is not folded".to_owned());
    }
    Ok(source[first.start..last.end].to_owned())
}

pub(super) fn single_name(tokens: Tokens<'_, '_>) -> Option<String> {
    if let [only] = tokens { only.name() } else { None }
}

/// How deep each token stands in parentheses, brackets and `case`s.
fn depths(tokens: Tokens<'_, '_>) -> Vec<usize> {
    let mut depth = 0_usize;
    tokens
        .iter()
        .map(|token| {
            let opens = ["(", "["].contains(&token.text) || token.is_word("case");
            let closes = [")", "]"].contains(&token.text) || token.is_word("end");
            if closes {
                depth = depth.saturating_sub(1);
            }
            let own = depth + usize::from(opens || closes);
            if opens {
                depth += 1;
            }
            own
        })
        .collect()
}

/// The tokens outside of everything that is enclosed.
pub(super) fn outside<'t, 'a>(tokens: Tokens<'t, 'a>) -> Vec<&'t Token<'a>> {
    tokens.iter().zip(depths(tokens)).filter(|(_, depth)| *depth == 0).map(|(token, _)| token).collect()
}

fn split_where<'t, 'a>(tokens: Tokens<'t, 'a>, at: impl Fn(&Token<'a>) -> bool) -> Vec<Tokens<'t, 'a>> {
    let (depths, mut parts, mut start) = (depths(tokens), Vec::new(), 0);
    for (index, token) in tokens.iter().enumerate() {
        if depths[index] == 0 && at(token) {
            parts.push(&tokens[start..index]);
            start = index + 1;
        }
    }
    parts.push(&tokens[start..]);
    parts
}

pub(super) fn split<'t, 'a>(tokens: Tokens<'t, 'a>, symbol: &str) -> Vec<Tokens<'t, 'a>> {
    split_where(tokens, |token| token.kind == TokenKind::Symbol && token.text == symbol)
}

pub(super) fn split_word<'t, 'a>(tokens: Tokens<'t, 'a>, word: &str) -> Vec<Tokens<'t, 'a>> {
    split_where(tokens, |token| token.is_word(word))
}

/// The field, if these are a field of that record.
pub(super) fn field_of(tokens: Tokens<'_, '_>, record: &str) -> Option<String> {
    let [of, dot, field] = tokens else { return None };
    (of.is_word(record) && dot.text == ".").then(|| field.name()).flatten()
}

/// Whether these are the column itself.
pub(super) fn is_own(tokens: Tokens<'_, '_>, table: &str, column: &str) -> bool {
    match tokens {
        [only] => only.name().as_deref() == Some(column),
        [of, dot, field] => {
            dot.text == "." && of.name().as_deref() == Some(table) && field.name().as_deref() == Some(column)
        }
        _ => false,
    }
}

pub(super) type KeptUnless<'t, 'a> = (Tokens<'t, 'a>, Tokens<'t, 'a>, Tokens<'t, 'a>);

/// `case when CONDITION then VALUE else KEPT end`
pub(super) fn kept_unless<'t, 'a>(tokens: Tokens<'t, 'a>) -> Option<KeptUnless<'t, 'a>> {
    let inner = match tokens {
        [case, when, inner @ .., end]
            if case.is_word("case") && when.is_word("when") && end.is_word("end") =>
        {
            inner
        }
        _ => return None,
    };
    let then = split_word(inner, "then");
    let [condition, rest] = then.as_slice() else { return None };
    let otherwise = split_word(rest, "else");
    let [value, kept] = otherwise.as_slice() else { return None };
    Some((condition, value, kept))
}

/// `coalesce(VALUE, KEPT)`
pub(super) fn kept_if_null<'t, 'a>(tokens: Tokens<'t, 'a>) -> Option<(Tokens<'t, 'a>, Tokens<'t, 'a>)> {
    let inner = match tokens {
        [coalesce, open, inner @ .., close]
            if coalesce.is_word("coalesce") && open.text == "(" && close.text == ")" =>
        {
            inner
        }
        _ => return None,
    };
    match split(inner, ",").as_slice() {
        [value, kept] => Some((value, kept)),
        _ => None,
    }
}

/// `BEFORE + ADDED` or `BEFORE - ADDED`: whether it is the latter, and both sides of the first sign.
pub(super) fn added<'t, 'a>(tokens: Tokens<'t, 'a>) -> Option<(bool, Tokens<'t, 'a>, Tokens<'t, 'a>)> {
    let sign = tokens.iter().position(|token| ["+", "-"].contains(&token.text))?;
    let alone = tokens.get(sign + 1).is_some_and(|next| !["+", "-", ">"].contains(&next.text));
    (sign > 0 && alone).then(|| (tokens[sign].text == "-", &tokens[..sign], &tokens[sign + 1..]))
}

/// The column and the value, if these compare a column with `=`, whichever side it is on.
pub(super) fn compared<'t, 'a>(tokens: Tokens<'t, 'a>, table: &str) -> Option<(String, Tokens<'t, 'a>)> {
    let sides = split(tokens, "=");
    let [left, right] = sides.as_slice() else { return None };
    let column = |side: Tokens<'_, '_>| match side {
        [only] if only.kind != TokenKind::Literal => only.name(),
        [of, dot, field] if dot.text == "." && of.name().as_deref() == Some(table) => field.name(),
        _ => None,
    };
    match (column(left), column(right)) {
        (Some(name), _) if !right.is_empty() => Some((name, right)),
        (None, Some(name)) if !left.is_empty() => Some((name, left)),
        _ => None,
    }
}

/// Whatever the parser thinks of precedence, PostgreSQL has to take the same for one side of a `+`.
pub(super) fn binds_closer_than_plus(tokens: Tokens<'_, '_>) -> Result<(), String> {
    const SYMBOLS: [&str; 5] = ["*", "/", "%", ":", "."];
    let outside = outside(tokens);
    if outside.iter().any(|token| token.is_word("from")) {
        return Err(MORE.to_owned());
    }
    let words = outside.iter().filter(|token| token.kind == TokenKind::Word);
    let is_word_known = |token: &&&Token<'_>| {
        token.is_word("event")
            || COLUMNS.split(", ").any(|column| token.is_word(column))
            || ["int", "int2", "int4", "int8", "integer", "bigint", "smallint"]
                .iter()
                .any(|name| token.is_word(name))
            || expression::FUNCTIONS.iter().any(|name| token.is_word(name))
            || ["coalesce", "greatest", "least", "nullif"].iter().any(|name| token.is_word(name))
    };
    let symbols = outside.iter().filter(|token| token.kind == TokenKind::Symbol);
    let is_plain = words.clone().all(|token| is_word_known(&token))
        && symbols.clone().all(|token| SYMBOLS.contains(&token.text));
    if is_plain {
        Ok(())
    } else {
        Err("what is added to a column has to stand in parentheses to be folded".to_owned())
    }
}

/// Likewise for one side of a `=`.
pub(super) fn binds_closer_than_equals(tokens: Tokens<'_, '_>) -> Result<(), String> {
    let outside = outside(tokens);
    let words = [
        "is", "in", "like", "ilike", "similar", "not", "isnull", "notnull", "between", "overlaps", "at",
        "collate",
    ];
    let has_word = outside.iter().any(|token| words.iter().any(|word| token.is_word(word)));
    let compares = outside.iter().enumerate().any(|(index, token)| match token.text {
        "<" | "=" | "!" => true,
        ">" => index == 0 || !["-", ">", "#"].contains(&outside[index - 1].text),
        _ => false,
    });
    if has_word || compares {
        return Err("the value of a key has to stand in parentheses to be folded".to_owned());
    }
    Ok(())
}
