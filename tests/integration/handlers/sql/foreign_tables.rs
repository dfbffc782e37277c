//! A batch that writes a table of another processor does not commit, however it writes it.

use espd::internals::declaration::{ProcessorDeclaration, SourceText};
use espd::internals::handlers::check;
use espd::internals::processor::{Outcome, ProcessorError};
use espd::internals::tracker::ReplayEffects;
use sqlx::{AssertSqlSafe, PgPool};

use crate::support;
use crate::support::Database;
use crate::support::projectors::{Running, declare, insert, numbers};

/// A processor whose table `theirs` has two rows, and whose table `parted` has a partition.
async fn owner() -> Database {
    let db = support::database().await;
    let tables = [
        ("theirs", "id bigint primary key"),
        ("parted", "(id bigint) partition by range (id)"),
        ("later", "id bigint primary key"),
    ];
    let mut declaration = declare("owner", &tables, &[(&["A"], "insert into theirs values (event.id)")]);
    let ddl = "create table parted_low partition of parted for values from (0) to (1000)";
    declaration.ddl = vec![SourceText::unplaced(ddl)];
    let mut running = Running::start(&db.pool, declaration).await.unwrap();
    let ids = insert(&db.pool, &["A", "A"]).await;
    running.process(ids[1]).await.unwrap();
    db
}

async fn run(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.unwrap();
}

/// A processor with a table of its own that does something for an event whose `n` is 2, and only notes that of 1.
async fn intruder(db: &Database, name: &str, sql: &str) -> (Running, Vec<i64>) {
    let handler = format!(
        "insert into {name}s values (event.id);
         if (event.body->>'n')::int > 1 then {sql}; end if"
    );
    let table = format!("{name}s");
    let tables = [(table.as_str(), "id bigint primary key")];
    let running = Running::start(&db.pool, declare(name, &tables, &[(&[name], &handler)])).await.unwrap();
    (running, insert(&db.pool, &[name, name]).await)
}

fn refusal(outcome: Result<Outcome, ProcessorError>) -> espd::internals::failure::Failure {
    match outcome {
        Err(ProcessorError::Unattributed(failure)) => *failure,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn whatever_way_a_table_of_another_is_written_nothing_of_the_batch_is_committed() {
    let db = owner().await;
    run(&db.pool, "create function public.empty() returns void language sql as 'delete from public.theirs'")
        .await;
    run(
        &db.pool,
        "create function public.on_row() returns trigger language plpgsql security definer as
           $$ begin if new.id < 0 then delete from public.theirs; end if; return new; end $$",
    )
    .await;
    let by_trigger = "insert into trigger_s values (-1)";
    for (name, sql, table) in [
        ("plain_", "delete from theirs", "theirs"),
        ("execute_", "execute 'update the' || 'irs set id = id + 100'", "theirs"),
        ("function_", "perform empty()", "theirs"),
        ("trigger_", by_trigger, "theirs"),
        ("truncate_", "execute 'truncate later'", "later"),
        ("partition_", "insert into parted_low values (1)", "parted"),
        ("drop_", "execute 'drop table later'", "later"),
    ] {
        for is_first in [false, true] {
            let name = if is_first { format!("{name}1") } else { name.to_owned() };
            let (mut running, ids) =
                intruder(&db, &name, &sql.replace("trigger_s", &format!("{name}s"))).await;
            if sql == by_trigger {
                run(
                    &db.pool,
                    &format!(
                        "create trigger t before insert on {name}s for each row execute function on_row()"
                    ),
                )
                .await;
            }
            if !is_first {
                // The first batch of a claim is examined in another way than those behind it.
                assert!(running.process(ids[0]).await.is_ok(), "{name}");
            }
            let failure = refusal(running.process(ids[1]).await);
            let words = format!("table public.{table}, which belongs to processor owner");
            assert!(failure.message.contains(&words), "{name}: {failure}");
            assert_eq!(failure.sqlstate.as_deref(), Some("ES006"), "{name}");
            // The failing event is found by smaller batches.
            running.limits.size = 1;
            running.process(ids[0]).await.unwrap();
            let failure = refusal(running.process(ids[1]).await);
            assert_eq!(failure.event_id(), Some(ids[1].into()), "{name}");
            assert_eq!(numbers(&db.pool, "select count(*) from theirs where id < 100").await, [2], "{name}");
            let query = AssertSqlSafe(format!("select id from {name}s"));
            let noted: Vec<i64> = sqlx::query_scalar(query).fetch_all(&db.pool).await.unwrap();
            assert_eq!(noted, [ids[0]], "{name}");
        }
    }
}

#[tokio::test]
async fn a_cascade_into_a_table_of_another_is_refused_and_a_foreign_key_to_it_is_not() {
    let db = owner().await;
    let sql = "delete from cascades where id < 100";
    let (mut running, ids) = intruder(&db, "cascade", sql).await;
    run(
        &db.pool,
        "insert into cascades select id from theirs;
         alter table theirs add constraint theirs_fk foreign key (id) references cascades on delete cascade",
    )
    .await;
    running.process(ids[0]).await.unwrap();
    assert!(refusal(running.process(ids[1]).await).message.contains("public.theirs"));
    assert_eq!(numbers(&db.pool, "select count(*) from theirs").await, [2]);

    let tables = [("refers", "id bigint primary key, their_id bigint references theirs")];
    let sql = "insert into refers select event.id, min(id) from theirs";
    let mut refers =
        Running::start(&db.pool, declare("refers", &tables, &[(&["cascade"], sql)])).await.unwrap();
    for id in ids {
        refers.process(id).await.unwrap();
    }
    assert_eq!(numbers(&db.pool, "select count(*) from refers").await, [2]);
}

#[tokio::test]
async fn writes_are_found_where_the_server_counts_nothing_and_tables_of_nobody_may_be_written() {
    let db = owner().await;
    run(&db.pool, "create table public.of_nobody (id bigint)").await;
    let (mut running, ids) = intruder(&db, "quiet", "delete from theirs").await;
    sqlx::raw_sql("set track_counts = off").execute(&mut running.connection).await.unwrap();
    running.process(ids[0]).await.unwrap();
    assert!(refusal(running.process(ids[1]).await).message.contains("public.theirs"));

    let (mut running, ids) = intruder(&db, "open", "insert into of_nobody values (event.id)").await;
    running.process(ids[1]).await.unwrap();
    assert_eq!(numbers(&db.pool, "select id from of_nobody").await, [ids[1]]);
}

/// A processor whose statements behind the tables are these, and whose table has these columns.
fn with_ddl(columns: &str, ddl: &[&str]) -> ProcessorDeclaration {
    let tables = [("mine", columns)];
    let ddl = ddl.iter().map(|sql| SourceText::unplaced(sql)).collect();
    ProcessorDeclaration {
        ddl,
        ..declare("intruder", &tables, &[(&["A"], "insert into mine values (event.id)")])
    }
}

#[tokio::test]
async fn declared_statements_that_change_a_table_of_another_or_of_espd_are_not_carried_out() {
    let db = owner().await;
    let hidden = |sql: &str| format!("do $do$ begin execute '{}' || ''; end $do$", sql.replace('\'', "''"));
    let rows =
        "select (select count(*) from theirs) + (select count(*) from espd.trackers where name = 'owner')";
    let before = numbers(&db.pool, rows).await;
    for (sql, table) in [
        ("delete from theirs", "theirs"),
        ("update theirs set id = id", "theirs"),
        ("drop table later cascade", "later"),
        ("truncate parted_low", "parted"),
        ("alter table later add column more int", "later"),
        ("delete from espd.dead_letters where false", "espd.dead_letters"),
        ("drop table espd.dead_letters cascade", "espd.dead_letters"),
        (
            "insert into espd.events (aggregate_id, type, version, body) values (gen_random_uuid(), 'A', 1, '1')",
            "espd.events",
        ),
    ] {
        let refused = Running::start(&db.pool, with_ddl("id bigint", &["select 1", &hidden(sql)])).await;
        let Err(ProcessorError::Blocked(reason)) = refused else { panic!("{sql} is not refused") };
        assert!(reason.contains(table) && reason.contains("which belongs to "), "{sql}: {reason}");
        let mut connection = db.pool.acquire().await.unwrap();
        let all = [others(), with_ddl("id bigint", &[&hidden(sql)])];
        let found = check(&mut connection, &all, "public").await.unwrap();
        let words = found.iter().map(ToString::to_string).collect::<String>();
        assert!(
            words.contains("which belongs to ") && words.contains("this changes table "),
            "{sql}: {words}"
        );
        let plain = [others(), with_ddl("id bigint", &[sql])];
        assert!(!check(&mut connection, &plain, "public").await.unwrap().is_empty(), "{sql}");
    }
    let columns = "id bigint); delete from theirs; create table more (id bigint";
    let refused = Running::start(&db.pool, with_ddl(columns, &[])).await;
    assert!(matches!(refused, Err(ProcessorError::Blocked(_))), "columns that are more than columns");
    assert_eq!(numbers(&db.pool, rows).await, before);
    assert_eq!(
        numbers(&db.pool, "select count(*) from pg_class where relname in ('mine', 'more')").await,
        [0]
    );

    // To read is allowed, and to refer to.
    let ddl = [
        "create or replace view in_both as select id from theirs",
        "create index on mine (id)",
        "insert into mine select id from theirs",
    ];
    let fine = with_ddl("id bigint references theirs", &ddl);
    let mut connection = db.pool.acquire().await.unwrap();
    assert_eq!(check(&mut connection, &[others(), fine.clone()], "public").await.unwrap(), []);
    let mut running = Running::start(&db.pool, fine).await.unwrap();
    assert!(running.reset("tester", ReplayEffects::Suppress).await);
}

/// The declaration of [`owner`], as far as a check needs it.
fn others() -> ProcessorDeclaration {
    declare(
        "owner",
        &[
            ("theirs", "id bigint primary key"),
            ("parted", "(id bigint) partition by range (id)"),
            ("later", "id bigint primary key"),
        ],
        &[(&["A"], "insert into theirs values (event.id)")],
    )
}

#[tokio::test]
async fn a_batch_that_changes_what_is_stored_or_who_stands_where_is_not_committed() {
    let db = owner().await;
    for (name, sql) in [
        ("changes_", "update espd.events set body = '{\"changed\": 1}' where id = event.id"),
        ("deletes_", "execute 'delete from espd.ev' || 'ents where id = 1'"),
        ("untracks_", "delete from espd.trackers where name = 'owner'"),
        ("disowns_", "update espd.projection_tables set processor = 'x' where processor = 'owner'"),
    ] {
        let (mut running, ids) = intruder(&db, name, sql).await;
        running.process(ids[0]).await.unwrap();
        let failure = refusal(running.process(ids[1]).await);
        assert_eq!(failure.sqlstate.as_deref(), Some("ES006"), "{name}: {failure}");
        assert!(failure.message.contains("which are espd's own"), "{name}: {failure}");
        assert_eq!(numbers(&db.pool, "select count(*) from espd.events where body ? 'changed'").await, [0]);
        assert_eq!(numbers(&db.pool, "select count(*) from espd.trackers where name = 'owner'").await, [1]);
    }
}
