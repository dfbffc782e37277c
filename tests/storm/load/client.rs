//! An appender's connection, which is made again whenever it breaks, and its ledger.

use std::time::Duration;

use espd::event::{Appended, ExpectedVersion, NewEvent};
use espd::store::Layout;
use espd::store::{AppendError, EventStore as _, PostgresEventStore};
use fastrand::Rng;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions as _, PgConnection};
use tokio::time::{sleep, timeout};

use crate::ledger::{Append, Draft, Ledger, Outcome};

/// Between two tries to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);

/// Of so many appends, one is done in haste …
const HASTY_ONE_IN: u8 = 20;

/// … and waits for the answer for up to that many microseconds.
const HASTE_MAX_US: u64 = 5_000;

/// SQLSTATE of `append_events`: an aggregate is not at the expected version.
const CONFLICT: &str = "ES001";

/// How long the library may look for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_millis(500);

/// One appender's access to the event store.
pub struct Client {
    options: PgConnectOptions,
    connection: Option<PgConnection>,
    /// Used for appends, if there is one; otherwise `append_events` is called.
    store: Option<PostgresEventStore>,
    ledger: Ledger,
}

/// What the server says to an append.
enum Answer {
    Stored(Vec<Appended>),
    Conflict,
    /// Deadlock or serialization failure: nothing is stored, for sure.
    NotNow,
    /// What it must not say.
    Wrong(String),
    /// Nothing: it may be stored or not.
    Nothing,
}

impl Client {
    /// A client that is not connected yet; the server knows it by its name.
    pub fn new(name: &str, url: &str) -> Result<Self, sqlx::Error> {
        let options = url.parse::<PgConnectOptions>()?.application_name(name);
        Ok(Self { options, connection: None, store: None, ledger: Ledger::default() })
    }

    /// The same client, which appends through the library.
    pub fn with_library(mut self, layout: Layout) -> Self {
        let pool = PgPoolOptions::new().max_connections(2).acquire_timeout(ACQUIRE_TIMEOUT);
        self.store = Some(PostgresEventStore::new(pool.connect_lazy_with(self.options.clone()), layout));
        self
    }

    /// A connection, as soon as there is one to be had.
    pub async fn connection(&mut self) -> &mut PgConnection {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await,
        };
        self.connection.insert(connection)
    }

    async fn connect(&self) -> PgConnection {
        loop {
            if let Ok(connection) = self.options.connect().await {
                return connection;
            }
            sleep(RECONNECT_PAUSE).await;
        }
    }

    /// Closes the connection, because what is still under way on it is unknown.
    pub fn hang_up(&mut self) {
        self.connection = None;
    }

    /// Throws the connection away because a request that may have changed something was not answered.
    pub fn miss_answer(&mut self) {
        self.hang_up();
        self.ledger.unanswered += 1;
    }

    /// Appends in a manner drawn from `rng` and records the outcome, which is returned as well.
    ///
    /// A hasty client does not wait for the answer; a patient one repeats what was not answered, with the
    /// same uuids. The first request may still be under way then.
    pub async fn append(&mut self, drafts: Vec<Draft>, rng: &mut Rng) -> Outcome {
        let patient = rng.u8(..4) > 0;
        let outcome = loop {
            let haste = Duration::from_micros(rng.u64(..HASTE_MAX_US));
            let answer = match rng.u8(..HASTY_ONE_IN) {
                0 => timeout(haste, self.try_append(&drafts)).await.unwrap_or(Answer::Nothing),
                _ => self.try_append(&drafts).await,
            };
            match answer {
                Answer::Stored(stored) => break Outcome::Acknowledged(Some(stored)),
                Answer::Conflict => break Outcome::Absent,
                Answer::Wrong(answer) => {
                    self.complain(answer);
                    break Outcome::Absent;
                }
                Answer::NotNow => {}
                Answer::Nothing => {
                    self.miss_answer();
                    if !patient {
                        break Outcome::Unknown;
                    }
                }
            }
        };
        self.record(drafts, outcome.clone());
        outcome
    }

    async fn try_append(&mut self, drafts: &[Draft]) -> Answer {
        if let Some(store) = &self.store {
            let answer = append_through_library(store, drafts).await;
            if matches!(answer, Answer::Nothing) {
                sleep(RECONNECT_PAUSE).await;
            }
            return answer;
        }
        match append_through_function(self.connection().await, drafts).await {
            Ok(stored) => Answer::Stored(stored),
            Err(error) => match sqlstate(&error).as_deref() {
                Some(CONFLICT) => Answer::Conflict,
                Some(state) if state.starts_with("40") => Answer::NotNow,
                Some(state) if is_refusal(state) => {
                    Answer::Wrong(format!("append_events raised {state}: {error}"))
                }
                _ => Answer::Nothing,
            },
        }
    }

    /// Puts an append on record.
    pub fn record(&mut self, drafts: Vec<Draft>, outcome: Outcome) {
        self.ledger.appends.push(Append { drafts, outcome });
    }

    /// Puts on record what must not happen.
    pub fn complain(&mut self, what: String) {
        let name = self.options.get_application_name().unwrap_or_default();
        self.ledger.complaints.push(format!("{name}: {what}"));
    }

    /// All that was recorded.
    pub fn into_ledger(self) -> Ledger {
        self.ledger
    }
}

/// The SQLSTATE of an error that the server has sent.
pub fn sqlstate(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(|answer| answer.code()).map(|code| code.into_owned())
}

/// Whether the server has judged the request itself, and not told of its own troubles.
pub fn is_refusal(state: &str) -> bool {
    !espd::internals::failure::is_infrastructure(state)
}

async fn append_through_library(store: &PostgresEventStore, drafts: &[Draft]) -> Answer {
    let events: Vec<NewEvent> = drafts.iter().map(new_event).collect();
    match store.append(&events).await {
        Ok(stored) => Answer::Stored(stored),
        Err(AppendError::Conflict { .. }) => Answer::Conflict,
        Err(AppendError::Database(_)) => Answer::Nothing,
        Err(error) => Answer::Wrong(format!("the library says: {error}")),
    }
}

fn new_event(draft: &Draft) -> NewEvent {
    let body = serde_json::value::to_raw_value(&serde_json::json!({ "amount": draft.amount }));
    let mut event = NewEvent::new(draft.aggregate_id, draft.event_type, body.unwrap_or_default());
    event.uuid = draft.uuid;
    event.expected_version = draft.expected.map_or(ExpectedVersion::Any, ExpectedVersion::Exact);
    event
}

async fn append_through_function(
    connection: &mut PgConnection,
    drafts: &[Draft],
) -> Result<Vec<Appended>, sqlx::Error> {
    let statement = "-- append_drafts
         select id, uuid, version
         from espd.append_events(
           $1, $2,
           array(select jsonb_build_object('amount', amount)
                 from unnest($3::bigint[]) with ordinality as given (amount, place) order by place),
           $4, $5)";
    let rows: Vec<(espd::event::Position, uuid::Uuid, espd::event::Version)> = sqlx::query_as(statement)
        .bind(drafts.iter().map(|draft| draft.aggregate_id).collect::<Vec<_>>())
        .bind(drafts.iter().map(|draft| draft.event_type).collect::<Vec<_>>())
        .bind(drafts.iter().map(|draft| draft.amount).collect::<Vec<_>>())
        .bind(drafts.iter().map(|draft| draft.expected).collect::<Vec<_>>())
        .bind(drafts.iter().map(|draft| draft.uuid).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
    Ok(rows.into_iter().map(|(id, uuid, version)| Appended { id, uuid, version }).collect())
}
