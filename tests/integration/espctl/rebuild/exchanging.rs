//! What others do while a version goes live: what they change, what they see, and what they keep it waiting with.

use std::str::FromStr as _;

use super::*;

/// Has a swap wait for an advisory lock after it has looked at what is on the tables, and before it locks them; and for another one
/// before it drops the first view of others.
const HOLD: &str = "
    create function hold() returns event_trigger language plpgsql as $$ begin
      perform set_config('lock_timeout', '0', true),
        pg_advisory_xact_lock_shared(case tg_tag when 'DROP VIEW' then 4713 else 4712 end);
    end $$;
    create event trigger hold on ddl_command_end when tag in ('DROP FUNCTION') execute function hold();
    create event trigger hold_views on ddl_command_start when tag in ('DROP VIEW') execute function hold()";

/// A session that holds these advisory locks.
async fn holding(fixture: &Fixture, keys: &[i32]) -> sqlx::PgConnection {
    let mut holder = sqlx::PgConnection::connect(&fixture.db.url).await.unwrap();
    for key in keys {
        let lock = format!("select pg_advisory_lock({key})");
        sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut holder).await.unwrap();
    }
    holder
}

async fn release(holder: &mut sqlx::PgConnection, key: i32) {
    let unlock = format!("select pg_advisory_unlock({key})");
    sqlx::raw_sql(AssertSqlSafe(unlock)).execute(holder).await.unwrap();
}

/// Waits until a build says that it waits for an older transaction.
async fn waits_for_snapshot(rebuild: &Program) {
    eventually("it waits for the transaction", async || {
        let waits = |line: serde_json::Value| {
            line["message"].as_str().is_some_and(|said| said.contains("would see the new tables"))
        };
        rebuild.log().into_iter().any(waits).then_some(())
    })
    .await;
}

/// A transaction whose snapshot has the serving version at this position.
async fn snapshot_at(connection: &mut sqlx::PgConnection, position: i64) {
    let begin = "begin isolation level repeatable read";
    sqlx::raw_sql(begin).execute(&mut *connection).await.unwrap();
    let query = sqlx::query_scalar("select position from espd.trackers where name = 'orders'");
    let seen: i64 = query.fetch_one(connection).await.unwrap();
    assert_eq!(seen, position);
}

async fn rows_of(connection: &mut sqlx::PgConnection) -> i64 {
    let rows =
        sqlx::query_scalar("select count(*) from public.orders").fetch_one(&mut *connection).await.unwrap();
    sqlx::raw_sql("commit").execute(connection).await.unwrap();
    rows
}

/// The rows that come between the comparison and the exchange are behind those that a transaction has seen handled.
#[tokio::test]
async fn a_transaction_that_has_seen_later_events_handled_than_the_new_tables_have_is_waited_for() {
    let (fixture, daemon) = Fixture::running().await;
    let waiting = |key: i32, (columns, handler): (&str, &str)| {
        let wait = "if event.body->>'n' = '7' then perform pg_advisory_xact_lock_shared(KEY); end if";
        (columns.to_owned(), format!("{}; {handler}", wait.replace("KEY", &key.to_string())))
    };
    let check = "\n[[projector.check]]\nname = 'held'\n\
        sql = \"select 1 where pg_advisory_xact_lock_shared(4712)::text <> ''\"\n";
    let declare = |version, (columns, handler): (String, String), check: &str| {
        let declared = declaration(version, &columns, &handler) + check;
        fixture.installation.declare("orders", &declared);
    };
    declare(1, waiting(4714, FIRST), "");
    fixture.espctl(&["reload"]).await.printed();
    declare(2, waiting(4715, WIDER), check);

    // After the comparison.
    let mut holder = holding(&fixture, &[4712, 4714]).await;
    let mut report = sqlx::PgConnection::connect(&fixture.db.url).await.unwrap();
    let arguments = &["rebuild", "orders", "--yes", "--go-live", "swap"];
    let mut rebuild = Program::start(fixture.installation.espctl_command(arguments));
    somebody_waits(&fixture, 4712).await;
    append(&fixture.db.pool, 5).await;
    reaches(&fixture.db.pool, "orders", 10).await;
    snapshot_at(&mut report, 10).await;
    release(&mut holder, 4712).await;
    waits_for_snapshot(&rebuild).await;
    assert_eq!(rows_of(&mut report).await, 10);
    assert_eq!(rebuild.ended().await.code(), Some(0));
    fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();

    // While the serving version stands still, and the other one reaches it.
    fixture.espctl(&["rebuild", "drop", "orders", "--yes"]).await.printed();
    declare(3, waiting(4715, WIDER), check);
    let mut holder_of_build = holding(&fixture, &[4712]).await;
    let mut rebuild = Program::start(fixture.installation.espctl_command(arguments));
    somebody_waits(&fixture, 4712).await;
    let mut holder_of_handler = holding(&fixture, &[4715]).await;
    append(&fixture.db.pool, 7).await;
    somebody_waits(&fixture, 4714).await;
    release(&mut holder_of_build, 4712).await;
    let waits = "select count(*) > 0 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
        and application_name = 'espd: reset orders'";
    eventually("it waits for the tracker", async || (fixture.fact(waits).await == "true").then_some(()))
        .await;
    release(&mut holder, 4714).await;
    somebody_waits(&fixture, 4715).await;
    snapshot_at(&mut report, 17).await;
    release(&mut holder_of_handler, 4715).await;
    waits_for_snapshot(&rebuild).await;
    assert_eq!(rows_of(&mut report).await, 17);
    assert_eq!(rebuild.ended().await.code(), Some(0));
    daemon.stop().await;
}

/// Neither takes a lock on the table.
#[tokio::test]
async fn what_others_grant_or_set_during_an_exchange_is_there_afterwards_or_they_are_told() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.run(HOLD).await;
    let reader = format!("during_{}", fixture.db.name);
    fixture
        .run(&format!("create view public.seen as select id, n from public.orders; create role {reader}"))
        .await;
    fixture.declare(2, WIDER);
    fixture.espctl(&["reload"]).await.printed();
    let holder = holding(&fixture, &[4713]).await;
    let mut rebuild = Program::start(fixture.installation.espctl_command(&["rebuild", "orders", "--yes"]));
    somebody_waits(&fixture, 4713).await;
    let acts = [
        (
            format!("/* late */ grant select (n) on public.orders to {reader}"),
            format!("select has_column_privilege('{reader}', 'public.orders', 'n', 'select')"),
        ),
        (
            format!("/* late */ grant select on public.seen to {reader}"),
            format!("select has_table_privilege('{reader}', 'public.seen', 'select')"),
        ),
        (
            "/* late */ alter view public.seen set (security_barrier = true)".to_owned(),
            "select reloptions is not null from pg_class where oid = 'public.seen'::regclass".to_owned(),
        ),
    ];
    let mut late = Vec::new();
    for (act, fact) in acts {
        let (pool, text) = (fixture.db.pool.clone(), act.clone());
        let running =
            tokio::spawn(async move { sqlx::raw_sql(AssertSqlSafe(text)).execute(&pool).await.is_ok() });
        late.push((act, fact, running));
    }
    eventually("each is done or waits", async || {
        let waiting = "select count(*) from pg_stat_activity where datname = current_database()
            and query like '/* late */%' and wait_event_type = 'Lock'";
        let waiting: usize = fixture.fact(waiting).await.parse().unwrap();
        let done = late.iter().filter(|(_, _, running)| running.is_finished()).count();
        (waiting + done == late.len()).then_some(())
    })
    .await;
    holder.close().await.unwrap();
    assert_eq!(rebuild.ended().await.code(), Some(0));
    assert_eq!(fixture.fact("select count(twice) from orders").await, "5", "version 2 serves");
    for (act, fact, running) in late {
        let is_done = running.await.unwrap();
        assert!(!is_done || fixture.fact(&fact).await == "true", "{act} was done, and is lost");
    }
    daemon.stop().await;
}

/// Speaks to the database as a standby does, so it is no session of a client.
fn replicating(fixture: &Fixture) -> impl FnMut(&str) {
    use std::io::{Read as _, Write as _};
    let url = sqlx::postgres::PgConnectOptions::from_str(&fixture.db.url).unwrap();
    let socket = url.get_socket().unwrap().join(format!(".s.PGSQL.{}", url.get_port()));
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    let mut startup = 196_608_u32.to_be_bytes().to_vec();
    for text in ["user", url.get_username(), "database", &fixture.db.name, "replication", "database", ""] {
        startup.extend([text.as_bytes(), &[0]].concat());
    }
    let answer = move |stream: &mut std::os::unix::net::UnixStream| loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head).unwrap();
        let mut body = vec![0; u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4];
        stream.read_exact(&mut body).unwrap();
        assert_ne!(head[0], b'E', "{}", String::from_utf8_lossy(&body));
        if head[0] == b'Z' {
            break;
        }
    };
    stream.write_all(&(startup.len() as u32 + 4).to_be_bytes()).unwrap();
    stream.write_all(&startup).unwrap();
    answer(&mut stream);
    move |sql| {
        stream
            .write_all(&[b"Q", &(sql.len() as u32 + 5).to_be_bytes()[..], sql.as_bytes(), &[0]].concat())
            .unwrap();
        answer(&mut stream);
    }
}

#[tokio::test]
async fn an_old_snapshot_of_what_is_no_client_is_waited_for() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.declare(2, WIDER);
    let mut standby = replicating(&fixture);
    standby("begin isolation level repeatable read");
    standby("select count(*) from espd.events");
    let mut rebuild = Program::start(fixture.installation.espctl_command(&["rebuild", "orders", "--yes"]));
    waits_for_snapshot(&rebuild).await;
    assert_eq!(fixture.state().await, "differs");
    standby("commit");
    assert_eq!(rebuild.ended().await.code(), Some(0));
    daemon.stop().await;
}

#[tokio::test]
async fn what_others_make_after_a_swap_has_looked_is_on_the_new_tables_as_well() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.run(HOLD).await;
    // Who looks twice in one transaction sees no change then.
    fixture
        .run(&format!(
            "alter database {} set default_transaction_isolation = 'repeatable read'",
            fixture.db.name
        ))
        .await;
    fixture.declare(2, WIDER);
    fixture.espctl(&["reload"]).await.printed();
    let holder = holding(&fixture, &[4712]).await;
    let mut rebuild = Program::start(fixture.installation.espctl_command(&["rebuild", "orders", "--yes"]));
    somebody_waits(&fixture, 4712).await;
    let reader = format!("late_{}", fixture.db.name);
    fixture
        .run(&format!(
            "create view public.late as select id, n from public.orders;
             create role {reader}; grant select (n) on public.orders to {reader}; create role owner_{reader}"
        ))
        .await;
    // It may have to wait for the swap.
    let (pool, owner) =
        (fixture.db.pool.clone(), format!("alter table public.orders owner to owner_{reader}"));
    let altered = tokio::spawn(async move { execute(&pool, &owner).await });
    eventually("it is altered, or waits", async || {
        let waits =
            format!("select count(*) > 0 from pg_locks where {HERE} and not granted and relation = 'public.orders'::regclass");
        (altered.is_finished() || fixture.fact(&waits).await == "true").then_some(())
    })
    .await;
    holder.close().await.unwrap();
    assert_eq!(rebuild.ended().await.code(), Some(0));
    assert_eq!(fixture.fact("select count(twice) from orders").await, "5", "version 2 serves");
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "orders", 6).await;
    assert_eq!(fixture.fact("select count(*) from late").await, "6", "the view is of the new table");
    let granted = format!("select has_column_privilege('{reader}', 'public.orders', 'n', 'select')");
    assert_eq!(fixture.fact(&granted).await, "true");
    altered.await.unwrap();
    let owner = "select relowner::regrole from pg_class where oid = 'public.orders'::regclass";
    assert_eq!(fixture.fact(owner).await, format!("owner_{reader}"));
    daemon.stop().await;
}

#[tokio::test]
async fn no_right_and_no_policy_comes_back_that_was_taken_away_and_defaults_give_none() {
    let (fixture, daemon) = Fixture::running().await;
    let name = fixture.db.name.clone();
    let (reader, web) = (format!("reader_{name}"), format!("web_{name}"));
    fixture
        .run(&format!(
            "create role {reader}; create role {web}; grant select (id) on orders to {reader}; grant select on orders to {web};
             alter table orders enable row level security; alter table orders force row level security;
             create policy open on orders using (true); create policy changed on orders for select to {reader} using (true);
             comment on table orders is 'before'; create view public.mine as select id from orders;
             revoke all on orders from {web}; alter default privileges grant select on tables to {web}"
        ))
        .await;
    fixture.declare(2, WIDER);
    fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    let may = |role: &str, relation: &str| {
        format!("select has_any_column_privilege('{role}', 'public.{relation}', 'select')")
    };
    assert_eq!(fixture.fact(&may(&reader, "orders")).await, "true");
    for relation in ["orders", "mine"] {
        assert_eq!(fixture.fact(&may(&web, relation)).await, "false", "nobody has granted it on {relation}");
    }

    fixture
        .run(&format!(
            "revoke select (id) on orders from {reader}; drop policy open on orders; comment on table orders is 'after';
             alter policy changed on orders using (n > 7); alter table orders no force row level security"
        ))
        .await;
    fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    let policies = "select string_agg(policyname || ' ' || qual, ',') from pg_policies
        where schemaname = 'public' and tablename = 'orders'";
    let security =
        "select relrowsecurity || ' ' || relforcerowsecurity || ' ' || obj_description(oid) from pg_class
        where oid = 'public.orders'::regclass";
    assert_eq!(fixture.fact(&may(&reader, "orders")).await, "false");
    assert_eq!(fixture.fact(policies).await, "changed (n > 7)");
    assert_eq!(fixture.fact(security).await, "true false after");

    fixture.run("drop policy changed on orders; alter table orders disable row level security").await;
    fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    assert_eq!(fixture.fact(policies).await, "");
    assert_eq!(fixture.fact(security).await, "false false after");
    daemon.stop().await;
}

/// Reads that take a moment each, one after the other, so that there is never a moment without one.
fn reading(fixture: &Fixture) -> tokio::task::JoinHandle<()> {
    let pool = fixture.db.pool.clone();
    tokio::spawn(async move {
        loop {
            sqlx::raw_sql("select count(*), pg_sleep(0.15) from public.orders").execute(&pool).await.unwrap();
        }
    })
}

#[tokio::test]
async fn short_reads_that_never_cease_and_appends_keep_no_version_from_going_live() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.declare(2, WIDER);
    fixture.espctl(&["reload"]).await.printed();
    let readers = [reading(&fixture), reading(&fixture)];
    let pool = fixture.db.pool.clone();
    let writer = tokio::spawn(async move {
        loop {
            append(&pool, 1).await;
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    });
    fixture.espctl(&["rebuild", "orders", "--yes", "--go-live", "swap"]).await.printed();
    fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    readers.into_iter().for_each(|reader| reader.abort());
    writer.abort();
    daemon.stop().await;
}

#[tokio::test]
async fn a_version_whose_tables_are_all_new_takes_the_place_of_one_whose_tables_are_all_gone() {
    let (fixture, daemon) = Fixture::running().await;
    let renamed = declaration(2, WIDER.0, WIDER.1)
        .replace("\norders = ", "\nsales = ")
        .replace("on orders (n)", "on sales (n)")
        .replace("from orders", "from sales")
        .replace("into orders", "into sales");
    fixture.installation.declare("orders", &renamed);
    fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    fixture.espctl(&["reload"]).await.printed();
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "orders", 6).await;
    let tables = "select coalesce(to_regclass('orders')::text, '') || (select count(*) from sales)";
    assert_eq!(fixture.fact(tables).await, "6");
    fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    let tables = "select coalesce(to_regclass('sales')::text, '') || (select count(*) from orders)";
    assert_eq!(fixture.fact(tables).await, "6");
    daemon.stop().await;
}
