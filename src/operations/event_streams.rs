//! Streams of events for clients of the daemon, all through one watcher and a few connections.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use serde::Serialize;
use sqlx::postgres::PgPoolOptions;
use tokio::sync::Mutex;
use tracing::debug;

use crate::config::Config;
use crate::event::{Event, Position};
use crate::postgres::error::chain;
use crate::postgres::sqlstate::describe;
use crate::store::{EventStream, Layout, PostgresEventStore, ReadError};

/// Connections that read pages for all streams.
const CONNECTIONS: u32 = 2;

/// How long a page waits for one of them.
const CONNECTION_TIME: Duration = Duration::from_secs(30);

/// After how long a connection that nobody uses is closed.
const IDLE_TIME: Duration = Duration::from_secs(60);

/// Opens streams on the store of the present configuration.
#[derive(Debug, Default)]
pub(crate) struct EventStreams {
    /// The store, and the configuration that names it.
    store: Mutex<Option<(Arc<Config>, PostgresEventStore)>>,
}

impl EventStreams {
    /// Opens a stream of the events after a position (`None`: those that are appended from now on), as processors read them.
    ///
    /// # Errors
    /// The configuration names no store.
    pub(crate) async fn open(
        &self,
        config: Arc<Config>,
        types: Option<&[String]>,
        after: Option<Position>,
    ) -> anyhow::Result<OpenStream> {
        let mut known = self.store.lock().await;
        let store = match known.as_ref() {
            Some((of, store)) if of.event_store == config.event_store && of.upcasts == config.upcasts => {
                store.clone()
            }
            _ => {
                let store = make_store(&config)?;
                *known = Some((config, store.clone()));
                store
            }
        };
        Ok(OpenStream { events: store.subscribe(types, after), store })
    }
}

fn make_store(config: &Config) -> anyhow::Result<PostgresEventStore> {
    let url = config.direct_event_store_url().context("no database is known yet")?;
    let database = url.connector()?.named("espd admin: events");
    let settings = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(CONNECTION_TIME)
        .idle_timeout(IDLE_TIME);
    let layout = Layout::new(&config.event_store.layout, &config.event_store.schema)?;
    let layout = layout.with_upcasts(&config.upcasts);
    Ok(PostgresEventStore::new(database.searching_pool(settings), layout).watched_through(database))
}

/// A stream that somebody reads.
#[derive(Debug)]
pub(crate) struct OpenStream {
    events: EventStream,
    store: PostgresEventStore,
}

/// An event of a stream. The field names are an interface.
#[derive(Debug, Serialize)]
pub(crate) struct StreamedEvent {
    #[serde(flatten)]
    event: Event,
    /// Why no handler could read the event, which is as it is stored then.
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<String>,
}

impl StreamedEvent {
    /// Where the event is in the store.
    pub(crate) fn position(&self) -> Position {
        self.event.id
    }
}

impl OpenStream {
    /// The next event. What is an error of the moment is waited out, and an event that no handler could read is shown as it is
    /// stored: who only looks must not be kept from the events behind it.
    ///
    /// # Errors
    /// Why the store cannot be followed.
    pub(crate) async fn next(&mut self) -> Result<StreamedEvent, String> {
        loop {
            match self.events.next().await {
                Some(Ok(event)) => return Ok(StreamedEvent { event, unreadable: None }),
                Some(Err(ReadError::Unreadable { position, source })) => {
                    match self.store.read_as_stored(position).await {
                        Ok(stored) => {
                            self.events.pass_over(position);
                            let unreadable = Some(describe(&source));
                            if let Some(event) = stored {
                                return Ok(StreamedEvent { event, unreadable });
                            }
                        }
                        Err(error) => debug!(error = chain(&error), "a stream of events waits"),
                    }
                }
                Some(Err(error @ (ReadError::Unfollowable { .. } | ReadError::GoneBack { .. }))) => {
                    return Err(error.to_string());
                }
                Some(Err(error)) => debug!(error = chain(&error), "a stream of events waits"),
                None => return Err("the stream has ended".to_owned()),
            }
        }
    }

    /// Waits until it is known where the stream begins.
    pub(crate) async fn beginning(&mut self) {
        self.events.beginning().await;
    }

    /// How far the stream has come.
    pub(crate) fn position(&self) -> Position {
        self.events.position()
    }
}
