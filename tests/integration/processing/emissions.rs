//! Emissions that the event store refuses, that are held, and that nobody moves: each by itself, seen, and in the hands of
//! operators.

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};

use crate::support;
use crate::support::facts::{Gate, append, append_typed, eventually, reaches};
use crate::support::program::Installation;
use crate::support::projectors::numbers;

const RUNNER: &str = "[runner]\npoll_interval_max = '50ms'\n";

/// A reactor that answers every event of type `on` with what `sql` emits.
fn reactor(name: &str, on: &str, sql: &str) -> String {
    format!(
        "[reactor]\nname = '{name}'\nemits = ['Answered']\nstart = 'beginning'\n\
         [[reactor.on]]\nevents = ['{on}']\nsql = '''{sql}'''\n"
    )
}

/// Emits an answer after a time.
fn after(time: &str) -> String {
    format!(
        "perform espd.emit_after('Answered', event.aggregate_id, jsonb_build_object('to', event.body->'n'), '{time}', \
         event.body->>'n')"
    )
}

async fn execute(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.unwrap();
}

/// Which events were answered.
async fn answered(pool: &PgPool) -> Vec<i64> {
    numbers(pool, "select (body->>'to')::bigint from espd.events where type = 'Answered' order by 1").await
}

#[tokio::test]
async fn sql_emits_later_where_the_projections_are_in_another_database() {
    // As `espctl migrate` makes them: the database of the projections has no table of events.
    let (store, projections) = (support::empty_database().await, support::empty_database().await);
    let installation =
        Installation::new(&store.url, &format!("{RUNNER}[projections]\nurl = '{}'\n", projections.url));
    installation.espctl(&["migrate"]).await.printed();
    let at = "perform espd.emit_at('Answered', event.aggregate_id, '{\"to\": 7}', now() + interval '50 ms')";
    installation.declare("later", &reactor("later", "A", &after("50 ms")));
    installation.declare("at", &reactor("at", "A", at));
    append(&store.pool, 2).await;
    let daemon = installation.start_daemon();
    let all = eventually("the answers", async || {
        let all = answered(&store.pool).await;
        (all.len() == 4).then_some(all)
    })
    .await;
    assert_eq!(all, [1, 2, 7, 7]);
    daemon.stop().await;
}

/// Makes the store refuse the second answer as `raise` says, in a trigger.
async fn refuse_second(pool: &PgPool, raise: &str) {
    execute(
        pool,
        &format!(
            "create function public.refuse() returns trigger language plpgsql as $$ begin
               if new.type = 'Answered' and new.body->>'to' = '2' then {raise}; end if; return new; end $$;
             create trigger refuse before insert on espd.events for each row execute function public.refuse()"
        ),
    )
    .await;
}

#[tokio::test]
async fn one_refused_emission_holds_up_no_other_and_is_seen() {
    let refusals = [
        ("P0001", "raise exception 'no such customer'"),
        ("40001", "raise exception 'busy' using errcode = '40001'"),
        ("42501", "raise exception 'not for you' using errcode = '42501'"),
        ("57014", "raise exception 'too slow' using errcode = '57014'"),
        ("23503", "raise exception 'no parent' using errcode = '23503'"),
    ];
    for elsewhere in [false, true] {
        let refusals = if elsewhere { &refusals[..2] } else { &refusals[..] };
        for (code, raise) in refusals {
            one_is_refused(elsewhere, code, raise).await;
        }
    }
}

async fn one_is_refused(elsewhere: bool, code: &str, raise: &str) {
    let store = support::database().await;
    let other = if elsewhere { Some(support::database().await) } else { None };
    let projections = other.as_ref().unwrap_or(&store);
    let place =
        if elsewhere { format!("[projections]\nurl = '{}'\n", projections.url) } else { String::new() };
    let installation = Installation::new(&store.url, &format!("{RUNNER}{place}"));
    let now = after("0 s");
    installation.declare("answering", &reactor("answering", "A", &now));
    installation.declare("other", &reactor("other", "B", &now));
    refuse_second(&store.pool, raise).await;
    append(&store.pool, 3).await;
    append_typed(&store.pool, "B", 1).await;
    let daemon = installation.start_daemon();
    eventually(&format!("{code}: the others"), async || {
        (answered(&store.pool).await == [1, 1, 3]).then_some(())
    })
    .await;
    let status = eventually("the refusal", async || {
        let status = installation.status("answering").await;
        (status["refused_emissions"] == 1).then_some(status)
    })
    .await;
    let advice = status["advice"].to_string();
    assert!(advice.contains("refused_emissions") && advice.contains("espctl emissions"), "{status}");
    let refused =
        installation.espctl(&["emissions", "list", "answering", "--refused", "--json"]).await.json();
    let one = &refused[0];
    assert_eq!(
        (&one["state"], &one["sqlstate"], &one["declared"]),
        (&"refused".into(), &code.into(), &true.into())
    );
    assert!(refused.as_array().unwrap().len() == 1 && one["attempts"].as_i64().unwrap() >= 1, "{refused}");

    // Who waits until nothing is left is told why that does not come.
    let late = installation.espctl(&["wait", "--all", "--idle", "--timeout", "200ms"]).await.complained(75);
    assert!(late.contains("the event store has refused 1 of its emissions"), "{late}");

    // It is moved when the reason is gone, at once if an operator wants it.
    execute(&projections.pool, "update espd.emissions set next_try_at = now() + interval '1 hour'").await;
    execute(&store.pool, "drop trigger refuse on espd.events").await;
    let said = installation.espctl(&["emissions", "retry", "answering", "--all"]).await.printed();
    assert_eq!(said, "requested a retry of 1 emission of answering\n");
    eventually("the refused one", async || (answered(&store.pool).await == [1, 1, 2, 3]).then_some(())).await;
    daemon.stop().await;
}

#[tokio::test]
async fn constraints_of_the_user_refuse_one_emission_only() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare("answering", &reactor("answering", "A", &after("0 s")));
    // One that is checked at once, and one that waits for the commit.
    execute(
        &db.pool,
        "create table public.customers (id int primary key);
         insert into public.customers values (1), (3), (4), (5);
         alter table espd.events add column customer int generated always as ((body->>'to')::int) stored
           references public.customers deferrable initially deferred;
         create unique index only_one_fourth on espd.events ((body->>'to')) where body->>'to' = '4';
         insert into espd.events (aggregate_id, type, version, body) values (gen_random_uuid(), 'X', 1, '{\"to\": 4}')",
    )
    .await;
    append(&db.pool, 5).await;
    let daemon = installation.start_daemon();
    eventually("the others", async || (answered(&db.pool).await == [1, 3, 5]).then_some(())).await;
    let codes = eventually("the refusals", async || {
        let query = "select sqlstate from espd.emissions where attempts > 0 order by 1";
        let codes: Vec<String> = sqlx::query_scalar(query).fetch_all(&db.pool).await.unwrap();
        (codes.len() == 2).then_some(codes)
    })
    .await;
    assert_eq!(codes, ["23503", "23505"]);
    daemon.stop().await;
}

#[tokio::test]
async fn a_store_that_is_away_is_waited_for_and_named() {
    let (store, projections) = (support::database().await, support::database().await);
    let installation =
        Installation::new(&store.url, &format!("{RUNNER}[projections]\nurl = '{}'\n", projections.url));
    installation.declare("answering", &reactor("answering", "A", &after("0 s")));
    // A store that takes no writes: nothing is about an emission.
    execute(&store.pool, &format!("alter database {} set default_transaction_read_only = on", store.name))
        .await;
    let mut writer = store.pool.acquire().await.unwrap();
    sqlx::query("set default_transaction_read_only = off").execute(&mut *writer).await.unwrap();
    sqlx::query(
        "insert into espd.events (aggregate_id, type, version, body) values (gen_random_uuid(), 'A', 1, '{\"n\": 1}')",
    )
    .execute(&mut *writer)
    .await
    .unwrap();
    let daemon = installation.start_daemon();
    eventually("a line of the log", async || {
        daemon.log().iter().any(|line| line["message"].to_string().contains("emissions wait")).then_some(())
    })
    .await;
    let listed = eventually("the reason", async || {
        let listed: Value = installation.espctl(&["emissions", "list", "--json"]).await.json();
        listed[0]["last_error"].as_str().is_some_and(|error| error.contains("read-only")).then_some(listed)
    })
    .await;
    assert_eq!((&listed[0]["attempts"], &listed[0]["state"]), (&0.into(), &"due".into()), "{listed}");
    execute(&projections.pool, "update espd.emissions set due_at = due_at - interval '1 hour'").await;
    let advice = installation.status("answering").await["advice"].to_string();
    assert!(advice.contains("overdue_emissions") && advice.contains("read-only"), "{advice}");
    sqlx::query(AssertSqlSafe(format!("alter database {} reset default_transaction_read_only", store.name)))
        .execute(&mut *writer)
        .await
        .unwrap();
    // Sessions that began before that still take no writes.
    eventually("the answer", async || (answered(&store.pool).await == [1]).then_some(())).await;
    daemon.stop().await;
}

#[tokio::test]
async fn what_a_reactor_that_has_stopped_holds_is_not_said_to_wait_for_anything_else() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare("answering", &reactor("answering", "A", &after("1 hour")));
    let last = append(&db.pool, 2).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "answering", last).await;
    execute(&db.pool, "delete from espd.events where id > 1; select setval('espd.events_id_seq', 1)").await;
    // The status notices it before the daemon does, which moves what is due until then.
    let recorded = "select count(*) from espd.trackers where diverged is not null";
    eventually("the divergence", async || (numbers(&db.pool, recorded).await == [1]).then_some(())).await;
    // As an outage that is over has left it.
    let due = "update espd.emissions set key = 'k' || id, due_at = now() - interval '1 hour', last_error = 'no server'";
    execute(&db.pool, due).await;
    let status = installation.status("answering").await;
    assert_eq!((&status["emission_error"], &status["emissions_overdue_since"]), (&Value::Null, &Value::Null));
    let advice = status["advice"].to_string();
    assert!(!advice.contains("overdue_emissions") && advice.contains("that have a key are held"), "{advice}");
    let listed = installation.espctl(&["emissions", "list", "--json"]).await.json();
    assert_eq!((&listed[0]["state"], &listed[0]["last_error"]), (&"held".into(), &Value::Null), "{listed}");
    // What has no key is not held: a daemon would move it.
    daemon.stop().await;
    execute(&db.pool, "update espd.emissions set key = null").await;
    let advice = installation.status("answering").await["advice"].to_string();
    assert!(advice.contains("overdue_emissions") && advice.contains("no server"), "{advice}");
}

#[tokio::test]
async fn a_pause_holds_what_a_reactor_has_emitted_for_later() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare("answering", &reactor("answering", "A", &after("1 hour")));
    installation.declare("other", &reactor("other", "B", &after("0 s")));
    let last = append(&db.pool, 2).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "answering", last).await;
    let table = installation.espctl(&["status"]).await.printed();
    assert!(table.contains("Pending emissions: answering 2 (the next in 59m"), "{table}");
    let paused = installation.espctl(&["pause", "answering"]).await.printed();
    assert!(paused.contains("2 pending emissions are held"), "{paused}");
    execute(&db.pool, "update espd.emissions set due_at = now() - interval '1 hour'").await;
    // The relay looks, and moves what others have emitted.
    append_typed(&db.pool, "B", 1).await;
    eventually("the other's", async || (answered(&db.pool).await == [1]).then_some(())).await;
    assert_eq!(
        numbers(&db.pool, "select count(*) from espd.emissions where reactor = 'answering'").await,
        [2]
    );
    let held = installation.espctl(&["emissions", "list", "--json"]).await.json();
    assert_eq!(held[0]["state"], "held", "{held}");
    let status = installation.espctl(&["status", "answering"]).await.printed();
    assert!(status.contains("2 pending emissions are held") && !status.contains("overdue"), "{status}");
    installation.espctl(&["resume", "answering"]).await.printed();
    eventually("the answers", async || (answered(&db.pool).await == [1, 1, 2]).then_some(())).await;
    daemon.stop().await;
}

/// Answers each event by one key, so that a later answer takes the place of one that waits.
const ANSWERING_BY_ONE_KEY: &str = r#"
import json, sys
json.loads(sys.stdin.readline())
print(json.dumps({"ready": 1}), flush=True)
for line in sys.stdin:
    batch = json.loads(line)
    for event in batch["events"]:
        later = {"emit": "Answered", "aggregate_id": event["aggregate_id"], "body": {"to": event["body"]["n"]}, "after": 0.05, "key": "one"}
        print(json.dumps({"done": event["id"], "actions": [later]}))
    print(json.dumps({"end": batch["batch"]}), flush=True)
"#;

#[tokio::test]
async fn what_was_replaced_before_it_was_due_is_not_emitted_when_effects_are_repeated() {
    let sql = "perform espd.emit_after('Answered', event.aggregate_id, jsonb_build_object('to', event.body->'n'), '50 ms', 'one')";
    let program = "[reactor]\nname = 'answering'\nemits = ['Answered']\nstart = 'beginning'\nevents = ['A']\n\
                   command = ['python3', 'answering.py']\n";
    for declaration in [reactor("answering", "A", sql), program.to_owned()] {
        let db = support::database().await;
        let installation = Installation::new(&db.url, RUNNER);
        installation.declare("answering", &declaration);
        std::fs::write(installation.path().join("processors/answering.py"), ANSWERING_BY_ONE_KEY).unwrap();
        let last = append(&db.pool, 3).await;
        let daemon = installation.start_daemon();
        reaches(&db.pool, "answering", last).await;
        eventually("the answer", async || (answered(&db.pool).await == [3]).then_some(())).await;
        installation
            .espctl(&["reset", "answering", "--to", "0", "--repeat-effects", "--yes"])
            .await
            .printed();
        reaches(&db.pool, "answering", last).await;
        // What waits is moved into the store in one transaction, so it is in one of the two.
        let left = "select count(*) from espd.emissions
                    union all select (body->>'to')::bigint from espd.events where type = 'Answered'";
        assert_eq!(numbers(&db.pool, left).await, [0, 3], "{declaration}");
        daemon.stop().await;
    }
}

#[tokio::test]
async fn what_is_cancelled_later_on_is_held_while_effects_are_repeated() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, &format!("{RUNNER}batch_size = 1\nisolation = 'task'\n"));
    let declaration = format!(
        "{}[[reactor.on]]\nevents = ['B']\nsql = \"perform pg_advisory_xact_lock_shared(771); perform espd.cancel('1')\"\n",
        reactor("answering", "A", &after("1 hour"))
    );
    installation.declare("answering", &declaration);
    installation.declare("other", &reactor("other", "C", &after("0 s")));
    append(&db.pool, 1).await;
    let last = append_typed(&db.pool, "B", 1).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "answering", last).await;
    let mut gate = Gate::close(&db.pool, 771).await;
    installation.espctl(&["reset", "answering", "--to", "0", "--repeat-effects", "--yes"]).await.printed();
    gate.visitor().await;
    execute(&db.pool, "update espd.emissions set due_at = now() - interval '1 hour'").await;
    // The relay looks, and moves what others have emitted.
    append_typed(&db.pool, "C", 1).await;
    eventually("the other's", async || (!answered(&db.pool).await.is_empty()).then_some(())).await;
    let held = installation.espctl(&["emissions", "list", "answering", "--json"]).await.json();
    assert!(held[0]["state"] == "held" && held[0]["key"] == "1", "{held}");
    gate.open().await;
    reaches(&db.pool, "answering", last).await;
    assert_eq!(numbers(&db.pool, "select count(*) from espd.emissions").await, [0]);
    assert_eq!(answered(&db.pool).await.len(), 1, "the other's alone");
    // And what nobody cancels is moved as ever.
    execute(&db.pool, "update espd.trackers set repeated_until = position").await;
    append(&db.pool, 1).await;
    eventually("it waits", async || {
        (numbers(&db.pool, "select count(*) from espd.emissions").await == [1]).then_some(())
    })
    .await;
    execute(&db.pool, "update espd.emissions set due_at = now() - interval '1 hour'").await;
    eventually("the answer", async || (answered(&db.pool).await.len() == 2).then_some(())).await;
    daemon.stop().await;
}

/// A reactor that answers event `n` of type A later, unless event `n` of type B has come.
fn cancelling() -> String {
    format!(
        "{}[[reactor.on]]\nevents = ['B']\nsql = \"perform pg_advisory_xact_lock_shared(772); perform espd.cancel(event.body->>'n')\"\n",
        reactor("answering", "A", &after("1 hour"))
    )
}

/// The daemon was away, or the trackers were restored, when the cancelling event came.
#[tokio::test]
async fn what_an_event_cancels_that_is_in_the_store_at_the_start_is_not_emitted() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare("answering", &cancelling());
    installation.declare("other", &reactor("other", "C", &after("0 s").replace(", event.body->>'n')", ")")));
    let daemon = installation.start_daemon();
    let last = append(&db.pool, 2).await;
    reaches(&db.pool, "answering", last).await;
    daemon.stop().await;
    append_typed(&db.pool, "B", 1).await;
    execute(&db.pool, "update espd.emissions set due_at = now() - interval '1 minute'").await;
    let mut gate = Gate::close(&db.pool, 772).await;
    let daemon = installation.start_daemon();
    gate.visitor().await;
    // The relay moves what is of others, and what has no key.
    append_typed(&db.pool, "C", 1).await;
    eventually("the other's", async || (!answered(&db.pool).await.is_empty()).then_some(())).await;
    assert_eq!(answered(&db.pool).await.len(), 1);
    gate.open().await;
    // What nobody cancels comes once the reactor has caught up.
    eventually("the second", async || (answered(&db.pool).await.len() == 2).then_some(())).await;
    let second = "select count(*) from espd.events where type = 'Answered' and body->>'to' = '2'";
    assert_eq!(numbers(&db.pool, second).await, [1]);
    daemon.stop().await;
}

/// Nothing cancels what a reactor has emitted for later while it has stopped.
#[tokio::test]
async fn a_reactor_that_has_stopped_holds_what_may_still_be_cancelled() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    let declare = |sql: &str| {
        let more = format!(
            "[reactor.retry]\nmax_attempts = 1\non_failure = 'stop'\n[[reactor.on]]\nevents = ['B']\nsql = \"{sql}\"\n"
        );
        installation.declare("answering", &(reactor("answering", "A", &after("1 hour")) + &more));
    };
    declare("raise 'no'");
    let daemon = installation.start_daemon();
    let last = append(&db.pool, 1).await;
    reaches(&db.pool, "answering", last).await;
    append_typed(&db.pool, "B", 1).await;
    eventually("it stops", async || {
        (installation.status("answering").await["state"] == "failed").then_some(())
    })
    .await;
    execute(&db.pool, "update espd.emissions set due_at = now() - interval '1 minute'").await;
    let held = installation.espctl(&["emissions", "list", "answering", "--json"]).await.json();
    assert_eq!(held[0]["state"], "held", "{held}");
    declare("perform espd.cancel(event.body->>'n')");
    installation.espctl(&["reload"]).await.printed();
    installation.espctl(&["retry", "answering"]).await;
    reaches(&db.pool, "answering", last + 1).await;
    eventually("it is cancelled", async || {
        (numbers(&db.pool, "select count(*) from espd.emissions").await == [0]).then_some(())
    })
    .await;
    assert!(answered(&db.pool).await.is_empty());
    daemon.stop().await;
}

#[tokio::test]
async fn emissions_are_listed_and_cancelled_also_of_reactors_that_are_not_declared() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare("answering", &reactor("answering", "A", &after("1 hour")));
    let never = "perform espd.emit_at('Answered', event.aggregate_id, '{}', 'infinity')";
    installation.declare("gone", &reactor("gone", "A", never));
    let last = append(&db.pool, 3).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "answering", last).await;
    reaches(&db.pool, "gone", last).await;
    daemon.stop().await;
    std::fs::remove_file(installation.path().join("processors/gone.toml")).unwrap();
    execute(&db.pool, "delete from espd.trackers where name = 'gone'").await;

    let all = installation.espctl(&["emissions", "list", "--json"]).await.json();
    let declared: Vec<bool> =
        all.as_array().unwrap().iter().map(|one| one["declared"].as_bool().unwrap()).collect();
    assert_eq!(declared, [true, true, true, false, false, false]);
    let table = installation.espctl(&["emissions"]).await.printed();
    assert!(
        table.contains("later, not declared") && table.contains("espctl emissions cancel gone --all"),
        "{table}"
    );
    let doctor = installation.espctl(&["doctor"]).await.stdout;
    assert!(doctor.contains("3 emissions of gone are pending"), "{doctor}");

    let refused = installation.espctl(&["emissions", "cancel", "gone", "--all"]).await.complained(1);
    assert!(refused.contains("--yes"), "{refused}");
    let done = installation.espctl(&["emissions", "cancel", "gone", "--all", "--yes"]).await.printed();
    assert_eq!(done, "cancelled 3 emissions of gone\n");
    let done =
        installation.espctl(&["emissions", "cancel", "answering", "--key", "2", "--yes"]).await.printed();
    assert_eq!(done, "cancelled 1 emission of answering\n");
    assert_eq!(numbers(&db.pool, "select key::bigint from espd.emissions order by 1").await, [1, 3]);
    let log: Vec<(String, String)> =
        sqlx::query_as("select action, processor from espd.operator_log order by id")
            .fetch_all(&db.pool)
            .await
            .unwrap();
    let entry = |name: &str| ("cancel_emissions".to_owned(), name.to_owned());
    assert_eq!(log, [entry("gone"), entry("answering")]);
    let unknown = installation.espctl(&["emissions", "list", "nobody"]).await.complained(1);
    assert!(unknown.contains("no processor nobody"), "{unknown}");
}
