//! Changes of the tables that need no replay are altered under the running projector; others are refused as ever.

use super::*;

const HANDLER: &str = "insert into orders values (event.id, event.id % 3)";
const NARROW: &str = "id bigint primary key, n bigint";
const WIDE: &str = "id bigint primary key, n bigint, note text default 'x'";
const INDEX: &str = "create index orders_note on orders (note)";

fn altering(columns: &str, ddl: &[&str], handler: &str) -> String {
    format!(
        "[projector]\nname = 'orders'\nddl = {ddl:?}\n[projector.tables]\norders = \"{columns}\"\n\
         [[projector.on]]\nevents = ['A']\nsql = '''{handler}'''\n"
    )
}

/// Five events are handled, and the daemon goes on.
async fn narrow(handler: &str) -> (Fixture, Program) {
    let db = support::database().await;
    let installation = installation(&db);
    installation.declare("orders", &altering(NARROW, &[], handler));
    append(&db.pool, 5).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "orders", 5).await;
    (Fixture { db, installation }, daemon)
}

fn installation(db: &Database) -> Installation {
    Installation::new(&db.url, "[runner]\npoll_interval_max = '50ms'\n[rebuild]\nparallelism = 0\n")
}

impl Fixture {
    /// Deploys another declaration of the same version.
    async fn deploys(&self, columns: &str, ddl: &[&str], handler: &str) {
        self.installation.declare("orders", &altering(columns, ddl, handler));
        let outcome = self.espctl(&["reload"]).await;
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
    }

    async fn eventually_is(&self, query: &str, wanted: &str) {
        eventually(&format!("{query} is {wanted}"), async || {
            (self.fact(query).await == wanted).then_some(())
        })
        .await;
    }

    async fn handles_more(&self, last: i64) {
        append(&self.db.pool, 1).await;
        reaches(&self.db.pool, "orders", last).await;
    }

    /// Why the projector has stopped.
    async fn stops(&self) -> String {
        let status = eventually("it stops", async || {
            Some(self.installation.status("orders").await).filter(|status| status["state"] == "failed")
        })
        .await;
        status["last_error"]["message"].as_str().unwrap().to_owned()
    }

    async fn verifies(&self) {
        let said = self.espctl(&["verify", "orders"]).await.printed();
        assert!(said.contains("orders: nothing differs"), "{said}");
    }
}

const COLUMNS: &str = "select string_agg(attname, ' ' order by attnum) from pg_attribute
    where attrelid = 'orders'::regclass and attnum > 0 and not attisdropped";
const INDEXES: &str =
    "select string_agg(indexname, ' ' order by indexname) from pg_indexes where tablename = 'orders'";
const RECORDED: &str =
    "select string_agg(item, '; ' order by item) from espd.declarations, unnest(made) as item
    where processor = 'orders' and item ~ 'note'";

#[tokio::test]
async fn a_column_with_a_default_and_an_index_are_added_under_the_running_projector() {
    let (fixture, daemon) = narrow(HANDLER).await;
    fixture.run("create view everything as select * from orders; grant select on orders to public").await;
    let table =
        "select c.oid || ' ' || c.relfilenode || ' ' || t.position from pg_class as c, espd.trackers as t
        where c.oid = 'orders'::regclass and t.name = 'orders'";
    let before = fixture.fact(table).await;

    fixture.installation.declare("orders", &altering(WIDE, &[INDEX], HANDLER));
    let alteration = "alters orders: adds column note text default 'x', makes index orders_note; no replay";
    let said = fixture.espctl(&["plan"]).await.printed();
    assert!(said.contains(&format!("~ orders: {alteration}")), "{said}");
    let plan = fixture.espctl(&["plan", "--json"]).await.json();
    assert_eq!(plan[0]["action"], "alter");
    let said = fixture.espctl(&["check"]).await.printed();
    assert!(said.contains(&format!("note: orders goes on, and the daemon {alteration}\n")), "{said}");
    assert_eq!(fixture.fact(COLUMNS).await, "id n", "nothing but words so far");

    fixture.deploys(WIDE, &[INDEX], HANDLER).await;
    fixture.eventually_is(INDEXES, "orders_note orders_pkey").await;
    assert_eq!(fixture.fact(COLUMNS).await, "id n note");
    assert_eq!(fixture.fact(table).await, before, "neither another table nor another position");
    fixture.handles_more(6).await;
    assert_eq!(fixture.fact("select string_agg(note, '' order by id) from orders").await, "xxxxxx");
    assert_eq!(fixture.fact("select count(*) from everything").await, "6");
    assert_eq!(daemon.logged("altered the tables").len(), 2, "columns, then indexes");
    // A batch that is folded.
    append(&fixture.db.pool, 100).await;
    reaches(&fixture.db.pool, "orders", 106).await;
    assert_eq!(fixture.fact("select count(*) from orders where note = 'x'").await, "106");
    assert_eq!(
        fixture.fact(RECORDED).await,
        "column public.orders.note; default value for public.orders.note; index public.orders_note"
    );
    fixture.verifies().await;
    let said = fixture.espctl(&["plan"]).await.printed();
    assert!(said.contains("orders: goes on, nothing changes"), "{said}");
    daemon.stop().await;
    let daemon = fixture.installation.start_daemon();
    fixture.handles_more(107).await;
    assert!(daemon.logged("altered the tables").is_empty());
    daemon.stop().await;
}

#[tokio::test]
async fn an_index_that_was_made_by_hand_before_counts_as_declared() {
    let (fixture, daemon) = narrow(HANDLER).await;
    fixture.run("create index concurrently orders_n on public.orders (n)").await;
    fixture
        .installation
        .declare("orders", &altering(NARROW, &["create index orders_n on orders (n)"], HANDLER));
    let plan = fixture.espctl(&["plan"]).await;
    assert!(plan.stdout.contains("there is a relation orders_n already"), "{plan:?}");
    fixture.deploys(NARROW, &["create index if not exists orders_n on orders (n)"], HANDLER).await;
    daemon.says("altered the tables").await;
    fixture.handles_more(6).await;
    let made = fixture.fact(&RECORDED.replace("'note'", "'orders_n'")).await;
    assert_eq!(made, "index public.orders_n");
    daemon.stop().await;
}

#[tokio::test]
async fn an_index_that_is_not_declared_any_more_is_dropped_and_another_one_made() {
    let (fixture, daemon) = narrow(HANDLER).await;
    let (first, second) = ("create index orders_a on orders (n)", "create index orders_b on orders (n, id)");
    fixture.deploys(NARROW, &[first], HANDLER).await;
    fixture.eventually_is(INDEXES, "orders_a orders_pkey").await;
    fixture.deploys(NARROW, &[second], HANDLER).await;
    fixture.eventually_is(INDEXES, "orders_b orders_pkey").await;
    fixture.handles_more(6).await;
    let made = fixture.fact(&RECORDED.replace("'note'", "'orders_[ab]'")).await;
    assert_eq!(made, "index public.orders_b");
    // Nothing of it counts as somebody else's.
    fixture.espctl(&["reset", "orders", "--in-place", "--yes"]).await.printed();
    reaches(&fixture.db.pool, "orders", 6).await;
    assert_eq!(fixture.fact(INDEXES).await, "orders_b orders_pkey");
    daemon.stop().await;
}

#[tokio::test]
async fn a_handler_that_sees_whole_rows_is_refused_and_told_why() {
    let handler = "insert into orders values (event.id, 1); perform row_to_json(o) from orders as o";
    let (fixture, daemon) = narrow(handler).await;
    fixture.installation.declare("orders", &altering(WIDE, &[], handler));
    let why = "a handler may see whole rows of orders, as o";
    let complaint = fixture.espctl(&["plan"]).await;
    assert!(complaint.code == Some(2) && complaint.stdout.contains(why), "{complaint:?}");
    let check = fixture.espctl(&["check"]).await;
    assert!(check.code == Some(0) && check.stderr.contains("its tables have changed"), "{check:?}");
    assert!(check.stderr.contains(why), "{check:?}");
    fixture.deploys(WIDE, &[], handler).await;
    let message = fixture.stops().await;
    assert!(message.contains("have changed since they were made") && message.contains(why), "{message}");
    assert_eq!(fixture.fact(COLUMNS).await, "id n");
    // An index it does not see.
    fixture.deploys(NARROW, &["create index orders_n on orders (n)"], handler).await;
    fixture.eventually_is(INDEXES, "orders_n orders_pkey").await;
    fixture.handles_more(6).await;
    daemon.stop().await;
}

#[tokio::test]
async fn what_only_the_database_knows_is_asked_for() {
    let db = support::database().await;
    execute(
        &db.pool,
        "create function public.note_rows() returns bigint language sql as $$ select count(*) from pg_class $$",
    )
    .await;
    let installation = installation(&db);
    let fixture = Fixture { db, installation };
    let calling = "insert into orders values (event.id, note_rows())";
    fixture.installation.declare("orders", &altering(NARROW, &[], calling));
    append(&fixture.db.pool, 1).await;
    let daemon = fixture.installation.start_daemon();
    reaches(&fixture.db.pool, "orders", 1).await;
    let plan = async |columns: &str, handler: &str| {
        fixture.installation.declare("orders", &altering(columns, &[], handler));
        fixture.espctl(&["plan"]).await.stdout
    };
    let said = plan(WIDE, calling).await;
    assert!(said.contains("a handler may call function note_rows()"), "{said}");
    let said = plan(WIDE, HANDLER).await;
    assert!(said.contains("the handlers have changed as well"), "{said}");
    daemon.stop().await;

    let (fixture, daemon) = narrow(HANDLER).await;
    fixture
        .run(
            "create domain public.remark as text default 'now';
             create function public.watch() returns trigger language plpgsql as $$ begin return new; end $$",
        )
        .await;
    let plan = async |columns: &str| {
        fixture.installation.declare("orders", &altering(columns, &[], HANDLER));
        fixture.espctl(&["plan"]).await.stdout
    };
    let said = plan("id bigint primary key, n bigint, note public_remark").await;
    assert!(said.contains("the type public_remark of column note is a domain, or not known"), "{said}");
    let said = plan("id bigint primary key, n bigint, note remark").await;
    assert!(said.contains("the type remark of column note is a domain, or not known"), "{said}");
    let said = plan(WIDE).await;
    assert!(said.contains("alters orders"), "{said}");
    fixture.run("create function public.shown(public.orders) returns int language sql as 'select 1'").await;
    let said = plan(WIDE).await;
    assert!(said.contains("function shown(orders) is about rows of orders"), "{said}");
    fixture
        .run("drop function public.shown; create trigger watching before insert on orders execute function public.watch()")
        .await;
    let said = plan(WIDE).await;
    assert!(said.contains("trigger watching sees the rows of orders"), "{said}");
    fixture
        .run(
            "drop trigger watching on orders;
             create function public.placed() returns bigint language sql as 'select count(*) from pg_class';
             alter table orders alter column n set default public.placed()",
        )
        .await;
    let said = plan(WIDE).await;
    assert!(
        said.contains("function placed(), which a default, a check or an index of orders calls"),
        "{said}"
    );
    fixture
        .run("alter table orders alter column n drop default; alter table orders add column note int")
        .await;
    let said = plan(WIDE).await;
    assert!(said.contains("orders has a column note already"), "{said}");
    daemon.stop().await;
}

#[tokio::test]
async fn an_index_that_refuses_the_rows_stops_the_projector_with_the_reason() {
    let handler = "insert into orders values (event.id, 0)";
    let (fixture, daemon) = narrow(handler).await;
    fixture.deploys(NARROW, &["create index orders_n on orders ((1 / n))"], handler).await;
    let message = fixture.stops().await;
    assert!(
        message.contains("the database refuses what") && message.contains("division by zero"),
        "{message}"
    );
    fixture.deploys(NARROW, &[], handler).await;
    fixture.handles_more(6).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_default_that_its_column_does_not_take_is_found_before_the_deploy_and_nobody_waits_for_that() {
    let (fixture, daemon) = narrow(HANDLER).await;
    let before = fixture.fact("select count(*) from pg_class where relname ~ 'espd'").await;
    // Who reads, and who has the table for himself: nobody is waited for, and nobody waits.
    let mut reader = fixture.db.pool.begin().await.unwrap();
    sqlx::raw_sql("select count(*) from orders").execute(&mut *reader).await.unwrap();
    for (column, error) in [
        ("note varchar(2) default 'abc'", "value too long for type character varying(2)"),
        ("note numeric(3, 1) not null default 1234", "numeric field overflow"),
    ] {
        fixture.installation.declare("orders", &altering(&format!("{NARROW}, {column}"), &[], HANDLER));
        let plan = fixture.espctl(&["plan"]).await;
        assert_eq!(plan.code, Some(2), "{plan:?}");
        let refused = format!(
            "stops, because the database refuses what its tables need (alters orders: adds column {column}): {error}"
        );
        assert!(plan.stdout.contains(&refused), "{plan:?}");
        let check = fixture.espctl(&["check"]).await;
        assert!(check.code == Some(0) && check.stderr.contains(&refused), "{check:?}");
        let takes = format!("column note of orders does not take its own default: {error}");
        assert!(check.stderr.contains(&takes), "{check:?}");
    }
    reader.rollback().await.unwrap();
    assert_eq!(fixture.fact(COLUMNS).await, "id n");
    assert_eq!(fixture.fact("select count(*) from pg_class where relname ~ 'espd'").await, before);

    // A new version would not help, which is said of it, too.
    let raised = altering(&format!("{NARROW}, note varchar(2) default 'abc'"), &[], HANDLER)
        .replace("[projector]", "[projector]\nversion = 2");
    fixture.installation.declare("orders", &raised);
    let check = fixture.espctl(&["check"]).await;
    assert!(check.stderr.contains("column note of orders does not take its own default"), "{check:?}");

    // A name means another thing in another schema.
    fixture
        .installation
        .declare("orders", &altering(&format!("{NARROW}, kin regclass default 'orders'"), &[], HANDLER));
    let plan = fixture.espctl(&["plan"]).await;
    assert!(plan.stdout.contains("column kin of orders is more than a type and a constant"), "{plan:?}");
    fixture.handles_more(6).await;
    daemon.stop().await;
}

#[tokio::test]
async fn an_older_declaration_that_comes_back_goes_on_and_undoes_nothing() {
    let (fixture, daemon) = narrow(HANDLER).await;
    fixture.deploys(WIDE, &[INDEX], HANDLER).await;
    fixture.eventually_is(INDEXES, "orders_note orders_pkey").await;
    daemon.stop().await;

    // A machine that has the former declaration still takes over.
    let older = installation(&fixture.db);
    older.declare("orders", &altering(NARROW, &[], HANDLER));
    let daemon = older.start_daemon();
    fixture.handles_more(6).await;
    let told =
        daemon.says("a newer declaration of this version has altered the tables, and they stay so").await;
    assert_eq!(told["processor"], "orders");
    assert_eq!(fixture.fact("select note from orders where id = 6").await, "x");
    let said = older.espctl(&["plan"]).await.printed();
    assert!(said.contains("goes on, and leaves alone what a newer declaration has done"), "{said}");
    daemon.stop().await;

    // With other handlers that see the column it does not.
    let seeing = "insert into orders values (event.id, 1); perform row_to_json(o) from orders as o";
    older.declare("orders", &altering(NARROW, &[], seeing));
    let plan = older.espctl(&["plan"]).await;
    assert_eq!(plan.code, Some(2), "{plan:?}");

    let daemon = fixture.installation.start_daemon();
    fixture.handles_more(7).await;
    assert_eq!(fixture.fact(INDEXES).await, "orders_note orders_pkey");
    assert!(daemon.logged("altered the tables").is_empty());
    fixture.verifies().await;
    daemon.stop().await;
}

#[tokio::test]
async fn columns_of_a_declaration_that_was_taken_back_are_no_difference() {
    let (fixture, daemon) = narrow(HANDLER).await;
    fixture.deploys(WIDE, &[INDEX], HANDLER).await;
    fixture.eventually_is(INDEXES, "orders_note orders_pkey").await;
    fixture.deploys(NARROW, &[], HANDLER).await;
    fixture.handles_more(6).await;
    let plan = fixture.espctl(&["plan"]).await.printed();
    let done = "goes on, and leaves alone what a newer declaration has done: it altered orders: added column note text default 'x', \
                made index orders_note";
    assert!(plan.contains(done), "{plan}");
    let said = fixture.espctl(&["verify", "orders"]).await.printed();
    assert!(said.contains("other columns, not compared: note"), "{said}");
    // What a rebuild would take away is a difference, and so is a row.
    let said = fixture.espctl(&["rebuild", "orders", "--dry-run"]).await.complained(1);
    assert!(
        said.contains("what is declared now of version 1 of orders would change what it shows"),
        "{said}"
    );
    fixture.run("update orders set n = 42 where id = 3").await;
    let said = fixture.espctl(&["verify", "orders"]).await;
    assert!(said.code == Some(1) && said.stdout.contains("id = 3: n = 42 -> n = 0"), "{said:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn of_two_daemons_that_load_at_once_one_alters() {
    let (fixture, daemon) = narrow(HANDLER).await;
    daemon.stop().await;
    fixture.installation.declare("orders", &altering(WIDE, &[INDEX], HANDLER));
    let daemons = [fixture.installation.start_daemon(), fixture.installation.start_daemon()];
    fixture.eventually_is(INDEXES, "orders_note orders_pkey").await;
    fixture.handles_more(6).await;
    let altered: usize = daemons.iter().map(|daemon| daemon.logged("altered the tables").len()).sum();
    assert_eq!(altered, 2, "the column once, the index once");
    assert_eq!(fixture.fact(COLUMNS).await, "id n note");
    fixture.verifies().await;
    for daemon in daemons {
        daemon.stop().await;
    }
}

#[tokio::test]
async fn while_others_have_the_table_the_projector_goes_on_and_a_kill_leaves_nothing_half_done() {
    let (fixture, mut daemon) = narrow(HANDLER).await;
    let mut reader = fixture.db.pool.begin().await.unwrap();
    sqlx::raw_sql("select count(*) from orders").execute(&mut *reader).await.unwrap();
    fixture.deploys(WIDE, &[INDEX], HANDLER).await;
    daemon.says("others use the tables: they are altered later").await;
    fixture.handles_more(6).await;
    let waited = fixture.fact("select count(*) from orders").await;
    assert_eq!((waited.as_str(), fixture.fact(COLUMNS).await.as_str()), ("6", "id n"));
    daemon.kill().await;

    // Between the two steps it is as if only the column had been declared.
    fixture
        .run(
            "create function hold() returns event_trigger language plpgsql as $$ begin
               if tg_tag = 'CREATE INDEX' then perform pg_advisory_xact_lock(77); end if; end $$;
             create event trigger hold on ddl_command_end execute function hold()",
        )
        .await;
    let mut holder = fixture.db.pool.begin().await.unwrap();
    sqlx::raw_sql("select pg_advisory_xact_lock(77)").execute(&mut *holder).await.unwrap();
    let mut daemon = fixture.installation.start_daemon();
    daemon.says("others use the tables: they are altered later").await;
    reader.rollback().await.unwrap();
    fixture.eventually_is(COLUMNS, "id n note").await;
    fixture.handles_more(7).await;
    daemon.kill().await;
    assert_eq!(fixture.fact(INDEXES).await, "orders_pkey");
    let said = fixture.espctl(&["plan"]).await.printed();
    assert!(said.contains("~ orders: alters orders: makes index orders_note; no replay"), "{said}");
    holder.rollback().await.unwrap();
    let daemon = fixture.installation.start_daemon();
    fixture.eventually_is(INDEXES, "orders_note orders_pkey").await;
    fixture.handles_more(8).await;
    assert_eq!(fixture.fact("select count(note) from orders").await, "8");
    fixture.run("drop event trigger hold").await;
    fixture.verifies().await;
    daemon.stop().await;
}
