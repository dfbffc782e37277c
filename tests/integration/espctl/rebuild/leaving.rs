//! What others have made on tables and columns that a version does not have any more, and on views that are not the daemon's.

use super::*;
use crate::espctl::roles::Roles;

/// Two tables, then one with a column less.
const BEFORE: &str = "[projector]\nname = 'orders'\n[projector.tables]\n\
    orders = 'id bigint primary key, n bigint, tenant text'\nlines = 'id bigint primary key, n bigint'\n\
    [[projector.on]]\nevents = ['A']\n\
    sql = \"insert into orders values (event.id, 1, 'a'); insert into lines values (event.id, 2)\"\n";
const AFTER: &str = "[projector]\nname = 'orders'\nversion = 2\n[projector.tables]\n\
    orders = 'id bigint primary key, tenant text'\n\
    [[projector.on]]\nevents = ['A']\nsql = \"insert into orders values (event.id, 'a')\"\n";

/// What others have made on the table and the column that go, in whatever schema they are.
async fn additions(fixture: &Fixture, schema: &str) -> String {
    fixture
        .fact(&format!(
            "select concat_ws(' ', has_table_privilege('leaving_{0}', '{schema}.lines', 'select'),
               obj_description('{schema}.lines'::regclass), (select relrowsecurity from pg_class where oid = '{schema}.lines'::regclass),
               (select string_agg(polname, ',') from pg_policy where polrelid = '{schema}.lines'::regclass),
               has_column_privilege('leaving_{0}', '{schema}.orders', 'n', 'select'),
               col_description('{schema}.orders'::regclass, 2))",
            fixture.db.name
        ))
        .await
}

#[tokio::test]
async fn tables_and_columns_that_go_take_with_them_what_others_have_made_on_them_and_bring_it_back() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.installation.declare("orders", BEFORE);
    fixture.espctl(&["reset", "orders", "--in-place", "--yes"]).await.printed();
    fixture.espctl(&["reload"]).await.printed();
    reaches(&fixture.db.pool, "orders", 5).await;
    let role = format!("leaving_{}", fixture.db.name);
    fixture
        .run(&format!(
            "create role {role}; grant select on public.lines to {role}; grant select (n) on public.orders to {role};
             grant select (tenant) on public.orders to {role}; comment on table public.lines is 'theirs';
             comment on column public.orders.n is 'also theirs'; alter table public.lines enable row level security;
             create policy p on public.lines for select to {role} using (n > 0)"
        ))
        .await;
    let before = additions(&fixture, "public").await;
    assert_eq!(before, "t theirs t p t also theirs");
    fixture.installation.declare("orders", AFTER);
    let shown = fixture.espctl(&["rebuild", "orders", "--dry-run"]).await;
    assert!(!shown.stderr.contains("cannot be exchanged"), "{shown:?}");
    fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    assert_eq!(fixture.fact("select to_regclass('public.lines') is null").await, "true");
    assert_eq!(additions(&fixture, "public_orders_v1").await, before, "it stays with the former tables");
    let kept = format!("select has_column_privilege('{role}', 'public.orders', 'tenant', 'select')");
    assert_eq!(fixture.fact(&kept).await, "true");
    fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    assert_eq!(additions(&fixture, "public").await, before);
    fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    assert_eq!(additions(&fixture, "public").await, before);

    // What is no part of the table would be lost, and is named before anything is built.
    fixture.run("create view public.seen as select o.tenant, l.n from public.orders o join public.lines l using (id)").await;
    let refused = fixture.espctl(&["rebuild", "orders", "--go-live", "swap"]).await.complained(1);
    assert!(
        refused.contains("view public.seen reads lines, which the new version does not have"),
        "{refused}"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn a_view_that_belongs_to_another_role_is_named_with_what_to_grant() {
    let roles = Roles::create().await;
    let (installation, login) = roles.login("espd_daemon").await;
    let fixture = Fixture { db: roles.db, installation };
    let app = format!("app_{}", fixture.db.name);
    fixture.run(&format!("grant create on database {} to espd_daemon", fixture.db.name)).await;
    fixture.declare(1, FIRST);
    append(&fixture.db.pool, 5).await;
    let daemon = fixture.installation.start_daemon();
    reaches(&fixture.db.pool, "orders", 5).await;
    fixture
        .run(&format!(
            "create role {app}; grant usage on schema views to {app}; grant select on views.orders to {app};
             create view views.seen as select n from views.orders; alter view views.seen owner to {app}"
        ))
        .await;
    fixture.declare(2, WIDER);
    let refused = fixture.espctl(&["rebuild", "orders", "--go-live", "swap"]).await.complained(1);
    assert!(refused.contains(&format!("view views.seen belongs to {app}")), "{refused}");
    assert!(refused.contains(&format!("`grant {app} to espd_daemon`")), "{refused}");
    assert!(refused.contains(&format!("`grant create on schema views to {app}`")), "{refused}");
    assert!(!refused.contains(" at line "), "{refused}");
    fixture.run(&format!("grant {app} to espd_daemon; grant create on schema views to {app}")).await;
    fixture.espctl(&["rebuild", "orders", "--yes", "--go-live", "swap"]).await.printed();
    let owner = "select viewowner from pg_views where viewname = 'seen'";
    assert_eq!(fixture.fact(owner).await, app);
    login.close().await;
    daemon.stop().await;
}
