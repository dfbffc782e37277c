//! A version that is built beside the serving one touches nothing but its own schema, and reads nothing of the serving version.

use super::*;

impl Fixture {
    /// Declares the tables and the handler of [`FIRST`], with this DDL and more.
    fn declare_ddl(&self, version: i32, ddl: &[&str], more: &str) {
        let ddl: Vec<String> = ddl.iter().map(|text| format!("'''{text}'''")).collect();
        self.installation.declare(
            "orders",
            &format!(
                "[projector]\nname = 'orders'\nversion = {version}\nddl = [{}]\n[projector.tables]\norders = 'id bigint primary key, \
                 {}'\n[[projector.on]]\nevents = ['A']\nsql = \"{}\"\n{more}",
                ddl.join(", "),
                FIRST.0,
                FIRST.1
            ),
        );
    }

    /// A daemon has made version 1 with this DDL, and has handled five events.
    async fn with_ddl(ddl: &[&str]) -> (Self, Program) {
        let db = support::database().await;
        let settings = "[runner]\npoll_interval_max = '50ms'\n[rebuild]\nparallelism = 0\n";
        let fixture = Self { installation: Installation::new(&db.url, settings), db };
        fixture.declare_ddl(1, ddl, "");
        append(&fixture.db.pool, 5).await;
        let daemon = fixture.installation.start_daemon();
        reaches(&fixture.db.pool, "orders", 5).await;
        (fixture, daemon)
    }

    /// What refuses these commands, which leave nothing behind.
    async fn refused(&self, commands: &[&[&str]], because: &str) {
        for command in commands {
            let refused = self.espctl(command).await;
            assert!(refused.code != Some(0) && refused.stderr.contains(because), "{command:?}: {refused:?}");
            self.espctl(&["rebuild", "abort", "orders"]).await;
            let left = self.beside().await;
            assert!(
                !["$next", "$dry", "$check"].iter().any(|name| left.contains(name)),
                "{command:?}: {left}"
            );
        }
    }
}

const VERIFY: &[&str] = &["verify", "orders"];
const DRY_RUN: &[&str] = &["rebuild", "orders", "--dry-run"];
const REBUILD: &[&str] = &["rebuild", "orders", "--yes"];

#[tokio::test]
async fn ddl_that_reaches_what_serves_is_refused_by_whatever_builds_a_version_and_changes_nothing() {
    let view = "create or replace view public.ov as select id, n from orders";
    let (fixture, daemon) = Fixture::with_ddl(&[view]).await;
    fixture.run("create function public.price(n int) returns int language sql as 'select 1'").await;
    fixture.refused(&[VERIFY, DRY_RUN, REBUILD], "ddl of orders changes view public.ov").await;
    assert_eq!(fixture.fact("select count(*) from public.ov").await, "5");

    for (ddl, because) in [
        (
            "create or replace function public.price(n int) returns int language sql as 'select 2'",
            "changes function public.price(n integer)",
        ),
        ("drop view if exists ov; create view ov as select id, n from orders", "drops view public.ov"),
        ("create view public.more as select id from orders", "makes view public.more"),
        ("comment on view public.ov is 'mine'", "makes comment on view public.ov"),
        ("insert into public.lines values (1)", "changes table public.lines"),
    ] {
        fixture.run("create table if not exists public.lines (id bigint primary key)").await;
        fixture.declare_ddl(2, &[ddl], "");
        fixture.refused(&[DRY_RUN, REBUILD], because).await;
    }
    assert_eq!(
        fixture
            .fact("select price(7) || ' ' || count(*) || ' ' || (select count(*) from lines) from public.ov")
            .await,
        "1 5 0"
    );

    // What refers to tables of others, or finds what is there, changes nothing.
    let refers =
        "alter table orders add foreign key (id) references public.lines deferrable initially deferred";
    fixture.run("insert into public.lines select generate_series(1, 5)").await;
    fixture.declare_ddl(2, &[refers, "create schema if not exists public"], "");
    let dry = fixture.espctl(DRY_RUN).await;
    assert!(dry.code == Some(1) && dry.stdout.contains("what `create or replace view public.ov"), "{dry:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_handler_or_a_check_that_reads_a_table_of_the_serving_version_is_refused() {
    let (fixture, daemon) = Fixture::with_ddl(&["create view seen as select 1"]).await;
    let gone = "gone = 'id bigint primary key'\norders =";
    let with_gone = |version, text: &str| declaration(version, FIRST.0, FIRST.1).replace("orders =", text);
    fixture.installation.declare("orders", &with_gone(2, gone));
    fixture.espctl(REBUILD).await.printed();
    let reads = "perform count(*) from gone; insert into orders values (event.id, 1, 'a')";
    fixture.declare(3, (FIRST.0, reads));
    fixture
        .refused(&[DRY_RUN, REBUILD], "has read table public.gone of the version of orders that serves")
        .await;

    // A function hides it from whoever reads the text.
    fixture.run("create function public.ids() returns bigint language plpgsql as 'begin return (select count(*) from public.orders); end'").await;
    let check = |sql: &str| format!("[[projector.check]]\nname = 'none'\nsql = '{sql}'\n");
    fixture.declare_ddl(3, &[], &check("select id from public.orders where false"));
    fixture.refused(&[REBUILD], "write orders without the schema").await;
    fixture.declare_ddl(3, &[], &check("select 1 where ids() < 0"));
    fixture.refused(&[REBUILD], "the check `none` reads public.orders of the version that serves").await;
    fixture.declare_ddl(3, &[], &check("select id from orders where id < 0"));
    fixture.espctl(REBUILD).await.printed();
    daemon.stop().await;
}

#[tokio::test]
async fn what_handlers_write_to_tables_that_nobody_has_declared_is_not_written_again() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.run("create schema app; create table app.audit (id bigint); create sequence app.numbers").await;
    let writes =
        "insert into orders values (event.id, event.id % 3, 'a'); insert into app.audit values (event.id)";
    fixture.declare(2, (FIRST.0, writes));
    fixture.refused(&[DRY_RUN, REBUILD], "has written table app.audit, which orders does not declare").await;
    fixture.espctl(&["reset", "orders", "--yes", "--in-place"]).await.printed();
    fixture.espctl(&["reload"]).await.printed();
    reaches(&fixture.db.pool, "orders", 5).await;
    fixture.refused(&[VERIFY], "has written table app.audit").await;
    assert_eq!(fixture.fact("select count(*) from app.audit").await, "5", "by the version that serves");
    // To draw numbers is no write.
    let draws = "perform nextval('app.numbers'); insert into orders values (event.id, 1, 'a')";
    fixture.declare(3, (FIRST.0, draws));
    fixture.espctl(REBUILD).await.printed();
    daemon.stop().await;
}

#[tokio::test]
async fn functions_types_sequences_and_statistics_of_ddl_change_places_with_the_tables_and_back() {
    let ddl = [
        "create type mood as enum ('good')",
        "create sequence numbers",
        "create function price(n int) returns int language sql as 'select 1'",
        "create function of_mood(m mood) returns int language sql as 'select 1'",
        "create statistics together on n, tenant from orders",
    ];
    let (fixture, daemon) = Fixture::with_ddl(&ddl).await;
    fixture.espctl(VERIFY).await.printed();
    let mut second = ddl;
    second[2] = "create function price(n int) returns int language sql as 'select 2'";
    fixture.declare_ddl(2, &second, "");
    // Nobody has compared what the two functions give.
    let dry = fixture.espctl(DRY_RUN).await;
    assert!(dry.code == Some(1) && dry.stdout.contains("what `create function price(n int)"), "{dry:?}");
    fixture.espctl(REBUILD).await.printed();
    let prices =
        "select public.price(7) || ' ' || public_orders_v1.price(7) || ' ' || public.of_mood('good')";
    assert_eq!(fixture.fact(prices).await, "2 1 1");
    let statistics = "select string_agg(stxnamespace::regnamespace::text, ' ' order by stxnamespace::regnamespace::text) from pg_statistic_ext";
    assert_eq!(fixture.fact(statistics).await, "public public_orders_v1");
    fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    assert_eq!(fixture.fact("select public.price(7) || ' ' || public_orders_v2.price(7)").await, "1 2");

    // Of others, it stays where it is and is in the way.
    fixture.run("create function public.of_others() returns int language sql as 'select 1'").await;
    fixture.declare_ddl(3, &["create function of_others() returns int language sql as 'select 2'"], "");
    fixture.refused(&[REBUILD], "routine public.of_others() exists already").await;
    fixture.declare_ddl(3, &["create collation mine from \"C\""], "");
    fixture.refused(&[REBUILD], "makes collation public_orders_next.mine, which cannot go live").await;
    daemon.stop().await;
}

#[tokio::test]
async fn what_others_have_on_what_ddl_makes_is_carried_over_or_named() {
    let ddl = [
        "create type mood as enum ('good')",
        "create domain score as int check (value >= 0)",
        "create sequence numbers",
        "create function price(n int) returns int language sql as 'select 1'",
    ];
    let (fixture, daemon) = Fixture::with_ddl(&ddl).await;
    let reader = format!("reader_{}", fixture.db.name);
    fixture
        .run(&format!(
            "create role {reader}; revoke execute on function price from public; grant execute on function price to {reader};
             revoke usage on type mood from public; grant usage on sequence numbers to {reader};
             create view public.priced as select public.price(7) as price"
        ))
        .await;
    let mut second = ddl;
    second[3] = "create function price(n int) returns int language sql as 'select 2'";
    fixture.declare_ddl(2, &second, "");
    for (make, named, remove) in [
        ("create table public.moods (m public.mood)", "table public.moods", "drop table public.moods"),
        (
            "create table public.numbered (n bigint default nextval('public.numbers'))",
            "default value for public.numbered.n",
            "drop table public.numbered",
        ),
        ("create domain public.high as public.score", "type public.high", "drop domain public.high"),
    ] {
        fixture.run(make).await;
        fixture.refused(&[&["rebuild", "orders", "--yes", "--go-live", "swap"]], named).await;
        fixture.run(remove).await;
    }
    fixture.espctl(&["rebuild", "orders", "--yes", "--go-live", "swap"]).await.printed();
    assert_eq!(fixture.fact("select price from public.priced").await, "2");
    let rights = format!(
        "select concat_ws(' ', has_function_privilege('{reader}', 'public.price(int)', 'execute'),
           has_sequence_privilege('{reader}', 'public.numbers', 'usage'),
           (select proacl::text not like '%{{=%' and proacl::text not like '%,=%' from pg_proc where oid = 'public.price(int)'::regprocedure),
           (select typacl is not null and typacl::text not like '%{{=%' from pg_type where oid = 'public.mood'::regtype))"
    );
    assert_eq!(fixture.fact(&rights).await, "t t t t");
    fixture.run(&format!("revoke all on function price from {reader}")).await;
    fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    assert_eq!(fixture.fact(&rights).await, "f t t t");
    daemon.stop().await;
}

/// Nothing of the tables leads to them, so they are found by what the DDL says.
#[tokio::test]
async fn rights_and_comments_on_what_ddl_makes_beside_the_tables_are_carried_over() {
    let ddl = [
        "create view one as select 1 as x",
        "create materialized view fixed as select 1 as x",
        "create materialized view numbers as select n from orders",
        "create table looked_up (x int)",
        "create foreign table far (x int) server elsewhere",
        "create sequence numbered",
        "create type mood as enum ('good')",
        "create function price(n int) returns int language sql as 'select 1'",
        "comment on view one is 'of version 1'",
    ];
    let (fixture, daemon) = Fixture::running().await;
    fixture
        .run("create foreign data wrapper nowhere; create server elsewhere foreign data wrapper nowhere")
        .await;
    fixture.declare_ddl(2, &ddl, "");
    fixture.espctl(REBUILD).await.printed();
    let reader = format!("reader_{}", fixture.db.name);
    fixture
        .run(&format!(
            "create role {reader}; grant select on one, fixed, numbers, looked_up, far to {reader}; grant usage on numbered to {reader};
             revoke select on far from {reader}; grant select (x) on far to {reader};
             comment on materialized view fixed is 'theirs'; comment on materialized view numbers is 'theirs';
             comment on foreign table far is 'theirs'; comment on sequence numbered is 'theirs';
             comment on type mood is 'theirs'; comment on function price is 'theirs'; comment on column one.x is 'theirs';
             create view public.of_others as select x from public.fixed; grant select on public.of_others to {reader}"
        ))
        .await;
    let mut second = ddl;
    second[0] = "create view one as select 2 as x";
    second[8] = "comment on view one is 'of version 2'";
    fixture.declare_ddl(3, &second, "");
    fixture.espctl(&["rebuild", "orders", "--yes", "--go-live", "swap"]).await.printed();
    let rights = format!(
        "select concat_ws(' ', has_table_privilege('{reader}', 'public.one', 'select'),
           has_table_privilege('{reader}', 'public.fixed', 'select'), has_table_privilege('{reader}', 'public.numbers', 'select'),
           has_table_privilege('{reader}', 'public.looked_up', 'select'), has_column_privilege('{reader}', 'public.far', 'x', 'select'),
           has_sequence_privilege('{reader}', 'public.numbered', 'usage'), has_table_privilege('{reader}', 'public.of_others', 'select'))"
    );
    assert_eq!(fixture.fact(&rights).await, "t t t t t t t");
    let comments = "select concat_ws(' ', obj_description('public.one'::regclass), col_description('public.one'::regclass, 1),
        obj_description('public.fixed'::regclass), obj_description('public.numbers'::regclass), obj_description('public.far'::regclass),
        obj_description('public.numbered'::regclass), obj_description('public.mood'::regtype, 'pg_type'),
        obj_description('public.price(int)'::regprocedure, 'pg_proc'))";
    assert_eq!(fixture.fact(comments).await, format!("of version 2{}", " theirs".repeat(7)));
    fixture.run(&format!("revoke select on fixed, looked_up from {reader}")).await;
    fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    assert_eq!(fixture.fact(&rights).await, "t f t f t t t");
    assert_eq!(fixture.fact(comments).await, format!("of version 1{}", " theirs".repeat(7)));
    daemon.stop().await;
}

/// What a new table cannot be given in a moment, or by nobody but its maker.
#[tokio::test]
async fn what_others_have_set_on_a_table_is_carried_over_or_named() {
    let (fixture, daemon) = Fixture::running().await;
    let name = fixture.db.name.clone();
    fixture.declare(2, WIDER);
    fixture.run("alter table orders set (toast.autovacuum_enabled = off)").await;
    let mut superuser = sqlx::PgConnection::connect(&fixture.db.url).await.unwrap();
    let settings = "set allow_in_place_tablespaces = on; set allow_system_table_mods = on";
    sqlx::raw_sql(settings).execute(&mut superuser).await.unwrap();
    for (make, named, remove) in [
        (
            format!("create tablespace fast_{name} location ''"),
            "",
            String::new(),
        ),
        (
            format!("alter table orders set tablespace fast_{name}"),
            "tablespace fast_",
            "alter table orders set tablespace pg_default".to_owned(),
        ),
        (
            format!("alter index orders_n set tablespace fast_{name}"),
            "of index public.orders_n",
            "alter index orders_n set tablespace pg_default".to_owned(),
        ),
        (
            "alter table orders alter column n set not null".to_owned(),
            "not null of column public.orders.n",
            "alter table orders alter column n drop not null".to_owned(),
        ),
        (
            "create domain public.whole as public.orders".to_owned(),
            "type public.whole",
            "drop domain public.whole".to_owned(),
        ),
        (
            "insert into pg_seclabel values ('public.orders'::regclass, 'pg_class'::regclass, 0, 'selinux', 'secret')".to_owned(),
            "security label of table public.orders",
            "delete from pg_seclabel where label = 'secret'".to_owned(),
        ),
    ] {
        sqlx::raw_sql(AssertSqlSafe(make.clone())).execute(&mut superuser).await.unwrap();
        if !named.is_empty() {
            let refused = fixture.espctl(&["rebuild", "orders", "--yes", "--go-live", "swap"]).await;
            assert!(refused.code == Some(1) && refused.stderr.contains(named), "{make}: {refused:?}");
        }
        sqlx::raw_sql(AssertSqlSafe(remove)).execute(&mut superuser).await.unwrap();
    }
    fixture.espctl(&["rebuild", "orders", "--yes", "--go-live", "swap"]).await.printed();
    let options = "select t.reloptions from pg_class as c join pg_class as t on t.oid = c.reltoastrelid where c.oid = 'public.orders'::regclass";
    assert_eq!(fixture.fact(options).await, "{autovacuum_enabled=off}");
    daemon.stop().await;
}

/// Rows of a table that is not logged reach no subscriber.
#[tokio::test]
async fn a_version_that_is_only_looked_at_is_not_published() {
    let lines =
        "create table lines (id bigint references orders, line text); insert into lines (line) values ('a')";
    let (fixture, daemon) = Fixture::with_ddl(&["create index orders_n on orders (n)"]).await;
    fixture.declare_ddl(2, &["insert into orders values (0, 0, 'b')"], "");
    let logged = "select count(*) from pg_class where relnamespace = 'public_orders_dry'::regnamespace and relkind = 'r' and relpersistence = 'p'";
    fixture.run(&held_up("public_orders_dry")).await;
    let name = fixture.db.name.clone();
    let publication = format!("create publication all_{name} for all tables");
    let mut blocker = sqlx::PgConnection::connect(&fixture.db.url).await.unwrap();
    for (ddl, tables) in [(lines, "2"), ("insert into orders values (0, 0, 'b')", "0"), (lines, "0")] {
        if tables == "0" {
            fixture.run(&format!("drop publication if exists all_{name}; {publication}")).await;
        }
        sqlx::raw_sql("select pg_advisory_lock(77)").execute(&mut blocker).await.unwrap();
        fixture.declare_ddl(2, &[ddl], "");
        let mut dry = Program::start(fixture.installation.espctl_command(DRY_RUN));
        // It is built.
        somebody_waits(&fixture, 77).await;
        assert_eq!(fixture.fact(logged).await, tables, "{ddl}");
        sqlx::raw_sql("select pg_advisory_unlock(77)").execute(&mut blocker).await.unwrap();
        dry.ended().await;
    }
    fixture.declare_ddl(2, &[], "");
    let said = fixture.espctl(REBUILD).await;
    assert!(
        said.code == Some(0) && said.stderr.contains(&format!("all_{name} publishes all tables")),
        "{said:?}"
    );
    daemon.stop().await;
}

/// Has the removal of a schema wait for whoever holds the lock 77.
fn held_up(schema: &str) -> String {
    format!(
        "create function public.hold_up() returns event_trigger language plpgsql as $$ begin
           if current_query() like '%drop_version%' and to_regclass('{schema}.orders') is not null
             then perform pg_advisory_xact_lock(77); end if;
         end $$;
         create event trigger hold_up on ddl_command_start when tag in ('DROP SCHEMA') execute function public.hold_up()"
    )
}

#[tokio::test]
async fn former_versions_go_without_what_others_have_made_on_them_and_with_their_functions() {
    let (fixture, daemon) = Fixture::running().await;
    let functions =
        "select count(*) from pg_proc where pronamespace = 'espd'::regnamespace and proname ~ 'orders.*_v1$'";
    fixture.declare(2, WIDER);
    fixture.espctl(REBUILD).await.printed();
    fixture
        .run(
            "create view public.of_others as select id from public_orders_v1.orders;
             create table public.lines (id bigint references public_orders_v1.orders)",
        )
        .await;
    let refused = fixture.espctl(&["rebuild", "drop", "orders", "--yes"]).await.complained(1);
    assert!(refused.contains("view public.of_others") && refused.contains("on public.lines"), "{refused}");
    assert_eq!(fixture.fact("select count(*) from public.of_others").await, "5");
    fixture.run("drop view public.of_others; drop table public.lines").await;

    // An archive of the same version gives way only with the swap.
    fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    fixture.espctl(REBUILD).await.printed();
    assert_eq!(fixture.beside().await, "orders$1 orders$2|public_orders_v1 public_orders_v2");
    fixture.run("create view public.of_others as select id from public_orders_v2.orders").await;
    let refused = fixture.espctl(&["rollback", "orders", "--yes"]).await.complained(1);
    assert!(refused.contains("view public.of_others"), "{refused}");
    assert_eq!(fixture.beside().await, "orders$1 orders$2|public_orders_v1 public_orders_v2");
    fixture.run("drop view public.of_others").await;
    fixture.espctl(&["rebuild", "drop", "orders", "--yes"]).await.printed();
    assert_eq!(fixture.beside().await, "|");
    assert_eq!(fixture.fact(functions).await, "0");
    daemon.stop().await;
}

#[tokio::test]
async fn partitions_keep_what_others_have_set_and_new_tables_have_the_rights_given_by_default() {
    let db = support::database().await;
    let settings = "[runner]\npoll_interval_max = '50ms'\n[rebuild]\nparallelism = 0\n";
    let fixture = Fixture { installation: Installation::new(&db.url, settings), db };
    let declare = |version: i32, more: &str| {
        fixture.installation.declare(
            "orders",
            &format!(
                "[projector]\nname = 'orders'\nversion = {version}\nddl = ['create table orders_p1 partition of orders default']\n\
                 [projector.tables]\n{more}orders = '(id bigint primary key, n bigint) partition by range (id)'\n\
                 [[projector.on]]\nevents = ['A']\nsql = 'insert into orders values (event.id, {version})'\n"
            ),
        );
    };
    declare(1, "");
    append(&fixture.db.pool, 5).await;
    let daemon = fixture.installation.start_daemon();
    reaches(&fixture.db.pool, "orders", 5).await;
    let web = format!("web_{}", fixture.db.name);
    fixture
        .run(&format!(
            "create role {web}; alter default privileges in schema public grant select on tables to {web};
             alter table orders_p1 enable row level security; alter table orders_p1 set (fillfactor = 70);
             create policy own on orders_p1 for select to {web} using (n > 0); comment on table orders_p1 is 'all'"
        ))
        .await;
    declare(2, "fresh = 'id bigint primary key'\n");
    fixture.espctl(&["rebuild", "orders", "--yes", "--go-live", "swap"]).await.printed();
    let kept = "select relrowsecurity || ' ' || reloptions::text || ' ' || obj_description(oid)
        || (select count(*) from pg_policies where schemaname = 'public' and tablename = 'orders_p1')
        from pg_class where oid = 'public.orders_p1'::regclass";
    assert_eq!(fixture.fact(kept).await, "true {fillfactor=70} all1");
    let may = |table: &str| format!("select has_table_privilege('{web}', 'public.{table}', 'select')");
    assert_eq!(fixture.fact(&may("fresh")).await, "true");
    assert_eq!(
        fixture.fact(&may("orders")).await,
        "false",
        "as before: it was made before the default was set"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn a_processor_that_is_dropped_takes_its_former_versions_with_it_and_one_with_such_keeps_its_name() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.declare(2, WIDER);
    fixture.espctl(REBUILD).await.printed();
    daemon.stop().await;
    let refused = fixture.espctl(&["rename", "orders", "sales", "--yes"]).await.complained(1);
    assert!(refused.contains("version 1 of orders") && refused.contains("rebuild drop orders"), "{refused}");
    fixture.run("create view public.of_others as select id from public_orders_v1.orders").await;
    let refused = fixture.espctl(&["drop", "orders", "--yes"]).await.complained(1);
    assert!(refused.contains("view public.of_others"), "{refused}");
    let said = fixture.espctl(&["drop", "orders", "--yes", "--cascade"]).await.printed();
    assert!(said.contains("public_orders_v1.orders"), "{said}");
    assert_eq!(fixture.beside().await, "|");
    let left = "select (select count(*) from espd.rebuilds) + (select count(*) from espd.declarations)
        + (select count(*) from espd.projection_tables) + (select count(*) from espd.trackers)";
    assert_eq!(fixture.fact(left).await, "0");
}

#[tokio::test]
async fn an_old_snapshot_of_a_role_whose_activity_is_hidden_is_waited_for() {
    let (fixture, daemon) = Fixture::running().await;
    let name = &fixture.db.name;
    fixture
        .run(&format!(
            "do $$ begin execute format('create role builder_{name} login in role %I', current_user); end $$;
             create role reporter_{name} login superuser"
        ))
        .await;
    let as_role = |role: &str| {
        let url = fixture.db.url.replace("//espd@", &format!("//{role}_{name}@"));
        url.replace("user=espd", &format!("user={role}_{name}"))
    };
    let settings = "[runner]\npoll_interval_max = '50ms'\n[rebuild]\nparallelism = 0\n";
    let builder = Installation::new(&as_role("builder"), settings);
    builder.declare("orders", &declaration(2, WIDER.0, WIDER.1));
    let mut reporter = sqlx::PgConnection::connect(&as_role("reporter")).await.unwrap();
    let mut report = reporter.begin_with("begin isolation level repeatable read").await.unwrap();
    sqlx::raw_sql("select count(*) from espd.events").execute(&mut *report).await.unwrap();
    let mut rebuild = Program::start(builder.espctl_command(REBUILD));
    eventually("it waits for the report", async || {
        let waits = |line: serde_json::Value| {
            line["message"].as_str().is_some_and(|said| said.contains("with pg_read_all_stats"))
        };
        rebuild.log().into_iter().any(waits).then_some(())
    })
    .await;
    let rows: i64 = sqlx::query_scalar("select count(*) from orders").fetch_one(&mut *report).await.unwrap();
    assert_eq!((rows, fixture.state().await.as_str()), (5, "differs"));
    report.rollback().await.unwrap();
    rebuild.ended().await;
    assert_eq!(fixture.state().await, "live");
    daemon.stop().await;
}
