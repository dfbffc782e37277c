//! Reads `[reactor.webhook]`.

use std::path::PathBuf;
use std::time::Duration;

use url::Host;

use super::events::{ADVISE_EVENTS, read_events};
use crate::config::reader::tree::{Section, Value};
use crate::handlers::webhook::{is_public, is_reserved, read_authorities, read_header};
use crate::processing::declaration::{Header, ReceiverUrl, SigningSecret, WebhookDeclaration};

const ADVISE_URL: &str = "write the URL of the receiver: url = \"https://example.org/events\"";

const ADVISE_SECRETS: &str = "make one with `echo whsec_$(openssl rand -base64 32)`, and keep it out of the file: \
     secrets = [\"${WEBHOOK_SECRET}\"]";

const ADVISE_HEADERS: &str = "write a table: headers = { authorization = \"Bearer ${TOKEN}\" }";

/// What is declared about the receiver of a reactor's events.
pub(crate) fn read_webhook(reactor: &Section<'_>) -> Option<WebhookDeclaration> {
    let events = reactor.require("events", ADVISE_EVENTS).and_then(|events| read_events(&events));
    refuse_tables(reactor);
    let section = reactor.section("webhook")?;
    // Everything is read before anything is given up, so that all mistakes are reported.
    let (allow_private, allow_http) = (section.is_on("allow_private"), section.is_on("allow_http"));
    let url = section.value("url").and_then(|url| read_url(&url, allow_private, allow_http));
    let secrets = section.value("secrets").map(|secrets| read_secrets(&secrets)).unwrap_or_default();
    let headers = section.value("headers").map(|headers| read_headers(&headers)).unwrap_or_default();
    let concurrency = section.integer("concurrency").and_then(|count| usize::try_from(count).ok());
    let ca_file = section.value("ca_file").and_then(|file| read_ca_file(&file));
    let (connect_timeout, timeout) = read_timeouts(&section);
    Some(WebhookDeclaration {
        events: events?,
        url: url?,
        secrets,
        concurrency: concurrency?,
        connect_timeout: connect_timeout?,
        timeout: timeout?,
        allow_private,
        ca_file,
        headers,
    })
}

/// A webhook has no access to the database, so declared tables would stay empty.
fn refuse_tables(reactor: &Section<'_>) {
    for key in ["tables", "ddl"] {
        if let Some(value) = reactor.value(key) {
            let message = format!("`{key}` cannot be combined with `webhook`");
            value.location.report(message, "remove it: a receiver writes no tables of this database");
        }
    }
}

fn read_url(value: &Value<'_>, allow_private: bool, allow_http: bool) -> Option<ReceiverUrl> {
    let url = match ReceiverUrl::new(&value.text()?) {
        Ok(url) => url,
        Err(error) => {
            value.location.report(error.to_string(), ADVISE_URL);
            return None;
        }
    };
    let parsed = url.expose();
    let (is_private, is_local) = match parsed.host() {
        Some(Host::Ipv4(address)) => (!is_public(address.into()), address.is_loopback()),
        Some(Host::Ipv6(address)) => (!is_public(address.into()), address.is_loopback()),
        Some(Host::Domain(name)) => (false, name == "localhost"),
        None => (false, false),
    };
    if is_private && !allow_private {
        let message = "the receiver's address is not on the public internet";
        value.location.report(message, "add allow_private = true if that is meant");
    }
    if parsed.scheme() == "http" && !allow_http && !(allow_private && is_local) {
        let message = "events would be sent without encryption";
        value.location.report(message, "write https://, or add allow_http = true if that is meant");
    }
    Some(url)
}

fn read_secrets(value: &Value<'_>) -> Vec<SigningSecret> {
    let mut secrets = Vec::new();
    for item in value.items(ADVISE_SECRETS).unwrap_or_default() {
        match item.text().map(SigningSecret::new) {
            Some(Ok(secret)) => secrets.push(secret),
            Some(Err(error)) => {
                item.location.report(error.to_string(), ADVISE_SECRETS);
            }
            None => {}
        }
    }
    secrets
}

fn read_headers(value: &Value<'_>) -> Vec<Header> {
    let mut headers = Vec::new();
    for (key, written) in value.entries(ADVISE_HEADERS).unwrap_or_default() {
        let Some(text) = written.text() else { continue };
        let name = key.name.to_ascii_lowercase();
        if is_reserved(&name) {
            let message = format!("the header `{name}` is espd's own");
            key.location.report(message, "remove it, or give it another name");
        } else if let Err(error) = read_header(&name, &text) {
            written.location.report(error.to_string(), ADVISE_HEADERS);
        } else {
            headers.push(Header { name, value: text });
        }
    }
    headers
}

fn read_ca_file(value: &Value<'_>) -> Option<PathBuf> {
    let file = value.folder().join(value.text()?);
    match read_authorities(&file) {
        Ok(_) => Some(file),
        Err(error) => {
            value.location.report(error.to_string(), "name a file with certificates in the PEM format");
            None
        }
    }
}

fn read_timeouts(section: &Section<'_>) -> (Option<Duration>, Option<Duration>) {
    let (connect_timeout, timeout) = (section.duration("connect_timeout"), section.duration("timeout"));
    let written = section.value("connect_timeout").or_else(|| section.value("timeout"));
    if let Some(value) = written.filter(|_| connect_timeout >= timeout) {
        let message = "`connect_timeout` is not less than `timeout`, which it is a part of";
        let advice = if section.value("connect_timeout").is_some() {
            "write a `timeout` that leaves time to answer".to_owned()
        } else {
            let default = connect_timeout.unwrap_or_default().as_secs();
            format!(
                "write a lower `connect_timeout` as well, which is \"{default}s\" where it is left out, or a longer `timeout`"
            )
        };
        value.location.report(message, &advice);
    }
    (connect_timeout, timeout)
}
