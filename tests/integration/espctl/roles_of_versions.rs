//! Versions that are built and put in service by roles with few rights, beside what belongs to others.

use sqlx::{AssertSqlSafe, PgPool};

use super::roles::Roles;
use crate::support::facts::{append, reaches};
use crate::support::program::Installation;

async fn execute(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.unwrap();
}

fn declare(installation: &Installation, version: i32) {
    let more = if version == 1 { "" } else { ", note text" };
    let text = format!(
        "[projector]\nname = 'seen'\nversion = {version}\n[projector.tables]\nseen = 'id bigint primary key{more}'\n\
         [[projector.on]]\nevents = ['A']\nsql = 'insert into seen (id) values (event.id)'\n"
    );
    installation.declare("seen", &text);
}

/// A daemon's role, whose projector has handled two events; no daemon runs.
async fn handled() -> (Roles, Installation) {
    let roles = Roles::create().await;
    let (daemon, _) = roles.login("espd_daemon").await;
    declare(&daemon, 1);
    let running = daemon.start_daemon();
    append(&roles.db.pool, 2).await;
    reaches(&roles.db.pool, "seen", 2).await;
    running.stop().await;
    (roles, daemon)
}

#[tokio::test]
async fn a_view_in_a_schema_that_the_daemon_may_not_use_is_named_with_the_grant() {
    let (roles, daemon) = handled().await;
    let app = format!("app_{}", roles.db.name);
    let make = format!(
        "create role {app}; create schema app authorization {app}; grant usage on schema views to {app};
         grant select on views.seen to {app}; create view app.rich as select id from views.seen; alter view app.rich owner to {app}"
    );
    execute(&roles.db.pool, &make).await;
    declare(&daemon, 2);
    let shown = daemon.espctl(&["rebuild", "seen", "--dry-run"]).await;
    let told = format!(
        "view app.rich belongs to {app}, and only its owner can drop it and make it again: `grant {app} to espd_daemon`"
    );
    assert!(shown.stderr.contains(&told), "{shown:?}");
    assert!(shown.stdout.contains("seen"), "{shown:?}");
    shown.printed();
    let refused = daemon.espctl(&["rebuild", "seen", "--go-live", "swap", "--yes"]).await.complained(1);
    assert!(refused.contains(&told), "{refused}");
    execute(&roles.db.pool, &format!("grant {app} to espd_daemon")).await;
    daemon.espctl(&["rebuild", "seen", "--go-live", "swap", "--yes"]).await.printed();
    let owner: String = sqlx::query_scalar(
        "select pg_get_userbyid(relowner)::text from pg_class where oid = 'app.rich'::regclass",
    )
    .fetch_one(&roles.db.pool)
    .await
    .unwrap();
    assert_eq!(owner, app);
}

#[tokio::test]
async fn what_another_member_of_the_daemons_role_puts_in_service_belongs_to_that_role() {
    let (roles, daemon) = handled().await;
    let login = format!("login_other_{}", roles.db.name);
    execute(&roles.db.pool, &format!("create role {login} login in role espd_daemon")).await;
    let url = roles
        .db
        .url
        .replace("//espd@", &format!("//{login}@"))
        .replace("user=espd", &format!("user={login}"));
    let other = Installation::new(&url, "[projections]\nschema = 'views'\n");
    for installation in [&daemon, &other] {
        declare(installation, 2);
    }
    other.espctl(&["rebuild", "seen", "--go-live", "swap", "--yes"]).await.printed();
    append(&roles.db.pool, 1).await;
    daemon.espctl(&["rollback", "seen", "--yes"]).await.printed();
    daemon.espctl(&["rollback", "seen", "--yes"]).await.printed();

    // One that was archived by an espd of before.
    execute(&roles.db.pool, &format!("alter schema views_seen_v1 owner to {login}")).await;
    let refused = daemon.espctl(&["rollback", "seen", "--yes"]).await.complained(1);
    let told = format!(
        "schema views_seen_v1 belongs to {login}, and espd_daemon is no member of that role: `alter schema views_seen_v1 owner to espd_daemon`"
    );
    assert!(refused.contains(&told), "{refused}");
    execute(&roles.db.pool, "alter schema views_seen_v1 owner to espd_daemon").await;
    daemon.espctl(&["rollback", "seen", "--yes"]).await.printed();
}
