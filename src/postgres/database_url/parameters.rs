//! The parameters of a URL: those with an effect, and why the others are refused.

use std::time::Duration;

use strsim::damerau_levenshtein;

use super::{InvalidDatabaseUrl, is_secret};
use crate::postgres::connector::NeededHost;

/// Parameters that the driver reads, as libpq names them; a few have other names as well.
const OF_THE_DRIVER: [&str; 14] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "dbname",
    "user",
    "password",
    "application_name",
];

/// Parameters of libpq that change nothing with these values, so they may stand there.
const HARMLESS: [(&str, &[&str]); 6] = [
    ("channel_binding", &["disable", "prefer"]),
    ("sslnegotiation", &["postgres"]),
    ("gssencmode", &["disable", "prefer"]),
    ("load_balance_hosts", &["disable"]),
    ("sslcompression", &["0"]),
    ("client_encoding", &["UTF8", "utf8", "UTF-8"]),
];

/// Other parameters of libpq and of poolers' drivers, with what to do instead.
const UNSUPPORTED: [(&str, &str); 26] = [
    ("channel_binding", "sslmode=verify-full protects against a server in between"),
    ("sslnegotiation", "only the negotiation of PostgreSQL is known"),
    ("gssencmode", "GSSAPI is not spoken: use TLS"),
    ("load_balance_hosts", "espd uses the primary only"),
    ("sslcompression", "TLS is never compressed"),
    ("client_encoding", "UTF8 is always spoken"),
    ("service", "write host, user and database into the URL"),
    ("passfile", "use PGPASSFILE or ~/.pgpass"),
    ("requirepeer", "name the folder of a socket that nobody else can write to"),
    ("require_auth", "require it in pg_hba.conf"),
    ("sslcrl", "revoked certificates are not looked up"),
    ("sslcrldir", "revoked certificates are not looked up"),
    (
        "sslpassword",
        "the only secret parameter that is known is `password`: store the key without a password of its own",
    ),
    ("sslsni", "the host's name is always sent"),
    ("sslcertmode", "name certificate and key, or do not"),
    ("ssl_min_protocol_version", "TLS 1.2 is the oldest that is spoken; require more on the server"),
    ("ssl_max_protocol_version", "limit it on the server"),
    ("krbsrvname", "GSSAPI is not spoken"),
    ("gsslib", "GSSAPI is not spoken"),
    ("keepalives", "espd notices silent servers by itself"),
    ("keepalives_idle", "espd notices silent servers by itself"),
    ("keepalives_interval", "espd notices silent servers by itself"),
    ("keepalives_count", "espd notices silent servers by itself"),
    ("tcp_user_timeout", "espd notices silent servers by itself"),
    ("fallback_application_name", "espd names its sessions"),
    ("replication", "espd opens ordinary sessions"),
];

/// The parameters that are read here.
const OF_OURS: [&str; 6] = ["host", "hostaddr", "port", "target_session_attrs", "connect_timeout", "options"];

/// What the parameters of a URL say.
#[derive(Debug, Default)]
pub(super) struct Parameters {
    pub(super) hosts: Option<String>,
    pub(super) ports: Option<String>,
    pub(super) needed: NeededHost,
    pub(super) timeout: Option<Duration>,
    pub(super) has_session_options: bool,
    pub(super) root: Option<String>,
    pub(super) certificate: Option<String>,
    pub(super) key: Option<String>,
    pub(super) ssl_mode: Option<String>,
    /// What the driver reads itself.
    pub(super) passed: Vec<(String, String)>,
}

impl Parameters {
    pub(super) fn read(pairs: impl Iterator<Item = (String, String)>) -> Result<Self, InvalidDatabaseUrl> {
        let mut read = Self::default();
        for (key, value) in pairs {
            read.take(key, value)?;
        }
        Ok(read)
    }

    fn take(&mut self, key: String, value: String) -> Result<(), InvalidDatabaseUrl> {
        match key.as_str() {
            "host" | "hostaddr" => self.hosts = Some(value),
            "port" => self.ports = Some(value),
            "target_session_attrs" => self.needed = read_needed(&value)?,
            "connect_timeout" => self.timeout = read_timeout(&value)?,
            "options" => self.pass_option(key, value),
            key if key.starts_with("options[") => self.pass_option(key.to_owned(), value),
            "sslmode" | "ssl-mode" => self.ssl_mode = Some(value),
            "sslrootcert" | "ssl-root-cert" | "ssl-ca" => self.root = Some(value),
            "sslcert" | "ssl-cert" => self.certificate = Some(value),
            "sslkey" | "ssl-key" => self.key = Some(value),
            known if OF_THE_DRIVER.contains(&known) => self.passed.push((key, value)),
            _ if is_harmless(&key, &value) => {}
            _ => return Err(refuse(&key)),
        }
        Ok(())
    }

    fn pass_option(&mut self, key: String, value: String) {
        self.has_session_options = true;
        self.passed.push((key, value));
    }
}

fn is_harmless(key: &str, value: &str) -> bool {
    HARMLESS.iter().any(|(name, values)| *name == key && values.contains(&value))
}

fn read_needed(value: &str) -> Result<NeededHost, InvalidDatabaseUrl> {
    match value {
        "any" => Ok(NeededHost::Any),
        "primary" => Ok(NeededHost::Primary),
        "read-write" => Ok(NeededHost::Writable),
        _ => Err(InvalidDatabaseUrl::because(
            "`target_session_attrs` may be read-write, primary or any: espd writes, so it needs the primary",
        )),
    }
}

/// Seconds, as in libpq: 0 and less mean no limit.
fn read_timeout(value: &str) -> Result<Option<Duration>, InvalidDatabaseUrl> {
    let seconds: i32 = value
        .parse()
        .map_err(|_| InvalidDatabaseUrl::because("`connect_timeout` is a whole number of seconds"))?;
    Ok(u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs))
}

/// Why a parameter is refused. Its value is not repeated.
fn refuse(key: &str) -> InvalidDatabaseUrl {
    if let Some((name, advice)) = UNSUPPORTED.iter().find(|(name, _)| *name == key) {
        let value =
            if HARMLESS.iter().any(|(harmless, _)| harmless == name) { " with this value" } else { "" };
        return InvalidDatabaseUrl::because(format!(
            "the parameter `{key}` is not supported{value}, and nothing is ignored: remove it; {advice}"
        ));
    }
    if is_secret(key) {
        return InvalidDatabaseUrl::because("the only secret parameter that is known is `password`");
    }
    let key: String = key.chars().take(40).collect();
    let reason = match nearest(&key) {
        Some(near) => format!("the parameter `{key}` is not known: did you mean `{near}`?"),
        None => format!("the parameter `{key}` is not known, and nothing is ignored: remove it"),
    };
    InvalidDatabaseUrl::because(reason)
}

fn nearest(key: &str) -> Option<&'static str> {
    let known = OF_THE_DRIVER.into_iter().chain(OF_OURS);
    let by_distance = known.map(|known| (damerau_levenshtein(known, &key.to_lowercase()), known));
    by_distance.filter(|(distance, known)| *distance <= 1.max(known.len() / 3)).min().map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(key: &str, value: &str) -> String {
        Parameters::read([(key.to_owned(), value.to_owned())].into_iter()).unwrap_err().to_string()
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        for (key, value, words) in [
            ("sslmoed", "verify-full", "did you mean `sslmode`?"),
            ("target_session_atrs", "read-write", "did you mean `target_session_attrs`?"),
            ("pgbouncer", "true", "`pgbouncer` is not known, and nothing is ignored"),
            ("channel_binding", "require", "`channel_binding` is not supported with this value"),
            ("service", "shop", "`service` is not supported, and"),
            ("target_session_attrs", "prefer-standby", "read-write, primary or any"),
            ("connect_timeout", "soon", "seconds"),
            ("sslpassword", "s3cret", "secret parameter"),
        ] {
            let refusal = refusal(key, value);
            assert!(refusal.contains(words) && !refusal.contains("s3cret"), "{refusal}");
        }
    }

    #[test]
    fn what_has_an_effect_is_read() {
        let pairs = [
            ("target_session_attrs", "read-write"),
            ("connect_timeout", "3"),
            ("channel_binding", "prefer"),
            ("options", "-c geqo=off"),
            ("dbname", "shop"),
        ];
        let read = Parameters::read(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter())
            .unwrap();
        assert_eq!((read.needed, read.timeout), (NeededHost::Writable, Some(Duration::from_secs(3))));
        assert!(read.has_session_options);
        assert_eq!(read.passed.len(), 2);
    }
}
