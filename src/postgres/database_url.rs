//! The URL of a database, whose password is never shown.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnectOptions;
use thiserror::Error;
use url::Url;

/// What is shown in place of a password.
const HIDDEN: &str = "***";

/// A PostgreSQL URL that the driver accepts: `postgres://user:password@host:port/database`.
///
/// `Display` and `Debug` hide the password. Serialization does not: it is how a supervisor hands the
/// URL to a worker child through a pipe. Whatever is shown to people goes through `Display`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// Accepts what the driver accepts.
    pub fn new(url: impl Into<String>) -> Result<Self, InvalidDatabaseUrl> {
        let url = url.into();
        let parsed = Url::parse(&url).map_err(|error| InvalidDatabaseUrl(error.to_string()))?;
        if !matches!(parsed.scheme(), "postgres" | "postgresql") || !parsed.has_authority() {
            return Err(InvalidDatabaseUrl("it does not begin with `postgres://`".into()));
        }
        if parsed.query_pairs().any(|(key, _)| is_secret(&key) && key != "password") {
            // The driver would ignore it, with a warning that quotes it.
            return Err(InvalidDatabaseUrl("the only secret parameter that is known is `password`".into()));
        }
        // The driver's message is about one parameter and does not repeat the URL.
        PgConnectOptions::from_str(&url).map_err(|error| InvalidDatabaseUrl(error.to_string()))?;
        Ok(Self(url))
    }

    /// The URL with its password, to connect with; not to be shown.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(mut url) = Url::parse(&self.0) else { return f.write_str(HIDDEN) };
        if url.password().is_some() && url.set_password(Some(HIDDEN)).is_err() {
            return f.write_str(HIDDEN);
        }
        if url.query_pairs().any(|(key, _)| is_secret(&key)) {
            let pairs: Vec<_> = url.query_pairs().into_owned().collect();
            let shown = pairs.iter().map(|(key, value)| (key, if is_secret(key) { HIDDEN } else { value }));
            url.query_pairs_mut().clear().extend_pairs(shown);
        }
        write!(f, "{url}")
    }
}

/// Whether a parameter of a URL is not for everybody's eyes.
fn is_secret(key: &str) -> bool {
    key.contains("password")
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

impl TryFrom<String> for DatabaseUrl {
    type Error = InvalidDatabaseUrl;

    fn try_from(url: String) -> Result<Self, Self::Error> {
        Self::new(url)
    }
}

/// The URL cannot be used. Says why, without repeating it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not a PostgreSQL URL: {0}")]
pub struct InvalidDatabaseUrl(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_never_shown() {
        for url in [
            "postgres://jo:s3cret@localhost:5433/shop",
            "postgresql://jo:s3cret@%2Frun%2Fpostgresql/shop",
            "postgres:///shop?host=/tmp&user=jo&password=s3cret",
            "postgres://jo:p%40s3cret%2F@h/shop?sslmode=require",
        ] {
            let url = DatabaseUrl::new(url).unwrap();
            let shown = format!("{url} {url:?} {url:#?}");
            assert!(shown.contains("shop") && shown.contains("***") && !shown.contains("s3cret"), "{shown}");
            assert!(url.expose().contains("s3cret"));
        }
    }

    #[test]
    fn without_a_password_nothing_is_changed() {
        for url in ["postgres://jo@h/d", "postgres:///d?host=%2Ftmp&user=jo", "postgres://h"] {
            assert_eq!(DatabaseUrl::new(url).unwrap().to_string(), url);
        }
    }

    #[test]
    fn a_refused_url_is_not_repeated() {
        for url in [
            "",
            "s3cret",
            "s3cret@h/d",
            "mysql://jo:s3cret@h/d",
            "postgres:jo:s3cret@h/d",
            "postgres://jo:s3cret@h:port/d",
            "postgres://jo:s3cret@h/d?sslmode=maybe",
            "postgres://jo:s3cret@h/d?port=1234567",
            "postgres://h/d?sslpassword=s3cret",
        ] {
            let error = DatabaseUrl::new(url).unwrap_err().to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_worker_receives_the_whole_url() {
        let url = DatabaseUrl::new("postgres://jo:s3cret@h/d").unwrap();
        let json = serde_json::to_string(&url).unwrap();
        assert_eq!(serde_json::from_str::<DatabaseUrl>(&json).unwrap(), url);
    }
}
