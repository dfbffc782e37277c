//! A database that an earlier espd has worked on is migrated with everything in it, and processing continues from there.

use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use crate::support::facts::{eventually, reaches};
use crate::support::program::Installation;
use crate::support::receiver::{Receiver, Reply};
use crate::support::{self, SCHEMA};

/// A migration: its number, and its text.
type Migration = (i64, &'static str);

macro_rules! migration {
    ($number:literal, $file:literal) => {
        ($number, include_str!(concat!("../../../migrations/", $file)))
    };
}

/// The event store as it was before the first of the migrations that are tested here.
const EVENT_STORE: &[Migration] = &[
    migration!(1, "event_store/0001_events.sql"),
    migration!(2, "event_store/0002_append_events.sql"),
    migration!(3, "event_store/0003_append.sql"),
];

/// What processing needed then.
const PROCESSING: &[Migration] = &[
    migration!(1, "processing/0001_trackers.sql"),
    migration!(2, "processing/0002_workers.sql"),
    migration!(3, "processing/0003_signs_of_life.sql"),
    migration!(4, "processing/0004_reactors.sql"),
    migration!(5, "processing/0005_dead_letters.sql"),
    migration!(6, "processing/0006_emissions.sql"),
    migration!(7, "processing/0007_webhook_deliveries.sql"),
];

/// Twenty events of four aggregates, and every state that a processor may be in.
const DATA: &str = "
insert into espd.events (aggregate_id, type, version, body)
select lpad((n % 4)::text, 32, '0')::uuid, 'A', (n - 1) / 4 + 1, jsonb_build_object('n', n)
from generate_series(1, 20) as n order by n;

insert into espd.trackers (name, kind, version, position, epoch, handled, owner, owner_label, lease_until) values
  ('going',    'projector', 1, 10, 3, 10, gen_random_uuid(), 'other:1', clock_timestamp() + interval '1 hour'),
  ('paused',   'projector', 1,  5, 3,  5, null, null, null),
  ('stopped',  'projector', 1,  7, 3,  7, null, null, null),
  ('retrying', 'projector', 1,  6, 3,  6, null, null, null),
  ('parked',   'projector', 2, 12, 3, 12, null, null, null),
  ('answers',  'reactor',   1,  8, 3, 20, null, null, null),
  ('hook',     'reactor',   1,  4, 3,  4, null, null, null);
update espd.trackers set paused_at = clock_timestamp(), paused_by = 'alice@here' where name = 'paused';
update espd.trackers set attempts = 3, failed_at = clock_timestamp(),
  last_error = '{\"event_id\": 8, \"message\": \"no\"}' where name = 'stopped';
update espd.trackers set attempts = 2, next_retry_at = clock_timestamp() + interval '1 hour',
  last_error = '{\"event_id\": 7, \"message\": \"not yet\"}' where name = 'retrying';
update espd.trackers set silent_until = 12 where name = 'answers';

create table public.going (place bigint generated always as identity, event_id bigint);
create table public.paused (like public.going including all);
create table public.stopped (like public.going including all);
create table public.retrying (like public.going including all);
create table public.parked (like public.going including all);
insert into going (event_id) select n from generate_series(1, 10) as n;
insert into paused (event_id) select n from generate_series(1, 5) as n;
insert into stopped (event_id) select n from generate_series(1, 7) as n;
insert into retrying (event_id) select n from generate_series(1, 6) as n;
insert into parked (event_id) select n from generate_series(1, 12) as n where n % 4 <> 3;
insert into espd.projection_tables
select 'public', name, name, version from espd.trackers where kind = 'projector';

-- Aggregate 3 is parked since its first event.
insert into espd.dead_letters
  (processor, event_id, event_uuid, event_type, aggregate_id, reason, blocks, failure, attempts)
select 'parked', e.id, e.uuid, e.type, e.aggregate_id, case e.id when 3 then 'failed' else 'waiting' end, true,
  case e.id when 3 then '{\"event_id\": 3, \"message\": \"no\"}'::jsonb end, case e.id when 3 then 1 else 0 end
from espd.events as e where e.id in (3, 7, 11);

insert into espd.emissions (reactor, uuid, aggregate_id, type, body, metadata, key, due_at) values
  ('answers', '00000000-0000-8000-9000-000000000001', lpad('1', 32, '0')::uuid, 'Later', '{}', '{}', null,
   clock_timestamp()),
  ('answers', '00000000-0000-8000-9000-000000000002', lpad('2', 32, '0')::uuid, 'Later', '{}', '{}', 'tomorrow',
   clock_timestamp() + interval '1 day');

insert into espd.deliveries (processor, event_id, is_done, attempts, failure, retry_at) values
  ('hook', 5, false, 2, '{\"event_id\": 5, \"message\": \"refused\"}', clock_timestamp()),
  ('hook', 6, true, 0, null, null);

insert into espd.workers (owner, owner_label, worker, processors, state, starts)
values (gen_random_uuid(), 'other:1', 'going', array['going'], 'running', 1);
insert into espd.signs_of_life (name, partition, owner, owner_label, epoch, lives_until)
values ('going', 0, gen_random_uuid(), 'other:1', 3, clock_timestamp() + interval '1 hour');
insert into espd.operator_log (operator, action, processor, partition, from_position, to_position)
values ('alice@here', 'pause', 'paused', 0, 5, 5);

-- A function that was compiled before, with the parameters that it had.
create function espd.project_going_v1(espd_partition integer, espd_epoch bigint, espd_from bigint, espd_upto bigint,
  espd_limit integer, espd_bytes_max bigint, espd_time_max interval, espd_lease interval, espd_rate real,
  espd_letter bigint, out espd_position bigint, out espd_handled integer, out espd_failure jsonb,
  out espd_finished boolean)
language plpgsql as $$ begin raise exception 'of before'; end $$;
";

/// What a migration must leave as it is.
const KEPT: &[&str] = &[
    "select name, partition, kind, version, position, handled, paused_at, paused_by, attempts, last_error,
       next_retry_at, failed_at, silent_until, outage from espd.trackers",
    "select processor, partition, event_id, event_uuid, event_type, aggregate_id::text, reason, blocks, failure, attempts,
       set_aside_at, tried_at, retry_requested_at, replaying from espd.dead_letters",
    "select reactor, uuid, aggregate_id::text, type, body, metadata, correlation_id, causation_id, key, due_at, last_error
       from espd.emissions",
    "select processor, partition, event_id, is_done, attempts, failure, retry_at from espd.deliveries",
    "select owner, worker, processors, state, starts from espd.workers",
    "select operator, action, processor, from_position, to_position from espd.operator_log",
    "select * from espd.projection_tables",
];

const COLUMNS: &str = "place bigint generated always as identity, event_id bigint";

/// Runs migrations as an earlier espd did, and records them.
async fn migrate_as_before(pool: &PgPool, table: &str, migrations: &[Migration]) {
    let record = format!("{SCHEMA}.{table}");
    let create = format!(
        "create schema if not exists {SCHEMA};
         create table {record} (version bigint primary key, description text not null,
           installed_on timestamptz not null default now(), success boolean not null, checksum bytea not null,
           execution_time bigint not null)"
    );
    sqlx::raw_sql(AssertSqlSafe(create)).execute(pool).await.unwrap();
    for (number, text) in migrations {
        sqlx::raw_sql(AssertSqlSafe(text.replace(":\"schema\"", SCHEMA))).execute(pool).await.unwrap();
        let insert = format!(
            "insert into {record} values ($1, 'of before', now(), true, sha384(convert_to($2, 'UTF8')), 0)"
        );
        sqlx::query(AssertSqlSafe(insert)).bind(number).bind(text).execute(pool).await.unwrap();
    }
}

/// Says from what the tables were made.
async fn record_declarations(pool: &PgPool) {
    for name in ["going", "paused", "stopped", "retrying", "parked", "answers", "hook"] {
        let table = format!("{name}\u{1}{COLUMNS}");
        let text = if matches!(name, "answers" | "hook") { "" } else { &table };
        let fingerprint = Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()).simple().to_string();
        let statement = "update espd.trackers set declaration = $1 where name = $2";
        sqlx::query(statement).bind(fingerprint).bind(name).execute(pool).await.unwrap();
    }
}

async fn kept(pool: &PgPool) -> Vec<Vec<String>> {
    let mut kept = Vec::new();
    for query in KEPT {
        let rows = format!("select row_to_json(r)::text from ({query}) as r order by 1");
        kept.push(sqlx::query_scalar(AssertSqlSafe(rows)).fetch_all(pool).await.unwrap());
    }
    kept
}

async fn numbers(pool: &PgPool, query: &'static str) -> Vec<i64> {
    sqlx::query_scalar(query).fetch_all(pool).await.unwrap()
}

fn declare(installation: &Installation, receiver: &Receiver) {
    for name in ["going", "paused", "stopped", "retrying"] {
        installation.declare_notes(name, "");
    }
    installation.declare(
        "parked",
        &format!(
            "[projector]\nname = 'parked'\nversion = 2\n[projector.tables]\nparked = '{COLUMNS}'\n\
             [[projector.on]]\nevents = ['A']\nsql = 'insert into parked (event_id) values (event.id)'\n\
             [projector.retry]\nmax_attempts = 1\non_failure = 'park'\n"
        ),
    );
    installation.declare(
        "answers",
        "[reactor]\nname = 'answers'\nstart = 'beginning'\nemits = ['Answered', 'Later']\n\
         [[reactor.on]]\nevents = ['A']\n\
         sql = '''perform espd.emit('Answered', gen_random_uuid(), event.body)'''\n",
    );
    installation.declare(
        "hook",
        &format!(
            "[reactor]\nname = 'hook'\nstart = 'beginning'\nevents = ['A']\n\
             [reactor.webhook]\nurl = '{}'\nallow_private = true\n",
            receiver.url()
        ),
    );
}

#[tokio::test]
async fn an_upgrade_keeps_everything_and_processing_continues() {
    let db = support::empty_database().await;
    migrate_as_before(&db.pool, "_event_store_migrations", EVENT_STORE).await;
    migrate_as_before(&db.pool, "_processing_migrations", PROCESSING).await;
    sqlx::raw_sql(DATA).execute(&db.pool).await.unwrap();
    record_declarations(&db.pool).await;
    let receiver = Receiver::start(|_| Reply::Status(200)).await;
    let installation = Installation::new(&db.url, "");
    declare(&installation, &receiver);

    let before = kept(&db.pool).await;
    installation.espctl(&["migrate"]).await.printed();
    assert_eq!(kept(&db.pool).await, before);
    // The daemon of before commits nothing more: its claims have ended.
    assert_eq!(numbers(&db.pool, "select count(*) from espd.trackers where epoch <= 3").await, [0]);
    assert_eq!(numbers(&db.pool, "select distinct version::bigint from espd.dead_letters").await, [2]);

    let daemon = installation.start_daemon();
    for name in ["going", "retrying", "parked", "answers", "hook"] {
        reaches(&db.pool, name, 20).await;
    }
    let all: Vec<i64> = (1..=20).collect();
    assert_eq!(numbers(&db.pool, "select event_id from going order by place").await, all);
    assert_eq!(numbers(&db.pool, "select event_id from retrying order by place").await, all);
    let (_, free): (Vec<i64>, Vec<i64>) = all.iter().partition(|id| *id % 4 == 3);
    assert_eq!(numbers(&db.pool, "select event_id from parked order by place").await, free);
    let set_aside = numbers(&db.pool, "select event_id from espd.dead_letters order by 1").await;
    assert_eq!(set_aside, [3, 7, 11, 15, 19], "what came later waits as well");

    // A reset was silent up to event 12, and what was emitted before is in the store once.
    let query = "select (body->>'n')::bigint from espd.events where type = 'Answered' order by id";
    assert_eq!(numbers(&db.pool, query).await, (13..=20).collect::<Vec<_>>());
    let moved = "select count(*) from espd.events where uuid = '00000000-0000-8000-9000-000000000001'";
    eventually("the emission", async || (numbers(&db.pool, moved).await == [1]).then_some(())).await;
    let left = "select count(*) from espd.emissions where key = 'tomorrow' and partition = 0";
    assert_eq!(numbers(&db.pool, left).await, [1]);
    // What the webhook had done beyond its position, it does not do again.
    let mut sent = receiver.numbers();
    sent.sort_unstable();
    assert_eq!(sent, [vec![5], (7..=20).collect()].concat());

    // Operators find everything under the names that they know.
    assert_eq!(numbers(&db.pool, "select position from espd.trackers where name = 'stopped'").await, [7]);
    assert!(installation.status("stopped").await.to_string().contains("\"failed\""));
    installation.espctl(&["retry", "stopped"]).await.printed();
    installation.espctl(&["resume", "paused"]).await.printed();
    installation.espctl(&["dead-letters", "retry", "parked", "--all", "--yes"]).await.printed();
    for name in ["stopped", "paused"] {
        reaches(&db.pool, name, 20).await;
    }
    assert_eq!(numbers(&db.pool, "select event_id from stopped order by place").await, all);
    assert_eq!(numbers(&db.pool, "select event_id from paused order by place").await, all);
    let none = "select count(*) from espd.dead_letters";
    eventually("no dead letter", async || (numbers(&db.pool, none).await == [0]).then_some(())).await;
    let query = "select event_id from parked where event_id % 4 = 3 order by place";
    assert_eq!(numbers(&db.pool, query).await, [3, 7, 11, 15, 19]);
    daemon.stop().await;
}
