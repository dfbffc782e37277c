//! SQL projectors on a real database: rows and position together, the failing event named, bounds kept.

use std::time::Duration;

use espd::internals::declaration::{HandledEvents, Handling, ProcessorDeclaration, SourceText};
use espd::internals::failure::Failure;
use espd::internals::handlers::check;
use espd::internals::processor::{Outcome, Processor as _, ProcessorError};
use espd::internals::tracker::ReplayEffects;

use sqlx::types::Json;

use crate::support;
use crate::support::projectors::{Running, declare, insert, numbers};

const SEEN: &[(&str, &str)] = &[("seen", "place serial primary key, event_id bigint, n bigint")];

const SEE: &str = "insert into seen (event_id, n) values (event.id, (event.body->>'n')::bigint)";

fn moved(position: i64, handled: i32) -> Outcome {
    Outcome::Committed { position: position.into(), handled, failure: None }
}

fn failure(outcome: Outcome) -> (i64, i32, Failure) {
    match outcome {
        Outcome::Committed { position, handled, failure: Some(failure) } => {
            (position.get(), handled, *failure)
        }
        other => panic!("no failure: {other:?}"),
    }
}

#[tokio::test]
async fn rows_and_position_move_together_and_past_other_types() {
    let db = support::database().await;
    let mut running = Running::start(&db.pool, declare("p", SEEN, &[(&["A"], SEE)])).await.unwrap();
    let ids = insert(&db.pool, &["A", "B", "A", "B", "B"]).await;
    assert_eq!(running.process(ids[4]).await.unwrap(), moved(ids[4], 2));
    assert_eq!(numbers(&db.pool, "select event_id from seen order by place").await, vec![ids[0], ids[2]]);
    assert_eq!(numbers(&db.pool, "select position from espd.trackers").await, vec![ids[4]]);
}

#[tokio::test]
async fn the_call_is_prepared_once_and_a_handler_may_throw_away_what_is_prepared() {
    let db = support::database().await;
    let see = format!("{SEE}; if event.body->>'n' = '2' then execute 'deallocate all'; end if");
    let mut running = Running::start(&db.pool, declare("p", SEEN, &[(&["A"], &see)])).await.unwrap();
    let ids = insert(&db.pool, &["A"; 5]).await;
    for id in &ids {
        assert_eq!(running.process(*id).await.unwrap(), moved(*id, 1));
    }
    let statement = "select count(*) from pg_prepared_statements where statement like '-- project_batch%'";
    let prepared: i64 = sqlx::query_scalar(statement).fetch_one(&mut running.connection).await.unwrap();
    assert_eq!(prepared, 1);
    assert_eq!(numbers(&db.pool, "select event_id from seen order by place").await, ids);
}

#[tokio::test]
async fn several_handlers_and_those_of_all_events_run_in_the_order_of_the_file() {
    let db = support::database().await;
    let note = |what: &str| format!("insert into notes (event_id, what) values (event.id, '{what}')");
    let (first, all, second) = (note("first"), note("all"), note("second"));
    let handlers: [(&[&str], &str); 3] = [(&["A"], &first), (&["*"], &all), (&["A", "B"], &second)];
    let tables = [("notes", "place serial, event_id bigint, what text")];
    let mut running = Running::start(&db.pool, declare("p", &tables, &handlers)).await.unwrap();
    let ids = insert(&db.pool, &["A", "B", "C"]).await;
    assert_eq!(running.process(ids[2]).await.unwrap(), moved(ids[2], 3));
    let notes: Vec<(i64, String)> =
        sqlx::query_as("select event_id, what from notes order by place").fetch_all(&db.pool).await.unwrap();
    let expected = [(0, "first"), (0, "all"), (0, "second"), (1, "all"), (1, "second"), (2, "all")];
    assert_eq!(notes, expected.map(|(index, what)| (ids[index], what.to_owned())));
}

#[tokio::test]
async fn the_failing_event_is_named_and_the_events_before_it_commit() {
    let db = support::database().await;
    let handler = "insert into seen (event_id, n)\nvalues (event.id, 10 / (event.body->>'n')::bigint)";
    let mut running = Running::start(&db.pool, declare("p", SEEN, &[(&["A"], handler)])).await.unwrap();
    let ids = insert(&db.pool, &["A"; 5]).await;
    sqlx::query("update espd.events set body = '{\"n\": 0}' where id = $1")
        .bind(ids[2])
        .execute(&db.pool)
        .await
        .unwrap();

    let (position, handled, error) = failure(running.process(ids[4]).await.unwrap());
    assert_eq!((position, handled), (ids[2] - 1, 2));
    assert_eq!((error.event_id(), error.event_type()), (Some(ids[2].into()), Some("A")));
    assert_eq!(error.sqlstate.as_deref(), Some("22012"));
    assert_eq!(error.place.as_deref(), Some("0.toml:10"), "{error:?}");
    assert_eq!(numbers(&db.pool, "select event_id from seen order by place").await, ids[..2]);

    // The same event fails again, and nothing moves.
    let (position, handled, error) = failure(running.process(ids[4]).await.unwrap());
    assert_eq!((position, handled, error.event_id()), (ids[2] - 1, 0, Some(ids[2].into())));

    sqlx::query("update espd.events set body = '{\"n\": 1}' where id = $1")
        .bind(ids[2])
        .execute(&db.pool)
        .await
        .unwrap();
    assert_eq!(running.process(ids[4]).await.unwrap(), moved(ids[4], 3));
    assert_eq!(numbers(&db.pool, "select event_id from seen order by place").await, ids);
}

#[tokio::test]
async fn the_place_of_a_failure_is_the_line_of_its_statement() {
    let db = support::database().await;
    let handler = "perform 1;\n-- a comment\nif event.id > 0 then\n  raise exception 'no %', 'way';\nend if;";
    let mut running =
        Running::start(&db.pool, declare("p", &[], &[(&["B"], "null"), (&["A"], handler)])).await.unwrap();
    let ids = insert(&db.pool, &["A"]).await;
    let (_, _, error) = failure(running.process(ids[0]).await.unwrap());
    assert_eq!((error.place.as_deref(), error.message.as_str()), (Some("1.toml:13"), "no way"));
}

#[tokio::test]
async fn an_outdated_owner_commits_nothing() {
    let db = support::database().await;
    let declaration = declare("p", SEEN, &[(&["A"], SEE)]);
    let mut old = Running::start(&db.pool, declaration.clone()).await.unwrap();
    let ids = insert(&db.pool, &["A", "A"]).await;
    sqlx::query("update espd.trackers set lease_until = null").execute(&db.pool).await.unwrap();
    let mut new = Running::start(&db.pool, declaration).await.unwrap();
    assert_eq!(old.process(ids[1]).await.unwrap(), Outcome::ClaimLost);
    assert_eq!(numbers(&db.pool, "select event_id from seen").await, Vec::<i64>::new());
    assert_eq!(new.process(ids[1]).await.unwrap(), moved(ids[1], 2));
    // Nor does an owner that is at another position than the tracker.
    new.claim.position = ids[0].into();
    assert_eq!(new.process(ids[1]).await.unwrap(), Outcome::ClaimLost);
}

#[tokio::test]
async fn a_handler_can_neither_commit_nor_move_the_tracker() {
    let db = support::database().await;
    let ids = insert(&db.pool, &["A"]).await;
    for (name, sql) in [("commits", "commit"), ("moves", "update espd.trackers set position = 77")] {
        let mut running = Running::start(&db.pool, declare(name, &[], &[(&["A"], sql)])).await.unwrap();
        match running.process(ids[0]).await {
            Ok(Outcome::Committed { failure: Some(_), position, handled: 0 }) if position == 0 => {}
            // The whole batch is in doubt, until it is one event.
            Err(ProcessorError::Unattributed(failure)) => {
                assert_eq!((failure.event_id(), failure.sqlstate.as_deref()), (None, Some("P0001")));
                running.limits.size = 1;
                match running.process(ids[0]).await {
                    Err(ProcessorError::Unattributed(failure)) => {
                        assert_eq!(failure.event_id(), Some(ids[0].into()))
                    }
                    other => panic!("{name}: {other:?}"),
                }
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    assert_eq!(numbers(&db.pool, "select position from espd.trackers").await, vec![0, 0]);
}

#[tokio::test]
async fn a_handler_that_exits_ends_for_its_event_only() {
    let db = support::database().await;
    let skip_two = format!("exit when event.body->>'n' = '2'; continue when event.body->>'n' = '4'; {SEE}");
    let handlers: [(&[&str], &str); 2] = [(&["A"], &skip_two), (&["A"], SEE)];
    let mut running = Running::start(&db.pool, declare("p", SEEN, &handlers)).await.unwrap();
    let ids = insert(&db.pool, &["A"; 5]).await;
    assert_eq!(running.process(ids[4]).await.unwrap(), moved(ids[4], 5));
    let seen = numbers(&db.pool, "select n from seen order by place").await;
    assert_eq!(seen, vec![1, 1, 2, 3, 3, 4, 5, 5]);
}

#[tokio::test]
async fn a_handler_cannot_change_the_position() {
    let db = support::database().await;
    let ids = insert(&db.pool, &["A"; 3]).await;
    let bend = "if true then event.id := 1000; end if";
    let own_loop = "for event in select 2000 as id, '{}'::jsonb as body loop perform 1; end loop";
    for (name, sql) in [("bends", bend), ("loops", own_loop)] {
        let mut running = Running::start(&db.pool, declare(name, &[], &[(&["A"], sql)])).await.unwrap();
        running.limits.size = 2;
        assert_eq!(running.process(ids[2]).await.unwrap(), moved(ids[1], 2), "{name}");
    }
}

#[tokio::test]
async fn a_failed_assertion_is_a_failure_of_its_event() {
    let db = support::database().await;
    let handler = "assert event.body->>'n' <> '2', 'two is odd'";
    let mut running = Running::start(&db.pool, declare("p", &[], &[(&["A"], handler)])).await.unwrap();
    let ids = insert(&db.pool, &["A"; 3]).await;
    let (position, handled, error) = failure(running.process(ids[2]).await.unwrap());
    assert_eq!((position, handled, error.event_id()), (ids[1] - 1, 1, Some(ids[1].into())));
}

#[tokio::test]
async fn the_events_before_a_failure_commit_even_when_they_take_long() {
    let db = support::database().await;
    let handler = "perform pg_sleep(0.02); perform 1 / (5 - (event.body->>'n')::bigint)";
    let mut running = Running::start(&db.pool, declare("p", &[], &[(&["A"], handler)])).await.unwrap();
    let ids = insert(&db.pool, &["A"; 5]).await;
    running.limits.time = Duration::from_millis(90);
    // Whether or not the fifth is reached in the first turn, no turn tells of it before the fourth is handled.
    loop {
        match running.process(ids[4]).await.unwrap() {
            Outcome::Committed { failure: None, .. } => {}
            told => break assert_eq!(failure(told).0, ids[4] - 1),
        }
    }
}

#[tokio::test]
async fn an_outdated_owner_does_not_replace_the_function_of_the_present_one() {
    let db = support::database().await;
    let declaration = declare("p", SEEN, &[(&["A"], SEE)]);
    let mut old = Running::start(&db.pool, declaration.clone()).await.unwrap();
    sqlx::query("update espd.trackers set lease_until = null").execute(&db.pool).await.unwrap();
    let _new = Running::start(&db.pool, declaration).await.unwrap();
    let claim = old.claim.clone();
    let outcome = old.projector.prepare(&mut old.connection, &claim).await;
    assert!(matches!(outcome, Err(ProcessorError::ClaimLost)), "{outcome:?}");
}

#[tokio::test]
async fn projectors_that_start_together_agree_on_a_new_schema() {
    let db = support::database().await;
    let start = |number: usize| {
        let (pool, name) = (db.pool.clone(), format!("p{number}"));
        async move {
            let table = format!("t{number}");
            let declaration = declare(&name, &[(&table, "n bigint")], &[(&["A"], "perform 1")]);
            Running::start_in(&pool, declaration, "read_models")
                .await
                .map(drop)
                .map_err(|error| error.to_string())
        }
    };
    let started = futures_util::future::join_all((0..6).map(start)).await;
    assert_eq!(started, vec![Ok(()); 6]);
}

#[tokio::test]
async fn a_deferred_constraint_is_blamed_on_its_event() {
    let db = support::database().await;
    let tables = [("once", "n bigint unique deferrable initially deferred")];
    let handler = "insert into once (n) values ((event.body->>'n')::bigint % 3)";
    let mut running = Running::start(&db.pool, declare("p", &tables, &[(&["A"], handler)])).await.unwrap();
    let ids = insert(&db.pool, &["A"; 5]).await;
    let (position, handled, error) = failure(running.process(ids[4]).await.unwrap());
    assert_eq!((position, handled, error.event_id()), (ids[3] - 1, 3, Some(ids[3].into())));
    assert_eq!(error.sqlstate.as_deref(), Some("23505"));
}

#[tokio::test]
async fn a_batch_ends_at_every_one_of_its_limits() {
    let db = support::database().await;
    let mut running = Running::start(&db.pool, declare("p", SEEN, &[(&["A"], SEE)])).await.unwrap();
    let ids = insert(&db.pool, &["A"; 6]).await;
    let last = *ids.last().unwrap();

    running.limits.size = 2;
    assert_eq!(running.process(last).await.unwrap(), moved(ids[1], 2));
    running.limits.size = 1_000;
    running.limits.bytes = 1;
    assert_eq!(running.process(last).await.unwrap(), moved(ids[2], 1));
    running.limits.bytes = 1 << 30;
    running.limits.time = Duration::ZERO;
    assert_eq!(running.process(last).await.unwrap(), moved(ids[3], 1));
    running.limits.time = Duration::from_secs(60);
    assert_eq!(running.process(last).await.unwrap(), moved(last, 2));
}

#[tokio::test]
async fn a_table_of_another_owner_is_left_alone() {
    let db = support::database().await;
    sqlx::query("create table public.seen (precious int)").execute(&db.pool).await.unwrap();
    let blocked = Running::start(&db.pool, declare("p", SEEN, &[(&["A"], SEE)])).await.err().unwrap();
    assert!(matches!(&blocked, ProcessorError::Blocked(why) if why.contains("public.seen")), "{blocked:?}");
}

#[tokio::test]
async fn tables_made_from_another_declaration_are_not_written_to() {
    let db = support::database().await;
    let declaration = declare("p", SEEN, &[(&["A"], SEE)]);
    drop(Running::start(&db.pool, declaration.clone()).await.unwrap());
    sqlx::query("update espd.trackers set lease_until = null").execute(&db.pool).await.unwrap();

    let restart = async |declaration: ProcessorDeclaration| {
        let outcome = Running::start(&db.pool, declaration).await;
        sqlx::query("update espd.trackers set lease_until = null").execute(&db.pool).await.unwrap();
        outcome.err().map(|error| error.to_string())
    };
    let mut wider = declaration.clone();
    wider.tables[0].columns = SourceText::unplaced("place serial, event_id bigint, n bigint, more text");
    assert!(restart(wider).await.unwrap().contains("espctl reset p"));
    let second = ProcessorDeclaration { version: 2, ..declaration.clone() };
    // The older version goes on with its own function, until the newer one was built beside it.
    assert_eq!(restart(second.clone()).await, None);
    let forget = ["drop function espd.handle_p_v1", "update espd.declarations set declared = null"];
    sqlx::query(forget[0]).execute(&db.pool).await.unwrap();
    assert_eq!(restart(second.clone()).await, None, "the function is made as it was declared");
    sqlx::query(forget[0]).execute(&db.pool).await.unwrap();
    let native = Handling::Native(HandledEvents::All);
    let by_program = ProcessorDeclaration { handling: native, ..declaration.clone() };
    let record = sqlx::query("update espd.declarations set declared = $1").bind(Json(&by_program));
    record.execute(&db.pool).await.unwrap();
    // No function is a program.
    let waits = Some("version 1 serves until version 2, which is built beside it, is live".to_owned());
    assert_eq!(restart(second.clone()).await, waits);
    sqlx::query(forget[1]).execute(&db.pool).await.unwrap();
    assert_eq!(restart(second).await, waits);
    assert_eq!(restart(declaration).await, None);
}

#[tokio::test]
async fn a_reset_recreates_the_tables_ends_the_claim_and_is_recorded() {
    let db = support::database().await;
    let mut declaration = declare("p", SEEN, &[(&["A"], SEE)]);
    declaration.ddl.push(SourceText::unplaced("create index on seen (n)"));
    let mut running = Running::start(&db.pool, declaration.clone()).await.unwrap();
    let ids = insert(&db.pool, &["A", "A"]).await;
    running.process(ids[1]).await.unwrap();

    assert!(running.reset("alice@example", ReplayEffects::Suppress).await);
    assert_eq!(numbers(&db.pool, "select count(*) from seen").await, vec![0]);
    assert_eq!(running.process(ids[1]).await.unwrap(), Outcome::ClaimLost);

    let mut again = Running::start(&db.pool, declaration).await.unwrap();
    assert_eq!(again.process(ids[1]).await.unwrap(), moved(ids[1], 2));
    assert_eq!(numbers(&db.pool, "select event_id from seen order by place").await, ids);
    let logged: (String, String, i64, i64) =
        sqlx::query_as("select operator, action, from_position, to_position from espd.operator_log")
            .fetch_one(&db.pool)
            .await
            .unwrap();
    assert_eq!(logged, ("alice@example".into(), "reset".into(), ids[1], 0));
}

#[tokio::test]
async fn a_lock_that_cannot_be_had_is_no_failure_of_the_event() {
    let db = support::database().await;
    let handler = "lock table seen in access exclusive mode";
    let mut running = Running::start(&db.pool, declare("p", SEEN, &[(&["A"], handler)])).await.unwrap();
    let ids = insert(&db.pool, &["A"]).await;
    let mut holder = db.pool.begin().await.unwrap();
    sqlx::query("lock table seen").execute(&mut *holder).await.unwrap();
    sqlx::query("set lock_timeout = '10ms'").execute(&mut running.connection).await.unwrap();
    let error = running.process(ids[0]).await.err().unwrap();
    let ProcessorError::Database(error) = error else { panic!("{error:?}") };
    assert!(espd::internals::failure::is_infrastructure_error(&error), "{error}");
    holder.rollback().await.unwrap();
    assert_eq!(running.process(ids[0]).await.unwrap(), moved(ids[0], 1));
}

#[tokio::test]
async fn a_check_finds_each_mistake_with_its_place_and_leaves_nothing() {
    let db = support::database().await;
    let mistakes: &[(&str, &str)] = &[
        ("insert into seen (event_id)\n  values (event.idd)", "0.toml:11:11: event has no field idd"),
        ("insert into seen (event_id, nope)\nvalues (1, 2)", "0.toml:10:29"),
        ("insert into nowhere values (1)", "0.toml:10:13"),
        ("delete from seen\nwhere event_id = = 1", "0.toml:11:18"),
        ("perform 1; perform nofunction()", "0.toml:10:20"),
        ("select 1", "0.toml:10:1"),
        ("if event.id > 0 then\n  delete from nowhere;\nend if", "0.toml:11:15"),
        ("delete from seen where event_id = 'x", "0.toml:10:35"),
        ("if true then\n  delete from seen;", "0.toml:"),
        ("if event.id > 1 then\n  return; end if", "0.toml:11:3: a handler cannot return"),
        ("perform 1;\n event.id := 7", "0.toml:11:2: event cannot be changed"),
        ("select null into event", "0.toml:10:18: event cannot be changed"),
        ("perform 1;\n$1 := 7", "0.toml:11:1: a handler has no parameters"),
        ("perform 1;\ncommit;", "0.toml:11:1: commit is not for handlers"),
        ("if event.id = 7 then\nrollback and chain; end if", "0.toml:11:1: rollback is not for handlers"),
        ("execute 'commit'", "0.toml:10:9: 'commit' is not for handlers"),
        (
            "delete from seen;\ninsert into seen (n) values (1) on conflict (n) do nothing",
            "0.toml:11:1: there is no unique or exclusion constraint",
        ),
        (
            "if event.id = 7 then\ninsert into seen (n) values (event.id) on conflict (n) do nothing; end if",
            "0.toml:11:1: there is no unique or exclusion constraint",
        ),
    ];
    let mut connection = db.pool.acquire().await.unwrap();
    for (sql, place) in mistakes {
        let declaration = declare("p", SEEN, &[(&["A"], sql)]);
        let faults = check(&mut connection, &[declaration], "public").await.unwrap();
        assert_eq!(faults.len(), 1, "{sql}: {faults:?}");
        assert!(faults[0].to_string().starts_with(place), "{sql}: {}", faults[0]);
    }
    let left = numbers(&db.pool, "select count(*) from pg_namespace where nspname like 'espd_check%'").await;
    assert_eq!(left, vec![0]);
}

#[tokio::test]
async fn a_check_accepts_what_runs() {
    let db = support::database().await;
    let fine = [
        SEE,
        "perform 1; delete from seen where n = (event.body->>'n')::bigint; -- done",
        "declare x bigint; begin select max(n) into x from seen; update seen set n = x; end",
        "if event.body ? 'n' then delete from seen; end if;",
        "if event.id % 2 = 1 then exit; end if; delete from seen;",
        "declare x bigint; begin exit when event.id > 0; delete from seen where n = x; end",
        "perform '$espd_body$', '$espd0$', $espd1$ $1 $espd1$",
        "insert into seen (n) select n from seen where event_id = event.id on conflict (place) do nothing",
        "insert into seen (n) values ((event.body->'missing'->>'deep')::date - current_date)",
        "declare x bigint; begin insert into seen (n) values (x) on conflict (place) do nothing returning n into x; end",
        "perform 'commit'; perform commit from (select 1 as commit) as t; delete from seen where n = 10 / event.version",
        "with gone as (delete from seen returning n) insert into seen (n) select n from gone; perform event",
    ];
    let mut connection = db.pool.acquire().await.unwrap();
    for sql in fine {
        let declaration = declare("p", SEEN, &[(&["A"], sql)]);
        let faults = check(&mut connection, &[declaration], "public").await.unwrap();
        assert_eq!(faults, vec![], "{sql}");
    }
}

#[tokio::test]
async fn a_check_finds_mistakes_in_tables_and_ddl() {
    let db = support::database().await;
    let mut connection = db.pool.acquire().await.unwrap();
    let table = declare("p", &[("seen", "event_id bigint,\n n bigintt")], &[(&["A"], SEE)]);
    let faults = check(&mut connection, &[table], "public").await.unwrap();
    assert!(faults[0].to_string().starts_with("tables.toml:2:4: "), "{faults:?}");
    let mut ddl = declare("p", SEEN, &[(&["A"], SEE)]);
    ddl.ddl.push(SourceText::new("create index on seen\n(m)", "ddl.toml", 5, 3));
    let faults = check(&mut connection, &[ddl], "public").await.unwrap();
    assert!(faults[0].to_string().starts_with("ddl.toml:"), "{faults:?}");
}

#[tokio::test]
async fn a_check_refuses_another_projectors_table() {
    let db = support::database().await;
    let mut connection = db.pool.acquire().await.unwrap();
    let owner = declare("owner", SEEN, &[(&["A"], SEE)]);
    let thief = declare(
        "thief",
        &[("own", "n bigint")],
        &[(&["A"], "insert into own\nselect n from public.\"seen\"")],
    );
    let faults = check(&mut connection, &[owner, thief], "public").await.unwrap();
    assert!(
        faults[0].to_string().starts_with("0.toml:11:22: table \"seen\" belongs to projector owner"),
        "{faults:?}"
    );
}

/// PostgreSQL cuts a name of more than 63 bytes.
#[tokio::test]
async fn a_failure_has_its_place_whatever_the_name_and_the_version() {
    let db = support::database().await;
    let name = "a".repeat(47);
    let handler = "insert into seen (event_id, n)\nvalues (event.id, 10 / (event.body->>'n')::bigint)";
    for (index, version) in [1, 20_261_128, i32::MAX].into_iter().enumerate() {
        let table = format!("seen_{version}");
        let handler = handler.replace("seen", &table);
        let columns = [(table.as_str(), "event_id bigint, n bigint")];
        let declaration = ProcessorDeclaration {
            version,
            ..declare(&format!("{name}{index}"), &columns, &[(&["A"], &handler)])
        };
        let mut running = Running::start(&db.pool, declaration).await.unwrap();
        let ids = insert(&db.pool, &["A"]).await;
        sqlx::query("update espd.events set body = '{\"n\": 0}'").execute(&db.pool).await.unwrap();
        let (_, _, failure) = failure(running.process(ids[0]).await.unwrap());
        assert_eq!(failure.place.as_deref(), Some("0.toml:10"), "{version}");
    }
}

/// In its first executions in a session a statement is planned for the values at hand, and the planner computes what it can.
#[tokio::test]
async fn an_event_is_handled_or_not_however_many_the_session_has_handled_before() {
    let db = support::database().await;
    let tables = [("coded", "id bigint primary key, code varchar(3)")];
    let handlers: [(&[&str], &str); 2] = [
        (&["A"], "update coded set code = repeat('x', (event.body->>'n')::int) where id = -event.id"),
        (
            &["B"],
            "insert into coded values (event.id) on conflict (id) do update set code = 7 / ((event.body->>'n')::int - 2)",
        ),
    ];
    let ids = insert(&db.pool, &["A", "A", "A", "A", "A", "A", "A", "B", "B"]).await;
    let long = "update espd.events set body = '{\"n\": 7}' where type = 'A'; update espd.events set body = '{\"n\": 2}' where type = 'B'";
    sqlx::raw_sql(long).execute(&db.pool).await.unwrap();
    let mut running = Running::start(&db.pool, declare("p", &tables, &handlers)).await.unwrap();
    // A default of the database, say, by which a plan is made for each event.
    let default = "set plan_cache_mode = force_custom_plan";
    sqlx::raw_sql(default).execute(&mut running.connection).await.unwrap();
    running.limits.size = 1;
    for id in ids {
        assert_eq!(running.process(id).await.unwrap(), moved(id, 1), "no row has the value");
    }
}
