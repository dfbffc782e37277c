//! A folded batch leaves what the loop leaves: rows, position, counts, and the event that fails.

mod cases;

use std::fmt::Write as _;

use espd::event::Position;
use espd::internals::declaration::ProcessorDeclaration;
use espd::internals::processor::Outcome;
use sqlx::AssertSqlSafe;

use self::cases::Case;
use crate::support::projectors::{Running, declare};
use crate::support::{self, Database};

/// What has become of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    Folded,
    /// It was tried, and left to the loop.
    LeftToLoop,
    NotTried,
}

/// A projector with the same handlers twice, folded and not.
struct Twins {
    folded: Running,
    looped: Running,
    tables: Vec<String>,
}

impl Twins {
    /// `{p}` in tables and handlers distinguishes the two.
    async fn start(db: &Database, name: &str, tables: &[(&str, &str)], handlers: &[(&[&str], &str)]) -> Self {
        let of = |prefix: &str, fold: bool| -> ProcessorDeclaration {
            let tables: Vec<_> = tables
                .iter()
                .map(|(table, columns)| (table.replace("{p}", prefix), columns.replace("{p}", prefix)))
                .collect();
            let handlers: Vec<_> =
                handlers.iter().map(|(types, sql)| (*types, sql.replace("{p}", prefix))).collect();
            let tables: Vec<_> =
                tables.iter().map(|(table, columns)| (table.as_str(), columns.as_str())).collect();
            let handlers: Vec<_> = handlers.iter().map(|(types, sql)| (*types, sql.as_str())).collect();
            ProcessorDeclaration { fold, ..declare(&format!("{prefix}{name}"), &tables, &handlers) }
        };
        let mut folded = Running::start(&db.pool, of("f", true)).await.unwrap();
        let mut looped = Running::start(&db.pool, of("l", false)).await.unwrap();
        // A plan that is made for an event evaluates what does not depend on a row, even if there is no row: so the loop itself
        // says different things of an event in its first executions and later.
        for running in [&mut folded, &mut looped] {
            sqlx::query("set plan_cache_mode = force_generic_plan")
                .execute(&mut running.connection)
                .await
                .unwrap();
        }
        Self { folded, looped, tables: tables.iter().map(|(table, _)| (*table).to_owned()).collect() }
    }

    /// One batch of each, which have to be the same; returns what became of the folded one.
    async fn batch(&mut self, db: &Database, upto: i64, size: i64) -> (Path, Outcome) {
        let name = self.folded.claim.key.name.clone();
        let forget = format!("select set_config('espd.fold_{name}', '', false)");
        sqlx::query(AssertSqlSafe(forget)).execute(&mut self.folded.connection).await.unwrap();
        (self.folded.limits.size, self.looped.limits.size) = (size, size);
        let looped = self.looped.process(upto).await.unwrap();
        let folded = self.folded.process(upto).await.unwrap();
        assert_eq!(without_names(&folded), without_names(&looped));
        for table in &self.tables {
            let (ours, theirs) =
                (rows(db, &table.replace("{p}", "f")).await, rows(db, &table.replace("{p}", "l")).await);
            assert_eq!(ours, theirs, "{table} up to {upto}");
        }
        let trackers = "select count(distinct (position, witness_at, witness_id, witness_uuid)) from espd.trackers where name = any ($1)";
        let names = vec![name.clone(), self.looped.claim.key.name.clone()];
        let distinct: i64 = sqlx::query_scalar(trackers).bind(names).fetch_one(&db.pool).await.unwrap();
        assert_eq!(distinct, 1, "the trackers of {name} differ");
        let ask = format!("select current_setting('espd.fold_{name}')");
        let said: String =
            sqlx::query_scalar(AssertSqlSafe(ask)).fetch_one(&mut self.folded.connection).await.unwrap();
        let path = match said.as_str() {
            "" => Path::NotTried,
            "{0,0}" => Path::Folded,
            _ => Path::LeftToLoop,
        };
        (path, folded)
    }

    /// Steps over an event that has failed, as a dead letter would.
    async fn step_over(&mut self, db: &Database, event: i64) {
        for running in [&mut self.folded, &mut self.looped] {
            let statement = "update espd.trackers set position = $1, witness_at = null, witness_id = null, witness_uuid = null
                where name = $2";
            sqlx::query(statement).bind(event).bind(&running.claim.key.name).execute(&db.pool).await.unwrap();
            running.claim.position = event.into();
        }
    }
}

/// What a batch has come to, without what the two necessarily call differently.
fn without_names(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Committed { position, handled, failure } => {
            let failure = failure.as_ref().map(|failure| {
                let failure = serde_json::to_value(failure).unwrap();
                format!("{} {} {}", failure["event_id"], failure["event_uuid"], failure["sqlstate"])
            });
            format!("{position:?} {handled} {failure:?}")
        }
        other => format!("{other:?}"),
    }
}

async fn rows(db: &Database, table: &str) -> String {
    let statement =
        format!("select coalesce(string_agg(t::text, E'\\n' order by t::text), '') from {table} as t");
    sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(&db.pool).await.unwrap()
}

/// Inserts events, each with a type and a body; returns the last id.
async fn append(db: &Database, events: &[(String, String)]) -> i64 {
    let (types, bodies): (Vec<&str>, Vec<&str>) =
        events.iter().map(|(name, body)| (name.as_str(), body.as_str())).unzip();
    let statement = "insert into espd.events (aggregate_id, type, version, body)
         select gen_random_uuid(), type, 1, body::jsonb from unnest($1::text[], $2::text[]) with ordinality as e (type, body, place)
         order by place";
    sqlx::query(statement).bind(types).bind(bodies).execute(&db.pool).await.unwrap();
    sqlx::query_scalar("select max(id) from espd.events").fetch_one(&db.pool).await.unwrap()
}

/// Goes to the end in batches, over the events that fail; counts what became of the batches.
async fn run(db: &Database, twins: &mut Twins, upto: i64, mut size: impl FnMut() -> i64) -> [usize; 3] {
    let mut paths = [0; 3];
    loop {
        let (path, outcome) = twins.batch(db, upto, size()).await;
        paths[path as usize] += 1;
        let Outcome::Committed { position, failure, .. } = outcome else { panic!("{outcome:?}") };
        if let Some(failure) = failure {
            let failure = serde_json::to_value(&failure).unwrap();
            twins.step_over(db, failure["event_id"].as_i64().unwrap()).await;
        } else if position == Position::from(upto) {
            return paths;
        }
    }
}

async fn explore(seed: u64, declarations: usize, streams: usize) -> [usize; 3] {
    let db = support::database().await;
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut paths = [0; 3];
    for number in 0..declarations {
        let mut case = Case::throw(&mut dice);
        let (declared, declared_tables) = (case.handlers.clone(), case.tables.clone());
        let handlers: Vec<(Vec<&str>, &str)> = declared
            .iter()
            .map(|handler| (handler.types.iter().map(String::as_str).collect(), handler.sql.as_str()))
            .collect();
        let handlers: Vec<(&[&str], &str)> =
            handlers.iter().map(|(types, sql)| (types.as_slice(), *sql)).collect();
        let tables: Vec<(&str, &str)> =
            declared_tables.iter().map(|(name, columns)| (name.as_str(), columns.as_str())).collect();
        let mut told = String::new();
        for (types, sql) in &handlers {
            let _ = writeln!(told, "{types:?}: {sql}");
        }
        eprintln!("seed {seed}, declaration {number}: {tables:?}\n{told}");
        let mut twins = Twins::start(&db, &format!("_{number}"), &tables, &handlers).await;
        // What was appended for others is not for these.
        let start: i64 = sqlx::query_scalar("select coalesce(max(id), 0) from espd.events")
            .fetch_one(&db.pool)
            .await
            .unwrap();
        twins.step_over(&db, start).await;
        for _ in 0..streams {
            let events = case.stream(&mut dice);
            let upto = append(&db, &events).await;
            let found = run(&db, &mut twins, upto, || dice.i64(32..120)).await;
            paths.iter_mut().zip(found).for_each(|(sum, more)| *sum += more);
        }
        for (table, _) in &tables {
            for prefix in ["f", "l"] {
                let drop = format!("drop table {}", table.replace("{p}", prefix));
                sqlx::query(AssertSqlSafe(drop)).execute(&db.pool).await.unwrap();
            }
        }
        sqlx::query("delete from espd.projection_tables").execute(&db.pool).await.unwrap();
    }
    eprintln!("folded, left to the loop, not tried: {paths:?}");
    paths
}

#[tokio::test]
async fn whatever_is_declared_and_whatever_happens_a_fold_is_the_loop() {
    let [folded, left, not_tried] = explore(1, 30, 6).await;
    assert!(folded > 150 && left > 20, "{folded} folded, {left} left to the loop, {not_tried} not tried");
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn whatever_is_declared_and_whatever_happens_a_fold_is_the_loop_for_long() {
    for seed in 100..112 {
        explore(seed, 60, 15).await;
    }
}
