//! `espctl explain`: which path batches take, and why; and a daemon that takes it.

use sqlx::AssertSqlSafe;

use crate::support;
use crate::support::facts::reaches;
use crate::support::program::Installation;

fn projector(name: &str, keys: &str) -> String {
    format!(
        "[projector]\nname = '{name}'\n{keys}\n[projector.tables]\n{name} = 'id bigint primary key, n bigint not null, at timestamptz'\n\
         [[projector.on]]\nevents = ['A']\nsql = \"insert into {name} (id, n) values (event.id, (event.body->>'n')::bigint)\"\n\
         [[projector.on]]\nevents = ['B']\nsql = 'update {name} set at = now() where id = event.id'\n"
    )
}

/// Appends events of a type, with numbers from 1; one of them cannot be read.
async fn append(pool: &sqlx::PgPool, poison: i64) -> i64 {
    let statement = format!(
        "with new as (
           insert into espd.events (aggregate_id, type, version, body)
           select gen_random_uuid(), 'A', 1,
             jsonb_build_object('n', case n when {poison} then 'poison' else n::text end) from generate_series(1, 400) as n
           returning id)
         select max(id) from new"
    );
    sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(pool).await.unwrap()
}

async fn count(pool: &sqlx::PgPool, what: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(format!("select count(*) from {what}"))).fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn each_handler_has_a_path_and_a_reason_and_the_daemon_follows_it() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    installation.declare("fast", &projector("fast", "retry = { on_failure = 'skip', max_attempts = 1 }"));
    installation.declare(
        "slow",
        &projector("slow", "fold = false\nretry = { on_failure = 'skip', max_attempts = 1 }"),
    );
    let text = installation.espctl(&["explain", "fast"]).await.printed();
    assert!(text.contains("loop: fast does not exist yet"), "{text}");

    let daemon = installation.start_daemon();
    let last = append(&db.pool, 77).await;
    reaches(&db.pool, "fast", last).await;
    reaches(&db.pool, "slow", last).await;
    // The event that fails is set aside, and found out by the loop.
    assert_eq!(count(&db.pool, "espd.dead_letters where processor in ('fast', 'slow')").await, 2);
    let same = "((table fast except table slow) union all (table slow except table fast)) as differing";
    assert_eq!((count(&db.pool, "fast").await, count(&db.pool, same).await), (399, 0));

    let text = installation.espctl(&["explain", "fast"]).await.printed();
    assert!(
        text.contains("fast  projector, batches are folded that meet no handler with a reason\n  A  ("),
        "{text}"
    );
    assert!(
        text.contains(")\n    fold\n  B  (") && text.contains("    loop: now() is not immutable"),
        "{text}"
    );
    let text = installation.espctl(&["explain", "slow"]).await.printed();
    assert!(text.contains("slow  projector, its batches are handled event by event\n"), "{text}");
    assert!(text.contains("loop: fold = false is declared"), "{text}");

    // A trigger that is made while the daemon runs sees every event.
    sqlx::raw_sql(
        "create table public.audit (id bigint);
         create function public.audit() returns trigger language plpgsql as
           $$ begin insert into public.audit values (new.id); return new; end $$;
         create trigger audit before insert on fast for each row execute function public.audit()",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let last = append(&db.pool, 0).await;
    reaches(&db.pool, "fast", last).await;
    let failures: Vec<String> =
        sqlx::query_scalar("select d::text from espd.dead_letters as d").fetch_all(&db.pool).await.unwrap();
    assert_eq!(failures.len(), 2, "{}", failures.last().unwrap());
    assert_eq!((count(&db.pool, "public.audit").await, count(&db.pool, "fast").await), (400, 799));
    let json = installation.espctl(&["explain", "--json"]).await.json();
    let fast = json.as_array().unwrap().iter().find(|one| one["name"] == "fast").unwrap();
    assert_eq!(
        (&fast["handlers"][0]["path"], &fast["handlers"][0]["reason"]),
        (&"loop".into(), &"trigger audit on fast".into())
    );
    assert!(fast["handlers"][0]["line"].as_i64() > Some(1), "{fast}");
    let unknown = installation.espctl(&["explain", "nobody"]).await;
    assert!(unknown.code != Some(0) && unknown.stderr.contains("nobody is not declared"), "{unknown:?}");
    daemon.stop().await;
}
