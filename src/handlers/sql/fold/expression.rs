//! Which expressions can be folded: those of an explicit list of nodes, operators, casts and functions over `event`.
//!
//! The author's text of an expression is what PostgreSQL evaluates, here as in the loop. The tree only says whether the text
//! may mean something else where it is evaluated at another time, or whether it reads anything but the event.

use std::collections::BTreeSet;

use sqlparser::ast::{
    BinaryOperator, CastKind, DataType, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments,
    InTarget, UnaryOperator, Value,
};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::Token as ParserToken;

use super::TEXT_MAX;
use super::deep_stack::on_deep_stack;
use crate::handlers::sql::event_source::COLUMNS;

/// What expressions use, by name: the database has to say that PostgreSQL's own are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) functions: BTreeSet<String>,
    pub(super) operators: BTreeSet<String>,
}

/// Functions of `pg_catalog` whose every overload depends on its arguments only, or on settings that are the same in the loop.
pub(super) const FUNCTIONS: [&str; 26] = [
    "abs",
    "btrim",
    "char_length",
    "date_trunc",
    "decode",
    "encode",
    "jsonb_array_length",
    "jsonb_extract_path",
    "jsonb_extract_path_text",
    "jsonb_typeof",
    "left",
    "length",
    "lower",
    "lpad",
    "ltrim",
    "make_date",
    "md5",
    "mod",
    "octet_length",
    "replace",
    "right",
    "round",
    "rtrim",
    "split_part",
    "strpos",
    "upper",
];

/// What looks like a function and is part of the grammar.
const GRAMMAR: [&str; 4] = ["coalesce", "greatest", "least", "nullif"];

/// Functions that give another answer at another time, or with each call.
const NOT_IMMUTABLE: [&str; 14] = [
    "clock_timestamp",
    "current_date",
    "current_time",
    "current_timestamp",
    "current_user",
    "gen_random_uuid",
    "localtime",
    "localtimestamp",
    "nextval",
    "now",
    "random",
    "statement_timestamp",
    "transaction_timestamp",
    "uuid_generate_v4",
];

/// Types that a text may be cast to: PostgreSQL's own, whose input depends on settings only.
const TYPES: [&str; 26] = [
    "text",
    "varchar",
    "character varying",
    "uuid",
    "int",
    "int4",
    "integer",
    "bigint",
    "int8",
    "smallint",
    "int2",
    "bool",
    "boolean",
    "date",
    "timestamptz",
    "timestamp with time zone",
    "timestamp",
    "timestamp without time zone",
    "jsonb",
    "numeric",
    "decimal",
    "double precision",
    "float8",
    "interval",
    "bytea",
    "real",
];

const OPERATORS: [&str; 22] = [
    "+", "-", "*", "/", "%", "||", "=", "<>", "!=", "<", ">", "<=", ">=", "->", "->>", "#>", "#>>", "?",
    "@>", "<@", "AND", "OR",
];

/// The tree of a text that is one expression.
pub(super) fn parse(text: &str) -> Option<Expr> {
    let mut parser = Parser::new(&PostgreSqlDialect {}).try_with_sql(text).ok()?;
    let expression = parser.parse_expr().ok()?;
    (parser.peek_token().token == ParserToken::EOF).then_some(expression)
}

/// Whether a text is a literal and nothing else.
pub(super) fn is_literal(text: &str) -> bool {
    is_tree(text, |tree| matches!(tree, Expr::Value(_)))
}

/// Whether a text is a literal, with casts at most.
pub(super) fn is_constant(text: &str) -> bool {
    is_tree(text, |tree| is_constant_tree(tree) && examine(tree, &mut Used::default()).is_ok())
}

/// Whether a text from anywhere is an expression of this kind. One that is too long is not.
fn is_tree(text: &str, is: fn(&Expr) -> bool) -> bool {
    text.len() <= TEXT_MAX && on_deep_stack(|| parse(text).is_some_and(|tree| is(&tree))).unwrap_or_default()
}

fn is_constant_tree(tree: &Expr) -> bool {
    match tree {
        Expr::Value(_) => true,
        Expr::Nested(inner)
        | Expr::UnaryOp { op: UnaryOperator::Minus, expr: inner }
        | Expr::Cast { expr: inner, .. } => is_constant_tree(inner),
        _ => false,
    }
}

/// Notes what an expression uses; refuses what is not on the lists.
pub(super) fn examine(expression: &Expr, used: &mut Used) -> Result<(), String> {
    match expression {
        Expr::CompoundIdentifier(parts) => examine_field(parts),
        Expr::Value(value) => examine_value(&value.value),
        Expr::TypedString(typed) => {
            examine_type(&typed.data_type)?;
            examine_value(&typed.value.value)
        }
        Expr::Nested(inner) => examine(inner, used),
        Expr::Cast { kind: CastKind::Cast | CastKind::DoubleColon, expr, data_type, format: None } => {
            examine_type(data_type)?;
            examine(expr, used)
        }
        Expr::UnaryOp { op, expr } => {
            match op {
                UnaryOperator::Not => {}
                UnaryOperator::Minus | UnaryOperator::Plus => _ = used.operators.insert(op.to_string()),
                _ => return Err(format!("operator {op} is not on the list of operators that are folded")),
            }
            examine(expr, used)
        }
        Expr::BinaryOp { left, op, right } => {
            examine_operator(op, used)?;
            examine_all([left.as_ref(), right], used)
        }
        Expr::IsNull(inner)
        | Expr::IsNotNull(inner)
        | Expr::IsTrue(inner)
        | Expr::IsNotTrue(inner)
        | Expr::IsFalse(inner)
        | Expr::IsNotFalse(inner) => examine(inner, used),
        Expr::IsDistinctFrom(left, right) | Expr::IsNotDistinctFrom(left, right) => {
            used.operators.insert("=".to_owned());
            examine_all([left.as_ref(), right], used)
        }
        Expr::AtTimeZone { timestamp, time_zone } => {
            used.functions.insert("timezone".to_owned());
            examine_all([timestamp.as_ref(), time_zone], used)
        }
        Expr::In { expr, target: InTarget::List(list), global: false, .. } => {
            used.operators.extend(["=".to_owned(), "<>".to_owned()]);
            examine_all([expr.as_ref()].into_iter().chain(list), used)
        }
        Expr::Case { operand, conditions, else_result, .. } => {
            if operand.is_some() {
                used.operators.insert("=".to_owned());
            }
            let arms = conditions.iter().flat_map(|arm| [&arm.condition, &arm.result]);
            examine_all(operand.as_deref().into_iter().chain(arms).chain(else_result.as_deref()), used)
        }
        Expr::Function(function) => examine_function(function, used),
        Expr::Identifier(name) if NOT_IMMUTABLE.contains(&name.value.to_lowercase().as_str()) => {
            Err(format!("{} is not immutable", name.value.to_lowercase()))
        }
        Expr::Identifier(name) => Err(reads_beyond_event(&name.to_string())),
        Expr::Subquery(_) | Expr::Exists { .. } | Expr::In { .. } => {
            Err("it reads tables in a subquery".to_owned())
        }
        _ => Err(format!("the expression {} is not of a kind that is folded", shortened(expression))),
    }
}

fn examine_all<'e>(all: impl IntoIterator<Item = &'e Expr>, used: &mut Used) -> Result<(), String> {
    all.into_iter().try_for_each(|expression| examine(expression, used))
}

fn shortened(expression: &Expr) -> String {
    let text = expression.to_string();
    if text.chars().count() > 40 { text.chars().take(40).collect::<String>() + "…" } else { text }
}

/// That an expression is made of more than the event. What the name is, a column or a variable, the table and the handler know.
fn reads_beyond_event(name: &str) -> String {
    format!("it reads {name}, which is a column of a row that is there, or a variable, and not of event")
}

/// A field of `event`.
fn examine_field(parts: &[sqlparser::ast::Ident]) -> Result<(), String> {
    let [record, field] = parts else { return Err("a name has too many parts".to_owned()) };
    let (record, field) = (identifier(record), identifier(field));
    if record != "event" {
        return Err(reads_beyond_event(&format!("{record}.{field}")));
    }
    let is_known = COLUMNS.split(", ").any(|column| column == field);
    if is_known { Ok(()) } else { Err(format!("event has no field {field}")) }
}

/// The name that an identifier stands for.
pub(super) fn identifier(ident: &sqlparser::ast::Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

fn examine_value(value: &Value) -> Result<(), String> {
    // As a time, such a text means that at which the statement was planned.
    const TIMES: [&str; 4] = ["now", "today", "tomorrow", "yesterday"];
    let is_time = |word: &str| TIMES.iter().any(|time| word.eq_ignore_ascii_case(time));
    match value {
        Value::SingleQuotedString(text)
            if text.split(|character: char| !character.is_alphanumeric()).any(is_time) =>
        {
            Err(format!("the literal {value} may mean another time at another time"))
        }
        Value::Number(..) | Value::SingleQuotedString(_) | Value::Boolean(_) | Value::Null => Ok(()),
        _ => Err(format!("the literal {value} is not of a kind that is folded")),
    }
}

fn examine_type(data_type: &DataType) -> Result<(), String> {
    let written = data_type.to_string().to_lowercase();
    let name = written.split('(').next().unwrap_or_default().trim().to_owned();
    let is_known = TYPES.contains(&name.as_str())
        && (name == written || ["numeric", "decimal"].contains(&name.as_str()));
    if is_known {
        Ok(())
    } else {
        Err(format!("a cast to {written} is not on the list of casts that are folded"))
    }
}

fn examine_operator(op: &BinaryOperator, used: &mut Used) -> Result<(), String> {
    let name = op.to_string();
    if !OPERATORS.contains(&name.as_str()) {
        return Err(format!("operator {name} is not on the list of operators that are folded"));
    }
    if !matches!(op, BinaryOperator::And | BinaryOperator::Or) {
        used.operators.insert(if name == "!=" { "<>".to_owned() } else { name });
    }
    Ok(())
}

fn examine_function(function: &Function, used: &mut Used) -> Result<(), String> {
    let parts: Option<Vec<String>> =
        function.name.0.iter().map(|part| part.as_ident().map(identifier)).collect();
    let parts = parts.unwrap_or_default();
    let name = match parts.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [name] | ["pg_catalog", name] => (*name).to_owned(),
        _ => return Err(format!("function {} is not one of PostgreSQL's own", function.name)),
    };
    if NOT_IMMUTABLE.contains(&name.as_str()) {
        let call = if matches!(function.args, FunctionArguments::None) { "" } else { "()" };
        return Err(format!("{name}{call} is not immutable"));
    }
    if !FUNCTIONS.contains(&name.as_str()) && !GRAMMAR.contains(&name.as_str()) {
        return Err(format!("{name}() is not on the list of functions that are folded"));
    }
    let is_plain = function.filter.is_none()
        && function.over.is_none()
        && function.within_group.is_empty()
        && function.null_treatment.is_none()
        && matches!(function.parameters, FunctionArguments::None);
    let FunctionArguments::List(list) = &function.args else {
        return Err(format!("{name} is called in a way that is not folded"));
    };
    if !is_plain || list.duplicate_treatment.is_some() || !list.clauses.is_empty() {
        return Err(format!("{name}() is called in a way that is not folded"));
    }
    if FUNCTIONS.contains(&name.as_str()) {
        used.functions.insert(name.clone());
    } else {
        used.operators.extend(["=", "<", ">"].map(str::to_owned));
    }
    for argument in &list.args {
        let FunctionArg::Unnamed(FunctionArgExpr::Expr(argument)) = argument else {
            return Err(format!("{name}() is called in a way that is not folded"));
        };
        examine(argument, used)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> Option<String> {
        examine(&parse(text).unwrap(), &mut Used::default()).err()
    }

    #[test]
    fn expressions_over_the_event_are_understood() {
        for text in [
            "event.body->>'title'",
            "(event.body->>'due')::date",
            "cast(event.body->>'n' as bigint) * case event.type when 'A' then -1 else 1 end",
            "coalesce(lower(event.body #>> '{a,b}'), 'none') || '!'",
            "event.body ? 'x' and event.version > 3 or event.body->>'y' in ('a', 'b')",
            "(event.body->>'amount')::numeric(10, 2)",
            "(event.created_at at time zone 'Europe/Berlin')::date",
        ] {
            assert_eq!(refusal(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_not_on_the_lists_is_refused_with_its_name() {
        for (text, reason) in [
            ("now()", "now() is not immutable"),
            ("'Today 10:00'::timestamptz", "may mean another time"),
            ("date 'yesterday'", "may mean another time"),
            ("current_date", "current_date is not immutable"),
            ("title", "it reads title, which is a column of a row that is there"),
            ("tags || array['x']", "it reads tags, which is a column of a row that is there"),
            ("least(t.cheapest, event.id)", "it reads t.cheapest, which is a column of a row that is there"),
            ("my_function(event.id)", "my_function() is not on the list"),
            ("app.lower(event.type)", "function app.lower is not one of PostgreSQL's own"),
            ("(select 1)", "it reads tables in a subquery"),
            ("event.nothing", "event has no field nothing"),
            ("event.body::mood", "a cast to mood"),
            ("event.body->>'a' ~ 'x'", "operator ~"),
            ("$q$x$q$", "the literal"),
            ("e'x'", "the literal"),
            ("count(*) over ()", "count() is not on the list"),
        ] {
            let found = refusal(text).unwrap_or_default();
            assert!(found.contains(reason), "{text}: {found}");
        }
    }
}
