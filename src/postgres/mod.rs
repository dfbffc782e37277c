//! What is true of any PostgreSQL: URLs, names, quoting, rows, errors, deadlines, notifications, a lexer, SQL with its
//! place in a file.

pub(crate) mod connect_error;
pub(crate) mod connector;
#[cfg(feature = "processors")]
pub(crate) mod database_url;
pub(crate) mod deadline;
pub(crate) mod error;
pub(crate) mod lexer;
pub(crate) mod life;
pub(crate) mod literal;
pub(crate) mod name;
pub(crate) mod notify;
pub(crate) mod query_text;
pub(crate) mod quote;
pub(crate) mod row;
pub(crate) mod server_mark;
pub(crate) mod source_text;
pub(crate) mod sql_scope;
pub(crate) mod sqlstate;
pub(crate) mod transaction;
