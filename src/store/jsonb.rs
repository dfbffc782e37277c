//! JSON as PostgreSQL's jsonb keeps it, for the memory twin.
//!
//! jsonb keeps the last of equal keys, sorts keys by length and then by bytes, writes every number
//! without exponent and with all its digits, and cannot hold a NUL character, a lone surrogate, or a
//! number beyond the range of numeric. No number passes through a floating-point type here either.

/// Deepest nesting that is accepted. PostgreSQL's limit depends on `max_stack_depth`; with the default
/// of 2 MB it lies between this and twice as much.
const DEPTH_MAX: usize = 10_000;

/// Most digits that numeric keeps before the decimal point.
const INTEGER_DIGITS_MAX: i64 = 131_072;

/// Most digits that numeric keeps after the decimal point.
const FRACTION_DIGITS_MAX: i64 = 16_383;

/// Exponents from here on are refused, however small the number is that comes out.
const EXPONENT_END: i64 = (i32::MAX / 2) as i64;

/// The text that jsonb gives back for `json`, which must be JSON; what is wrong if it cannot hold it.
pub(super) fn normalize(json: &str) -> Result<String, &'static str> {
    Rewriter { rest: json, open: Vec::new(), write_number: |number| number }.rewrite()
}

/// The same JSON without white space between its parts, and so on one line.
pub(super) fn without_white_space(json: &str) -> String {
    let (mut written, mut rest) = (String::with_capacity(json.len()), json);
    while let Some(first) = rest.chars().next() {
        let length = if first == '"' { string_length(rest) } else { first.len_utf8() };
        if !first.is_ascii_whitespace() {
            written.push_str(&rest[..length]);
        }
        rest = &rest[length..];
    }
    written
}

/// Whether jsonb takes the two for equal: as [`normalize`], and 1.0 is 1.
pub(super) fn are_equal(one: &str, other: &str) -> bool {
    let comparable =
        |json| Rewriter { rest: json, open: Vec::new(), write_number: without_trailing_zeros }.rewrite();
    comparable(one) == comparable(other)
}

/// Writes JSON anew. Holds open containers on a stack of its own, so depth costs no stack frames.
struct Rewriter<'a> {
    rest: &'a str,
    open: Vec<Container>,
    write_number: fn(String) -> String,
}

/// An array or object whose end has not been read, with its finished elements.
enum Container {
    Array(Vec<String>),
    Object { members: Vec<(String, String)>, key: Option<String> },
}

impl<'a> Rewriter<'a> {
    fn rewrite(mut self) -> Result<String, &'static str> {
        loop {
            if let Some(value) = self.read_next()? {
                match self.open.last_mut() {
                    None => return Ok(value),
                    Some(container) => container.add(value),
                }
            }
        }
    }

    /// Reads one token, and returns a value if that ends one.
    fn read_next(&mut self) -> Result<Option<String>, &'static str> {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r', ',', ':']);
        match self.rest.bytes().next().ok_or("it is not JSON")? {
            b'[' => self.open(Container::Array(Vec::new())),
            b'{' => self.open(Container::Object { members: Vec::new(), key: None }),
            b']' | b'}' => {
                self.skip(1);
                Ok(self.open.pop().map(Container::close))
            }
            b'"' => self.read_string(),
            b'-' | b'0'..=b'9' => self.read_number().map(Some),
            _ => Ok(Some(self.read_word().to_owned())),
        }
    }

    fn open(&mut self, container: Container) -> Result<Option<String>, &'static str> {
        self.skip(1);
        self.open.push(container);
        if self.open.len() > DEPTH_MAX { Err("it is nested too deeply") } else { Ok(None) }
    }

    /// Reads a string, which is a value or the key of the next one.
    fn read_string(&mut self) -> Result<Option<String>, &'static str> {
        let length = string_length(self.rest);
        let text: String =
            serde_json::from_str(&self.rest[..length]).map_err(|_| "it contains a lone surrogate")?;
        if text.contains('\0') {
            return Err("it contains a NUL character");
        }
        self.skip(length);
        match self.open.last_mut() {
            Some(Container::Object { key: key @ None, .. }) => {
                *key = Some(text);
                Ok(None)
            }
            _ => Ok(Some(quote(&text))),
        }
    }

    fn read_number(&mut self) -> Result<String, &'static str> {
        let number = expand(self.read_word()).ok_or("it contains a number out of range")?;
        Ok((self.write_number)(number))
    }

    /// Reads to the end of a number, `true`, `false` or `null`.
    fn read_word(&mut self) -> &'a str {
        let ends = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.'));
        let (word, rest) = self.rest.split_at(self.rest.find(ends).unwrap_or(self.rest.len()));
        self.rest = rest;
        word
    }

    fn skip(&mut self, length: usize) {
        self.rest = &self.rest[length..];
    }
}

impl Container {
    fn add(&mut self, value: String) {
        match self {
            Self::Array(elements) => elements.push(value),
            Self::Object { members, key } => members.push((key.take().unwrap_or_default(), value)),
        }
    }

    fn close(self) -> String {
        match self {
            Self::Array(elements) => format!("[{}]", elements.join(", ")),
            Self::Object { members, .. } => format!("{{{}}}", join_members(members)),
        }
    }
}

/// Members as jsonb orders them; of equal keys the last one stays.
fn join_members(mut members: Vec<(String, String)>) -> String {
    members.reverse();
    members.sort_by(|(a, _), (b, _)| (a.len(), a).cmp(&(b.len(), b)));
    members.dedup_by(|later, earlier| later.0 == earlier.0);
    let written: Vec<String> =
        members.iter().map(|(key, value)| format!("{}: {value}", quote(key))).collect();
    written.join(", ")
}

/// Length in bytes of the string literal that `json` begins with, quotes included.
fn string_length(json: &str) -> usize {
    let mut escaped = false;
    for (place, byte) in json.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return place + 1,
            _ => {}
        }
    }
    json.len()
}

fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c < ' ' => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// The number without exponent; `None` if numeric cannot hold it.
fn expand(number: &str) -> Option<String> {
    let (sign, number) = number.strip_prefix('-').map_or(("", number), |rest| ("-", rest));
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (integer, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent: i64 = exponent.parse().ok().filter(|exponent: &i64| exponent.abs() < EXPONENT_END)?;

    let digits = format!("{integer}{fraction}");
    let significant = digits.trim_start_matches('0');
    // Where the decimal point is among the digits, once the exponent has moved it.
    let point = count(integer) + exponent;
    let fraction_digits = (count(fraction) - exponent).max(0);
    let integer_digits = point - (count(&digits) - count(significant));
    if fraction_digits > FRACTION_DIGITS_MAX {
        None
    } else if significant.is_empty() {
        Some(with_fraction("0", &zeros(fraction_digits)))
    } else if integer_digits > INTEGER_DIGITS_MAX {
        None
    } else {
        Some(format!("{sign}{}", place_point(&digits, point)))
    }
}

/// `digits` with the decimal point after the first `point` of them, filled up with zeros.
fn place_point(digits: &str, point: i64) -> String {
    match usize::try_from(point) {
        Ok(point) if point < digits.len() => {
            let (integer, fraction) = digits.split_at(point);
            with_fraction(integer, fraction)
        }
        Ok(_) => with_fraction(&format!("{digits}{}", zeros(point - count(digits))), ""),
        Err(_) => with_fraction("0", &format!("{}{digits}", zeros(-point))),
    }
}

fn with_fraction(integer: &str, fraction: &str) -> String {
    let integer = match integer.trim_start_matches('0') {
        "" => "0",
        trimmed => trimmed,
    };
    if fraction.is_empty() { integer.to_owned() } else { format!("{integer}.{fraction}") }
}

fn count(digits: &str) -> i64 {
    i64::try_from(digits.len()).unwrap_or(i64::MAX / 2)
}

fn zeros(count: i64) -> String {
    "0".repeat(usize::try_from(count).unwrap_or(0))
}

fn without_trailing_zeros(number: String) -> String {
    if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.').to_owned() } else { number }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_what_postgresql_gives_back() {
        for (given, kept) in [
            (r#"{"bb":1,"a":2,"c":3}"#, r#"{"a": 2, "c": 3, "bb": 1}"#),
            (r#"{"a":1,"a":{"b":2}}"#, r#"{"a": {"b": 2}}"#),
            (" [ 1 ,2.50, 1e3,-1.5E-2 , 12.34e1 ] ", "[1, 2.50, 1000, -0.015, 123.4]"),
            (r#"[true,false,null,"",{},[]]"#, r#"[true, false, null, "", {}, []]"#),
            (r#""\u00e9\ud83d\ude00\/\b\u0001\"\\""#, "\"é😀/\\b\\u0001\\\"\\\\\""),
            ("12345678901234567890.123456789", "12345678901234567890.123456789"),
            ("[-0, -0.00, 1.20e1, 0e5, 0e-5]", "[0, 0.00, 12.0, 0, 0.00000]"),
        ] {
            assert_eq!(normalize(given).as_deref(), Ok(kept), "{given}");
        }
    }

    #[test]
    fn what_jsonb_cannot_hold_is_refused() {
        for json in [r#""\u0000""#, r#"{"\u0000":1}"#, r#""\ud800""#] {
            assert!(normalize(json).is_err(), "{json}");
        }
        for number in ["1e131072", "1e-16384", "0e-16384", "1.00000e-16380", "0e99999999999", "10e131071"] {
            assert!(normalize(number).is_err(), "{number}");
        }
        for number in ["1e131071", "1e-16383", "0.0e999999", "0.1e131072", "10e131070"] {
            assert!(normalize(number).is_ok(), "{number}");
        }
        assert!(normalize(r#""\\u0000""#).is_ok());
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(normalize(&nested(DEPTH_MAX)).is_ok());
        assert!(normalize(&nested(DEPTH_MAX + 1)).is_err());
    }

    #[test]
    fn white_space_between_the_parts_is_left_out() {
        let json = "{ \"a b\\\" \\u0000\" :\n [1 ,\t\"é \"] }\r\n";
        assert_eq!(without_white_space(json), r#"{"a b\" \u0000":[1,"é "]}"#);
    }

    #[test]
    fn equality_is_of_values() {
        assert!(are_equal(r#"{"a":1.0,"b":[2e2]}"#, r#"{"b": [200.00], "a": 1}"#));
        assert!(are_equal("100", "1e2"));
        assert!(!are_equal("100", "10"));
        assert!(!are_equal("[1,2]", "[2,1]"));
        assert!(!are_equal(r#"{"a":1}"#, r#"{"a":"1"}"#));
    }
}
