//! Operators act through functions that log: no act is left out of the log, whatever program the operator uses.

use sqlx::{AssertSqlSafe, PgPool};

use super::roles::{Roles, may_not};
use crate::support;
use crate::support::facts::{append, eventually, reaches};
use crate::support::program::{Installation, Program};

const REMINDERS: &str = "[reactor]\nname = 'reminders'\nstart = 'beginning'\nemits = ['Reminded']\n\
     [[reactor.on]]\nevents = ['A']\nsql = \"perform espd.emit_after('Reminded', event.aggregate_id, '{}', '1 hour')\"\n";

/// A projector that sets the events aside that have no `n` above 2, and one that stops at the first of them.
fn declare(installation: &Installation) {
    for (name, policy) in [("notes", "skip"), ("stopping", "stop")] {
        installation.declare(
            name,
            &format!(
                "[projector]\nname = '{name}'\n[projector.retry]\nmax_attempts = 1\non_failure = '{policy}'\n\
                 [projector.tables]\n{name} = 'event_id bigint'\n[[projector.on]]\nevents = ['A']\n\
                 sql = \"if (event.body->>'n')::int < 3 then raise 'no'; end if; insert into {name} values (event.id)\"\n"
            ),
        );
    }
    installation.declare("reminders", REMINDERS);
}

/// A database with the roles, and a daemon that has handled five events as a member of `espd_daemon`.
async fn running() -> (Roles, Installation, Program) {
    let roles = Roles::create().await;
    let (installation, _) = roles.login("espd_daemon").await;
    declare(&installation);
    append(&roles.db.pool, 5).await;
    let daemon = installation.start_daemon();
    reaches(&roles.db.pool, "notes", 5).await;
    reaches(&roles.db.pool, "reminders", 5).await;
    eventually("a failure", async || {
        (installation.status("stopping").await["state"] == "failed").then_some(())
    })
    .await;
    (roles, installation, daemon)
}

/// The acts in the log, in order. Each has to name the login that did it.
async fn acts(pool: &PgPool, login: &str) -> Vec<String> {
    let query = "select action, login from espd.operator_log order by id";
    let rows: Vec<(String, Option<String>)> = sqlx::query_as(query).fetch_all(pool).await.unwrap();
    assert!(rows.iter().all(|(_, by)| by.as_deref() == Some(login)), "{login}: {rows:?}");
    rows.into_iter().map(|(action, _)| action).collect()
}

/// What the role may change in espd's schema by itself.
async fn may_change(pool: &PgPool, role: &str) -> Vec<String> {
    let query = format!(
        "select c.relname || ' ' || p.word
         from pg_class as c, unnest(array['insert', 'update', 'delete', 'truncate']) as p (word)
         where c.relnamespace = 'espd'::regnamespace and c.relkind in ('r', 'p')
           and (has_table_privilege('{role}', c.oid, p.word)
                or (p.word in ('insert', 'update') and has_any_column_privilege('{role}', c.oid, p.word)))
         order by 1"
    );
    sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(pool).await.unwrap()
}

#[tokio::test]
async fn an_operator_acts_through_functions_that_log_and_changes_nothing_by_himself() {
    let (roles, _installation, daemon) = running().await;
    let pool = &roles.db.pool;
    assert_eq!(may_change(pool, "espd_operator").await, Vec::<String>::new());
    let (operator, connection) = roles.login("espd_operator").await;
    declare(&operator);
    let login = format!("login_espd_operator_{}", roles.db.name);

    for arguments in [
        &["pause", "notes"][..],
        &["resume", "notes"],
        &["reset", "reminders", "--to", "3", "--yes"],
        &["dead-letters", "skip", "stopping", "--yes"],
        &["dead-letters", "park", "stopping", "--event", "2", "--yes"],
        &["retry", "stopping"],
        &["resume", "stopping"],
        &["dead-letters", "discard", "notes", "1", "--yes"],
        &["emissions", "cancel", "reminders", "1", "--yes"],
        &["reload"],
    ] {
        // There may be nothing to resume or retry any more: then nothing is done and nothing is logged.
        operator.espctl(arguments).await.printed();
    }
    reaches(pool, "stopping", 5).await;
    let again = operator.espctl(&["dead-letters", "retry", "notes", "2"]).await.complained(1);
    assert!(again.contains("1 failed again"), "{again}");
    sqlx::raw_sql(
        "update espd.emissions set attempts = 1, next_try_at = now() + interval '1 day' where id = 2",
    )
    .execute(pool)
    .await
    .unwrap();
    operator.espctl(&["emissions", "retry", "reminders", "2"]).await.printed();
    // The events are other ones now.
    operator.espctl(&["pause", "notes"]).await.printed();
    sqlx::raw_sql("update espd.events set uuid = gen_random_uuid()").execute(pool).await.unwrap();
    let said = operator.espctl(&["resume", "notes", "--accept-history"]).await.printed();
    assert!(said.contains("accepts the event store as it is"), "{said}");

    let acts = acts(pool, &login).await;
    let required = [
        "pause",
        "resume",
        "reset",
        "skip_event",
        "park_event",
        "discard_dead_letters",
        "cancel_emissions",
        "reload",
        "retry_dead_letters",
        "retry_emissions",
        "accept_history",
    ];
    for act in required {
        assert!(acts.iter().any(|done| done == act), "{act}: {acts:?}");
    }
    let one = "select detail ->> 'last_common' from espd.operator_log where action = 'accept_history'";
    let common: Option<String> = sqlx::query_scalar(one).fetch_one(pool).await.unwrap();
    assert!(common.is_some());

    may_not(
        &connection,
        &[
            "update espd.trackers set paused_at = now()",
            "update espd.trackers set position = 1",
            "delete from espd.trackers",
            "insert into espd.operator_log (operator, action, processor, partition, from_position, to_position)
             values ('x', 'pause', 'notes', 0, 0, 0)",
            "update espd.operator_log set operator = 'x'",
            "delete from espd.operator_log",
            "update espd.dead_letters set retry_requested_at = now()",
            "delete from espd.dead_letters",
            "insert into espd.dead_letters default values",
            "delete from espd.emissions",
            "update espd.emissions set due_at = now()",
            "delete from espd.deliveries",
            "delete from espd.witnesses",
            "insert into espd.reload_requests (owner, operator) values (gen_random_uuid(), 'x')",
            // What makes tables anew, or removes them, is the daemon's.
            "select espd.rebuild_processor('x', 'notes', 1, 0, 0, 2, false, null, null, null, null)",
            "select espd.drop_processor('x', 'notes', 1, 0)",
            "select espd.rename_processor('x', 'notes', 1, 0, 'memos')",
            // The functions behind the functions work with the rights of who calls them.
            "select espd.log_act('x', 'pause', 'notes', 0, 0, 0)",
            "select espd.reset_tracker('x', 'notes', 1, 0, 0, null, false, null, null, null, null)",
            "select espd.change_emissions('x', 'cancel_emissions', 'reminders', null, null, null, false)",
        ],
    )
    .await;
    daemon.stop().await;
}

#[tokio::test]
async fn readers_and_appenders_act_not_at_all() {
    let roles = Roles::create().await;
    for role in ["espd_reader", "espd_appender"] {
        let (_, pool) = roles.login(role).await;
        may_not(
            &pool,
            &[
                "select espd.pause_processor('x', 'notes', 1, 0)",
                "select espd.resume_processor('x', 'notes', 1, 0)",
                "select espd.retry_processor('x', 'notes', 1, 0)",
                "select espd.accept_history('x', 'notes', 1, 0, null, null, null, null)",
                "select espd.reset_processor('x', 'notes', 1, 0, 0, false, null, null, null, null)",
                "select espd.retry_dead_letters('x', 'notes', '{}', '{}', '{}')",
                "select espd.discard_dead_letters('x', 'notes', '{}', '{}', '{}')",
                "select espd.cancel_emissions('x', 'reminders')",
                "select espd.retry_emissions('x', 'reminders')",
                "select espd.request_reload('x', '{}')",
                "select espd.drop_processor('x', 'notes', 1, 0)",
            ],
        )
        .await;
    }
}

/// Roles that were made when an operator could still write the tables.
#[tokio::test]
async fn rights_that_an_operator_had_are_taken_back() {
    let roles = Roles::create().await;
    let before = "grant update on espd.trackers to espd_operator;
         grant insert on espd.operator_log to espd_operator, espd_daemon;
         grant update, delete on espd.dead_letters to espd_operator;
         grant insert on espd.reload_requests to espd_operator;
         grant delete on espd.deliveries to espd_operator;
         grant insert, update, delete on espd.witnesses to espd_operator";
    sqlx::raw_sql(before).execute(&roles.db.pool).await.unwrap();
    roles.apply().await;
    assert_eq!(may_change(&roles.db.pool, "espd_operator").await, Vec::<String>::new());
    // A daemon records that a version was built and is live: under its own login, and at no other time.
    let daemons = may_change(&roles.db.pool, "espd_daemon").await;
    let of_the_log = daemons.iter().filter(|right| right.starts_with("operator_log"));
    assert_eq!(of_the_log.collect::<Vec<_>>(), ["operator_log insert"], "{daemons:?}");
    for column in ["id", "at", "login"] {
        let may_write: bool = sqlx::query_scalar(
            "select has_column_privilege('espd_daemon', 'espd.operator_log', $1, 'insert')",
        )
        .bind(column)
        .fetch_one(&roles.db.pool)
        .await
        .unwrap();
        assert!(!may_write, "{column}");
    }
}

#[tokio::test]
async fn a_login_of_the_daemons_role_drops_and_renames_and_it_is_logged() {
    let (roles, installation, daemon) = running().await;
    let pool = &roles.db.pool;
    let owned = installation.espctl(&["drop", "notes", "--yes"]).await.complained(1);
    assert!(owned.contains("is run by"), "{owned}");
    daemon.stop().await;
    let said = installation.espctl(&["drop", "reminders", "--yes"]).await.printed();
    assert!(said.contains("5 pending emissions"), "{said}");
    installation.espctl(&["drop", "notes", "--yes"]).await.printed();
    installation.espctl(&["rename", "stopping", "standing", "--yes"]).await.printed();
    let login = format!("login_espd_daemon_{}", roles.db.name);
    assert_eq!(acts(pool, &login).await, ["drop", "drop", "rename"]);
    let left = "select (select count(*) from espd.trackers where name <> 'standing')
         + (select count(*) from espd.dead_letters) + (select count(*) from espd.emissions)
         + (select count(*) from pg_class where relname = 'notes' and relkind = 'r')";
    let left: i64 = sqlx::query_scalar(left).fetch_one(pool).await.unwrap();
    assert_eq!(left, 0);
}

const RUNNER: &str = "[runner]\npoll_interval_max = '50ms'\n";

#[tokio::test]
async fn what_is_not_there_is_an_error_that_names_it() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare("reminders", REMINDERS);
    append(&db.pool, 2).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "reminders", 2).await;
    daemon.stop().await;
    for verb in ["cancel", "retry"] {
        let complaint = installation.espctl(&["emissions", verb, "reminders", "4711"]).await.complained(1);
        assert!(complaint.contains("reminders has no pending emission 4711"), "{complaint}");
    }
    // One that is there and was not refused is left alone.
    let said = installation.espctl(&["emissions", "retry", "reminders", "1"]).await.printed();
    assert!(said.contains("nothing was done"), "{said}");
    installation.espctl(&["emissions", "cancel", "reminders", "1", "--yes"]).await.printed();

    // A question is asked only about what can be done.
    for (old, new, told) in [
        ("nobody", "somebody", "no processor nobody"),
        ("reminders", "No Name", "no name of a processor"),
        ("reminders", "replies", "emit again"),
    ] {
        let complaint = installation.espctl(&["rename", old, new]).await.complained(1);
        assert!(complaint.contains(told) && !complaint.contains("Continue?"), "{complaint}");
    }
    let refused = installation.espctl(&["rename", "reminders", "replies", "--yes"]).await.complained(1);
    for part in ["start = 2", "espctl drop reminders", "1 pending emission"] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
}
