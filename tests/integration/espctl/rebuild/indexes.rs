//! Plain indexes of a version that is built from the beginning are made once its rows are there.

use super::*;

const PLAIN: &str = "'create index orders_n on orders (n)', \
    'create index orders_tenant on orders (tenant text_pattern_ops desc, n) with (fillfactor = 70)'";

fn declare(fixture: &Fixture, version: i32, (columns, handler): (&str, &str)) {
    let text = declaration(version, columns, handler);
    fixture.installation.declare("orders", &text.replace("'create index orders_n on orders (n)'", PLAIN));
}

/// Has every index that is made later wait for whoever holds the lock 77.
pub(super) const HELD_UP: &str = "create function public.hold_up() returns event_trigger language plpgsql as $$ begin
      if current_query() like '%make_deferred_index%' then perform pg_advisory_xact_lock(77); end if;
    end $$;
    create event trigger hold_up on ddl_command_start when tag in ('CREATE INDEX') execute function public.hold_up()";

/// Whoever drops an index to make it later is refused.
const REFUSED: &str = "drop event trigger hold_up;
    create or replace function public.hold_up() returns event_trigger language plpgsql as $$ begin
      if current_query() like '%drop_deferred_index%' then raise 'an index is dropped'; end if;
    end $$;
    create event trigger hold_up on ddl_command_start when tag in ('DROP INDEX') execute function public.hold_up()";

fn definitions(schema: &str) -> String {
    format!(
        "select string_agg(replace(indexdef, schemaname || '.', ''), '; ' order by indexname) from pg_indexes
         where schemaname = '{schema}' and tablename = 'orders' and indexname <> 'orders_pkey'"
    )
}

#[tokio::test]
async fn plain_indexes_are_made_after_the_rows_and_a_kill_in_between_loses_none() {
    let (fixture, daemon) = Fixture::running().await;
    append(&fixture.db.pool, 100).await;
    reaches(&fixture.db.pool, "orders", 105).await;
    fixture.run(HELD_UP).await;
    declare(&fixture, 2, WIDER);
    let mut blocker = sqlx::PgConnection::connect(&fixture.db.url).await.unwrap();
    sqlx::raw_sql("select pg_advisory_lock(77)").execute(&mut blocker).await.unwrap();
    let mut rebuild = Program::start(fixture.installation.espctl_command(&["rebuild", "orders", "--yes"]));
    // The rows are there, and the first index is made.
    somebody_waits(&fixture, 77).await;
    assert_eq!(fixture.fact("select count(*) from public_orders_next.orders").await, "105");
    assert_eq!(fixture.fact(&definitions("public_orders_next")).await, "");
    let status = fixture.installation.status("orders").await;
    assert_eq!(status["rebuild"]["phase"], "indexing", "{status}");
    rebuild.kill().await;
    end_waiting(&fixture, 77).await;
    sqlx::raw_sql("select pg_advisory_unlock(77)").execute(&mut blocker).await.unwrap();
    assert_eq!(fixture.fact(&definitions("public_orders_next")).await, "");

    // Until the server has noticed that nobody is there any more, the version counts as being built.
    let said = eventually("it is built by the next one", async || {
        let outcome = fixture.espctl(&["rebuild", "orders", "--yes"]).await;
        (outcome.code == Some(0)).then_some(outcome.stdout)
    })
    .await;
    assert!(said.contains("version 2 of orders is live"), "{said}");
    assert_eq!(
        fixture.fact(&definitions("public")).await,
        "CREATE INDEX orders_n ON orders USING btree (n); CREATE INDEX orders_tenant ON orders USING btree \
         (tenant text_pattern_ops DESC, n) WITH (fillfactor='70')"
    );
    assert_eq!(fixture.fact("select count(twice) from orders").await, "105");

    // Handlers that are not folded may read by any index.
    fixture.run(REFUSED).await;
    declare(&fixture, 3, (FIRST.0, "perform 1; insert into orders values (event.id, event.id % 3, 'a')"));
    fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    declare(&fixture, 4, FIRST);
    let refused = fixture.espctl(&["rebuild", "orders", "--yes"]).await;
    assert!(refused.code != Some(0) && refused.stderr.contains("an index is dropped"), "{refused:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn an_index_that_refuses_the_rows_is_named_and_one_that_sets_events_aside_is_there_for_each_event() {
    let (fixture, daemon) = Fixture::running().await;
    append(&fixture.db.pool, 50).await;
    fixture.run("update espd.events set body = jsonb_build_object('t', (select string_agg(md5(n::text), '') from generate_series(1, 300) as n)) where id = 30").await;
    let long = ("n bigint, tenant text", "insert into orders values (event.id, 1, event.body ->> 't')");
    declare(&fixture, 2, long);
    let refused = fixture.espctl(&["rebuild", "orders", "--yes"]).await.complained(1);
    assert!(
        refused.contains("index orders_tenant of version 2 of orders cannot be made of its rows: "),
        "{refused}"
    );
    assert_eq!(fixture.fact("select version from espd.trackers where name = 'orders'").await, "1");

    let text = declaration(3, long.0, long.1).replace("'create index orders_n on orders (n)'", PLAIN);
    let text = format!("{text}[projector.retry]\nmax_attempts = 1\non_failure = 'park'\n");
    fixture.installation.declare("orders", &text);
    let said = fixture.espctl(&["rebuild", "orders", "--yes"]).await;
    assert!(said.code == Some(0) && said.stderr.contains("1 events were set aside"), "{said:?}");
    assert!(fixture.fact(&definitions("public")).await.contains("orders_tenant"));
    daemon.stop().await;
}
