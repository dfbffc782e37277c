//! Errors of connecting, with what to do about them.

use std::io;

use sqlx::postgres::PgConnectOptions;

use super::sqlstate::describe;

/// What the driver, TLS or a pooler says, and what that means; `{host}` stands for the host.
const EXPLANATIONS: [(&str, &str); 6] = [
    (
        "CaUsedAsEndEntity",
        "the certificate of {host} is an authority's own, which TLS here accepts for no server: make an authority, let it \
         sign a certificate for {host}, and name the authority's as `sslrootcert`; or write `sslmode=require` without \
         `sslrootcert`, which encrypts but verifies nothing",
    ),
    (
        "UnknownIssuer",
        "the certificate of {host} is signed by nobody that is trusted here: name the certificate of its authority as \
         `sslrootcert`",
    ),
    (
        "not valid for name",
        "the certificate of {host} is for another name: connect by a name that it has, or write `sslmode=verify-ca`",
    ),
    (
        "query_wait_timeout",
        "PgBouncer had no free connection to the server (query_wait_timeout): raise its default_pool_size, or end who holds \
         the connections",
    ),
    (
        "transaction blocks not allowed in statement pooling mode",
        "PgBouncer is in statement mode, which knows no transactions: give espd a pool with pool_mode = transaction or \
         session",
    ),
    (
        "unsupported startup parameter",
        "PgBouncer refuses a parameter that the URL asks for: take `options` out of the URL, or add it to \
         ignore_startup_parameters",
    ),
];

/// The error with what it means, where that is known.
pub(crate) fn explain(error: sqlx::Error, options: &PgConnectOptions) -> sqlx::Error {
    match explanation(&error, &place(options)) {
        // Only errors of the driver are replaced: of the server's, others read the SQLSTATE.
        Some(text) if !matches!(error, sqlx::Error::Database(_)) => sqlx::Error::Tls(text.into()),
        _ => error,
    }
}

/// What an error means and what to do about it, if that is known.
pub(crate) fn explanation(error: &sqlx::Error, host: &str) -> Option<String> {
    let said = error.to_string();
    let known = EXPLANATIONS.iter().find(|(sign, _)| said.contains(sign));
    known.map(|(_, text)| text.replace("{host}", host))
}

/// One error for several hosts.
pub(crate) fn join(mut errors: Vec<(&PgConnectOptions, sqlx::Error)>) -> sqlx::Error {
    if errors.len() < 2 {
        return errors.pop().map_or(sqlx::Error::PoolClosed, |(_, error)| error);
    }
    let each: Vec<String> =
        errors.iter().map(|(options, error)| format!("{}: {}", place(options), describe(error))).collect();
    let text = format!("none of the hosts can be used: {}", each.join("; "));
    sqlx::Error::Io(io::Error::new(io::ErrorKind::ConnectionRefused, text))
}

/// Where a host is: `db1:5432`.
pub(super) fn place(options: &PgConnectOptions) -> String {
    match options.get_socket() {
        Some(folder) => format!("{}:{}", folder.display(), options.get_port()),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    }
}
