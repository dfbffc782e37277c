//! A database as event_sourcery-postgres makes it, and what it writes.

use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::support::{self, Database};

/// A database with the framework's tables and function.
pub struct Framework {
    pub db: Database,
    function: String,
}

/// One call of `writeEvents`.
#[derive(Clone, Copy)]
pub struct Write<'w> {
    pub aggregate_id: Uuid,
    pub event_type: &'w str,
    pub body: &'w str,
    /// Whether ids become visible in order, which is the framework's default.
    pub lock: bool,
}

impl<'w> Write<'w> {
    /// An event of a new aggregate.
    pub fn of(event_type: &'w str) -> Self {
        Self { aggregate_id: Uuid::new_v4(), event_type, body: "{}", lock: true }
    }
}

impl Framework {
    /// With the framework's own names.
    pub async fn create() -> Self {
        Self::create_named("public", "events", "new_event").await
    }

    /// With other names, quoted where they need it.
    pub async fn create_named(schema: &str, events: &str, channel: &str) -> Self {
        let db = support::empty_database().await;
        let framework = Self { db, function: format!("{schema}.writeEvents") };
        if schema != "public" {
            framework.run(&format!("create schema {schema}")).await;
        }
        let statements = include_str!("framework.sql");
        let statements =
            statements.replace("SCHEMA", schema).replace("EVENTS", events).replace("CHANNEL", channel);
        framework.run(&statements).await;
        framework
    }

    pub async fn run(&self, statements: &str) {
        sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(&self.db.pool).await.unwrap();
    }

    pub async fn write(&self, write: Write<'_>) {
        let mut connection = self.db.pool.acquire().await.unwrap();
        self.write_in(&mut connection, write).await;
    }

    /// Writes one event in the caller's transaction.
    pub async fn write_in(&self, connection: &mut PgConnection, write: Write<'_>) {
        let Write { aggregate_id, event_type, body, lock } = write;
        self.call(connection, aggregate_id, &[event_type], &[body.to_owned()], lock).await;
    }

    /// Writes `count` times two events to aggregates of the writer's own, every third time without the lock.
    pub async fn write_many(&self, writer: usize, count: usize) {
        let aggregates: Vec<Uuid> = (0..5).map(|_| Uuid::new_v4()).collect();
        let mut connection = self.db.pool.acquire().await.unwrap();
        for n in 0..count {
            let bodies = [1, 2].map(|part| format!(r#"{{"writer":{writer},"n":{n},"part":{part}}}"#));
            let types = ["todo_added", "todo_amended"];
            self.call(&mut connection, aggregates[n % 5], &types, &bodies, n % 3 > 0).await;
        }
    }

    async fn call(
        &self,
        connection: &mut PgConnection,
        aggregate_id: Uuid,
        types: &[&str],
        bodies: &[String],
        lock: bool,
    ) {
        let uuids: Vec<Uuid> = types.iter().map(|_| Uuid::new_v4()).collect();
        let statement = format!(
            "select {}($1, $2::varchar[], null, $3::text[]::json[], array[null, '2020-01-02 03:04:05.678901']::timestamp[],
                       $4, $4, array[null]::uuid[], $5)",
            self.function
        );
        sqlx::query(AssertSqlSafe(statement))
            .bind(aggregate_id)
            .bind(types)
            .bind(bodies)
            .bind(uuids)
            .bind(lock)
            .execute(connection)
            .await
            .unwrap();
    }

    /// Everything that the catalog says about the framework's schema, apart from how much is in it.
    pub async fn fingerprint(&self) -> String {
        sqlx::query_scalar(
            "select string_agg(fact, e'\\n' order by fact) from (
               select concat_ws(' ', 'relation', relname, relkind, relfilenode, relacl, relhastriggers, reloptions) as fact
               from pg_class where relnamespace = 'public'::regnamespace
               union all
               select concat_ws(' ', 'column', attrelid::regclass, attname, atttypid, attnotnull, atthasdef)
               from pg_attribute join pg_class on pg_class.oid = attrelid
               where relnamespace = 'public'::regnamespace and attnum > 0
               union all
               select concat_ws(' ', 'function', proname, md5(prosrc), proacl) from pg_proc
               where pronamespace = 'public'::regnamespace
               union all
               select concat_ws(' ', 'trigger', tgrelid::regclass, tgname)
               from pg_trigger join pg_class on pg_class.oid = tgrelid where relnamespace = 'public'::regnamespace
               union all
               select concat_ws(' ', 'constraint', conrelid::regclass, conname) from pg_constraint
               where connamespace = 'public'::regnamespace
             ) as facts",
        )
        .fetch_one(&self.db.pool)
        .await
        .unwrap()
    }
}
