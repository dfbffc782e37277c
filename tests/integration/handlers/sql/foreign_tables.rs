//! A batch that writes a table of another processor does not commit, however it writes it.

use espd::internals::processor::{Outcome, ProcessorError};
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
    declaration.ddl = vec![espd::internals::declaration::SourceText::unplaced(ddl)];
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
