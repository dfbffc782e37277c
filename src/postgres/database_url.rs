//! The URL of a database, whose password is never shown.

mod environment;
mod hosts;
mod parameters;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use url::Url;

use super::connector::{Connector, Present};
use hosts::Places;

/// What is shown in place of a password.
const HIDDEN: &str = "***";

/// A PostgreSQL URL that espd can connect with: `postgres://user:password@host:port,host:port/database?parameter=value`.
///
/// `Display` and `Debug` hide the password. Serialization does not: it is how a supervisor hands the
/// URL to a worker child through a pipe. Whatever is shown to people goes through `Display`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DatabaseUrl {
    text: String,
    /// Which of the hosts is good at present, known to whatever connects by this URL or a clone of it.
    present: Arc<Present>,
}

impl PartialEq for DatabaseUrl {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for DatabaseUrl {}

impl From<DatabaseUrl> for String {
    fn from(url: DatabaseUrl) -> Self {
        url.text
    }
}

impl DatabaseUrl {
    /// Accepts what has an effect, and refuses every parameter that would be ignored.
    ///
    /// # Errors
    /// What is wrong with the URL, or with a variable of the environment such as `PGSERVICE`. The URL is not repeated.
    pub fn new(url: impl Into<String>) -> Result<Self, InvalidDatabaseUrl> {
        let url = Self { text: url.into(), present: Arc::default() };
        url.connector()?;
        Ok(url)
    }

    /// The URL with its password, to connect with; not to be shown.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// How to connect to the database, with what the environment and password files say now.
    pub(crate) fn connector(&self) -> Result<Connector, InvalidDatabaseUrl> {
        let connector = hosts::read(&self.text, &|name| std::env::var(name).ok())?;
        Ok(connector.knowing(&self.present))
    }
}

impl FromStr for Connector {
    type Err = InvalidDatabaseUrl;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        DatabaseUrl::new(url)?.connector()
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((places, mut url)) = Places::split(&self.text)
            .and_then(|places| Url::parse(&places.with_first_host()).ok().map(|url| (places, url)))
        else {
            return f.write_str(HIDDEN);
        };
        if url.password().is_some() && url.set_password(Some(HIDDEN)).is_err() {
            return f.write_str(HIDDEN);
        }
        if url.query_pairs().any(|(key, _)| is_secret(&key)) {
            let pairs: Vec<_> = url.query_pairs().into_owned().collect();
            let shown = pairs.iter().map(|(key, value)| (key, if is_secret(key) { HIDDEN } else { value }));
            url.query_pairs_mut().clear().extend_pairs(shown);
        }
        f.write_str(&places.with_all_hosts(url.as_str()))
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

impl InvalidDatabaseUrl {
    fn because(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

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
