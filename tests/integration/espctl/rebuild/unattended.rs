//! A daemon builds a raised version by itself, and lets it go live as its declaration says.

use super::*;
use crate::support::facts::within;
use crate::support::proxy::Proxy;

pub(super) const SLOW: &str =
    "perform pg_sleep(0.3); insert into orders values (event.id, event.id % 3, 'a', 2 * event.id)";
pub(super) const CHANGED: (&str, &str) =
    ("n bigint, tenant text", "insert into orders values (event.id, event.id % 2, 'a')");

/// As [`Fixture::running`], with a daemon that builds.
pub(super) async fn building() -> (Fixture, Program) {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "[runner]\npoll_interval_max = '50ms'\n");
    let fixture = Fixture { db, installation };
    fixture.declare(1, FIRST);
    append(&fixture.db.pool, 5).await;
    let daemon = fixture.installation.start_daemon();
    reaches(&fixture.db.pool, "orders", 5).await;
    (fixture, daemon)
}

impl Fixture {
    pub(super) async fn reload(&self) {
        let outcome = self.espctl(&["reload"]).await;
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
    }

    pub(super) async fn serves(&self, version: i32) {
        let query = "select version from espd.trackers where name = 'orders'";
        let what = format!("version {version} serves");
        eventually(&what, async || (self.fact(query).await == version.to_string()).then_some(())).await;
    }

    pub(super) async fn waits(&self, because: &str) -> serde_json::Value {
        eventually("the version waits", async || {
            let status = self.installation.status("orders").await;
            let told =
                status["rebuild"]["blocked_because"].as_str().is_some_and(|told| told.contains(because));
            told.then_some(status)
        })
        .await
    }

    fn declared_with(&self, version: i32, what: (&str, &str), more: &str) {
        let text = declaration(version, what.0, what.1);
        self.installation
            .declare("orders", &text.replace("[projector.tables]", &format!("{more}\n[projector.tables]")));
    }
}

#[tokio::test]
async fn a_raised_version_goes_live_by_itself_where_nothing_differs_and_waits_for_approval_where_something_does()
 {
    let (fixture, daemon) = building().await;
    fixture.declare(2, WIDER);
    fixture.reload().await;
    fixture.serves(2).await;
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "orders", 6).await;
    assert_eq!(fixture.fact("select array_agg(twice order by id) from orders").await, "{2,4,6,8,10,12}");

    // A column is gone and rows are others: somebody has to agree.
    fixture.declare(3, CHANGED);
    fixture.reload().await;
    let status = fixture.waits("of 6 rows of orders, 0 would be added, 0 gone, ").await;
    let advice = status["advice"].to_string();
    assert!(
        advice.contains("orders would lack twice") && advice.contains("rebuild approve orders"),
        "{advice}"
    );
    let watch = fixture.espctl(&["rebuild", "orders", "--watch"]).await.complained(1);
    assert!(watch.contains("version 3 of orders is not live"), "{watch}");
    // It serves and follows meanwhile.
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "orders", 7).await;
    assert_eq!(fixture.fact("select version from espd.trackers where name = 'orders'").await, "2");
    let said = fixture.espctl(&["rebuild", "approve", "orders"]).await.printed();
    assert!(said.starts_with("version 3 of orders goes live as soon as"), "{said}");
    let watch = fixture.espctl(&["rebuild", "orders", "--watch"]).await;
    fixture.serves(3).await;
    assert!(watch.code == Some(0) || watch.stderr.contains("is not live"), "{watch:?}");
    assert_eq!(fixture.fact("select array_agg(n order by id) from orders").await, "{1,0,1,0,1,0,1}");
    let log = fixture
        .fact(
            "select string_agg(action, ' ' order by id) from espd.operator_log where action like '%approve%'",
        )
        .await;
    assert_eq!(log, "approve_rebuild");

    // Whoever has gone back is not overruled, also not after a restart.
    fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    daemon.stop().await;
    let daemon = fixture.installation.start_daemon();
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "orders", 8).await;
    let looked = daemon.says("looked for versions to build").await;
    assert_eq!(looked["wanted"], 0, "{looked}");
    assert_eq!(fixture.fact("select version from espd.trackers where name = 'orders'").await, "2");
    assert_eq!(fixture.fact("select count(*) from espd.trackers where name = 'orders$next'").await, "0");
    // Nor is he told that a daemon builds it.
    let left_out = "version 3 has served and an operator has gone back from it, so no daemon builds it again";
    for command in ["check", "plan"] {
        let said = fixture.espctl(&[command]).await.printed();
        assert!(said.contains(left_out) && !said.contains("a daemon does by itself"), "{command}: {said}");
    }
    let watch = fixture.espctl(&["rebuild", "orders", "--watch"]).await.complained(1);
    assert!(watch.contains("version 2 of orders is live, and ") && watch.contains(left_out), "{watch}");
    let said = fixture.espctl(&["status"]).await.printed();
    assert!(said.contains(&left_out.replacen('v', "V", 1)), "{said}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_third_version_replaces_the_second_and_a_declaration_that_goes_back_abandons_it() {
    let (fixture, daemon) = building().await;
    let slow = SLOW.replace("0.3", "2");
    fixture.declare(2, (WIDER.0, &slow));
    fixture.reload().await;
    eventually("it is built", async || (fixture.state().await == "building").then_some(())).await;
    fixture.declare(1, FIRST);
    fixture.reload().await;
    eventually("it is abandoned", async || (fixture.state().await == "aborted").then_some(())).await;
    assert_eq!(fixture.beside().await, "|");

    let manual = "approve = 'manual'";
    fixture.declared_with(3, (WIDER.0, &slow), "");
    fixture.reload().await;
    eventually("it is built", async || (fixture.state().await == "building").then_some(())).await;
    fixture.declared_with(4, WIDER, "");
    fixture.reload().await;
    fixture.serves(4).await;
    assert_eq!(fixture.beside().await, "orders$1|public_orders_v1");

    let text = declaration(5, WIDER.0, WIDER.1).replace("version = 5", &format!("version = 5\n{manual}"));
    fixture.installation.declare("orders", &text);
    fixture.reload().await;
    fixture.waits("approve = \"manual\"").await;
    fixture.espctl(&["rebuild", "approve", "orders"]).await.printed();
    fixture.serves(5).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_that_is_killed_in_any_phase_leaves_one_serving_version_and_another_one_goes_on() {
    let (fixture, daemon) = building().await;
    daemon.stop().await;
    fixture.declare(2, (WIDER.0, SLOW));
    let waiting = |mode: &str| {
        format!("select count(*) > 0 from pg_locks where {HERE} and not granted and mode = '{mode}'")
    };
    for (what, lock, reached) in [
        (
            "it builds",
            "select 1",
            "select count(*) = 1 from espd.trackers where name = 'orders$next'".to_owned(),
        ),
        ("it compares", "lock table orders in access exclusive mode", waiting("AccessShareLock")),
        ("it swaps", "lock table orders in access share mode", waiting("AccessExclusiveLock")),
    ] {
        let mut blocker = sqlx::PgConnection::connect(&fixture.db.url).await.unwrap();
        let mut held = blocker.begin().await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(lock.to_owned())).execute(&mut *held).await.unwrap();
        let mut daemon = fixture.installation.start_daemon();
        eventually(what, async || (fixture.fact(&reached).await == "true").then_some(())).await;
        daemon.kill().await;
        held.rollback().await.unwrap();
        let serving =
            fixture.fact("select version || ' ' || position from espd.trackers where name = 'orders'").await;
        assert_eq!(serving, "1 5", "{what}");
        assert_eq!(fixture.fact("select count(*) from orders").await, "5", "{what}");
    }
    // Two at once: one of them builds.
    let (one, other) = (fixture.installation.start_daemon(), fixture.installation.start_daemon());
    fixture.serves(2).await;
    assert_eq!(fixture.fact("select count(twice) from orders").await, "5");
    assert_eq!(fixture.beside().await, "orders$1|public_orders_v1");
    append(&fixture.db.pool, 2).await;
    reaches(&fixture.db.pool, "orders", 7).await;
    let live = "select count(*) from espd.operator_log where action = 'go_live'";
    assert_eq!(fixture.fact(live).await, "1");
    one.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn whoever_gives_a_version_up_is_not_overruled_by_a_daemon_that_has_just_decided_to_build_it() {
    let db = support::database().await;
    let proxy = Proxy::start(&db.url).await;
    let installation = Installation::new(&db.url, "[runner]\npoll_interval_max = '50ms'\n");
    let fixture = Fixture { db, installation };
    let behind = Installation::new(&proxy.url(), "[runner]\npoll_interval_max = '50ms'\n");
    let declare = |version: i32, what: (&str, &str)| {
        for installation in [&fixture.installation, &behind] {
            installation.declare("orders", &declaration(version, what.0, what.1));
        }
    };
    declare(1, FIRST);
    append(&fixture.db.pool, 5).await;
    let daemon = behind.start_daemon();
    reaches(&fixture.db.pool, "orders", 5).await;
    declare(2, CHANGED);
    fixture.reload().await;
    fixture.waits("of 5 rows of orders").await;

    proxy.hold(Some("-- lock_rebuild"));
    fixture.espctl(&["rebuild", "approve", "orders"]).await.printed();
    proxy.wait_until(|tally| tally.held > 0).await;
    fixture.espctl(&["rebuild", "abort", "orders"]).await.printed();
    proxy.hold(None);
    daemon.says("somebody has decided otherwise about a version").await;
    assert_eq!(fixture.state().await, "aborted");
    assert_eq!(fixture.beside().await, "|");
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_that_leaves_a_build_to_another_one_takes_it_over_within_seconds_after_a_kill() {
    let (fixture, mut first) = building().await;
    let mut blocker = sqlx::PgConnection::connect(&fixture.db.url).await.unwrap();
    let mut held = blocker.begin().await.unwrap();
    sqlx::raw_sql("lock table orders in access exclusive mode").execute(&mut *held).await.unwrap();
    fixture.declare(2, WIDER);
    fixture.reload().await;
    eventually("the first one builds", async || (fixture.state().await == "analyzed").then_some(())).await;
    let second = fixture.installation.start_daemon();
    eventually("the second one has tried several times", async || {
        (second.logged("leaves a version to others").len() > 2).then_some(())
    })
    .await;
    first.kill().await;
    held.rollback().await.unwrap();
    let serves = "select version from espd.trackers where name = 'orders'";
    within(Duration::from_secs(10), "the second one builds it", async || {
        (fixture.fact(serves).await == "2").then_some(())
    })
    .await;
    second.stop().await;
}

#[tokio::test]
async fn whoever_goes_back_is_not_overruled_by_a_version_that_is_built_or_declared_besides() {
    let (fixture, daemon) = building().await;
    fixture.declare(2, WIDER);
    fixture.reload().await;
    fixture.serves(2).await;
    fixture.declare(3, CHANGED);
    fixture.reload().await;
    fixture.waits("of 5 rows of orders").await;
    let outcome = fixture.espctl(&["rollback", "orders", "--yes"]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.stderr.contains("version 3 was given up by an operator"), "{outcome:?}");
    let looks = || daemon.logged("looked for versions to build").len();
    let before = looks();
    eventually("the daemon has looked again", async || (looks() > before).then_some(())).await;
    fixture.serves(1).await;
    assert_eq!(fixture.beside().await, "orders$2|public_orders_v2");
    // What serves can be verified, although the configuration has other handlers.
    let verified = fixture.espctl(&["verify", "orders"]).await;
    assert!(verified.code == Some(0) && verified.stderr.contains("verifies version 1"), "{verified:?}");
    fixture.run("update orders set n = 7 where id = 2").await;
    let verified = fixture.espctl(&["verify", "orders"]).await;
    assert!(verified.code == Some(1) && verified.stdout.contains("~ id = 2: n = 7"), "{verified:?}");
    fixture.run("update orders set n = 2 where id = 2").await;
    let given_up = "select count(*) from espd.operator_log where action = 'abort_rebuild' and detail ->> 'version' = '3'";
    assert_eq!(fixture.fact(given_up).await, "1");
    // One document on standard output, and what has happened beside it.
    let outcome = fixture.espctl(&["rebuild", "orders", "--yes", "--json"]).await;
    assert!(outcome.stderr.contains("version 3 of orders is live"), "{outcome:?}");
    let json: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(json["tables"][0]["table"], "orders", "{json}");
    fixture.serves(3).await;
    daemon.stop().await;
}

#[tokio::test]
async fn what_keeps_a_version_from_being_begun_is_told_and_goes_away_with_its_declaration() {
    let (fixture, daemon) = building().await;
    fixture.run("create schema public_orders_next").await;
    fixture.declare(2, WIDER);
    fixture.reload().await;
    let status = fixture.waits("there is a schema public_orders_next that espd has not made").await;
    assert_eq!(status["rebuild"]["version"], 2, "{status}");
    assert!(status["advice"].to_string().contains("tries again by itself"), "{status}");
    fixture.declare(1, FIRST);
    fixture.reload().await;
    eventually("nothing is told any more", async || {
        fixture.installation.status("orders").await["rebuild"].is_null().then_some(())
    })
    .await;
    daemon.stop().await;
}

/// Its remedy leaves the other store alone.
#[tokio::test]
async fn a_version_of_another_store_in_the_database_with_a_projector_of_this_name_is_told_as_that() {
    let (fixture, daemon) = Fixture::running().await;
    let settings = "schema = 'second'\n[runner]\npoll_interval_max = '50ms'\n[rebuild]\nparallelism = 0\n";
    let second = Installation::new(&fixture.db.url, settings);
    second.espctl(&["migrate"]).await.printed();
    let declare = |(columns, handler): (&str, &str), version: i32| {
        let text = declaration(version, columns, handler).replace("orders (n)", "others (n)");
        let text = text.replace("orders_n ", "others_n ").replace("order_numbers", "other_numbers");
        let text = text.replace("from orders", "from others").replace("into orders", "into others");
        second.declare("orders", &text.replace("\norders = ", "\nothers = "));
    };
    declare(FIRST, 1);
    let other_daemon = second.start_daemon();
    eventually("the other store's projector has its table", async || {
        (fixture.fact("select to_regclass('public.others') is not null").await == "true").then_some(())
    })
    .await;
    fixture.declare(2, WIDER);
    fixture.rebuild_without_answer().await;
    declare(WIDER, 2);
    let refused = second.espctl(&["rebuild", "orders", "--yes"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let refused = refused.stderr;
    let said = "schema public_orders_next has a version of the projector orders of another store, which is in schema espd";
    assert!(refused.contains(said) && refused.contains("another name"), "{refused}");
    assert!(!refused.contains("drop"), "{refused}");
    fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    let Outcome { code, stderr: refused, .. } =
        second.espctl(&["rebuild", "orders", "--yes", "--go-live", "swap"]).await;
    assert_eq!(code, Some(1), "{refused}");
    let said = "schema public_orders_v1 has a version of the projector orders of another store, which is in schema espd";
    assert!(refused.contains(said), "{refused}");
    assert_eq!(fixture.fact("select count(*) from public_orders_v1.orders").await, "5");
    other_daemon.stop().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_build_that_loses_its_connection_in_its_first_moments_is_tried_again_by_itself() {
    let (fixture, daemon) = building().await;
    fixture
        .run(
            "create sequence public.taken;
             create function public.lose() returns trigger language plpgsql as $$ begin
               if nextval('public.taken') in (1, 3, 4) then
                 perform pg_terminate_backend(pg_backend_pid());
                 perform pg_sleep(10);
               end if;
               return new;
             end $$;
             create trigger lose before insert on espd.trackers for each row when (new.name = 'orders$next') execute function public.lose()",
        )
        .await;
    fixture.declare(2, WIDER);
    fixture.reload().await;
    fixture.waits("terminating connection").await;
    fixture.serves(2).await;
    daemon.stop().await;

    // Likewise where the daemon goes on with what an operator has begun.
    let (columns, handler) = WIDER;
    fixture.declare(3, (&format!("{columns}, more text"), handler));
    let outcome = fixture.espctl(&["rebuild", "orders", "--yes"]).await;
    assert!(outcome.stderr.contains("terminating connection"), "{outcome:?}");
    assert_eq!(fixture.state().await, "building");
    let daemon = fixture.installation.start_daemon();
    fixture.waits("terminating connection").await;
    fixture.serves(3).await;
    assert_eq!(fixture.fact("select last_value from public.taken").await, "5");
    daemon.stop().await;
}

#[tokio::test]
async fn who_has_removed_what_was_in_the_way_has_it_tried_again_at_once_by_a_reload() {
    let (fixture, daemon) = building().await;
    fixture.run("create schema public_orders_next").await;
    fixture.declare(2, WIDER);
    fixture.reload().await;
    // The next pause has 20 seconds.
    let failed = async || daemon.logged("a version could not be built").get(2).map(|_| ());
    eventually("the third failure", failed).await;
    fixture.run("drop schema public_orders_next").await;
    let outcome = fixture.espctl(&["reload"]).await;
    assert!(outcome.stdout.contains("nothing has changed"), "{outcome:?}");
    let query = "select version from espd.trackers where name = 'orders'";
    let serves = async || (fixture.fact(query).await == "2").then_some(());
    within(Duration::from_secs(15), "version 2 serves", serves).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_view_that_is_gone_or_another_one_waits_for_an_operator() {
    let (fixture, daemon) = building().await;
    let declare = |version: i32, ddl: &str| {
        let text = declaration(version, FIRST.0, FIRST.1);
        let own = text.lines().find(|line| line.starts_with("ddl = ")).unwrap().to_owned();
        fixture.installation.declare("orders", &text.replace(&own, &format!("ddl = [{ddl}]")));
    };
    // An index is nothing that is read.
    declare(2, "'create view order_numbers as select n from orders'");
    fixture.reload().await;
    fixture.serves(2).await;
    let lost = "what `create view order_numbers as select n from orders` has made would be gone, or another";
    for (version, ddl) in [(3, ""), (4, "'create view order_numbers as select n + 1 as n from orders'")] {
        declare(version, ddl);
        let plan = fixture.espctl(&["plan"]).await.printed();
        assert!(plan.contains(lost), "{plan}");
        let dry = fixture.espctl(&["rebuild", "orders", "--dry-run"]).await;
        assert!(dry.code == Some(1) && dry.stdout.contains(lost), "{dry:?}");
        fixture.reload().await;
        fixture.waits(lost).await;
        assert_eq!(fixture.fact("select sum(n) from order_numbers").await, "6");
    }
    fixture.espctl(&["rebuild", "approve", "orders"]).await.printed();
    fixture.serves(4).await;
    assert_eq!(fixture.fact("select sum(n) from order_numbers").await, "11");
    daemon.stop().await;
}

#[tokio::test]
async fn an_approval_is_of_what_was_compared() {
    let (fixture, daemon) = building().await;
    fixture.declare(2, CHANGED);
    fixture.reload().await;
    fixture.waits("of 5 rows of orders, 0 would be added, 0 gone, 4 changed").await;
    daemon.stop().await;
    fixture.espctl(&["rebuild", "approve", "orders"]).await.printed();
    // Nobody has agreed to lose a row that is not the projector's.
    fixture.run("insert into orders values (0, 0, 'by hand')").await;
    let daemon = fixture.installation.start_daemon();
    fixture.waits("of 6 rows of orders, 0 would be added, 1 gone, 4 changed").await;
    assert_eq!(
        fixture.fact("select approved_at is null from espd.rebuilds where processor = 'orders'").await,
        "true"
    );
    fixture.espctl(&["rebuild", "approve", "orders"]).await.printed();
    fixture.serves(2).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_check_of_the_author_that_fails_shows_its_rows_and_keeps_the_old_version_serving() {
    let (fixture, daemon) = building().await;
    let check = "[[projector.check]]\nname = 'twice is twice'\nsql = 'select id, twice from orders where twice <> 2 * id;'\n";
    let declare = |version: i32, handler: &str| {
        let text = declaration(version, WIDER.0, handler);
        fixture.installation.declare("orders", &format!("{text}{check}"));
    };
    let wrong = "insert into orders values (event.id, event.id % 3, 'a', case event.id when 3 then 7 else 2 * event.id end)";
    declare(2, wrong);
    let refused = fixture.espctl(&["rebuild", "orders", "--yes"]).await;
    // The daemon still declares version 1.
    assert!(
        refused.code == Some(1)
            && refused.stderr.contains("the check `twice is twice` returns id = 3, twice = 7"),
        "{refused:?}"
    );
    let status = fixture.installation.status("orders").await;
    let told = "nobody works on it now: the check `twice is twice` returns id = 3, twice = 7";
    assert!(status["advice"].to_string().contains(told), "{status}");
    fixture.reload().await;
    let status = fixture.waits("the check `twice is twice` returns id = 3, twice = 7").await;
    assert!(status["advice"].to_string().contains("Correct the handlers or the check"), "{status}");
    fixture.espctl(&["rebuild", "approve", "orders"]).await.printed();
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "orders", 6).await;
    assert_eq!(fixture.fact("select version from espd.trackers where name = 'orders'").await, "1");
    declare(2, WIDER.1);
    fixture.reload().await;
    fixture.serves(2).await;
    let verified = fixture.espctl(&["verify", "orders"]).await;
    assert_eq!(verified.code, Some(0), "{verified:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn numbers_that_the_database_gives_out_go_live_only_with_an_operator_and_what_he_builds_is_left_to_him()
{
    let (fixture, daemon) = building().await;
    let numbered = "n bigint, tenant text, no bigint generated always as identity";
    let handler = "insert into orders (id, n, tenant) values (event.id, event.id % 3, 'a')";
    fixture.declare(2, (numbered, handler));
    fixture.reload().await;
    fixture.serves(2).await;
    fixture.declare(3, (&format!("{numbered}, more text"), handler));
    fixture.reload().await;
    fixture.waits("no of orders would have other values").await;
    fixture.espctl(&["rebuild", "abort", "orders"]).await.printed();
    daemon.stop().await;

    // An operator has said no: a daemon that starts does not say yes.
    fixture.declare(4, (&format!("{numbered}, more text"), handler));
    let said = fixture.rebuild_without_answer().await;
    assert!(said.contains("serves as before"), "{said}");
    let daemon = fixture.installation.start_daemon();
    let looked = "select exists (select from pg_stat_activity where datname = current_database() and application_name = 'espd: rebuild' and state = 'idle'
        and query like '%-- list_traces%')";
    eventually("the daemon has looked", async || (fixture.fact(looked).await == "true").then_some(())).await;
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "orders", 6).await;
    assert_eq!(fixture.fact("select version from espd.trackers where name = 'orders'").await, "2");
    let said = fixture.espctl(&["rebuild", "approve", "orders"]).await.printed();
    assert!(said.starts_with("version 4 of orders goes live"), "{said}");
    fixture.serves(4).await;
    daemon.stop().await;
}

#[tokio::test]
async fn who_watches_after_a_reload_is_told_of_what_was_declared_then() {
    let (fixture, daemon) = building().await;
    fixture.declare(2, CHANGED);
    fixture.reload().await;
    fixture.waits("of 5 rows of orders, 0 would be added, 0 gone, 4 changed").await;
    // The same version, corrected, with a check that fails.
    let check = |sql: &str| format!("[[projector.check]]\nname = 'none'\nsql = '{sql}'\n");
    let declare = |sql: &str| {
        let text = declaration(2, WIDER.0, SLOW);
        fixture.installation.declare("orders", &format!("{text}{}", check(sql)));
    };
    declare("select id from orders");
    fixture.reload().await;
    let watch = fixture.espctl(&["rebuild", "orders", "--watch"]).await.complained(1);
    assert!(watch.contains("the check `none` returns") && !watch.contains("nobody has begun"), "{watch}");
    // What is built stays, and is checked again.
    declare("select id from orders where id < 0");
    fixture.reload().await;
    let watch = fixture.espctl(&["rebuild", "orders", "--watch"]).await.printed();
    assert!(watch.ends_with("version 2 of orders is live\n"), "{watch}");
    fixture.declare(3, FIRST);
    fixture.reload().await;
    let watch = fixture.espctl(&["rebuild", "orders", "--watch"]).await.complained(1);
    assert!(watch.contains("version 3 of orders is not live: "), "{watch}");

    // Nobody has told the daemon.
    fixture.declare(4, WIDER);
    let watch = fixture.espctl(&["rebuild", "orders", "--watch"]).await.complained(1);
    assert!(
        watch.contains("version 3 of orders is not live: ")
            && watch.contains(
                "That may be about an earlier declaration: nobody has begun to build version 4 of orders"
            ),
        "{watch}"
    );
    fixture.reload().await;
    fixture.serves(4).await;
    fixture.declare(5, FIRST);
    let watch = fixture.espctl(&["rebuild", "orders", "--watch"]).await.complained(1);
    assert!(
        watch.contains("version 4 of orders is live, and nobody has begun to build version 5 of orders"),
        "{watch}"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_that_has_nothing_to_build_goes_on_within_seconds_where_an_operator_was_killed() {
    let (fixture, daemon) = building().await;
    let slow = SLOW.replace("0.3", "1");
    fixture.declare(2, (WIDER.0, &slow));
    fixture.reload().await;
    eventually("it is built", async || (fixture.state().await == "building").then_some(())).await;
    fixture.espctl(&["rebuild", "abort", "orders"]).await.printed();
    eventually("the daemon has nothing to do", async || {
        let looked = daemon.logged("looked for versions to build");
        looked.last().is_some_and(|looked| looked["wanted"] == 0).then_some(())
    })
    .await;

    let mut operator = Program::start(fixture.installation.espctl_command(&["rebuild", "orders", "--yes"]));
    eventually("he builds it", async || (fixture.state().await == "building").then_some(())).await;
    operator.signal(Signal::SIGKILL);
    operator.ended().await;
    within(Duration::from_secs(30), "the daemon builds it", async || {
        let status = fixture.installation.status("orders").await;
        let build = &status["rebuild"];
        let is_its = build["builder"].as_str().is_some_and(|builder| !builder.contains('@'));
        (status["version"] == 2 || build["is_running"] == true && is_its).then_some(())
    })
    .await;
    fixture.serves(2).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_removes_what_a_killed_verification_has_left_and_leaves_one_that_goes_on_alone() {
    let (fixture, daemon) = building().await;
    fixture.espctl(&["pause", "orders"]).await.printed();
    let slow = "perform pg_sleep(5); insert into orders values (event.id, event.id % 3, 'a')";
    fixture.declare(1, (FIRST.0, slow));
    let mut verify = Program::start(fixture.installation.espctl_command(&["verify", "orders"]));
    eventually("it is built", async || (!fixture.beside().await.starts_with('|')).then_some(())).await;
    // It looks at once after this, and does not remove it.
    fixture.espctl(&["reload"]).await.printed();
    let looks = || daemon.logged("leaves a version alone").len();
    eventually("the daemon leaves it alone", async || (looks() > 0).then_some(())).await;
    assert!(fixture.beside().await.starts_with("orders$check|"), "{}", fixture.beside().await);
    verify.signal(Signal::SIGKILL);
    verify.ended().await;
    eventually("it is removed", async || (fixture.beside().await == "|").then_some(())).await;
    daemon.stop().await;
}

#[tokio::test]
async fn the_session_of_an_operator_who_was_killed_ends_within_seconds_also_in_a_long_statement() {
    let (fixture, daemon) = Fixture::running().await;
    let slow = SLOW.replace("0.3", "120");
    fixture.declare(2, (WIDER.0, &slow));
    let mut operator = Program::start(fixture.installation.espctl_command(&["rebuild", "orders", "--yes"]));
    let sleeps = "select count(*) from pg_stat_activity where datname = current_database() and application_name like 'espctl%' and wait_event = 'PgSleep'";
    eventually("an event is handled", async || (fixture.fact(sleeps).await == "1").then_some(())).await;
    operator.signal(Signal::SIGKILL);
    operator.ended().await;
    within(Duration::from_secs(15), "the session ends", async || {
        (fixture.fact(sleeps).await == "0").then_some(())
    })
    .await;
    daemon.stop().await;
}

#[tokio::test]
async fn where_no_daemon_builds_status_and_plan_say_who_goes_on() {
    // Its settings say `parallelism = 0`.
    let (fixture, daemon) = Fixture::running().await;
    let checked = |check: &str| {
        declaration(2, WIDER.0, WIDER.1) + &format!("[[projector.check]]\nname = 'no'\nsql = \"{check}\"\n")
    };
    fixture.installation.declare("orders", &checked("select id from orders"));
    let refused = fixture.espctl(&["rebuild", "orders", "--yes"]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("the check"), "{refused:?}");
    fixture.installation.declare("orders", &checked("select id from orders where false"));
    fixture.espctl(&["reload"]).await.printed();
    let status = fixture.espctl(&["status", "orders"]).await.printed();
    let nobody = "No daemon with this configuration goes on with it: `parallelism = 0` in `[rebuild]` leaves that to you. `espctl \
                  rebuild orders` goes on";
    assert!(status.contains(nobody) && !status.contains("within a minute or two"), "{status}");
    let plan = fixture.espctl(&["plan"]).await.stdout;
    assert!(
        plan.contains("`espctl rebuild orders` goes on with it (parallelism = 0: no daemon does)"),
        "{plan}"
    );
    fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    assert_eq!(fixture.fact("select version from espd.trackers where name = 'orders'").await, "2");
    daemon.stop().await;
}
