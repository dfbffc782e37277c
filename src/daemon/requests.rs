//! What operators ask of a daemon through the database: to read its configuration again. In the same breath the daemon sees whether
//! anybody builds a version, which it may have to go on with, and whether a newer espd excludes it from the tables.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use super::exclusion::ExclusionTeller;
use super::worker_table_place::WorkerTablePlace;
use crate::postgres::quote::quote_identifier;
use crate::postgres::sqlstate::is_missing_right;
use crate::schema::exclusion::{excluding, find_exclusion, read_exclusion};

/// Requests that nobody has read yet. A few are enough: they come from people.
pub(super) const REQUESTS_MAX: usize = 4;

/// When each build began that goes on, or whose builder has been killed.
pub(super) type Builds = Vec<DateTime<Utc>>;

/// What came of reading the configuration again. What is wrong, and what else is to be said, is in lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reloaded {
    /// It is what the daemon follows already.
    Unchanged,
    /// The daemon follows it from now on.
    Changed(Vec<String>),
    /// It is wrong, and the daemon keeps the old one.
    Refused(Vec<String>),
}

impl Reloaded {
    /// The outcome as it is recorded, and what is to be said about it.
    fn into_words(self) -> (&'static str, Vec<String>) {
        match self {
            Self::Unchanged => ("unchanged", Vec::new()),
            Self::Changed(report) => ("changed", report),
            Self::Refused(faults) => ("refused", faults),
        }
    }
}

/// An order to read the configuration again: where to say what came of it.
pub(super) type ReloadOrder = oneshot::Sender<Reloaded>;

/// The requests for one daemon.
#[derive(Debug)]
pub(super) struct ReloadRequests {
    owner: Uuid,
    orders: mpsc::Sender<ReloadOrder>,
    /// What came of reloads that nobody has asked for in the database.
    signalled: mpsc::Receiver<Reloaded>,
    building: watch::Sender<Builds>,
    /// Whether the role may see that.
    sees_builds: bool,
    /// Told what excludes this program from the tables.
    exclusion: ExclusionTeller,
}

impl ReloadRequests {
    /// Requests for the daemon `owner`, which carries out the `orders`, and says what came of those that a signal gave. Which
    /// builds go on is told to `building`, and what excludes this program to `exclusion`.
    pub(super) fn new(
        owner: Uuid,
        orders: mpsc::Sender<ReloadOrder>,
        signalled: mpsc::Receiver<Reloaded>,
        building: watch::Sender<Builds>,
        exclusion: ExclusionTeller,
    ) -> Self {
        Self { owner, orders, signalled, building, sees_builds: true, exclusion }
    }

    /// Has the configuration read again if somebody has asked for it, and answers. Several requests get one answer.
    pub(super) async fn serve(
        &mut self,
        connection: &mut PgConnection,
        place: &WorkerTablePlace,
    ) -> Result<(), sqlx::Error> {
        let schema = &place.schema;
        while let Ok(outcome) = self.signalled.try_recv() {
            self.record(connection, schema, outcome).await?;
        }
        let requests = match self.find(connection, place).await {
            // A role of before: what operators ask for comes first.
            Err(error) if self.sees_builds && is_missing_right(&error) => {
                self.sees_builds = false;
                self.find(connection, place).await?
            }
            found => found?,
        };
        if requests.is_empty() {
            return Ok(());
        }
        let (order, outcome) = oneshot::channel();
        if self.orders.send(order).await.is_err() {
            // The daemon is stopping.
            return Ok(());
        }
        match outcome.await {
            Ok(outcome) => self.answer(connection, schema, &requests, outcome).await,
            Err(_) => Ok(()),
        }
    }

    /// Looks at nothing but whether this program may go on with the tables: for where they are not as it knows them.
    ///
    /// # Errors
    /// Not even that can be asked.
    pub(super) async fn look_at_schema(
        &self,
        connection: &mut PgConnection,
        place: &WorkerTablePlace,
    ) -> Result<(), sqlx::Error> {
        self.exclusion.tell_here(find_exclusion(connection, &place.migrated, &place.schema).await?);
        Ok(())
    }

    /// The requests without an answer. One that nobody waits for any more is left alone. Tells which builds go on, and what excludes
    /// this program: one statement a second has to do for all. A build that began right after another one was given up is told apart by its time.
    async fn find(
        &self,
        connection: &mut PgConnection,
        place: &WorkerTablePlace,
    ) -> Result<Vec<i64>, sqlx::Error> {
        let WorkerTablePlace { schema, trackers, migrated, .. } = place;
        let builds = if self.sees_builds {
            let rebuilds = format!("{}.rebuilds", trackers.schema());
            format!(
                "array(select started_at from {rebuilds} where state not in ('live', 'merged', 'aborted') order by started_at)"
            )
        } else {
            "array[]::timestamptz[]".to_owned()
        };
        let statement = format!(
            "-- find_reload_requests
             select array(select id from {}.reload_requests
               where owner = $1 and answered_at is null and requested_at > clock_timestamp() - interval '5 minutes'),
             {builds}, {}",
            quote_identifier(schema),
            excluding(migrated, schema)
        );
        let row = sqlx::query(AssertSqlSafe(statement)).bind(self.owner).fetch_one(connection).await?;
        let (requests, builds): (Vec<i64>, Builds) = (row.try_get(0)?, row.try_get(1)?);
        self.exclusion.tell_here(read_exclusion(&row, 2, schema)?);
        self.building.send_if_modified(|known| {
            let is_new = *known != builds;
            *known = builds;
            is_new
        });
        Ok(requests)
    }

    /// Writes down what came of a signal, so that `status` can tell of a refusal.
    async fn record(
        &self,
        connection: &mut PgConnection,
        schema: &str,
        outcome: Reloaded,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- record_reload
             insert into {}.reload_requests (owner, operator, answered_at, outcome, report)
             values ($1, 'SIGHUP', clock_timestamp(), $2, $3)",
            quote_identifier(schema)
        );
        let (word, report) = outcome.into_words();
        let query = sqlx::query(AssertSqlSafe(statement)).bind(self.owner).bind(word).bind(report);
        query.execute(connection).await.map(drop)
    }

    async fn answer(
        &self,
        connection: &mut PgConnection,
        schema: &str,
        requests: &[i64],
        outcome: Reloaded,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- answer_reload_requests
             with outdated as (
               delete from {0}.reload_requests where requested_at < clock_timestamp() - interval '1 day'
             )
             update {0}.reload_requests set answered_at = clock_timestamp(), outcome = $2, report = $3 where id = any($1)",
            quote_identifier(schema)
        );
        let (word, report) = outcome.into_words();
        let query = sqlx::query(AssertSqlSafe(statement)).bind(requests).bind(word).bind(report);
        query.execute(connection).await.map(drop)
    }
}
