//! Versions side by side: built beside the one that serves, compared, swapped or merged, and back again.

mod altering;
mod deciding;
mod deploying;
mod exchanging;
mod giving_up;
mod guards;
mod indexes;
mod keeping;
mod kills;
mod leaving;
mod merging;
mod native;
mod never_handled;
mod programs;
mod progress;
mod publishing;
mod rolling_back;
mod setting_aside;
mod shares;
mod shares_outside;
mod shortage;
mod slowing;
mod unattended;

use std::time::Duration;

use nix::sys::signal::Signal;
use sqlx::{AssertSqlSafe, Connection as _, PgPool};

use crate::support;
use crate::support::Database;
use crate::support::facts::{append, append_typed, eventually, position, reaches};
use crate::support::program::{Installation, Outcome, Program, run};

/// A projector with a table, an index and a view.
fn declaration(version: i32, columns: &str, handler: &str) -> String {
    format!(
        "[projector]\nname = 'orders'\nversion = {version}\n\
         ddl = ['create index orders_n on orders (n)', 'create view order_numbers as select n from orders']\n\
         [projector.tables]\norders = 'id bigint primary key, {columns}'\n\
         [[projector.on]]\nevents = ['A']\nsql = \"{handler}\"\n"
    )
}

const FIRST: (&str, &str) =
    ("n bigint, tenant text", "insert into orders values (event.id, event.id % 3, 'a')");
const WIDER: (&str, &str) = (
    "n bigint, tenant text, twice bigint",
    "insert into orders values (event.id, event.id % 3, 'a', 2 * event.id)",
);

struct Fixture {
    db: Database,
    installation: Installation,
}

impl Fixture {
    /// Version 1 has handled five events, and its daemon goes on.
    async fn running() -> (Self, Program) {
        let db = support::database().await;
        let installation = Installation::new(
            &db.url,
            // Here operators build.
            "[runner]\npoll_interval_max = '50ms'\n[rebuild]\nparallelism = 0\n",
        );
        let fixture = Self { db, installation };
        fixture.declare(1, FIRST);
        append(&fixture.db.pool, 5).await;
        let daemon = fixture.installation.start_daemon();
        reaches(&fixture.db.pool, "orders", 5).await;
        (fixture, daemon)
    }

    fn declare(&self, version: i32, (columns, handler): (&str, &str)) {
        self.installation.declare("orders", &declaration(version, columns, handler));
    }

    async fn espctl(&self, arguments: &[&str]) -> Outcome {
        self.installation.espctl(arguments).await
    }

    /// Nobody is there to be asked, so what was built stays and is not live. Returns all that was printed.
    async fn rebuild_without_answer(&self) -> String {
        let Outcome { code, stdout, stderr } = self.espctl(&["rebuild", "orders"]).await;
        let said = stdout + &stderr;
        assert!(code == Some(1) && said.contains("add --yes to agree, which goes on from there"), "{said}");
        said
    }

    async fn run(&self, sql: &str) {
        execute(&self.db.pool, sql).await;
    }

    async fn fact(&self, query: &str) -> String {
        fact(&self.db.pool, query).await
    }

    /// What is left of versions that do not serve.
    async fn beside(&self) -> String {
        self.fact(
            "select coalesce(string_agg(t.name, ' ' order by t.name), '') || '|' ||
               (select coalesce(string_agg(nspname, ' ' order by nspname), '') from pg_namespace where nspname like 'public\\_%')
             from espd.trackers as t where strpos(t.name, '$') > 0",
        )
        .await
    }

    async fn state(&self) -> String {
        self.fact("select state from espd.rebuilds where processor = 'orders'").await
    }
}

async fn execute(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.unwrap();
}

async fn fact(pool: &PgPool, query: &str) -> String {
    let query = format!("select ({query})::text");
    let fact: Option<String> = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(pool).await.unwrap();
    fact.unwrap_or_default()
}

#[tokio::test]
async fn a_raised_version_is_built_beside_the_serving_one_and_swapped_in_while_the_daemon_goes_on() {
    let (fixture, daemon) = Fixture::running().await;
    // It declares the old version as well, and learns of the new one while it waits.
    let standby = fixture.installation.start_daemon();
    standby.says("standing by: another daemon owns the processor").await;
    fixture.declare(2, WIDER);
    // Nobody has agreed: the old version serves, the new one is kept beside it.
    let said = fixture.rebuild_without_answer().await;
    assert!(
        said.contains("other columns, not compared: twice") && said.contains("serves as before"),
        "{said}"
    );
    assert_eq!(fixture.state().await, "differs");
    assert_eq!(fixture.fact("select count(*) from orders").await, "5");
    append(&fixture.db.pool, 3).await;
    reaches(&fixture.db.pool, "orders", 8).await;

    let said = fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    assert!(
        said.contains("version 2 of orders is live; version 1 is kept in schema public_orders_v1"),
        "{said}"
    );
    assert_eq!(
        fixture.fact("select array_agg(twice order by id) from orders").await,
        "{2,4,6,8,10,12,14,16}"
    );
    assert_eq!(
        fixture.fact("select count(*) from order_numbers").await,
        "8",
        "the declared view is of the new table"
    );
    assert_eq!(fixture.fact("select count(*) from public_orders_v1.orders").await, "8");
    assert_eq!(fixture.beside().await, "orders$1|public_orders_v1");
    assert_eq!(fixture.fact("select reltuples from pg_class where oid = 'orders'::regclass").await, "8");
    // The daemon has been started with the old declaration, and leaves the tables alone.
    for older in [&daemon, &standby] {
        let superseded = older.says("superseded by version 2: the processor is left to it. Declare that version, or go back with `espctl rollback orders`").await;
        assert_eq!(superseded["processor"], "orders", "{superseded}");
    }
    let status = eventually("nobody has it", async || {
        Some(fixture.installation.status("orders").await).filter(|status| status["state"] == "stopped")
    })
    .await;
    let advice = status["advice"][0].to_string();
    assert!(
        advice.contains("version 2 has gone live, and whoever still declares an older one leaves it alone")
            && advice.contains("Run `espctl reload`"),
        "{advice}"
    );
    standby.stop().await;
    assert_eq!(
        fixture
            .fact("select failed_at is null and owner is null from espd.trackers where name = 'orders'")
            .await,
        "true"
    );

    // With the new one it goes on.
    let outcome = fixture.espctl(&["reload"]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    append(&fixture.db.pool, 2).await;
    reaches(&fixture.db.pool, "orders", 10).await;
    assert_eq!(fixture.fact("select count(twice) from orders").await, "10");
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_with_a_raised_version_lets_the_old_one_serve_until_the_new_one_is_live() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.declare(2, WIDER);
    let outcome = fixture.espctl(&["reload"]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    daemon
        .says("version 1 goes on until version 2, which is built beside it, is live: `espctl rebuild orders --watch` shows how far it is")
        .await;
    append(&fixture.db.pool, 3).await;
    reaches(&fixture.db.pool, "orders", 8).await;
    assert_eq!(fixture.fact("select count(*) from orders").await, "8");
    let status = fixture.espctl(&["status", "orders"]).await.printed();
    assert!(status.contains("Version 1 of orders serves, and version 2 is declared"), "{status}");

    fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    append(&fixture.db.pool, 3).await;
    reaches(&fixture.db.pool, "orders", 11).await;
    assert_eq!(fixture.fact("select count(twice) from orders").await, "11");
    daemon.stop().await;
}

/// What a DBA adds, with roles of this database.
fn dba(name: &str) -> String {
    format!(
        "create role tenant_{name}; create role other_{name}; create role owner_{name};
         grant select, insert on orders to tenant_{name}; grant select on orders to other_{name} with grant option;
         grant update (n) on orders to other_{name};
         comment on table orders is 'What is ordered'; comment on column orders.n is 'it''s short';
         alter table orders enable row level security; alter table orders force row level security;
         create policy tenants on orders for select to tenant_{name} using (tenant = current_user);
         create publication changes_{name} for table orders;
         alter table orders replica identity full; alter table orders set (fillfactor = 70)"
    )
}

async fn additions(fixture: &Fixture) -> Vec<String> {
    let mut facts = Vec::new();
    for query in [
        "select array_agg(a::text order by a::text) from pg_class, unnest(relacl) as a where oid = 'orders'::regclass",
        "select array_agg(a::text order by a::text) from pg_attribute, unnest(attacl) as a where attrelid = 'orders'::regclass",
        "select obj_description('orders'::regclass) || col_description('orders'::regclass, 2)",
        "select relrowsecurity::text || relforcerowsecurity || relreplident::text || reloptions::text from pg_class where oid = 'orders'::regclass",
        "select array_agg(format('%s %s %s %s', policyname, roles, cmd, qual)) from pg_policies where tablename = 'orders' and schemaname = 'public'",
        "select array_agg(schemaname || tablename) from pg_publication_tables where tablename = 'orders'",
    ] {
        facts.push(fixture.fact(query).await);
    }
    facts
}

#[tokio::test]
async fn a_swap_carries_over_grants_comments_policies_publications_replica_identity_and_the_owner() {
    let (fixture, daemon) = Fixture::running().await;
    let name = fixture.db.name.clone();
    fixture.run(&dba(&name)).await;
    let before = additions(&fixture).await;
    assert!(before.iter().all(|fact| !fact.is_empty()), "{before:?}");
    fixture.declare(2, WIDER);
    fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    assert_eq!(additions(&fixture).await, before);

    // A new table belongs to whoever makes it, but not for long.
    fixture.run(&format!("alter table orders owner to owner_{name}")).await;
    fixture.declare(3, FIRST);
    fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    let owner = fixture
        .fact("select tableowner from pg_tables where tablename = 'orders' and schemaname = 'public'")
        .await;
    assert_eq!(owner, format!("owner_{name}"));
    daemon.stop().await;
}

#[tokio::test]
async fn what_would_stay_with_the_old_tables_is_named_and_nothing_is_exchanged() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.declare(2, WIDER);
    for (make, name, remove) in [
        (
            "create materialized view public.of_others as select n from orders",
            "materialized view public.of_others",
            "drop materialized view public.of_others",
        ),
        (
            "create table public.lines (order_id bigint references orders (id))",
            "constraint lines_order_id_fkey on public.lines",
            "drop table public.lines",
        ),
        (
            "create function public.of_others() returns bigint begin atomic select count(*) from orders; end",
            "function public.of_others()",
            "drop function public.of_others",
        ),
    ] {
        fixture.run(make).await;
        let refused = fixture.espctl(&["rebuild", "orders", "--yes"]).await;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(
            refused.stderr.contains(name) && refused.stderr.contains("drop the rest before"),
            "{refused:?}"
        );
        // Who wants to swap is told before anything is built.
        let refused = fixture.espctl(&["rebuild", "orders", "--go-live", "swap"]).await;
        assert!(
            refused.code == Some(1) && refused.stderr.contains(name) && refused.stdout.is_empty(),
            "{refused:?}"
        );
        assert_eq!(fixture.fact("select version from espd.trackers where name = 'orders'").await, "1");
        fixture.run(remove).await;
    }
    fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    assert_eq!(fixture.fact("select version from espd.trackers where name = 'orders'").await, "2");
    daemon.stop().await;
}

#[tokio::test]
async fn a_handler_that_names_the_serving_table_with_its_schema_is_refused() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.declare(2, (WIDER.0, "insert into orders select event.id, count(*), 'a', 0 from public.orders"));
    let refused = fixture.espctl(&["rebuild", "orders", "--yes"]).await.complained(1);
    assert!(
        refused.contains("orders.toml:9") && refused.contains("write orders without the schema"),
        "{refused}"
    );
    assert_eq!(fixture.beside().await, "|");
    daemon.stop().await;
}

#[tokio::test]
async fn a_handler_that_fails_leaves_the_old_version_serving_and_is_built_anew_when_corrected() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.declare(2, (WIDER.0, "insert into orders values (event.id, 1 / (event.id - 3), 'a', 0)"));
    let failed = fixture.espctl(&["rebuild", "orders", "--yes"]).await.complained(1);
    assert!(failed.contains("version 2 of orders fails at event 3 (A)"), "{failed}");
    assert!(failed.contains("division by zero") && failed.contains("orders.toml:9"), "{failed}");
    assert_eq!(fixture.state().await, "building");
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "orders", 6).await;
    fixture.declare(2, WIDER);
    let outcome = fixture.espctl(&["rebuild", "orders", "--yes"]).await;
    assert!(outcome.stderr.contains("gives up version 2"), "{outcome:?}");
    assert_eq!(fixture.fact("select count(twice) from orders").await, "6");
    daemon.stop().await;
}

#[tokio::test]
async fn an_aborted_rebuild_leaves_nothing_behind() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.declare(2, WIDER);
    fixture.rebuild_without_answer().await;
    assert_eq!(fixture.beside().await, "orders$next|public_orders_next");
    let functions =
        "select count(*) from pg_proc where pronamespace = 'espd'::regnamespace and proname like '%orders%'";
    let with = fixture.fact(functions).await;
    let said = fixture.espctl(&["rebuild", "abort", "orders"]).await.printed();
    assert_eq!(said, "version 2 of orders was given up\n");
    assert_eq!(fixture.beside().await, "|");
    assert!(fixture.fact(functions).await < with);
    fixture.espctl(&["rebuild", "abort", "orders"]).await.complained(1);
    let log = fixture.fact("select string_agg(action, ' ' order by id) from espd.operator_log").await;
    assert_eq!(log, "rebuild abort_rebuild");
    daemon.stop().await;
}

/// The condition on `pg_locks` that a lock is of this database: other tests use the same server, with the same names and keys.
const HERE: &str = "database = (select oid from pg_database where datname = current_database())";

/// The condition on `pg_locks` that somebody waits for an advisory lock.
fn waits_for(key: i32) -> String {
    format!("{HERE} and locktype = 'advisory' and objid = {key} and not granted")
}

/// Waits until somebody waits for an advisory lock.
async fn somebody_waits(fixture: &Fixture, key: i32) {
    let waits = format!("select count(*) > 0 from pg_locks where {}", waits_for(key));
    eventually("somebody waits", async || (fixture.fact(&waits).await == "true").then_some(())).await;
}

/// Ends the sessions that wait for an advisory lock: those of a client that was killed do not end while they wait.
async fn end_waiting(fixture: &Fixture, key: i32) {
    fixture.run(&format!("select pg_terminate_backend(pid) from pg_locks where {}", waits_for(key))).await;
}

/// Kills a rebuild once it waits for a lock of this mode, which `lock` keeps from it; without one, once its tracker is there.
async fn kill_while(fixture: &Fixture, what: &str, lock: &str, mode: &str) {
    let mut blocker = sqlx::PgConnection::connect(&fixture.db.url).await.unwrap();
    let mut held = blocker.begin().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(lock.to_owned())).execute(&mut *held).await.unwrap();
    let mut rebuild = Program::start(fixture.installation.espctl_command(&["rebuild", "orders", "--yes"]));
    let waits = match mode {
        "" => "select count(*) = 1 from espd.trackers where name = 'orders$next'".to_owned(),
        mode => format!("select count(*) > 0 from pg_locks where {HERE} and not granted and mode = '{mode}'"),
    };
    eventually(what, async || (fixture.fact(&waits).await == "true").then_some(())).await;
    rebuild.signal(Signal::SIGKILL);
    rebuild.ended().await;
    held.rollback().await.unwrap();
    // Its backends end by themselves.
    eventually("the sessions end", async || {
        let left = "select count(*) from pg_stat_activity where datname = current_database()
            and (application_name like 'espctl%' or application_name like 'espd: reset%')";
        (fixture.fact(left).await == "0").then_some(())
    })
    .await;
    let serving =
        fixture.fact("select version || ' ' || position from espd.trackers where name = 'orders'").await;
    assert_eq!(serving, "1 5", "{what}");
    assert_eq!(fixture.fact("select count(*) from orders").await, "5", "{what}");
}

#[tokio::test]
async fn a_rebuild_that_is_killed_in_any_state_goes_on() {
    let (fixture, daemon) = Fixture::running().await;
    let slow = "perform pg_sleep(0.3); insert into orders values (event.id, 1, 'a', 2 * event.id)";
    fixture.declare(2, (WIDER.0, slow));
    kill_while(&fixture, "it builds", "select 1", "").await;
    assert_eq!(fixture.state().await, "building");

    // What follows is held up by a lock on the table that it concerns.
    fixture.declare(2, WIDER);
    fixture.rebuild_without_answer().await;
    fixture.run("update espd.rebuilds set state = 'caught_up'").await;
    let next = "lock table public_orders_next.orders in share update exclusive mode";
    kill_while(&fixture, "it analyzes", next, "ShareUpdateExclusiveLock").await;
    assert_eq!(fixture.state().await, "caught_up");

    let live = "lock table orders in access exclusive mode";
    kill_while(&fixture, "it compares", live, "AccessShareLock").await;
    assert_eq!(fixture.state().await, "analyzed");

    let live = "lock table orders in access share mode";
    kill_while(&fixture, "it swaps", live, "AccessExclusiveLock").await;
    assert_eq!(fixture.state().await, "differs");

    let outcome = fixture.espctl(&["rebuild", "orders", "--yes"]).await;
    assert!(outcome.stderr.contains("goes on with version 2, which differs"), "{outcome:?}");
    assert_eq!(fixture.fact("select count(twice) from orders").await, "5");
    assert_eq!(fixture.beside().await, "orders$1|public_orders_v1");
    daemon.stop().await;
}

#[tokio::test]
async fn a_version_that_is_raised_before_a_worker_has_run_it_goes_on() {
    for (columns, handler) in [WIDER, FIRST] {
        let (fixture, daemon) = Fixture::running().await;
        daemon.stop().await;
        fixture.declare(2, (columns, handler));
        fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
        fixture.declare(3, (columns, handler));
        let daemon = fixture.installation.start_daemon();
        append(&fixture.db.pool, 5).await;
        reaches(&fixture.db.pool, "orders", 10).await;
        let serving = "select version || ': ' || (select count(*) from orders) from espd.trackers where name = 'orders'";
        assert_eq!(fixture.fact(serving).await, "2: 10", "{columns}");
        fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
        assert_eq!(fixture.fact(serving).await, "3: 10", "{columns}");
        daemon.stop().await;
    }
}

#[tokio::test]
async fn whoever_keeps_a_swap_waiting_is_named_and_readers_wait_for_moments_only() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.declare(2, WIDER);
    let mut holder = sqlx::PgConnection::connect(&fixture.db.url).await.unwrap();
    let mut held = holder.begin().await.unwrap();
    sqlx::raw_sql("lock table orders in access share mode").execute(&mut *held).await.unwrap();
    let mut rebuild = Program::start(fixture.installation.espctl_command(&["rebuild", "orders", "--yes"]));
    eventually("an attempt waits", async || {
        let waits = format!(
            "select count(*) > 0 from pg_locks where {HERE} and not granted and mode = 'AccessExclusiveLock'"
        );
        (fixture.fact(&waits).await == "true").then_some(())
    })
    .await;
    let mut longest = Duration::ZERO;
    for _ in 0..20 {
        let begun = std::time::Instant::now();
        fixture.fact("select count(*) from orders").await;
        longest = longest.max(begun.elapsed());
        append(&fixture.db.pool, 1).await;
    }
    assert!(longest < Duration::from_secs(2), "{longest:?}");
    held.rollback().await.unwrap();
    assert_eq!(rebuild.ended().await.code(), Some(0));
    let all = fixture.fact("select max(id) from espd.events").await.parse().unwrap();
    assert!(position(&fixture.db.pool, "orders").await <= all);
    let expected = fixture.fact("select position from espd.trackers where name = 'orders'").await;
    assert_eq!(fixture.fact("select count(twice) from orders").await, expected);
    daemon.stop().await;
}

#[tokio::test]
async fn a_snapshot_older_than_the_new_tables_is_waited_for() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.declare(2, WIDER);
    let mut reporter = sqlx::PgConnection::connect(&fixture.db.url).await.unwrap();
    let mut report = reporter.begin_with("begin isolation level repeatable read").await.unwrap();
    sqlx::raw_sql("select count(*) from espd.events").execute(&mut *report).await.unwrap();
    let mut rebuild = Program::start(fixture.installation.espctl_command(&["rebuild", "orders", "--yes"]));
    eventually("it waits for the report", async || {
        let waits = |line: serde_json::Value| {
            line["message"].as_str().is_some_and(|said| said.contains("would see the new tables"))
        };
        rebuild.log().into_iter().any(waits).then_some(())
    })
    .await;
    append_typed(&fixture.db.pool, "B", 1).await;
    let rows: i64 = sqlx::query_scalar("select count(*) from orders").fetch_one(&mut *report).await.unwrap();
    assert_eq!((rows, fixture.state().await.as_str()), (5, "differs"), "a report sees what there was");
    report.rollback().await.unwrap();
    rebuild.ended().await;
    assert_eq!(fixture.state().await, "live");
    daemon.stop().await;
}

#[tokio::test]
async fn a_corrected_handler_is_merged_where_little_differs_and_the_table_stays_the_same_one() {
    let (fixture, daemon) = Fixture::running().await;
    // A view and a foreign key of others are no obstacle: nothing but rows changes.
    fixture
        .run(
            "create view public.of_others as select n from orders;
             create table public.lines (order_id bigint references orders (id)); insert into public.lines values (1)",
        )
        .await;
    let before = fixture.fact("select oid from pg_class where oid = 'orders'::regclass").await;
    fixture.declare(
        2,
        (
            FIRST.0,
            "insert into orders values (event.id, case event.id when 3 then 7 else event.id % 3 end, 'a')",
        ),
    );
    let outcome = fixture.espctl(&["rebuild", "orders", "--yes"]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    for said in [
        "of 5 rows, 0 added, 0 gone, 1 changed (n in 1)",
        "~ id = 3: n = 0 -> n = 7",
        "version 2 of orders is live: 1 rows of its tables were changed",
    ] {
        assert!(outcome.stdout.contains(said), "{outcome:?}");
    }
    assert_eq!(fixture.fact("select oid from pg_class where oid = 'orders'::regclass").await, before);
    assert_eq!(fixture.fact("select max(n) from public.of_others").await, "7");
    assert_eq!(fixture.fact("select array_agg(n order by id) from orders").await, "{1,2,7,1,2}");
    assert_eq!((fixture.state().await.as_str(), fixture.beside().await.as_str()), ("merged", "|"));

    fixture.espctl(&["reload"]).await.printed();
    append(&fixture.db.pool, 2).await;
    reaches(&fixture.db.pool, "orders", 7).await;
    let status = fixture.installation.status("orders").await;
    assert_eq!(
        (status["version"].as_i64(), status["advice"].as_array().map(Vec::len)),
        (Some(2), Some(0)),
        "{status}"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn a_dry_run_shows_what_a_wrong_handler_would_do_and_leaves_nothing() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.espctl(&["rebuild", "orders", "--dry-run"]).await.printed();
    fixture.declare(
        1,
        (FIRST.0, "if event.id <> 2 then insert into orders values (event.id, event.id, 'a'); end if"),
    );
    let outcome = fixture.espctl(&["rebuild", "orders", "--dry-run"]).await;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stdout.contains("0 added, 1 gone, 3 changed (n in 3)"), "{outcome:?}");
    assert!(outcome.stdout.contains("- id = 2: n = 2, tenant = \"a\""), "{outcome:?}");
    let json = fixture.espctl(&["rebuild", "orders", "--dry-run", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(
        (json["tables"][0]["gone"].as_i64(), json["tables"][0]["changed"].as_i64()),
        (Some(1), Some(3)),
        "{json}"
    );
    assert_eq!(fixture.beside().await, "|");
    assert_eq!(fixture.fact("select count(*) from orders").await, "5");
    daemon.stop().await;
}

#[tokio::test]
async fn a_row_that_somebody_has_falsified_is_found_by_its_key() {
    let (fixture, daemon) = Fixture::running().await;
    let said = fixture.espctl(&["verify", "orders"]).await.printed();
    assert_eq!(said, "orders: nothing differs, 5 rows were compared\n");
    fixture.run("update orders set n = 9 where id = 4; delete from orders where id = 5; insert into orders values (77, 1, 'b')").await;
    let outcome = fixture.espctl(&["verify", "orders"]).await;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    for said in ["1 added, 1 gone, 1 changed", "~ id = 4: n = 9 -> n = 1", "+ id = 5", "- id = 77"] {
        assert!(outcome.stdout.contains(said), "{said}: {outcome:?}");
    }
    assert!(outcome.stderr.contains("the tables of orders are not what their events say"), "{outcome:?}");
    assert_eq!(fixture.beside().await, "|");
    daemon.stop().await;
}

#[tokio::test]
async fn a_version_that_was_paused_when_another_took_its_place_can_serve_again() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.espctl(&["pause", "orders"]).await.printed();
    fixture.declare(2, WIDER);
    fixture.espctl(&["reload"]).await.printed();
    fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    fixture.espctl(&["resume", "orders"]).await.printed();
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "orders", 6).await;
    // Back, paused again meanwhile, and forward.
    fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    assert_eq!(fixture.fact("select count(*) from orders").await, "6");
    fixture.espctl(&["pause", "orders"]).await.printed();
    fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    assert_eq!(
        fixture
            .fact("select version || ' ' || (paused_at is not null) from espd.trackers where name = 'orders'")
            .await,
        "2 true"
    );
    fixture.espctl(&["resume", "orders"]).await.printed();
    fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    assert_eq!(fixture.fact("select version from espd.trackers where name = 'orders'").await, "1");
    daemon.stop().await;
}

#[tokio::test]
async fn numbers_are_shown_with_all_their_digits() {
    let (fixture, daemon) = Fixture::running().await;
    let exact = "12345678901234567890.10";
    let handler = format!("insert into orders values (event.id, {exact}, jsonb_build_object('x', {exact}))");
    fixture.declare(2, ("n numeric, more jsonb", &handler));
    fixture.espctl(&["reload"]).await.printed();
    fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    fixture
        .run("update orders set n = n + 0.01, more = jsonb_build_object('x', n + 0.02) where id = 3")
        .await;
    let outcome = fixture.espctl(&["verify", "orders"]).await;
    let shown = "~ id = 3: more = {\"x\": 12345678901234567890.12}, n = 12345678901234567890.11 -> \
                 more = {\"x\": 12345678901234567890.10}, n = 12345678901234567890.10";
    assert!(outcome.stdout.contains(shown), "{outcome:?}");
    let outcome = fixture.espctl(&["verify", "orders", "--json"]).await;
    assert!(outcome.stdout.contains("\"n\": 12345678901234567890.11"), "{outcome:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn going_back_loses_nothing_that_has_come_since_and_forward_again_is_the_same_step() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.espctl(&["rollback", "orders", "--yes"]).await.complained(1);
    fixture.run("create policy of_others on orders for select using (true)").await;
    fixture.declare(2, WIDER);
    fixture.espctl(&["reload"]).await.printed();
    fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    append(&fixture.db.pool, 4).await;
    reaches(&fixture.db.pool, "orders", 9).await;
    fixture.run("create role reader_of_rollback; grant select on orders to reader_of_rollback").await;

    let said = fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    assert!(
        said.contains("version 1 of orders is live; version 2 is kept in schema public_orders_v2"),
        "{said}"
    );
    assert_eq!(fixture.fact("select count(*) || ' ' || max(n) from orders").await, "9 2");
    assert_eq!(
        fixture.fact("select has_table_privilege('reader_of_rollback', 'orders', 'select')").await,
        "true"
    );
    // The daemon, which declares version 2, goes on with version 1.
    append(&fixture.db.pool, 3).await;
    reaches(&fixture.db.pool, "orders", 12).await;
    assert_eq!(fixture.fact("select count(*) from orders").await, "12");

    let said = fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    assert!(said.contains("version 2 of orders is live"), "{said}");
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "orders", 13).await;
    assert_eq!(fixture.fact("select count(twice) from orders").await, "13");
    // What others have made on a version that has served twice is theirs still.
    fixture.declare(3, WIDER);
    fixture.espctl(&["reload"]).await.printed();
    fixture.espctl(&["rebuild", "orders", "--yes", "--go-live", "swap"]).await.printed();
    let policies = "select string_agg(policyname, ',') from pg_policies where schemaname = 'public' and tablename = 'orders'";
    assert_eq!(fixture.fact(policies).await, "of_others");
    let said = fixture.espctl(&["rebuild", "drop", "orders", "--yes"]).await.printed();
    assert_eq!(
        (said.as_str(), fixture.beside().await.as_str()),
        ("version 1 of orders was dropped\nversion 2 of orders was dropped\n", "|")
    );
    let verified = fixture.espctl(&["verify", "orders"]).await.printed();
    assert!(verified.contains("nothing differs, 13 rows"), "{verified}");
    daemon.stop().await;
    fixture.run("drop owned by reader_of_rollback; drop role reader_of_rollback").await;
}

#[tokio::test]
async fn who_reads_in_a_loop_while_versions_are_exchanged_never_misses_a_row_and_gets_no_error() {
    let (fixture, daemon) = Fixture::running().await;
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (stop, pool) = (std::sync::Arc::clone(&done), fixture.db.pool.clone());
    let reader = tokio::spawn(async move {
        let (mut least, mut answers, mut longest) = (0, 0_u32, Duration::ZERO);
        let mut connection = pool.acquire().await.unwrap();
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            let begun = std::time::Instant::now();
            // A prepared statement, as drivers keep them.
            let rows: i64 = sqlx::query_scalar("select count(id) from public.orders")
                .fetch_one(&mut *connection)
                .await
                .unwrap();
            assert!(rows >= least, "{rows} rows after {least}");
            (least, answers, longest) = (rows, answers + 1, longest.max(begun.elapsed()));
        }
        (answers, longest)
    });
    let (stop, pool) = (std::sync::Arc::clone(&done), fixture.db.pool.clone());
    let writer = tokio::spawn(async move {
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            append(&pool, 1).await;
        }
    });
    for version in 2..=5 {
        fixture.declare(version, if version % 2 == 0 { WIDER } else { FIRST });
        fixture.espctl(&["reload"]).await.printed();
        let outcome = fixture.espctl(&["rebuild", "orders", "--yes"]).await;
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.await.unwrap();
    let (answers, longest) = reader.await.unwrap();
    eprintln!("{answers} answers, the longest took {longest:?}");
    assert!(answers > 100 && longest < Duration::from_secs(2), "{answers} answers, {longest:?}");
    let last = fixture.fact("select max(id) from espd.events").await.parse().unwrap();
    reaches(&fixture.db.pool, "orders", last).await;
    assert_eq!(fixture.fact("select count(*) from orders").await, last.to_string());
    let verified = fixture.espctl(&["verify", "orders"]).await.printed();
    assert!(verified.contains("nothing differs"), "{verified}");
    daemon.stop().await;
}

#[tokio::test]
async fn tables_that_changed_without_a_raised_version_are_built_beside_as_well() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.declare(1, WIDER);
    fixture.espctl(&["reload"]).await.printed();
    eventually("the processor stops", async || {
        let failed = "select failed_at is not null from espd.trackers where name = 'orders'";
        (fixture.fact(failed).await == "true").then_some(())
    })
    .await;
    let planned = fixture.espctl(&["plan"]).await;
    assert!(planned.code == Some(2) && planned.stdout.contains("! orders: stops"), "{planned:?}");
    fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    append(&fixture.db.pool, 2).await;
    reaches(&fixture.db.pool, "orders", 7).await;
    assert_eq!(fixture.fact("select count(twice) from orders").await, "7");
    let refused = fixture.espctl(&["rollback", "orders", "--yes"]).await.complained(1);
    assert!(refused.contains("set the handlers back"), "{refused}");
    // The next rebuild of the same version replaces what is kept.
    fixture.declare(1, FIRST);
    fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    assert_eq!(fixture.beside().await, "orders$1|public_orders_v1");
    daemon.stop().await;
}

#[tokio::test]
async fn events_that_are_to_be_set_aside_are_and_the_dead_letters_go_live_with_the_version() {
    let (fixture, daemon) = Fixture::running().await;
    let park = |version, columns, handler: &str| {
        let declared = declaration(version, columns, handler);
        fixture.installation.declare(
            "orders",
            &format!("{declared}[projector.retry]\nmax_attempts = 1\non_failure = 'skip'\n"),
        );
    };
    let handler = "insert into orders values (event.id, 1 / (event.id - 3), 'a')";
    park(2, FIRST.0, handler);
    let outcome = fixture.espctl(&["rebuild", "orders", "--yes", "--go-live", "swap"]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.stderr.contains("1 events were set aside for version 2"), "{outcome:?}");
    let letters = "select string_agg(processor || version || ' ' || event_id, ',') from espd.dead_letters";
    assert_eq!(fixture.fact(letters).await, "orders2 3");
    // Merged, they are those of the serving version as well.
    park(3, FIRST.0, &handler.replace("'a'", "'b'"));
    let outcome = fixture.espctl(&["rebuild", "orders", "--yes"]).await;
    assert!(outcome.stdout.contains("4 rows of its tables were changed"), "{outcome:?}");
    assert_eq!(fixture.fact(letters).await, "orders3 3");
    fixture.espctl(&["reload"]).await.printed();
    fixture.run("insert into orders values (3, 1, 'b')").await;
    park(3, FIRST.0, "insert into orders values (event.id, 1, 'b') on conflict do nothing");
    fixture.espctl(&["reload"]).await.printed();
    fixture.espctl(&["dead-letters", "retry", "orders", "--all"]).await.printed();
    eventually("it is handled", async || fixture.fact(letters).await.is_empty().then_some(())).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_plan_says_what_a_deploy_would_do_and_whether_something_would_be_lost() {
    let (fixture, daemon) = Fixture::running().await;
    let said = fixture.espctl(&["plan"]).await.printed();
    assert_eq!(said, "  orders: goes on, nothing changes\n");
    fixture.declare(2, WIDER);
    fixture.installation.declare_notes("notes", "");
    let said = fixture.espctl(&["plan"]).await.printed();
    assert!(
        said.contains("~ orders: version 1 goes on; `espctl rebuild orders` builds version 2 beside it"),
        "{said}"
    );
    assert!(
        said.contains("+ notes: runs for the first time, from the first event on and makes notes"),
        "{said}"
    );
    let check = fixture.espctl(&["check"]).await;
    let expected =
        "version 1 of orders serves until version 2, which `espctl rebuild` builds beside it, goes live";
    assert!(check.stdout.contains(expected), "{check:?}");
    fixture.installation.declare(
        "orders",
        "[projector]\nname = 'others'\n[projector.tables]\nothers = 'id bigint'\n\
        [[projector.on]]\nevents = ['B']\nsql = 'insert into others values (event.id)'\n",
    );
    let outcome = fixture.espctl(&["plan"]).await;
    assert!(outcome.code == Some(2) && outcome.stdout.contains("- orders: is not declared"), "{outcome:?}");
    assert!(outcome.stderr.contains("would stop or empty what works now: orders"), "{outcome:?}");
    let planned: serde_json::Value =
        serde_json::from_str(&fixture.espctl(&["plan", "--json"]).await.stdout).unwrap();
    assert_eq!(
        (planned[0]["processor"].as_str(), planned[0]["action"].as_str()),
        (Some("orders"), Some("leave"))
    );
    // What has never run cannot be lost.
    let taken = declaration(1, FIRST.0, FIRST.1).replace("name = 'orders'", "name = 'others'");
    fixture.installation.declare("orders", &taken);
    let outcome = fixture.espctl(&["plan"]).await;
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    let said = "would stop or empty what works now: orders; and it would not get this to run: others";
    assert!(outcome.stderr.contains(said), "{outcome:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn versions_are_built_where_the_projections_have_a_database_of_their_own() {
    let (events, projections) = (support::database().await, support::database().await);
    let installation = Installation::new(
        &events.url,
        &format!("[runner]\npoll_interval_max = '50ms'\n[projections]\nurl = '{}'\n", projections.url),
    );
    let declare = |version, (columns, handler)| {
        installation.declare("orders", &declaration(version, columns, handler));
    };
    declare(1, FIRST);
    append(&events.pool, 5).await;
    let daemon = installation.start_daemon();
    reaches(&projections.pool, "orders", 5).await;
    declare(2, WIDER);
    let outcome = installation.espctl(&["rebuild", "orders", "--yes"]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    installation.espctl(&["reload"]).await.printed();
    append(&events.pool, 2).await;
    reaches(&projections.pool, "orders", 7).await;
    assert_eq!(fact(&projections.pool, "select count(twice) from orders").await, "7");
    daemon.stop().await;
}

#[tokio::test]
async fn views_of_others_are_made_again_on_the_new_tables_with_their_rights() {
    let (fixture, daemon) = Fixture::running().await;
    let name = fixture.db.name.clone();
    fixture
        .run(&format!(
            "create role viewer_{name};
             create view public.thirds with (security_barrier = true) as select id, n from public.orders where n = 0;
             create view public.of_thirds as select count(*) as number from public.thirds;
             alter view public.of_thirds owner to viewer_{name};
             grant select on public.thirds to viewer_{name}; grant select on public.orders to viewer_{name};
             comment on view public.thirds is 'Those that can be divided'"
        ))
        .await;
    let facts = async || {
        fixture
            .fact(
                "select array[(select relacl::text || reloptions::text from pg_class where oid = 'public.thirds'::regclass),
                   obj_description('public.thirds'::regclass),
                   (select viewowner from pg_views where viewname = 'of_thirds')]",
            )
            .await
    };
    let before = facts().await;
    fixture.declare(2, WIDER);
    fixture.espctl(&["reload"]).await.printed();
    let outcome = fixture.espctl(&["rebuild", "orders", "--yes"]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(facts().await, before);
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "orders", 6).await;
    assert_eq!(
        fixture.fact("select number from public.of_thirds").await,
        "2",
        "the view is of the new table"
    );

    fixture.declare(3, ("tenant text", "insert into orders values (event.id, 'a')"));
    let without =
        std::fs::read_to_string(fixture.installation.path().join("processors/orders.toml")).unwrap();
    let without = without.lines().filter(|line| !line.starts_with("ddl")).collect::<Vec<_>>().join("\n");
    fixture.installation.declare("orders", &without);
    let refused = fixture.espctl(&["rebuild", "orders", "--yes"]).await;
    assert!(
        refused.stderr.contains("view public.thirds reads orders.n, which the new version does not have"),
        "{refused:?}"
    );
    assert_eq!(fixture.fact("select version from espd.trackers where name = 'orders'").await, "2");
    daemon.stop().await;
}
