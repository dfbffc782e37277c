//! Rows that a policy hides are an error, never an absence.

use sqlx::AssertSqlSafe;

use crate::support::facts::{append, eventually, position, reaches};
use crate::support::pooler::Pooler;
use crate::support::program::Installation;
use crate::support::{self, Database};

/// A login that owns the projections and is neither superuser nor owner of the events.
async fn login(db: &Database) -> String {
    let login = format!("least_{}", db.name);
    let make = format!(
        "create role {login} login; grant usage on schema espd to {login};
         grant select, insert, update, delete on all tables in schema espd to {login};
         grant usage, select, update on all sequences in schema espd to {login};
         grant execute on all functions in schema espd to {login};
         grant create, usage on schema espd, public to {login}"
    );
    sqlx::raw_sql(AssertSqlSafe(make)).execute(&db.pool).await.unwrap();
    login
}

fn url_of(db: &Database, login: &str) -> String {
    db.url.replace("//espd@", &format!("//{login}@")).replace("user=espd", &format!("user={login}"))
}

/// A projector that counts events in the one row of a table that has it already.
const COUNTS: &str = "[projector]\nname = 'counts'\n[projector.tables]\ncounts = 'id integer primary key, n bigint not null'\n\
                      [[projector.on]]\nevents = ['A']\nsql = '''insert into counts (id, n) values (0, 0) on conflict do nothing;\n\
                      update counts set n = n + 1 where id = 1'''\n";

/// Hides every row of a table, and waits for the daemon to say so instead of passing events over.
async fn hidden_rows_stop(db: &Database, store: &str, table: &str) {
    let installation = Installation::without_database(&format!(
        "{store}[runner]\npoll_interval_max = '50ms'\n[retry]\ninitial = '200ms'\nmax = '200ms'\n"
    ));
    installation.declare("counts", COUNTS);
    let daemon = installation.start_daemon();
    let last = append(&db.pool, 3).await;
    reaches(&db.pool, "counts", last).await;
    let (hide, show) =
        ("enable row level security; alter table {} force row level security", "disable row level security");
    let alter = async |what: &str| {
        let statement = format!("alter table {table} {}", what.replace("{}", table));
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&db.pool).await.unwrap();
    };
    alter(hide).await;
    append(&db.pool, 1).await;
    eventually(&format!("a word about the policy on {table}"), async || {
        daemon.log().into_iter().find(|line| {
            line.to_string().contains("row-level security policy")
                || line.to_string().contains("row security may hide")
                || line.to_string().contains("row level security")
                || line.to_string().contains("policies")
        })
    })
    .await;
    assert_eq!(position(&db.pool, "counts").await, last, "an event was passed over unseen");
    alter(show).await;
    let last = append(&db.pool, 1).await;
    reaches(&db.pool, "counts", last).await;
    daemon.stop().await;
}

const TABLES: [&str; 2] = ["espd.events", "public.counts"];

#[tokio::test]
async fn what_a_policy_hides_stops_a_direct_session() {
    for table in TABLES {
        let db = support::database().await;
        let login = login(&db).await;
        hidden_rows_stop(&db, &format!("[event_store]\nurl = '{}'\n", url_of(&db, &login)), table).await;
    }
}

#[tokio::test]
#[ignore = "needs pgbouncer: ./bin/test and ./.ci/run have it and run this"]
async fn what_a_policy_hides_stops_a_session_behind_a_pooler() {
    for table in TABLES {
        let db = support::database().await;
        let login = login(&db).await;
        let direct = url_of(&db, &login);
        let as_login = Database { pool: db.pool.clone(), url: direct.clone(), name: db.name.clone() };
        let pooler = Pooler::start(&as_login).await;
        let store = format!("[event_store]\nurl = '{}'\ndirect_url = '{direct}'\n", pooler.alias_url());
        hidden_rows_stop(&db, &store, table).await;
    }
}

#[tokio::test]
async fn the_tools_do_not_take_what_is_hidden_for_what_is_not_there() {
    let db = support::database().await;
    append(&db.pool, 3).await;
    let login = login(&db).await;
    let installation = Installation::new(&url_of(&db, &login), "");
    installation.declare_notes("notes", "");
    for (table, arguments) in [
        ("espd.events", &["events"][..]),
        ("espd.trackers", &["status"]),
        ("espd.dead_letters", &["dead-letters", "list"]),
    ] {
        let alter = |what: &str| AssertSqlSafe(format!("alter table {table} {what} row level security"));
        sqlx::raw_sql(alter("enable")).execute(&db.pool).await.unwrap();
        let complaint = installation.espctl(arguments).await.complained(1);
        assert!(complaint.contains("row-level security") || complaint.contains("polic"), "{complaint}");
        sqlx::raw_sql(alter("disable")).execute(&db.pool).await.unwrap();
    }
}
