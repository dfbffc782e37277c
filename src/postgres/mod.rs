//! What is true of any PostgreSQL: URLs, quoting, rows, a lexer, SQL with its place in a file.

pub(crate) mod database_url;
pub(crate) mod lexer;
pub(crate) mod notify;
pub(crate) mod quote;
pub(crate) mod row;
pub(crate) mod source_text;
