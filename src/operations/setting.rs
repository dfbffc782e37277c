//! How a setting of the server is changed where it was set.

/// The statement that sets what `source` of `pg_settings` has set otherwise. What is set for a role belongs to the one that has logged
/// in: `alter role … set role` changes neither that nor its settings.
pub(crate) fn assign(source: &str, database: &str, login: &str, assignment: &str) -> String {
    match source {
        "database" => format!("alter database {database} set {assignment};"),
        "user" => format!("alter role {login} set {assignment};"),
        "database user" => format!("alter role {login} in database {database} set {assignment};"),
        "client" => format!("set {assignment} in the URL's `options` or in PGOPTIONS, or leave it out there"),
        _ => format!("alter system set {assignment}; select pg_reload_conf();"),
    }
}
