//! Projectors that tests declare in a line or two, and their batches without a runner.

use std::time::{Duration, Instant};

use espd::internals::declaration::{
    Approve, BatchLimits, HandledEvents, Handler, Handling, Isolation, OnHandlerChange, ProcessorDeclaration,
    SourceText, TableDeclaration,
};
use espd::internals::processor::Events;
use espd::internals::processor::{BatchRequest, Outcome, Processor, ProcessorError, Work};
use espd::internals::retry::RetryPolicy;
use espd::internals::sql::SqlProcessor;
use espd::internals::tracker::{Claim, Owner, ProcessorKey, ReplayEffects, Trackers};
use espd::store::Layout;
use sqlx::{PgConnection, PgPool};

use super::SCHEMA;

pub const LEASE: Duration = Duration::from_secs(60);

/// Declares a projector from tables and handlers; `*` handles everything. Handler n is in `n.toml`, line 10.
pub fn declare(name: &str, tables: &[(&str, &str)], handlers: &[(&[&str], &str)]) -> ProcessorDeclaration {
    let handler = |(index, (events, sql)): (usize, &(&[&str], &str))| Handler {
        events: match *events {
            ["*"] => HandledEvents::All,
            types => HandledEvents::Types(types.iter().map(ToString::to_string).collect()),
        },
        sql: SourceText::new(sql, &format!("{index}.toml"), 10, 1),
    };
    let table = |(name, columns): &(&str, &str)| {
        TableDeclaration::new(*name, SourceText::new(columns, "tables.toml", 1, 1))
    };
    ProcessorDeclaration {
        name: name.to_owned(),
        version: 1,
        tables: tables.iter().map(table).collect(),
        ddl: vec![],
        handling: Handling::Sql(handlers.iter().enumerate().map(handler).collect()),
        batch: BatchLimits::default(),
        retry: RetryPolicy::default(),
        isolation: Isolation::default(),
        on_handler_change: OnHandlerChange::default(),
        handler_timeout: std::time::Duration::from_mins(5),
        start: None,
        reads: vec![],
        synchronous: None,
        fold: true,
        aggregate_column: None,
        approve: Approve::default(),
        checks: vec![],
        reactor: None,
        read_through: None,
        scope: None,
    }
}

/// A claimed and prepared projector.
pub struct Running {
    pub projector: SqlProcessor,
    pub claim: Claim,
    pub limits: BatchLimits,
    pub connection: PgConnection,
}

impl Running {
    /// Claims and prepares a projector whose tables are in the events' database.
    pub async fn start(pool: &PgPool, declaration: ProcessorDeclaration) -> Result<Self, ProcessorError> {
        Self::start_with(pool, declaration, Events::SameDatabase(Layout::espd(SCHEMA).unwrap())).await
    }

    pub async fn start_with(
        pool: &PgPool,
        declaration: ProcessorDeclaration,
        events: Events,
    ) -> Result<Self, ProcessorError> {
        Self::prepare(pool, SqlProcessor::new(declaration, SCHEMA, "public", events).unwrap()).await
    }

    /// As [`Self::start`], with the tables in another schema.
    pub async fn start_in(
        pool: &PgPool,
        declaration: ProcessorDeclaration,
        schema: &str,
    ) -> Result<Self, ProcessorError> {
        let events = Events::SameDatabase(Layout::espd(SCHEMA).unwrap());
        Self::prepare(pool, SqlProcessor::new(declaration, SCHEMA, schema, events).unwrap()).await
    }

    /// As [`Self::start`], or why the processor is refused: at once, or when its function is created.
    pub async fn try_start(pool: &PgPool, declaration: ProcessorDeclaration) -> Result<Self, String> {
        let events = Events::SameDatabase(Layout::espd(SCHEMA).unwrap());
        let projector = SqlProcessor::new(declaration, SCHEMA, "public", events)
            .map_err(|refusal| refusal.to_string())?;
        Self::prepare(pool, projector).await.map_err(|refusal| refusal.to_string())
    }

    async fn prepare(pool: &PgPool, mut projector: SqlProcessor) -> Result<Self, ProcessorError> {
        // How much a batch handles shall not depend on what else the machine does.
        let limits = BatchLimits { time: Duration::from_mins(1), ..BatchLimits::default() };
        let mut connection = pool.acquire().await?.detach();
        let mut claim = claim(&mut connection, &projector).await;
        projector.prepare(&mut connection, &claim).await?;
        claim.declaration = Some(String::new());
        Ok(Self { projector, claim, limits, connection })
    }

    /// Resets the projector to the start. Returns whether there was a tracker.
    pub async fn reset(&mut self, operator: &str, effects: ReplayEffects) -> bool {
        let Self { projector, claim, connection, .. } = self;
        projector.reset(connection, &claim.key, operator, effects).await.unwrap()
    }

    /// Processes one batch up to `upto`. The claim follows the position.
    pub async fn process(&mut self, upto: i64) -> Result<Outcome, ProcessorError> {
        let request = BatchRequest {
            claim: &self.claim,
            work: Work::Batch { upto: upto.into(), rate: 0.0 },
            limits: &self.limits,
            lease: LEASE,
            leased_at: Instant::now(),
            mark: None,
            keeps_session: true,
        };
        let outcome = self.projector.process(&mut self.connection, request).await?;
        if let Outcome::Committed { position, .. } = &outcome {
            self.claim.position = *position;
        }
        Ok(outcome)
    }
}

pub async fn claim(connection: &mut PgConnection, projector: &SqlProcessor) -> Claim {
    claim_processor(connection, projector).await
}

pub async fn claim_processor(connection: &mut PgConnection, projector: &dyn Processor) -> Claim {
    let (trackers, key) = (Trackers::new(SCHEMA), ProcessorKey::new(projector.name(), projector.version()));
    // Nobody else writes: what is drawn is settled.
    let drawn: i64 = sqlx::query_scalar("select coalesce(pg_sequence_last_value('espd.events_id_seq'), 0)")
        .fetch_one(&mut *connection)
        .await
        .unwrap();
    let position = projector.starting_position(connection, drawn.into()).await.unwrap();
    trackers.register(&mut *connection, &key, projector.kind(), position).await.unwrap();
    trackers.claim(connection, &key, &Owner::generate(), Duration::ZERO).await.unwrap().unwrap()
}

/// Inserts events as a stranger would, each with a body `{"n": …}`, and returns their ids.
pub async fn insert(pool: &PgPool, types: &[&str]) -> Vec<i64> {
    let mut ids = Vec::new();
    for (n, event_type) in types.iter().enumerate() {
        let id = sqlx::query_scalar(
            "insert into espd.events (aggregate_id, type, version, body)
             values (gen_random_uuid(), $1, 1, jsonb_build_object('n', $2::bigint)) returning id",
        )
        .bind(event_type)
        .bind(n as i64 + 1)
        .fetch_one(pool)
        .await
        .unwrap();
        ids.push(id);
    }
    ids
}

/// The numbers that a query returns.
pub async fn numbers(pool: &PgPool, query: &'static str) -> Vec<i64> {
    sqlx::query_scalar(query).fetch_all(pool).await.unwrap()
}
