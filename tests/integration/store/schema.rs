//! Migrations: applied once, by the program that comes first, and checked.

use std::fs;
use std::path::{Path, PathBuf};

use espd::schema::{self, Migrated, SchemaError};
use futures_util::future::join_all;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, PgPool, Row};

use super::store;
use crate::support;
use crate::support::facts::{append, eventually, reaches};
use crate::support::program::Installation;

async fn execute(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_may_migrate_at_once_and_again() {
    let (pool, _) = store().await;
    for schema in ["one", "two"] {
        let outcomes = join_all((0..6).map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { schema::migrate_event_store(&pool, schema).await })
        }))
        .await;
        for outcome in outcomes {
            outcome.unwrap().unwrap();
        }
        schema::check_event_store(&pool, schema).await.unwrap();
        let again = schema::migrate_event_store(&pool, schema).await.unwrap();
        assert_eq!(again.from, again.to);
    }
    // No session keeps the migrator's lock: it ends with its session, which the server may notice a little later.
    let locks = "select count(*) from pg_locks
         where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())";
    eventually("no lock", async || {
        (sqlx::query_scalar::<_, i64>(locks).fetch_one(&pool).await.unwrap() == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_database_that_was_never_migrated_is_distinguished_from_one_that_was() {
    let (pool, _) = store().await;
    schema::check_event_store(&pool, "espd").await.unwrap();
    schema::check_processing(&pool, "espd").await.unwrap();
    match schema::check_event_store(&pool, "elsewhere").await {
        Err(error @ SchemaError::NotMigrated { found: 0, .. }) => {
            assert!(error.to_string().contains("espctl migrate"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    let Migrated { from, to } = schema::migrate_event_store(&pool, "elsewhere").await.unwrap();
    assert_eq!(from, 0);
    assert!(to > 0);
}

#[tokio::test]
async fn a_database_of_a_newer_program_is_left_alone() {
    let (pool, _) = store().await;
    execute(
        &pool,
        "insert into espd._event_store_migrations (version, description, success, checksum, execution_time)
         values (9999, 'from the future', true, '', 0)",
    )
    .await;
    for outcome in [
        schema::check_event_store(&pool, "espd").await.map(|()| Migrated { from: 0, to: 0 }),
        schema::migrate_event_store(&pool, "espd").await,
    ] {
        match outcome {
            Err(SchemaError::Newer { found: 9999, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_migration_that_stopped_half_way_is_completed() {
    let (pool, _) = store().await;
    execute(
        &pool,
        "drop function espd.append_due_events(integer);
         delete from espd._event_store_migrations where version >= 8",
    )
    .await;
    let Err(SchemaError::NotMigrated { found, needed, .. }) = schema::check_event_store(&pool, "espd").await
    else {
        panic!("a migration is missing")
    };
    assert!(found == 7 && needed >= 8);
    let migrated = schema::migrate_event_store(&pool, "espd").await.unwrap();
    assert_eq!(migrated, Migrated { from: found, to: needed });
    execute(&pool, "select * from espd.append_due_events()").await;
}

#[tokio::test]
async fn a_migration_with_other_content_is_found() {
    let (pool, _) = store().await;
    execute(&pool, "update espd._event_store_migrations set checksum = 'x' where version = 1").await;
    match schema::check_event_store(&pool, "espd").await {
        Err(SchemaError::Changed { version: 1, .. }) => {}
        other => panic!("{other:?}"),
    }
}

/// Tables of others that happen to have a name of espd's, whichever of its tables that is.
#[tokio::test]
async fn what_others_have_made_is_not_taken_for_espds() {
    for made in [
        "table espd.events (id int)",
        "table espd.commands (id bigint)",
        "view espd.trackers as select 1 as one",
    ] {
        let db = support::empty_database().await;
        let installation = Installation::new(&db.url, "");
        execute(&db.pool, &format!("create schema espd; create {made}")).await;
        let relation = made.split(' ').nth(1).unwrap().strip_prefix("espd.").unwrap();
        for arguments in [&["migrate", "--dry-run"][..], &["migrate"]] {
            let complaint = installation.espctl(arguments).await.complained(1);
            let named = format!("has a relation \"{relation}\" that no espd has made");
            assert!(complaint.contains(&named), "{complaint}");
        }
        let set = if relation == "trackers" { "_processing" } else { "_event_store" };
        let recorded = format!("select count(*) from espd.{set}_migrations");
        let recorded: i64 = sqlx::query_scalar(AssertSqlSafe(recorded)).fetch_one(&db.pool).await.unwrap();
        assert_eq!(recorded, 0, "{made}");
        execute(
            &db.pool,
            &format!(
                "create schema other; alter {} set schema other",
                made.split(" (").next().unwrap().split(" as").next().unwrap()
            ),
        )
        .await;
        installation.espctl(&["migrate"]).await.printed();
        assert!(installation.espctl(&["migrate"]).await.printed().contains("already at version"));
    }
}

/// A role that may not create a schema cannot try the files, and what fails leaves nothing behind.
#[tokio::test]
async fn what_cannot_be_compared_is_made_as_a_whole_or_not_at_all() {
    let db = support::empty_database().await;
    let (pool, name) = (db.pool.clone(), format!("maker_{}", db.name));
    execute(
        &pool,
        &format!(
            "create role {name} login; create schema taken authorization {name};
             create table taken.events (id int); alter table taken.events owner to {name};
             revoke create on database {} from public",
            db.name
        ),
    )
    .await;
    let options: PgConnectOptions = db.url.parse().unwrap();
    let maker = PgPool::connect_with(options.username(&name)).await.unwrap();
    match schema::migrate_event_store(&maker, "taken").await {
        Err(SchemaError::Migrate { .. }) => {}
        other => panic!("{other:?}"),
    }
    let made = "select count(*) from pg_proc where pronamespace = 'taken'::regnamespace";
    assert_eq!(sqlx::query_scalar::<_, i64>(made).fetch_one(&pool).await.unwrap(), 0);
    execute(&pool, "drop table taken.events").await;
    schema::migrate_event_store(&maker, "taken").await.unwrap();
    maker.close().await;
    execute(&pool, &format!("drop schema taken cascade; drop role {name}")).await;
}

#[tokio::test]
async fn a_failed_migration_leaves_nothing_and_no_lock() {
    let (pool, _) = store().await;
    // A type stands where a table should be made.
    execute(&pool, "create schema taken; create domain taken.events as int").await;
    match schema::migrate_event_store(&pool, "taken").await {
        Err(SchemaError::Migrate { .. }) => {}
        other => panic!("{other:?}"),
    }
    execute(&pool, "drop domain taken.events").await;
    schema::migrate_event_store(&pool, "taken").await.unwrap();
}

#[tokio::test]
async fn a_role_without_rights_may_check_and_find_nothing_to_migrate() {
    let (pool, _) = store().await;
    let role = format!("reader_{}", uuid::Uuid::new_v4().simple());
    let grants = format!(
        "create role {role} login; grant usage on schema espd to {role};
         grant select on espd._event_store_migrations to {role}"
    );
    execute(&pool, &grants).await;
    let options = (*pool.connect_options()).clone().options([("role", &role)]);
    let reader = PgPool::connect_with(options).await.unwrap();
    schema::check_event_store(&reader, "espd").await.unwrap();
    schema::migrate_event_store(&reader, "espd").await.unwrap();
    reader.close().await;
    execute(&pool, &format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn a_role_that_owns_the_schema_may_migrate() {
    let (pool, _) = store().await;
    let role = format!("owner_{}", uuid::Uuid::new_v4().simple());
    execute(&pool, &format!("create role {role}; create schema owned authorization {role}")).await;
    let options = (*pool.connect_options()).clone().options([("role", &role)]);
    let owner = PgPool::connect_with(options).await.unwrap();
    schema::migrate_event_store(&owner, "owned").await.unwrap();
    match schema::migrate_event_store(&owner, "other").await {
        Err(SchemaError::Migrate { .. }) => {}
        outcome => panic!("{outcome:?}"),
    }
    owner.close().await;
    execute(&pool, &format!("drop owned by {role}; drop role {role}")).await;
}

/// The files of a set, in order.
fn files(set: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(set);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[tokio::test]
async fn every_file_is_embedded() {
    let (pool, _) = store().await;
    for (set, table) in [("event_store", "_event_store_migrations"), ("processing", "_processing_migrations")]
    {
        let sql = format!("select count(*) from espd.{table}");
        let applied: i64 = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&pool).await.unwrap();
        assert_eq!(usize::try_from(applied).unwrap(), files(set).len(), "{set}");
    }
}

/// Runs the first files of a set, as the loop in migrations/README.md does.
async fn run_by_hand(pool: &PgPool, set: &str, count: usize) {
    for file in files(set).iter().take(count) {
        execute(pool, &fs::read_to_string(file).unwrap().replace(":\"schema\"", "by_hand")).await;
    }
}

/// As migrations/README.md says: files that were run with psql are recorded by migrating.
#[tokio::test]
async fn files_that_were_run_by_hand_may_run_again() {
    let (pool, _) = store().await;
    execute(&pool, "create schema by_hand").await;
    run_by_hand(&pool, "event_store", usize::MAX).await;
    schema::migrate_event_store(&pool, "by_hand").await.unwrap();
    schema::check_event_store(&pool, "by_hand").await.unwrap();
}

#[tokio::test]
async fn both_sets_may_be_run_by_hand_and_are_recorded_without_running_again() {
    let (pool, _) = store().await;
    execute(&pool, "create schema by_hand").await;
    run_by_hand(&pool, "event_store", usize::MAX).await;
    run_by_hand(&pool, "processing", usize::MAX).await;
    let rows = "insert into by_hand.trackers (name, version, kind, epoch) values ('p', 1, 'projector', 7);
                -- What others have added does not matter.
                create index mine on by_hand.trackers (kind); alter table by_hand.workers add column mine int;
                grant select on by_hand.trackers to public;
                create function by_hand.project_p_v1() returns int language sql as 'select 1'";
    execute(&pool, rows).await;
    schema::migrate_event_store(&pool, "by_hand").await.unwrap();
    schema::migrate_processing(&pool, "by_hand").await.unwrap();
    schema::check_event_store(&pool, "by_hand").await.unwrap();
    schema::check_processing(&pool, "by_hand").await.unwrap();
    let epoch: i64 = sqlx::query_scalar("select epoch from by_hand.trackers").fetch_one(&pool).await.unwrap();
    assert_eq!(epoch, 7, "a migration that ends claims has run again");
    let left: i64 = sqlx::query_scalar("select count(*) from pg_namespace where nspname like 'espd_try%'")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn files_of_an_earlier_version_that_were_run_by_hand_are_continued() {
    let (pool, _) = store().await;
    for count in [1, 4, 9] {
        execute(&pool, "drop schema if exists by_hand cascade; create schema by_hand").await;
        run_by_hand(&pool, "processing", count).await;
        // A program of before has tried to migrate it, and left an empty table.
        let empty = "create table by_hand._processing_migrations (version bigint primary key, description text not null,
                       installed_on timestamptz not null default now(), success boolean not null, checksum bytea not null,
                       execution_time bigint not null)";
        execute(&pool, empty).await;
        schema::migrate_processing(&pool, "by_hand").await.unwrap();
        schema::check_processing(&pool, "by_hand").await.unwrap();
        let recorded: i64 = sqlx::query_scalar(
            "select count(*) from by_hand._processing_migrations where execution_time < 0",
        )
        .fetch_one(&pool)
        .await
        .unwrap();
        assert_eq!(usize::try_from(recorded).unwrap(), count, "recorded without running");
    }
}

#[tokio::test]
async fn tables_that_no_version_makes_are_not_taken_for_one() {
    let (pool, _) = store().await;
    execute(&pool, "create schema by_hand").await;
    run_by_hand(&pool, "processing", usize::MAX).await;
    execute(&pool, "alter table by_hand.trackers drop column position cascade").await;
    match schema::migrate_processing(&pool, "by_hand").await {
        Err(SchemaError::Foreign { relation, .. }) => assert_eq!(relation, "trackers"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn names_that_need_escaping_are_refused() {
    let (pool, _) = store().await;
    match schema::migrate_event_store(&pool, r#"a"; drop schema espd cascade; --"#).await {
        Err(SchemaError::InvalidName(_)) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_table_keeps_what_readers_rely_on() {
    let (pool, _) = store().await;
    let sequence = sqlx::query(
        "select cache_size, increment_by, cycle, data_type::text, start_value
         from pg_sequences where schemaname = 'espd' and sequencename = 'events_id_seq'",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!((sequence.get(0), sequence.get(1)), (1i64, 1i64));
    assert!(!sequence.get::<bool, _>(2));
    assert_eq!((sequence.get(3), sequence.get(4)), ("bigint", 1i64));

    // From PostgreSQL 18 on `not null` is a constraint as well; before, only the columns say so.
    let constraints: Vec<String> = sqlx::query_scalar(
        "select conname || ': ' || pg_get_constraintdef(oid) from pg_constraint
         where conrelid = 'espd.events'::regclass and contype <> 'n' order by conname",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    assert_eq!(
        constraints,
        [
            "events_aggregate_id_version_key: UNIQUE (aggregate_id, version)",
            "events_metadata_check: CHECK ((jsonb_typeof(metadata) = 'object'::text))",
            "events_pkey: PRIMARY KEY (id)",
            "events_type_check: CHECK ((type <> ''::text))",
            "events_uuid_key: UNIQUE (uuid)",
            "events_version_check: CHECK ((version > 0))",
        ]
    );
    let never_null: Vec<String> = sqlx::query_scalar(
        "select attname::text from pg_attribute
         where attrelid = 'espd.events'::regclass and attnum > 0 and attnotnull order by attnum",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    assert_eq!(
        never_null,
        ["id", "uuid", "aggregate_id", "type", "version", "body", "metadata", "created_at"]
    );
    let triggers: i64 =
        sqlx::query_scalar("select count(*) from pg_trigger where tgrelid = 'espd.events'::regclass")
            .fetch_one(&pool)
            .await
            .unwrap();
    assert_eq!(triggers, 0);
}

/// Rows that were written while aggregates were noted as uuids.
#[tokio::test]
async fn aggregates_that_were_noted_as_uuids_are_found_as_text() {
    const UUID: &str = "149d5c70-a373-4857-91e2-1d5ea90c27e4";
    let (pool, _) = store().await;
    execute(&pool, "create schema older").await;
    let files = files("processing");
    let (before, after) =
        files.split_at(files.iter().position(|file| makes_aggregate_ids_text(file)).unwrap());
    for file in before {
        execute(&pool, &fs::read_to_string(file).unwrap().replace(":\"schema\"", "older")).await;
    }
    let rows = format!(
        "insert into older.trackers (name, version, kind) values ('p', 1, 'projector');
         insert into older.dead_letters
           (processor, version, event_id, event_uuid, event_type, aggregate_id, reason, blocks)
         values ('p', 1, 7, gen_random_uuid(), 'A', '{UUID}', 'failed', true);
         insert into older.emissions (reactor, uuid, aggregate_id, type, body, metadata)
         values ('r', gen_random_uuid(), '{UUID}', 'A', '1', '{{}}')"
    );
    execute(&pool, &rows).await;
    // Each file may run twice.
    for file in after.iter().chain(&after[..1]) {
        execute(&pool, &fs::read_to_string(file).unwrap().replace(":\"schema\"", "older")).await;
    }
    for table in ["dead_letters", "emissions"] {
        let query = format!("select aggregate_id from older.{table}");
        let kept: String = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&pool).await.unwrap();
        assert_eq!(kept, UUID, "{table}");
    }
    for (event_id, aggregate_id, behind) in [(8, UUID, true), (9, "order-7", false)] {
        let query = format!(
            "select older.set_aside_behind('p', 1, 0, {event_id}, gen_random_uuid(), 'A', '{aggregate_id}')"
        );
        let answer: bool = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&pool).await.unwrap();
        assert_eq!(answer, behind, "{aggregate_id}");
    }
}

fn makes_aggregate_ids_text(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name.to_string_lossy().ends_with("_aggregate_ids.sql"))
}

/// Such a database has no ellipsis, and migrations had one.
#[tokio::test]
async fn a_database_of_another_encoding_is_migrated_and_followed() {
    let db = support::empty_database().await;
    let name = format!("{}_latin1", db.name);
    let create =
        format!("create database {name} encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0");
    execute(&db.pool, &create).await;
    let url = db.url.replace(&db.name, &name);
    let installation = Installation::new(&url, "");
    installation.declare_notes("notes", "");
    installation.espctl(&["migrate"]).await.printed();
    let pool = PgPool::connect(&url).await.unwrap();
    let last = append(&pool, 3).await;
    let daemon = installation.start_daemon();
    reaches(&pool, "notes", last).await;
    daemon.stop().await;
}
