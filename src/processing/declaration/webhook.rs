//! A webhook declaration says where and how the events of a reactor are sent over HTTP.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use url::Url;

use super::HandledEvents;
use super::hidden_texts::{HIDDEN, HiddenTexts};

/// A receiver of events: `docs/webhooks.md`.
///
/// The serialized form includes the secrets, because the supervisor sends declarations to workers in this form, through a
/// pipe. `Debug` and `Display` of its parts leave them out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WebhookDeclaration {
    /// The events that the receiver is sent.
    pub events: HandledEvents,
    /// Where the events are sent to.
    pub url: ReceiverUrl,
    /// The keys that sign a request, each with a signature of its own. Without keys, requests are not signed.
    pub secrets: Vec<SigningSecret>,
    /// Most requests under way at a time, from 1. There are never two of one aggregate.
    pub concurrency: usize,
    /// How long finding the address, connecting and agreeing on TLS may take, altogether.
    pub connect_timeout: Duration,
    /// How long a request may take from its beginning to the end of the answer.
    pub timeout: Duration,
    /// Whether addresses outside of the public internet are allowed.
    pub allow_private: bool,
    /// A file of certificates of the authorities that are trusted instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Further headers, in the order of the configuration file.
    pub headers: Vec<Header>,
}

impl WebhookDeclaration {
    /// Returns the texts of the declaration that must not be shown, even if the receiver repeats them: as they are declared,
    /// as they are sent, and as the receiver reads them.
    pub(crate) fn hidden(&self) -> HiddenTexts {
        let url = self.url.expose();
        let (_, authorization) = self.url.split();
        let mut hidden: Vec<String> = self.headers.iter().map(|header| header.value.clone()).collect();
        hidden.extend(authorization);
        hidden.extend(hidden.iter().filter_map(|value| decode_basic(value)).flatten().collect::<Vec<_>>());
        let last_word = |value: &String| Some(value.rsplit_once(' ')?.1.to_owned());
        hidden.extend(hidden.iter().filter_map(last_word).collect::<Vec<_>>());
        let keys = self.secrets.iter().map(|secret| &secret.0);
        hidden.extend(keys.map(|key| key.strip_prefix("whsec_").unwrap_or(key).to_owned()));
        hidden.extend([url.password().unwrap_or_default().to_owned(), url.username().to_owned()]);
        hidden.extend(url.query_pairs().map(|(_, value)| value.into_owned()));
        let raw = url.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        hidden.extend(raw.map(|(_, value)| value.to_owned()));
        HiddenTexts::new(hidden)
    }
}

/// The value, the name and the password of an `authorization` of the kind `Basic`.
fn decode_basic(authorization: &str) -> Option<[String; 3]> {
    let (_, encoded) =
        authorization.split_once(' ').filter(|(kind, _)| kind.eq_ignore_ascii_case("basic"))?;
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (name, password) = decoded.split_once(':')?;
    Some([name.to_owned(), password.to_owned(), decoded.clone()])
}

/// The URL of a receiver: `http` or `https`, with a host, without a fragment. Parts that may be secret are not shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct ReceiverUrl(String);

impl ReceiverUrl {
    /// Accepts a URL of a receiver.
    ///
    /// # Errors
    /// The error says what is wrong with the URL, without repeating it.
    pub fn new(url: &str) -> Result<Self, InvalidReceiver> {
        let mut parsed = Url::parse(url).map_err(|error| InvalidReceiver(format!("not a URL: {error}")))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(InvalidReceiver("the URL of a receiver begins with https://".into()));
        }
        parsed.set_fragment(None);
        Ok(Self(parsed.into()))
    }

    /// Whether requests are sent without encryption.
    pub fn is_plain(&self) -> bool {
        self.0.starts_with("http:")
    }

    /// Returns the URL with its secrets, to be used but never shown.
    pub fn expose(&self) -> Url {
        Url::parse(&self.0).expect("it was parsed before")
    }

    /// Splits it into a URL without credentials, and the value of the `authorization` header made of them.
    pub(crate) fn split(&self) -> (Url, Option<String>) {
        let mut url = self.expose();
        let decode = |text: &str| percent_decode_str(text).collect::<Vec<u8>>();
        let (name, password) = (decode(url.username()), decode(url.password().unwrap_or_default()));
        // Neither fails on a URL with a host.
        let _ = (url.set_username(""), url.set_password(None));
        let is_given = !(name.is_empty() && password.is_empty());
        let encode = || STANDARD.encode([&name[..], b":", &password[..]].concat());
        (url, is_given.then(|| format!("Basic {}", encode())))
    }
}

impl fmt::Display for ReceiverUrl {
    /// Hides the part before the host and the values of the query, which may have names and keys in them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut url = self.expose();
        let hidden = [url.password().is_some(), !url.username().is_empty()];
        let pairs: Vec<_> = url.query_pairs().map(|(name, _)| name.into_owned()).collect();
        // Neither call fails on a URL with a host, and every receiver has one.
        let _ = hidden[0].then(|| url.set_password(Some(HIDDEN)));
        let _ = hidden[1].then(|| url.set_username(HIDDEN));
        if !pairs.is_empty() {
            url.query_pairs_mut().clear().extend_pairs(pairs.iter().map(|name| (name, HIDDEN)));
        }
        write!(f, "{url}")
    }
}

impl fmt::Debug for ReceiverUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReceiverUrl({self})")
    }
}

impl TryFrom<String> for ReceiverUrl {
    type Error = InvalidReceiver;

    fn try_from(url: String) -> Result<Self, Self::Error> {
        Self::new(&url)
    }
}

/// A part of a receiver's declaration cannot be used. The error says why, without repeating it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidReceiver(pub(crate) String);

/// A key that signs requests, as sender and receiver write it: `whsec_` and base64. It is never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigningSecret(pub(crate) String);

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningSecret({HIDDEN})")
    }
}

/// A header that goes with every request. Its value may be a secret and is never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The header's name, in lower case.
    pub name: String,
    /// The header's value: visible ASCII and spaces.
    pub value: String,
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Header({}: {HIDDEN})", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_of_a_url_become_a_header() {
        let split = |text: &str| ReceiverUrl::new(text).unwrap().split();
        let (bare, header) = split("https://jo%40x:p%C3%A4%3Ass@example.org/a?b=c");
        assert_eq!(bare.as_str(), "https://example.org/a?b=c");
        assert_eq!(header.unwrap(), format!("Basic {}", STANDARD.encode("jo@x:pä:ss")));
        assert_eq!(split("https://example.org/"), (Url::parse("https://example.org/").unwrap(), None));
    }

    #[test]
    fn what_may_be_a_secret_is_not_shown() {
        for (url, shown) in [
            ("https://example.org/hooks/7?a=b", "https://example.org/hooks/7?a=***"),
            ("https://jo:s3cret@example.org/", "https://***:***@example.org/"),
            (
                "https://t0ken@example.org/?key=s3cret&key=2#s3cret",
                "https://***@example.org/?key=***&key=***",
            ),
            ("HTTPS://Example.org", "https://example.org/"),
        ] {
            let url = ReceiverUrl::new(url).unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), format!("ReceiverUrl({shown})"));
        }
        let secrets =
            (SigningSecret("whsec_s3cret".into()), Header { name: "a".into(), value: "s3cret".into() });
        assert!(!format!("{secrets:?}").contains("s3cret"));
    }

    #[test]
    fn a_refused_url_is_not_repeated() {
        for url in [
            "",
            "s3cret",
            "ftp://s3cret/",
            "https://:s3cret",
            "https://a:s3cret",
            "mailto:s3cret@example.org",
        ] {
            let error = ReceiverUrl::new(url).unwrap_err().to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
