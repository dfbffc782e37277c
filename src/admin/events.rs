//! `GET /api/v1/events`: events as they settle, as server-sent events.
//!
//! The answer has no end of its own: it ends when the daemon stops, when the store must not be followed, when the client
//! does not read, and when other tokens count than those that it was opened with. A client that connects again says in `Last-Event-ID` how far it has come.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame};
use hyper::{HeaderMap, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use url::form_urlencoded;

use super::View;
use super::access::Access;
use super::answer::{self, Answer, ApiError};
use super::dead_letters::{parse_or, refuse, refuse_nul};
use super::deadline::Deadline;
use crate::config::Config;
use crate::event::Position;
use crate::operations::event_streams::{EventStreams, OpenStream, StreamedEvent};
use crate::shutdown::Shutdown;

/// Streams at a time: half of the connections, so that streams cannot lock out probes.
pub(super) const STREAMS: usize = 32;

/// Time between two signs of life while there is nothing to send.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// How long a client may leave what it was sent unread.
const UNREAD_TIME: Duration = Duration::from_secs(30);

/// How long a client should wait before it connects again.
const RETRY: &str = "retry: 2000\n\n";

const REMEDY: &str = "use some of types=A,B, type=A (repeatable) and after=POSITION";

/// Which events a client wants.
#[derive(Debug, PartialEq, Eq, Default)]
pub(super) struct Wanted {
    /// Of these types; `None`: all.
    types: Option<Vec<String>>,
    /// After this position; `None`: from now on.
    after: Option<Position>,
}

/// Reads `?types=A,B&after=N`. `Last-Event-ID` comes from a client that goes on, and takes precedence over `after`.
pub(super) fn of_request(query: Option<&str>, headers: &HeaderMap) -> Result<Wanted, ApiError> {
    let mut wanted = Wanted::default();
    for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        refuse_nul(&key, &value)?;
        match &*key {
            "types" => {
                let types = value.split(',').filter(|name| !name.is_empty()).map(str::to_owned);
                wanted.types.get_or_insert_default().extend(types);
            }
            "type" => wanted.types.get_or_insert_default().push(value.into_owned()),
            "after" => wanted.after = Some(position(&key, &value)?),
            _ => return Err(refuse(format!("unknown field `{key}`"), REMEDY)),
        }
    }
    if let Some(last) = headers.get("last-event-id") {
        let last = last.to_str().unwrap_or_default();
        if !last.is_empty() {
            wanted.after = Some(position("Last-Event-ID", last)?);
        }
    }
    Ok(wanted)
}

fn position(key: &str, value: &str) -> Result<Position, ApiError> {
    let number: i64 = parse_or(REMEDY, key, value)?;
    if number < 0 {
        return Err(refuse(format!("`{key}` is negative"), REMEDY));
    }
    Ok(Position::new(number))
}

/// By what a stream was opened.
pub(super) struct Admission {
    pub(super) access: Access,
    pub(super) view: watch::Receiver<View>,
}

impl Admission {
    /// Returns when something else counts: whoever is still allowed to read connects again.
    async fn ended(&mut self) {
        let Self { access, view } = self;
        if view.wait_for(|view| view.access != *access).await.is_err() {
            // The endpoint stops, which the stream is told of in another way.
            std::future::pending().await
        }
    }
}

/// The streams of the endpoint.
#[derive(Debug)]
pub(super) struct Streams {
    streams: EventStreams,
    places: Arc<Semaphore>,
    stop: Shutdown,
}

impl Streams {
    pub(super) fn new(stop: Shutdown) -> Self {
        Self { streams: EventStreams::default(), places: Arc::new(Semaphore::new(STREAMS)), stop }
    }

    /// Answers with a stream, for as long as the client keeps `deadline` away by reading.
    pub(super) async fn open(
        &self,
        config: Arc<Config>,
        wanted: Wanted,
        deadline: Deadline,
        admission: Admission,
    ) -> Result<Answer, ApiError> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            let error = format!("there are {STREAMS} streams of events already");
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error, "try again later, or share a stream")
        })?;
        let opened = self.streams.open(config, wanted.types.as_deref(), wanted.after).await;
        let events = opened.map_err(|error| ApiError::unavailable(error.to_string()))?;
        let stop = self.stop.clone();
        let sender = Sender { events, admission, stop, has_begun: false, has_ended: false };
        let sent = stream::unfold(sender, |mut sender| async { Some((sender.next().await?, sender)) });
        let body = EventBody { frames: sent.boxed(), deadline, _place: place };
        Ok(answer::stream("text/event-stream; charset=utf-8", body.boxed_unsync()))
    }
}

/// What is sent to one client, piece by piece.
struct Sender {
    events: OpenStream,
    admission: Admission,
    stop: Shutdown,
    has_begun: bool,
    has_ended: bool,
}

impl Sender {
    async fn next(&mut self) -> Option<Bytes> {
        if self.has_ended {
            return None;
        }
        if !std::mem::replace(&mut self.has_begun, true) {
            // Who has heard from the stream is told of everything that is appended from then on.
            let _ = tokio::time::timeout(HEARTBEAT, self.events.beginning()).await;
            return Some(Bytes::from_static(RETRY.as_bytes()));
        }
        let text = tokio::select! {
            biased;
            () = self.stop.requested() => return None,
            () = self.admission.ended() => return None,
            next = self.events.next() => match next {
                Ok(event) => message(&event),
                Err(error) => {
                    self.has_ended = true;
                    fault(&error)
                }
            },
            () = tokio::time::sleep(HEARTBEAT) => heartbeat(self.events.position()),
        };
        Some(Bytes::from(text))
    }
}

/// One event: its position as the id, and the object that `espctl events --json` prints.
fn message(event: &StreamedEvent) -> String {
    // The type is not the name of the message: any text can be a type, and browsers hand unnamed ones to `onmessage`.
    match serde_json::to_string(event) {
        Ok(json) => format!("id: {}\n{}\n", event.position(), data(&json)),
        Err(error) => fault(&error.to_string()),
    }
}

fn fault(error: &str) -> String {
    let json = serde_json::json!({ "error": error }).to_string();
    format!("event: espd-error\n{}\n", data(&json))
}

/// A message without data moves the id that the client connects again with, beyond events of other types.
fn heartbeat(position: Position) -> String {
    if position == Position::START { ":\n\n".to_owned() } else { format!("id: {position}\n\n") }
}

/// Text in lines of its own: a line break would end the field.
fn data(text: &str) -> String {
    text.split(['\n', '\r']).map(|line| format!("data: {line}\n")).collect()
}

/// The body of an answer that goes on.
struct EventBody {
    frames: BoxStream<'static, Bytes>,
    deadline: Deadline,
    /// Given back when the client is gone.
    _place: OwnedSemaphorePermit,
}

impl Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        // The connection asks for more only when what it had before is on its way.
        self.deadline.put_off(UNREAD_TIME);
        self.frames.poll_next_unpin(context).map(|frame| frame.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_what_it_wants() {
        let none = HeaderMap::new();
        assert_eq!(of_request(None, &none).unwrap(), Wanted::default());
        let some = of_request(Some("types=A,B&type=a%2Cb&after=7"), &none).unwrap();
        let types = ["A", "B", "a,b"].map(str::to_owned).to_vec();
        assert_eq!(some, Wanted { types: Some(types), after: Some(7.into()) });
        let mut again = HeaderMap::new();
        again.insert("last-event-id", "9".parse().unwrap());
        assert_eq!(of_request(Some("after=7"), &again).unwrap().after, Some(9.into()));
        for wrong in ["x=1", "after=a", "after=-1", "type=%00"] {
            assert!(of_request(Some(wrong), &none).is_err(), "{wrong}");
        }
        assert_eq!(of_request(Some("after=a"), &none).unwrap_err().remedy, REMEDY);
    }

    #[test]
    fn a_message_cannot_be_broken_by_its_text() {
        assert_eq!(data("a\nid: 7\rb"), "data: a\ndata: id: 7\ndata: b\n");
        assert_eq!(heartbeat(7.into()), "id: 7\n\n");
    }
}
