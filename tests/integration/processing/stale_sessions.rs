//! Errors that a session or a plan is to blame for, and no event.

use serde_json::json;

use crate::support;
use crate::support::facts::{append, assert_exactly_once, eventually, reaches};
use crate::support::program::Installation;
use crate::support::receiver::{Receiver, Reply};

const RUNNER: &str = "[runner]\npoll_interval_max = '50ms'\n[retry]\ninitial = '50ms'\nmax = '100ms'\n";

async fn dead_letters(db: &support::Database) -> Vec<(i64, String)> {
    let query = "select event_id, failure->>'sqlstate' from espd.dead_letters order by event_id";
    sqlx::query_as(query).fetch_all(&db.pool).await.unwrap()
}

#[tokio::test]
async fn a_column_whose_type_changes_makes_no_good_event_a_dead_letter() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    let versions = "if event.version < 0 then raise 'never'; end if;";
    installation.declare_notes("skipping", versions).declare_notes("retrying", versions);
    let skip = "[projector.retry]\nmax_attempts = 1\non_failure = 'skip'\n";
    let file = installation.path().join("processors/skipping.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("[projector.tables]", &format!("{skip}[projector.tables]"), 1))
        .unwrap();
    let daemon = installation.start_daemon();
    let last = append(&db.pool, 12).await;
    for name in ["skipping", "retrying"] {
        reaches(&db.pool, name, last).await;
    }
    sqlx::query("alter table espd.events alter version type int").execute(&db.pool).await.unwrap();
    let last = append(&db.pool, 12).await;
    // The store is refused with the reason until it is repaired.
    eventually("the reason", async || {
        let said = installation.status("skipping").await.to_string();
        said.contains("column version should be bigint").then_some(())
    })
    .await;
    sqlx::query("alter table espd.events alter version type bigint").execute(&db.pool).await.unwrap();
    for name in ["skipping", "retrying"] {
        reaches(&db.pool, name, last).await;
        assert_exactly_once(&db.pool, &db.pool, name).await;
    }
    assert_eq!(dead_letters(&db).await, []);
    daemon.stop().await;
}

/// On a new session as well: the handler is to blame, and the policy applies.
#[tokio::test]
async fn an_error_that_comes_again_on_a_new_session_counts() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    let wrong = "if event.body->>'n' = '2' then raise datatype_mismatch; end if;";
    installation.declare_notes("notes", wrong);
    let skip = "[projector.retry]\nmax_attempts = 2\non_failure = 'skip'\n";
    let file = installation.path().join("processors/notes.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("[projector.tables]", &format!("{skip}[projector.tables]"), 1))
        .unwrap();
    let daemon = installation.start_daemon();
    let last = append(&db.pool, 3).await;
    reaches(&db.pool, "notes", last).await;
    assert_eq!(dead_letters(&db).await, [(2, "42804".to_owned())]);
    let attempts: i32 =
        sqlx::query_scalar("select attempts from espd.dead_letters").fetch_one(&db.pool).await.unwrap();
    assert_eq!(attempts, 2);
    eventually("the note", async || {
        Some(daemon.logged("tries again on a new session: this one, or a plan in it, may be the reason"))
            .filter(|lines| !lines.is_empty())
    })
    .await;
    daemon.stop().await;
}

/// The function of a trigger keeps plans in the session that emits.
#[tokio::test]
async fn an_answer_that_an_old_session_cannot_emit_makes_no_event_a_dead_letter() {
    let db = support::database().await;
    let trigger = "create table public.rates (rate bigint); insert into public.rates values (1);
                   create function guard() returns trigger language plpgsql as
                   $$ declare found record; begin
                     select * into found from public.rates;
                     if found.rate < 0 then raise 'never'; end if;
                     return new;
                   end $$;
                   create trigger guard before insert on espd.events for each row execute function guard()";
    sqlx::raw_sql(trigger).execute(&db.pool).await.unwrap();
    let receiver = Receiver::start(|request| {
        let emission = json!({ "type": "Answered", "aggregate_id": request.aggregate(), "body": {} });
        Reply::json(&json!({ "emit": [emission] }))
    })
    .await;
    let installation = Installation::new(&db.url, RUNNER);
    let hook = format!(
        "[reactor]\nname = 'hook'\nstart = 'beginning'\nevents = ['A']\nemits = ['Answered']\n\
         [reactor.retry]\nmax_attempts = 1\non_failure = 'skip'\n\
         [reactor.webhook]\nurl = '{}'\nallow_private = true\n",
        receiver.url()
    );
    installation.declare("hook", &hook);
    let daemon = installation.start_daemon();
    let last = append(&db.pool, 3).await;
    reaches(&db.pool, "hook", last).await;
    sqlx::query("alter table public.rates alter rate type int").execute(&db.pool).await.unwrap();
    let others = sqlx::PgPool::connect(&db.url).await.unwrap();
    let last = append(&others, 3).await;
    reaches(&db.pool, "hook", last).await;
    assert_eq!(dead_letters(&db).await, []);
    let answers = sqlx::query_scalar::<_, i64>("select count(*) from espd.events where type = 'Answered'");
    assert_eq!(answers.fetch_one(&db.pool).await.unwrap(), 6);
    assert_eq!(receiver.received().len(), 6, "what was answered is not sent again");
    daemon.stop().await;
}
