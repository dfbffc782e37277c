//! A version is built by several workers, each with its share of the aggregates.

use super::*;

/// What becomes of an aggregate depends on the order of its events. Four of them fail at one event.
const HANDLER: &str = "if event.body ->> 'n' in ('777', '781', '785', '789') then raise 'not this one'; end if; \
    if event.body ->> 'n' = '6001' then perform pg_advisory_xact_lock_shared(88); end if; \
    insert into totals as t values (event.aggregate_id, 1, event.id, (event.body ->> 'n')::numeric) \
    on conflict (id) do update set events = t.events + 1, last_event = excluded.last_event, total = t.total * 3 % 1000003 + excluded.total";

/// A fourth of them are for the projector. Fewer are not divided.
pub(super) const EVENTS: i64 = 12_000;

fn declare(fixture: &Fixture, version: i32, more: &str) {
    fixture.installation.declare(
        "totals",
        &format!(
            "[projector]\nname = 'totals'\nversion = {version}\n{more}\n[projector.retry]\nmax_attempts = 1\non_failure = 'park'\n\
             [projector.tables]\ntotals = 'id uuid primary key, events bigint, last_event bigint, total numeric'\n\
             [[projector.on]]\nevents = ['A']\nsql = \"{HANDLER}\"\n"
        ),
    );
}

const KEYED: &str = "aggregate_column = 'id'";

/// Version 1 has handled all events, and its daemon goes on.
async fn running() -> (Fixture, Program) {
    let db = support::database().await;
    let settings = "[runner]\npoll_interval_max = '50ms'\n[rebuild]\nparallelism = 0\nworkers = 2\n";
    let fixture = Fixture { installation: Installation::new(&db.url, settings), db };
    declare(&fixture, 1, KEYED);
    fixture.append_all().await;
    let daemon = fixture.installation.start_daemon();
    reaches(&fixture.db.pool, "totals", EVENTS).await;
    (fixture, daemon)
}

impl Fixture {
    /// Events of 50 aggregates in turn, which are numbered. Each of them is followed by three of another type.
    pub(super) async fn append_all(&self) {
        let events = format!(
            "insert into espd.events (aggregate_id, type, version, body)
             select case when n % 4 = 1 then md5((n / 4 % 50)::text)::uuid else gen_random_uuid() end,
                    case when n % 4 = 1 then 'A' else 'B' end,
                    case when n % 4 = 1 then n / 4 / 50 + 1 else 1 end, jsonb_build_object('n', n)
             from generate_series(1, {EVENTS}) as n order by n"
        );
        self.run(&events).await;
    }

    /// The rows, the dead letters, and the position of the version that serves.
    pub(super) async fn outcome(&self) -> String {
        self.fact(
            "select md5((select string_agg(t::text, ';' order by id) from totals as t)) || ' ' ||
               (select md5(string_agg(concat_ws(' ', event_id, reason, blocks), ';' order by event_id)) || count(*)
                from espd.dead_letters where processor = 'totals' and partition = 0) || ' ' ||
               (select string_agg(concat_ws(' ', partition, position, handled), ';') from espd.trackers where name = 'totals')",
        )
        .await
    }

    pub(super) async fn shares(&self) -> String {
        self.fact(
            "select coalesce(string_agg(concat_ws(' ', partition, position > 0), ';' order by partition), '')
             from espd.trackers where name = 'totals$next' and partition > 0",
        )
        .await
    }
}

#[tokio::test]
async fn several_workers_make_the_tables_and_dead_letters_of_one_also_after_a_kill_in_the_middle() {
    let (fixture, daemon) = running().await;
    let expected = fixture.outcome().await;
    let mut blocker = sqlx::PgConnection::connect(&fixture.db.url).await.unwrap();
    sqlx::raw_sql("select pg_advisory_lock(88)").execute(&mut blocker).await.unwrap();
    declare(&fixture, 2, KEYED);
    let mut rebuild = Program::start(fixture.installation.espctl_command(&["rebuild", "totals", "--yes"]));
    let halfway = format!(
        "select (select count(*) = 1 from pg_locks where {waits})
           and (select count(*) = 1 from espd.trackers where name = 'totals$next' and position = {EVENTS})
           and (select count(*) = 1 from espd.trackers where name = 'totals$next' and position between 776 and 6000)",
        waits = waits_for(88)
    );
    eventually("one worker is ready, and the other one is not", async || {
        (fixture.fact(&halfway).await == "true").then_some(())
    })
    .await;
    rebuild.kill().await;
    end_waiting(&fixture, 88).await;
    sqlx::raw_sql("select pg_advisory_unlock(88)").execute(&mut blocker).await.unwrap();
    assert_eq!(fixture.shares().await, "1 t;2 t");
    assert_eq!(fixture.outcome().await, expected, "the old version serves as before");

    // Whoever goes on takes the shares as they are.
    let said = eventually("the next one goes on", async || {
        let outcome = fixture.espctl(&["rebuild", "totals", "--yes", "--workers", "1"]).await;
        (outcome.code == Some(0)).then_some(outcome.stderr)
    })
    .await;
    assert!(said.contains("2 workers handle events at once"), "{said}");
    assert_eq!(fixture.shares().await, "");
    assert_eq!(fixture.outcome().await, expected);
    assert_eq!(fixture.fact("select version from espd.trackers where name = 'totals'").await, "2");

    // From the beginning to the end by one, by two, and as a comparison.
    declare(&fixture, 3, KEYED);
    let said = fixture.espctl(&["rebuild", "totals", "--yes", "--workers", "1"]).await;
    assert!(said.code == Some(0) && !said.stderr.contains("workers"), "{said:?}");
    assert_eq!(fixture.outcome().await, expected);
    declare(&fixture, 4, KEYED);
    let said = fixture.espctl(&["rebuild", "totals", "--yes", "--workers", "3"]).await;
    assert!(said.code == Some(0) && said.stderr.contains("3 workers handle events at once"), "{said:?}");
    assert_eq!(fixture.outcome().await, expected);
    let verified = fixture.espctl(&["verify", "totals"]).await;
    assert!(verified.code == Some(0) && verified.stderr.contains("2 workers"), "{verified:?}");
    assert_eq!(
        fixture
            .fact("select count(*) from pg_proc where proname like '%share%' and proname like 'handle%'")
            .await,
        "0"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn one_worker_builds_where_the_order_of_different_aggregates_may_matter_and_says_why() {
    let (fixture, daemon) = running().await;
    let expected = fixture.outcome().await;
    for (version, more, reason) in [
        (2, String::new(), "handler 1 cannot be read"),
        (
            3,
            format!("{KEYED}\nddl = ['create unique index totals_last on totals (last_event)']"),
            "the unique index totals_last of totals is over rows of all aggregates",
        ),
    ] {
        declare(&fixture, version, &more);
        let said = fixture.espctl(&["rebuild", "totals", "--yes"]).await;
        assert!(
            said.code == Some(0)
                && said.stderr.contains("one worker handles all events, because the order of events of different aggregates may matter: ")
                && said.stderr.contains(reason),
            "{said:?}"
        );
        assert_eq!(fixture.outcome().await, expected);
    }
    // What numbers, defaults and checks see of other aggregates.
    fixture.run("create function public.places() returns bigint language sql as 'select 1::bigint'").await;
    for (version, more, reason) in [
        (4, "place bigserial", "column place of totals gets a number in the order of all events"),
        (5, "place int generated always as identity", "column place of totals gets a number"),
        (
            6,
            "place bigint default public.places()",
            "function places(), which a default or a check of totals calls",
        ),
        (7, "check (public.places() > 0)", "function places(), which a default or a check of totals calls"),
    ] {
        declare(&fixture, version, KEYED);
        let file = fixture.installation.path().join("processors/totals.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        fixture
            .installation
            .declare("totals", &text.replace("total numeric'", &format!("total numeric, {more}'")));
        let said = fixture.espctl(&["rebuild", "totals", "--yes", "--go-live", "swap"]).await;
        assert!(said.code == Some(0) && said.stderr.contains(reason), "{said:?}");
    }
    daemon.stop().await;
}

const FOLDED: &str = "insert into totals as t values (event.aggregate_id, 1, event.id, (event.body ->> 'n')::numeric) \
    on conflict (id) do update set events = t.events + 1, last_event = excluded.last_event, total = t.total + excluded.total";

#[tokio::test]
async fn several_workers_fold_their_events_and_make_the_indexes_afterwards() {
    let (fixture, daemon) = running().await;
    let declare = |version: i32| {
        fixture.installation.declare(
            "totals",
            &format!(
                "[projector]\nname = 'totals'\nversion = {version}\nddl = ['create index totals_n on totals (total)']\n\
                 [projector.tables]\ntotals = 'id uuid primary key, events bigint, last_event bigint, total numeric'\n\
                 [[projector.on]]\nevents = ['A']\nsql = \"{FOLDED}\"\n"
            ),
        );
    };
    declare(2);
    fixture.espctl(&["rebuild", "totals", "--yes", "--workers", "1"]).await.printed();
    let expected = fixture.outcome().await;
    fixture.run("do $$ begin execute format('alter database %I set track_functions = pl', current_database()); end $$").await;
    fixture.run(super::indexes::HELD_UP).await;
    let mut blocker = sqlx::PgConnection::connect(&fixture.db.url).await.unwrap();
    sqlx::raw_sql("select pg_advisory_lock(77)").execute(&mut blocker).await.unwrap();
    declare(3);
    let rebuilding = fixture.espctl(&["rebuild", "totals", "--yes"]);
    let releasing = async {
        // What functions were called, the sessions of the workers tell when they have ended.
        let folded =
            "select count(*) from pg_stat_user_functions where funcname like 'fold%share%' and calls > 0";
        eventually("both workers have folded", async || (fixture.fact(folded).await == "2").then_some(()))
            .await;
        sqlx::raw_sql("select pg_advisory_unlock(77)").execute(&mut blocker).await.unwrap();
    };
    let (said, ()) = tokio::join!(rebuilding, releasing);
    assert!(said.code == Some(0) && said.stderr.contains("2 workers handle events at once"), "{said:?}");
    assert_eq!(fixture.outcome().await, expected);
    let left = "select (select count(*) from pg_proc where proname like '%share%' and proname like 'fold%')
        || ' ' || (select count(*) from pg_indexes where schemaname = 'public' and indexname = 'totals_n')";
    assert_eq!(fixture.fact(left).await, "0 1");
    daemon.stop().await;
}
