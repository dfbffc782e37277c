//! What counts as equal, and what a merge may not do.

use super::*;

/// As [`Fixture::running`], for a declaration of the test's own, of version 1 of `orders`. Nobody builds but operators.
async fn declared(text: &str, before: &str) -> (Fixture, Program) {
    let db = support::database().await;
    execute(&db.pool, before).await;
    let installation =
        Installation::new(&db.url, "[runner]\npoll_interval_max = '50ms'\n[rebuild]\nparallelism = 0\n");
    let fixture = Fixture { db, installation };
    fixture.installation.declare("orders", text);
    append(&fixture.db.pool, 4).await;
    let daemon = fixture.installation.start_daemon();
    reaches(&fixture.db.pool, "orders", 4).await;
    (fixture, daemon)
}

/// Version 2 with its only handler's `from` replaced.
fn second(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{text}");
    text.replace(from, to).replace("name = 'orders'", "name = 'orders'\nversion = 2")
}

const WITH_TRIGGER: &str = "[projector]
name = 'orders'
ddl = [\"create trigger add_up after insert or update or delete on orders for each row execute function app.add_up()\"]
[projector.tables]
totals = 'id int primary key, n bigint not null'
orders = 'id bigint primary key, n bigint'
[[projector.on]]
events = ['A']
sql = \"\"\"
insert into totals values (1, 0) on conflict do nothing;
insert into orders values (event.id, event.id * 1);
\"\"\"
";

/// Adds to `totals` in the schema of the table that it is on.
const ADD_UP: &str = "create schema app;
create function app.add_up() returns trigger language plpgsql as $$
begin
  execute format('update %I.totals set n = n + $1', tg_table_schema)
    using case when tg_op = 'DELETE' then 0 else new.n end - case when tg_op = 'INSERT' then 0 else old.n end;
  return null;
end $$";

#[tokio::test]
async fn what_a_trigger_would_change_beyond_the_difference_is_not_merged_but_swapped() {
    let (fixture, daemon) = declared(WITH_TRIGGER, ADD_UP).await;
    assert_eq!(fixture.fact("select n from totals").await, "10");
    fixture.installation.declare("orders", &second(WITH_TRIGGER, "event.id * 1", "event.id * 10"));
    let said = fixture.espctl(&["rebuild", "orders", "--go-live", "merge", "--yes"]).await;
    assert!(said.code == Some(1) && said.stderr.contains("triggers, rules or foreign keys"), "{said:?}");
    assert_eq!(fixture.fact("select n from totals").await, "10", "as it was");
    let said = fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    assert!(said.contains("version 1 is kept in schema public_orders_v1"), "{said}");
    assert_eq!(fixture.fact("select (select n from totals) || ' ' || sum(n) from orders").await, "100 100");
    daemon.stop().await;
}

/// Names in it mean what they mean when the projector handles events.
#[tokio::test]
async fn a_trigger_of_others_finds_its_tables_in_a_merge_and_in_a_part_as_it_does_every_day() {
    let text = "[projector]\nname = 'orders'\naggregate_column = 'id'\n[projector.tables]\norders = 'id uuid primary key, n bigint'
[[projector.on]]\nevents = ['A']\nsql = 'insert into orders values (event.aggregate_id, 1) on conflict (id) do update set n = orders.n + 1'\n";
    let (fixture, daemon) = declared(text, "").await;
    fixture
        .run(
            "create table public.audited (op text, zone text);
             create function audit() returns trigger language plpgsql as $$ begin
               insert into audited values (tg_op, current_setting('timezone')); return null; end $$;
             create trigger audit after insert or update or delete on orders for each row execute function audit();
             create table public.checked (op text);
             create function check_later() returns trigger language plpgsql as $$ begin
               insert into checked values (tg_op); return null; end $$;
             create constraint trigger later after update on orders deferrable initially deferred for each row execute function check_later()",
        )
        .await;
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "orders", 5).await;
    let every_day = fixture.fact("select string_agg(distinct zone, ' ') from public.audited").await;
    fixture.run("update orders set n = 99").await;
    fixture.run("delete from public.audited; delete from public.checked").await;
    let aggregate = fixture.fact("select min(id::text) from orders").await;
    fixture.espctl(&["rebuild", "orders", "--aggregate", &aggregate, "--yes"]).await.printed();
    assert_eq!(
        fixture
            .fact("select count(*) || ' ' || (select count(*) from public.checked) from public.audited")
            .await,
        "1 1"
    );
    fixture.run("update orders set n = 99").await;
    fixture.run("delete from public.audited; delete from public.checked").await;
    fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    let merged = "select (count(*) > 0 and count(*) = (select count(*) from public.checked)) || ' ' || string_agg(distinct zone, ' ') from public.audited";
    assert_eq!(fixture.fact(merged).await, format!("true {every_day}"));
    assert_eq!(fixture.fact("select count(*) from orders where n = 99").await, "0");
    daemon.stop().await;
}

#[tokio::test]
async fn a_column_that_a_key_only_includes_is_none_of_the_key() {
    let text = "[projector]\nname = 'orders'\n[projector.tables]
orders = 'id bigint not null, m text, n bigint, primary key (id) include (m)'
[[projector.on]]\nevents = ['A']\nsql = 'insert into orders (id, n) values (event.id, 1)'\n";
    let (fixture, daemon) = declared(text, "").await;
    fixture
        .run(
            "create table notes (order_id bigint references orders on delete cascade);
             insert into notes select id from orders; update orders set n = 2 where id = 3",
        )
        .await;
    let said = fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    assert!(said.contains("1 rows of its tables were changed"), "{said}");
    assert_eq!(fixture.fact("select count(*) from notes").await, "4");
    daemon.stop().await;
}

#[tokio::test]
async fn a_key_that_is_equal_to_the_database_and_written_otherwise_is_found_and_corrected() {
    let text = "[projector]\nname = 'orders'\n[projector.tables]\norders = 'id numeric primary key, n bigint'
[[projector.on]]\nevents = ['A']\nsql = 'insert into orders values (event.id::numeric(9, 1), 1)'\n";
    let (fixture, daemon) = declared(text, "").await;
    fixture.run("update orders set id = 3.000 where id = 3").await;
    let said = fixture.espctl(&["verify", "orders"]).await;
    assert!(said.code == Some(1) && said.stdout.contains("0 added, 0 gone, 1 changed (id in 1)"), "{said:?}");
    fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    assert_eq!(
        fixture.fact("select string_agg(id::text, ' ' order by id) from orders").await,
        "1.0 2.0 3.0 4.0"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn values_that_look_alike_in_json_are_shown_as_the_database_writes_them() {
    let text = "[projector]\nname = 'orders'\n[projector.tables]
orders = 'id bigint primary key, f8 float8, js json, jb jsonb, list int[], n int'
[[projector.on]]\nevents = ['A']
sql = '''insert into orders values (event.id, '-0', '{\"a\":  1}', null, '[0:1]={1,2}', 1)'''\n";
    let (fixture, daemon) = declared(text, "").await;
    fixture
        .run("update orders set f8 = 0, js = '{\"a\": 1}', jb = 'null', list = '{1,2}', n = 2 where id = 3")
        .await;
    let said = fixture.espctl(&["verify", "orders"]).await;
    let shown = [
        "f8 = \"0\"",
        "f8 = \"-0\"",
        "jb = \"null\"",
        "jb = null",
        "list = \"{1,2}\"",
        "list = \"[0:1]={1,2}\"",
        "n = 2",
        "n = 1",
    ];
    assert!(said.code == Some(1) && shown.iter().all(|one| said.stdout.contains(one)), "{said:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn rows_go_and_come_in_the_order_that_their_references_ask_for() {
    let text = "[projector]\nname = 'orders'\n[projector.tables]\norders = 'id bigint primary key'
lines = 'id bigint primary key, order_id bigint not null references orders'
[[projector.on]]\nevents = ['A']\nsql = \"\"\"
insert into orders select event.id where event.id > 0;
insert into lines select event.id, event.id where event.id > 0;
\"\"\"\n";
    let (fixture, daemon) = declared(text, "").await;
    fixture.installation.declare("orders", &second(text, "event.id > 0", "event.id > 1"));
    let said = fixture.espctl(&["rebuild", "orders", "--yes", "--go-live", "merge"]).await.printed();
    assert!(said.contains("2 rows of its tables were changed"), "{said}");
    assert_eq!(
        fixture.fact("select count(*) || ' ' || (select count(*) from lines) from orders").await,
        "3 3"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn a_former_version_serves_again_whatever_became_of_later_builds() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.declare(2, WIDER);
    fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    fixture.declare(3, FIRST);
    fixture.rebuild_without_answer().await;
    fixture.espctl(&["rebuild", "abort", "orders"]).await.printed();
    let said = fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    assert!(said.contains("version 1 of orders is live"), "{said}");
    daemon.stop().await;
}
