//! What others change between the look at the tables and the lock on them.

use super::*;

/// Has a swap wait for an advisory lock after it has looked at what is on the tables, and before it locks them.
const HOLD: &str = "
    create function hold() returns event_trigger language plpgsql as $$ begin
      perform set_config('lock_timeout', '0', true), pg_advisory_xact_lock_shared(4712);
    end $$;
    create event trigger hold on ddl_command_end when tag in ('DROP FUNCTION') execute function hold()";

#[tokio::test]
async fn what_others_make_after_a_swap_has_looked_is_on_the_new_tables_as_well() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.run(HOLD).await;
    fixture.declare(2, WIDER);
    fixture.espctl(&["reload"]).await.printed();
    let mut holder = sqlx::PgConnection::connect(&fixture.db.url).await.unwrap();
    sqlx::raw_sql("select pg_advisory_lock(4712)").execute(&mut holder).await.unwrap();
    let mut rebuild = Program::start(fixture.installation.espctl_command(&["rebuild", "orders", "--yes"]));
    let waits = "select count(*) > 0 from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock' and query like '%-- drop_functions%'";
    eventually("it has looked", async || (fixture.fact(waits).await == "true").then_some(())).await;
    let reader = format!("late_{}", fixture.db.name);
    fixture
        .run(&format!(
            "create view public.late as select id, n from public.orders;
             create role {reader}; grant select (n) on public.orders to {reader}"
        ))
        .await;
    holder.close().await.unwrap();
    assert_eq!(rebuild.ended().await.code(), Some(0));
    assert_eq!(fixture.fact("select count(twice) from orders").await, "5", "version 2 serves");
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "orders", 6).await;
    assert_eq!(fixture.fact("select count(*) from late").await, "6", "the view is of the new table");
    let granted = format!("select has_column_privilege('{reader}', 'public.orders', 'n', 'select')");
    assert_eq!(fixture.fact(&granted).await, "true");
    daemon.stop().await;
}
