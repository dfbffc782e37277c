//! Builds the request that delivers an event.

use chrono::{DateTime, Utc};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Uri};

use super::cloud_event::{add_attributes, delivery_key, encode};
use super::signature::Signer;
use super::text_headers::TextHeaders;
use crate::event::Event;
use crate::processing::declaration::{InvalidReceiver, WebhookDeclaration};

/// Headers that differ from request to request, and `host`: so the table of all is made once.
const HEADERS: usize = 13;

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Builds the requests of one reactor, and holds what they have in common.
#[derive(Debug)]
pub(crate) struct Requests {
    reactor: String,
    uri: Uri,
    signer: Signer,
    /// The headers of all requests. The declared ones among them, and the credentials of the URL, may be secrets.
    headers: HeaderMap,
}

impl Requests {
    /// Prepares the requests of a reactor for events of the store in `schema`.
    ///
    /// # Errors
    /// A declared header or the URL is not valid.
    pub(crate) fn new(
        reactor: &str,
        schema: &str,
        declaration: &WebhookDeclaration,
    ) -> Result<Self, InvalidReceiver> {
        let (url, authorization) = declaration.url.split();
        let uri = url
            .as_str()
            .parse()
            .map_err(|_| InvalidReceiver("the URL of the receiver cannot be sent".into()))?;
        let declared = declaration.headers.iter().map(|header| read_header(&header.name, &header.value));
        let authorization = authorization.map(|value| read_header(AUTHORIZATION.as_str(), &value));
        let source = encode(&format!("/espd/{schema}")).to_string();
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("espd/", env!("CARGO_PKG_VERSION"))));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // Declared headers come last and replace those of espd and of the URL.
        for header in authorization.into_iter().chain(declared) {
            let (name, value) = header?;
            headers.insert(name, value);
        }
        headers.insert("ce-specversion", HeaderValue::from_static("1.0"));
        let source = HeaderValue::try_from(source)
            .map_err(|_| InvalidReceiver("the schema of the store cannot be sent".into()))?;
        headers.insert("ce-source", source);
        Ok(Self { reactor: reactor.to_owned(), uri, signer: Signer::new(&declaration.secrets), headers })
    }

    /// Where they go, without credentials.
    pub(super) fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Builds the request for an event, signed at `now`.
    pub(crate) fn request(&self, event: &Event, now: DateTime<Utc>) -> Request<Full<Bytes>> {
        let body = event.body.get().as_bytes();
        let mut request = Request::new(Full::new(Bytes::copy_from_slice(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        headers.reserve(HEADERS + self.headers.len());
        headers.extend(self.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        let mut differing = TextHeaders::new();
        add_attributes(event, &mut differing);
        let (key, timestamp) = (delivery_key(&self.reactor, event.uuid).to_string(), now.timestamp());
        if let Some(signature) = self.signer.sign(&key, timestamp, body) {
            differing.add(WEBHOOK_SIGNATURE, signature);
        }
        differing.add(WEBHOOK_TIMESTAMP, timestamp);
        differing.add(IDEMPOTENCY_KEY, &key);
        differing.add(WEBHOOK_ID, &key);
        differing.write_to(headers);
        request
    }
}

/// Whether a header is set by espd itself, or belongs to the connection.
pub(crate) fn is_reserved(name: &str) -> bool {
    const RESERVED: [&str; 11] = [
        "connection",
        "content-length",
        "content-type",
        "expect",
        "host",
        "idempotency-key",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    RESERVED.contains(&name) || name.starts_with("ce-") || name.starts_with("webhook-")
}

/// Reads a declared header. Its value is marked as sensitive, so that it is never shown.
pub(crate) fn read_header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), InvalidReceiver> {
    let name = HeaderName::try_from(name)
        .map_err(|_| InvalidReceiver(format!("{name:?} is no name of a header")))?;
    let is_text = value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    let mut value = HeaderValue::try_from(value)
        .ok()
        .filter(|_| is_text)
        .ok_or_else(|| InvalidReceiver(format!("the value of header {name} is not visible ASCII")))?;
    value.set_sensitive(true);
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_text_and_not_reserved() {
        assert!(read_header("authorization", "Bearer a b").unwrap().1.is_sensitive());
        for (name, value) in [("a b", "x"), ("", "x"), ("a", "x\ny"), ("a", "\0"), ("a", "ä"), ("a", "\t")] {
            let error = read_header(name, value).unwrap_err().to_string();
            assert!(!error.contains("xy"), "{error}");
        }
        for name in ["host", "webhook-id", "ce-type", "content-length", "idempotency-key"] {
            assert!(is_reserved(name), "{name}");
        }
        assert!(!is_reserved("authorization") && !is_reserved("x-team") && !is_reserved("user-agent"));
    }
}
