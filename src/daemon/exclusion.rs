//! What a running daemon knows of a newer espd that has declared the tables to be not for it.
//!
//! The writer of the table `workers` looks once a second, as a part of what it asks anyway. Where the events are in another database,
//! somebody has to look there.

use std::time::Duration;

use sqlx::PgConnection;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::debug;

use super::worker_table_place::WorkerTablePlace;
use crate::postgres::connector::Connector;
use crate::postgres::deadline::in_time;
use crate::postgres::sqlstate::describe;
use crate::schema::SchemaError;
use crate::schema::exclusion::{Tables, find_exclusion};
use crate::shutdown::Shutdown;

/// Time between two looks at a database of events beside that of the projections.
const INTERVAL: Duration = Duration::from_secs(3);

/// How long that database may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What excludes this program, in words; `None`: nothing, as far as is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Exclusion {
    /// In the database of the projections.
    here: Option<String>,
    /// In a database of the events beside it.
    elsewhere: Option<String>,
}

impl Exclusion {
    pub(super) fn reason(&self) -> Option<&str> {
        self.here.as_deref().or(self.elsewhere.as_deref())
    }
}

/// Where what excludes this program is told.
#[derive(Debug, Clone)]
pub(super) struct ExclusionTeller(watch::Sender<Exclusion>);

impl ExclusionTeller {
    pub(super) fn new() -> (Self, watch::Receiver<Exclusion>) {
        let (sender, receiver) = watch::channel(Exclusion::default());
        (Self(sender), receiver)
    }

    /// Tells what was found in the database of the projections.
    pub(super) fn tell_here(&self, found: Option<SchemaError>) {
        self.tell(|known| &mut known.here, found);
    }

    fn tell(&self, part: impl Fn(&mut Exclusion) -> &mut Option<String>, found: Option<SchemaError>) {
        let found = found.map(|excluded| excluded.to_string());
        self.0.send_if_modified(|known| {
            let is_new = *part(known) != found;
            *part(known) = found;
            is_new
        });
    }
}

/// Looks at a database of events beside that of the projections until the stop is requested.
pub(super) async fn watch_event_store(
    mut places: watch::Receiver<WorkerTablePlace>,
    teller: ExclusionTeller,
    stop: Shutdown,
) {
    let mut stopped = stop;
    while !stopped.is_requested() {
        let place = places.borrow_and_update().clone();
        let looking = async {
            match &place.events_elsewhere {
                Some(database) => look_again_and_again(database, &place.schema, &teller).await,
                None => {
                    teller.tell(|known| &mut known.elsewhere, None);
                    std::future::pending().await
                }
            }
        };
        tokio::select! {
            () = looking => return,
            () = stopped.requested() => return,
            changed = places.changed() => if changed.is_err() { return },
        }
    }
}

async fn look_again_and_again(database: &Connector, schema: &str, teller: &ExclusionTeller) {
    let mut connection = None;
    loop {
        match in_time(ANSWER_TIMEOUT, look(database, &mut connection, schema)).await {
            Ok(found) => teller.tell(|known| &mut known.elsewhere, found),
            Err(error) => debug!(error = describe(&error), "could not look at the schema of the event store"),
        }
        sleep(INTERVAL).await;
    }
}

/// Looks once. A look that fails or is cut off leaves no connection behind.
async fn look(
    database: &Connector,
    kept: &mut Option<PgConnection>,
    schema: &str,
) -> Result<Option<SchemaError>, sqlx::Error> {
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => database.named("espd: schema").connect().await?.connection,
    };
    let found = find_exclusion(&mut connection, &[Tables::EventStore], schema).await?;
    *kept = Some(connection);
    Ok(found)
}
