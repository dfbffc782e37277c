//! Appenders that do not use `append_events`: plain inserts, COPY, two-phase commit.

use std::time::Duration;

use espd::event::Appended;
use fastrand::Rng;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::time::sleep;
use uuid::Uuid;

use super::Appender;
use super::client::{Client, is_refusal, sqlstate};
use crate::ledger::{DEPOSITED, Draft, OPENED, Outcome, draw_uuid};

/// SQLSTATE: no prepared transaction goes by that name.
const UNDEFINED_OBJECT: &str = "42704";

/// SQLSTATE: a session that is just being ended has not let go of the prepared transaction yet.
const BUSY: &str = "55000";

/// A new account with up to `deposits_max` deposits, in versions 1, 2, 3 …
fn draw_account(rng: &mut Rng, deposits_max: u64) -> Vec<Draft> {
    let account = draw_uuid(rng);
    let deposits = rng.u64(..=deposits_max) as i64;
    let draft = |version: i64| {
        let event_type = if version == 0 { OPENED } else { DEPOSITED };
        let amount = rng.i64(1..=1000);
        Draft { expected: Some(version.into()), ..Draft::new(rng, account, event_type, amount) }
    };
    (0..=deposits).map(draft).collect()
}

async fn run(connection: &mut PgConnection, statement: String) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(drop)
}

async fn insert(connection: &mut PgConnection, drafts: &[Draft]) -> Result<Vec<Appended>, sqlx::Error> {
    let statement = "-- insert_drafts
         insert into espd.events (uuid, aggregate_id, type, version, body)
         select uuid, aggregate_id, type, expected + 1, jsonb_build_object('amount', amount)
         from unnest($1::uuid[], $2::uuid[], $3::text[], $4::bigint[], $5::bigint[])
           with ordinality as given (uuid, aggregate_id, type, expected, amount, place)
         order by place
         returning id, uuid, version";
    let rows: Vec<(espd::event::Position, Uuid, espd::event::Version)> = sqlx::query_as(statement)
        .bind(drafts.iter().map(|draft| draft.uuid).collect::<Vec<_>>())
        .bind(drafts.iter().map(|draft| draft.aggregate_id).collect::<Vec<_>>())
        .bind(drafts.iter().map(|draft| draft.event_type).collect::<Vec<_>>())
        .bind(drafts.iter().map(|draft| draft.expected).collect::<Vec<_>>())
        .bind(drafts.iter().map(|draft| draft.amount).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
    Ok(rows.into_iter().map(|(id, uuid, version)| Appended { id, uuid, version }).collect())
}

async fn begin_and_insert(
    connection: &mut PgConnection,
    drafts: &[Draft],
) -> Result<Vec<Appended>, sqlx::Error> {
    run(connection, "begin".to_owned()).await?;
    insert(connection, drafts).await
}

/// Inserts in a transaction of its own that lasts a while, and commits, rolls back or just hangs up.
pub struct Inserter {
    client: Client,
    rng: Rng,
}

impl Inserter {
    pub fn new((client, rng): (Client, Rng)) -> Self {
        Self { client, rng }
    }

    async fn try_insert(&mut self, drafts: &[Draft]) -> Outcome {
        let Ok(stored) = begin_and_insert(self.client.connection().await, drafts).await else {
            self.client.hang_up();
            return Outcome::Absent;
        };
        sleep(Duration::from_millis(self.rng.u64(..100))).await;
        match self.rng.u8(..10) {
            0..6 => match run(self.client.connection().await, "commit".to_owned()).await {
                Ok(()) => Outcome::Acknowledged(Some(stored)),
                Err(_) => {
                    self.client.miss_answer();
                    Outcome::Unknown
                }
            },
            6..9 => {
                if run(self.client.connection().await, "rollback".to_owned()).await.is_err() {
                    self.client.hang_up();
                }
                Outcome::Absent
            }
            _ => {
                self.client.hang_up();
                Outcome::Absent
            }
        }
    }
}

impl Appender for Inserter {
    async fn act(&mut self) {
        let drafts = draw_account(&mut self.rng, 40);
        let outcome = self.try_insert(&drafts).await;
        self.client.record(drafts, outcome);
    }

    fn pause(&self) -> Duration {
        Duration::from_millis(200)
    }

    fn into_client(self) -> Client {
        self.client
    }
}

/// Copies, slowly, and now and then gives up in the middle.
pub struct Copier {
    client: Client,
    rng: Rng,
}

impl Copier {
    pub fn new((client, rng): (Client, Rng)) -> Self {
        Self { client, rng }
    }

    async fn try_copy(&mut self, drafts: &[Draft]) -> Outcome {
        let abort = self.rng.u8(..4) == 0;
        let pause = Duration::from_millis(self.rng.u64(..50));
        let connection = self.client.connection().await;
        let copied = async {
            let statement = "copy espd.events (uuid, aggregate_id, type, version, body) from stdin";
            let mut copy = connection.copy_in_raw(statement).await?;
            for half in drafts.chunks(drafts.len().div_ceil(2)) {
                copy.send(half.iter().map(copy_line).collect::<String>().into_bytes()).await?;
                sleep(pause).await;
            }
            if abort { copy.abort("changed its mind").await.map(|()| 0) } else { copy.finish().await }
        };
        match (copied.await, abort) {
            (Ok(_), false) => Outcome::Acknowledged(None),
            (Err(_), false) => {
                self.client.miss_answer();
                Outcome::Unknown
            }
            (_, true) => {
                self.client.hang_up();
                Outcome::Absent
            }
        }
    }
}

fn copy_line(draft: &Draft) -> String {
    let Draft { uuid, aggregate_id, event_type, amount, expected } = draft;
    let version = expected.unwrap_or_default().next();
    format!("{uuid}\t{aggregate_id}\t{event_type}\t{version}\t{{\"amount\": {amount}}}\n")
}

impl Appender for Copier {
    async fn act(&mut self) {
        let drafts = draw_account(&mut self.rng, 60);
        let outcome = self.try_copy(&drafts).await;
        self.client.record(drafts, outcome);
    }

    fn pause(&self) -> Duration {
        Duration::from_millis(300)
    }

    fn into_client(self) -> Client {
        self.client
    }
}

/// Prepares a transaction, lets it lie for a while, and ends it: also over a crash in between.
pub struct Preparer {
    client: Client,
    rng: Rng,
    prepared: u32,
}

impl Preparer {
    pub fn new((client, rng): (Client, Rng)) -> Self {
        Self { client, rng, prepared: 0 }
    }

    async fn try_prepare(&mut self, drafts: &[Draft]) -> Outcome {
        self.prepared += 1;
        let name = format!("storm {}", self.prepared);
        let Ok(stored) = begin_and_insert(self.client.connection().await, drafts).await else {
            self.client.hang_up();
            return Outcome::Absent;
        };
        let statement = format!("prepare transaction '{name}'");
        if run(self.client.connection().await, statement).await.is_err() {
            self.client.miss_answer();
            if !self.is_prepared(&name).await {
                return Outcome::Absent;
            }
        }
        sleep(Duration::from_millis(self.rng.u64(..500))).await;
        if self.rng.u8(..3) > 0 {
            self.end_prepared("commit", &name).await;
            Outcome::Acknowledged(Some(stored))
        } else {
            self.end_prepared("rollback", &name).await;
            Outcome::Absent
        }
    }

    /// A server that is gone or has ended the session has done with the request, one way or the other.
    async fn is_prepared(&mut self, name: &str) -> bool {
        let statement = "-- find_prepared\nselect exists (select from pg_prepared_xacts where gid = $1)";
        loop {
            let found =
                sqlx::query_scalar(statement).bind(name).fetch_one(self.client.connection().await).await;
            match found {
                Ok(found) => return found,
                Err(_) => self.client.hang_up(),
            }
        }
    }

    /// Ends a prepared transaction for sure: once the server does not know it any more, an earlier try has succeeded.
    async fn end_prepared(&mut self, verb: &str, name: &str) {
        let mut tries = 0;
        loop {
            tries += 1;
            let statement = format!("{verb} prepared '{name}'");
            let Err(error) = run(self.client.connection().await, statement).await else { return };
            match sqlstate(&error).as_deref() {
                Some(UNDEFINED_OBJECT) if tries > 1 => return,
                Some(BUSY) => sleep(Duration::from_millis(5)).await,
                Some(state) if is_refusal(state) => {
                    return self.client.complain(format!("{verb} prepared was refused: {error}"));
                }
                _ => self.client.miss_answer(),
            }
        }
    }
}

impl Appender for Preparer {
    async fn act(&mut self) {
        let drafts = draw_account(&mut self.rng, 10);
        let outcome = self.try_prepare(&drafts).await;
        self.client.record(drafts, outcome);
    }

    fn pause(&self) -> Duration {
        Duration::from_millis(1500)
    }

    fn into_client(self) -> Client {
        self.client
    }
}
