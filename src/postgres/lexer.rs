//! Just enough of SQL's lexical rules to take an author's handler apart without understanding it.
//!
//! PostgreSQL is the only judge of what a statement means. Here we only need to know where one ends,
//! with which word it begins and which names it mentions, so strings, comments, quoted identifiers and
//! dollar quotes have to be recognised and nothing else.

/// What a stretch of SQL text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenKind {
    /// A keyword or an unquoted identifier.
    Word,
    /// A quoted identifier.
    Quoted,
    /// A string, a dollar-quoted string or a number.
    Literal,
    /// `;`
    Semicolon,
    /// Any other single character.
    Symbol,
}

/// A stretch of SQL text; `start` and `end` are byte offsets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Token<'a> {
    pub(crate) kind: TokenKind,
    pub(crate) text: &'a str,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Token<'_> {
    /// Whether this is the given keyword, in any case.
    pub(crate) fn is_word(&self, word: &str) -> bool {
        self.kind == TokenKind::Word && self.text.eq_ignore_ascii_case(word)
    }

    /// What is between the quotes of a string or a dollar-quoted string, with quotes in it as they are written.
    pub(crate) fn content(&self) -> Option<&str> {
        let first = self.text.chars().next().filter(|_| self.kind == TokenKind::Literal)?;
        let tag = match first {
            '\'' => 1,
            '$' => self.text[1..].find('$')? + 2,
            _ => return None,
        };
        self.text.get(tag..self.text.len() - tag)
    }

    /// The name that an identifier stands for: folded to lower case unless quoted.
    pub(crate) fn name(&self) -> Option<String> {
        match self.kind {
            TokenKind::Word => Some(self.text.to_lowercase()),
            TokenKind::Quoted => Some(self.text[1..self.text.len() - 1].replace("\"\"", "\"")),
            _ => None,
        }
    }
}

/// A quote or comment that is never closed; it would swallow what follows the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this {what} is never closed")]
pub(crate) struct Unclosed {
    /// `string`, `comment`, `quoted identifier` or `dollar-quoted string`.
    pub(crate) what: &'static str,
    /// Byte offset at which it begins.
    pub(crate) start: usize,
}

/// The tokens of `text`, without white space and comments.
pub(crate) fn tokens(text: &str) -> Result<Vec<Token<'_>>, Unclosed> {
    let mut lexer = Lexer::new(text);
    let mut tokens = Vec::new();
    while let Some(token) = lexer.next()? {
        tokens.push(token);
    }
    Ok(tokens)
}

/// The statements of `text` by their tokens, the closing semicolons left out.
pub(crate) fn statements<'a, 'b>(tokens: &'b [Token<'a>]) -> impl Iterator<Item = &'b [Token<'a>]> {
    tokens.split(|token| token.kind == TokenKind::Semicolon).filter(|statement| !statement.is_empty())
}

/// Takes a text apart, token by token.
pub(crate) struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// The next token, without white space and comments before it.
    pub(crate) fn next(&mut self) -> Result<Option<Token<'a>>, Unclosed> {
        self.skip_blank()?;
        let start = self.at;
        let Some(first) = self.rest().chars().next() else { return Ok(None) };
        let kind = self.scan(first)?;
        Ok(Some(Token { kind, text: &self.text[start..self.at], start, end: self.at }))
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn scan(&mut self, first: char) -> Result<TokenKind, Unclosed> {
        match first {
            '\'' => self.scan_quoted('\'', self.is_escape_string(), "string").map(|()| TokenKind::Literal),
            '"' => self.scan_quoted('"', false, "quoted identifier").map(|()| TokenKind::Quoted),
            '$' => self.scan_dollar(),
            c if c.is_alphabetic() || c == '_' => {
                self.advance_while(|c| c.is_alphanumeric() || c == '_' || c == '$');
                Ok(TokenKind::Word)
            }
            c if c.is_ascii_digit() => {
                self.advance_while(|c| c.is_alphanumeric() || c == '.');
                Ok(TokenKind::Literal)
            }
            c => {
                self.at += c.len_utf8();
                Ok(if c == ';' { TokenKind::Semicolon } else { TokenKind::Symbol })
            }
        }
    }

    fn advance_while(&mut self, keep: impl Fn(char) -> bool) {
        let rest = self.rest();
        self.at += rest.find(|c| !keep(c)).unwrap_or(rest.len());
    }

    /// `e'…'` knows backslash escapes, `'…'` does not.
    fn is_escape_string(&self) -> bool {
        let before = &self.text.as_bytes()[..self.at];
        let prefix = before.last().is_some_and(|c| c.eq_ignore_ascii_case(&b'e'));
        let word = before.len() >= 2
            && (before[before.len() - 2].is_ascii_alphanumeric() || before[before.len() - 2] == b'_');
        prefix && !word
    }

    fn scan_quoted(&mut self, quote: char, escapes: bool, what: &'static str) -> Result<(), Unclosed> {
        let start = self.at;
        let mut chars = self.rest().char_indices().skip(1).peekable();
        while let Some((offset, c)) = chars.next() {
            if c == '\\' && escapes {
                chars.next();
            } else if c == quote {
                match chars.peek() {
                    Some((_, next)) if *next == quote => _ = chars.next(),
                    _ => {
                        self.at = start + offset + 1;
                        return Ok(());
                    }
                }
            }
        }
        Err(Unclosed { what, start })
    }

    fn scan_dollar(&mut self) -> Result<TokenKind, Unclosed> {
        let rest = self.rest();
        let tag_end = rest[1..].find(|c: char| !(c.is_alphanumeric() || c == '_')).map(|end| end + 1);
        let Some(end) = tag_end.filter(|end| {
            rest[*end..].starts_with('$') && !rest[1..].starts_with(|c: char| c.is_ascii_digit())
        }) else {
            // A parameter such as `$1`, or a lone dollar sign.
            self.at += 1;
            return Ok(TokenKind::Symbol);
        };
        let tag = &rest[..=end];
        let close =
            rest[tag.len()..].find(tag).ok_or(Unclosed { what: "dollar-quoted string", start: self.at })?;
        self.at += tag.len() + close + tag.len();
        Ok(TokenKind::Literal)
    }

    fn skip_blank(&mut self) -> Result<(), Unclosed> {
        loop {
            self.advance_while(char::is_whitespace);
            if self.rest().starts_with("--") {
                self.advance_while(|c| c != '\n');
            } else if self.rest().starts_with("/*") {
                self.skip_block_comment()?;
            } else {
                return Ok(());
            }
        }
    }

    /// Block comments nest in PostgreSQL.
    fn skip_block_comment(&mut self) -> Result<(), Unclosed> {
        let start = self.at;
        let mut depth = 0;
        while self.at < self.text.len() {
            let rest = self.rest();
            if rest.starts_with("/*") {
                depth += 1;
                self.at += 2;
            } else if rest.starts_with("*/") {
                depth -= 1;
                self.at += 2;
                if depth == 0 {
                    return Ok(());
                }
            } else {
                self.at += rest.chars().next().map_or(1, char::len_utf8);
            }
        }
        Err(Unclosed { what: "comment", start })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<&str> {
        tokens(text).unwrap().iter().map(|token| token.text).collect()
    }

    #[test]
    fn quotes_comments_and_dollar_quotes_hide_semicolons() {
        let text = "a 'x;''y' -- ;\n \"b;\" /* ; /* ; */ */ $q$ ; $q$; e'\\';' c";
        let tokens = tokens(text).unwrap();
        assert_eq!(statements(&tokens).count(), 2);
    }

    #[test]
    fn a_backslash_escapes_only_in_an_escape_string() {
        assert_eq!(words(r"'a\' b"), vec![r"'a\'", "b"]);
        assert_eq!(words(r"e'a\'' b"), vec!["e", r"'a\''", "b"]);
        assert_eq!(words(r"name'a\' b"), vec!["name", r"'a\'", "b"]);
    }

    #[test]
    fn what_is_never_closed_is_named_with_its_place() {
        for (text, what, start) in [
            ("a 'b", "string", 2),
            ("\"b", "quoted identifier", 0),
            ("/* /* */", "comment", 0),
            ("x $a$ $b$", "dollar-quoted string", 2),
        ] {
            assert_eq!(tokens(text).unwrap_err(), Unclosed { what, start }, "{text}");
        }
    }

    #[test]
    fn a_parameter_is_not_a_dollar_quote() {
        assert_eq!(words("$1 + $2"), vec!["$", "1", "+", "$", "2"]);
    }

    #[test]
    fn a_string_has_content() {
        let found: Vec<_> = tokens("x 'a''b' $$c$$ $q$d$q$ 7").unwrap();
        let contents: Vec<_> = found.iter().map(|token| token.content()).collect();
        assert_eq!(contents, [None, Some("a''b"), Some("c"), Some("d"), None]);
    }

    #[test]
    fn names_fold_unless_quoted() {
        let names: Vec<_> = tokens(r#"Todos "To""Dos""#).unwrap().iter().filter_map(Token::name).collect();
        assert_eq!(names, vec!["todos", "To\"Dos"]);
    }
}
