//! The function that handlers are compiled into: they reach none of its own variables, no name or text breaks it, and each
//! event meets its handlers and no other, however many there are.

use espd::internals::handlers::check;
use espd::internals::processor::Outcome;

use crate::support;
use crate::support::projectors::{Running, declare, insert, numbers};

const SEEN: &[(&str, &str)] = &[("seen", "place serial primary key, event_id bigint, handler int")];

fn moved(position: i64, handled: i32) -> Outcome {
    Outcome::Committed { position: position.into(), handled, failure: None }
}

#[tokio::test]
async fn a_handler_that_names_a_variable_of_the_function_is_refused_by_check_and_run_alike() {
    let db = support::database().await;
    let mut connection = db.pool.acquire().await.unwrap();
    for (number, sql) in [
        "espd_position := 1000",
        "if true then espd_id := 1; end if",
        "select 5 into espd_upto",
        "espd_failure := null",
        "espd_finished := true",
        "espd_from := espd_from + 1",
        "espd1_position := 1000",
        "handle_p9_v1.espd_position := 1000",
        "project_p10_v1.espd_position := 1000",
        "$1 := 1000",
        "if true then $3 := null; end if",
        "perform espd_position",
    ]
    .into_iter()
    .enumerate()
    {
        let declaration = declare(&format!("p{number}"), &[], &[(&["A"], sql)]);
        let faults = check(&mut connection, std::slice::from_ref(&declaration), "public").await.unwrap();
        assert_eq!(faults.len(), 1, "{sql}: {faults:?}");
        assert!(faults[0].to_string().starts_with("0.toml:10:"), "{sql}: {}", faults[0]);
        // What only reads is refused when it is analysed, which the event at hand suffers from.
        let ids = insert(&db.pool, &["A"]).await;
        match Running::try_start(&db.pool, declaration).await {
            Err(refusal) => assert!(refusal.contains("0.toml:10"), "{sql}: {refusal}"),
            Ok(mut running) => match running.process(ids[0]).await {
                Ok(Outcome::Committed { failure: Some(_), handled: 0, .. }) if sql.starts_with("perform") => {
                }
                other => panic!("{sql}: {other:?}"),
            },
        }
    }
}

#[tokio::test]
async fn texts_and_types_that_look_like_the_functions_own_break_nothing() {
    let db = support::database().await;
    let types = [
        "$espd_body$",
        "$$",
        "it's",
        "a\\b",
        "\u{fc}\n",
        "{{handlers}}",
        "\n--{{end}}\n",
        "\"}",
        "espd_position",
        "E",
        "e",
        "\\u0041",
        "{\"A\": 1}",
        "'; drop table seen; --",
        " ",
    ];
    let columns = "place serial primary key, espd_id bigint, espd_position int, event int";
    for (name, table, padding) in [("few", "few_seen", 0), ("many", "many_seen", 30)] {
        let note = |number: usize| {
            format!(
                "-- $espd_body$ espd1_\ninsert into {table} (espd_id, espd_position) select event.id, {number} where '$espd_body$' <> '';
                 update {table} set event = espd_position where espd_id = event.id"
            )
        };
        let notes: Vec<String> = (0..types.len()).map(note).collect();
        let lists: Vec<[&str; 1]> = types.iter().map(|name| [*name]).collect();
        let other: Vec<String> = (0..padding).map(|number| format!("Other{number}")).collect();
        let others: Vec<[&str; 1]> = other.iter().map(|name| [name.as_str()]).collect();
        let mut handlers: Vec<(&[&str], &str)> = Vec::new();
        for (list, note) in lists.iter().zip(&notes) {
            handlers.push((list, note));
        }
        for list in &others {
            handlers.push((list, "raise exception 'another type'"));
        }
        let tables = [(table, columns)];
        let declaration = declare(name, &tables, &handlers);
        let mut connection = db.pool.acquire().await.unwrap();
        assert_eq!(check(&mut connection, std::slice::from_ref(&declaration), "public").await.unwrap(), []);
        let mut running = Running::start(&db.pool, declaration).await.unwrap();
        let ids = insert(&db.pool, &types).await;
        running.claim.position = (ids[0] - 1).into();
        sqlx::query("update espd.trackers set position = $1 where name = $2")
            .bind(ids[0] - 1)
            .bind(name)
            .execute(&db.pool)
            .await
            .unwrap();
        let last = ids[types.len() - 1];
        assert_eq!(running.process(last).await.unwrap(), moved(last, types.len() as i32), "{name}");
        let query = sqlx::AssertSqlSafe(format!("select event from {table} order by espd_id"));
        let noted: Vec<i32> = sqlx::query_scalar(query).fetch_all(&db.pool).await.unwrap();
        assert_eq!(noted, (0..types.len() as i32).collect::<Vec<_>>(), "{name}");
    }
}

#[tokio::test]
async fn among_many_handlers_each_event_meets_its_own_in_their_order() {
    let db = support::database().await;
    // Handler n handles T(n % 7), every fifth T(n % 3) as well, and three handle everything.
    let lists: Vec<Vec<String>> = (0..40)
        .map(|n: usize| match n {
            3 | 20 | 39 => vec!["*".to_owned()],
            n if n.is_multiple_of(5) && n % 7 != n % 3 => vec![format!("T{}", n % 7), format!("T{}", n % 3)],
            n => vec![format!("T{}", n % 7)],
        })
        .collect();
    let names: Vec<Vec<&str>> = lists.iter().map(|list| list.iter().map(String::as_str).collect()).collect();
    let note = |n: usize| {
        let jump = if n.is_multiple_of(4) {
            "exit when event.body is null; continue when event.type = 'T5';"
        } else {
            ""
        };
        format!("{jump} insert into seen (event_id, handler) values (event.id, {n})")
    };
    let notes: Vec<String> = (0..40).map(note).collect();
    let handlers: Vec<(&[&str], &str)> =
        names.iter().zip(&notes).map(|(names, note)| (names.as_slice(), note.as_str())).collect();
    let mut running = Running::start(&db.pool, declare("p", SEEN, &handlers)).await.unwrap();
    let types = ["T0", "T6", "Unknown", "T2", "T5", "T1", "", "T3", "T4"]
        .map(|name| if name.is_empty() { "Z" } else { name });
    let ids = insert(&db.pool, &types).await;
    assert_eq!(running.process(ids[8]).await.unwrap(), moved(ids[8], 9));
    let seen: Vec<(i64, i32)> = sqlx::query_as("select event_id, handler from seen order by place")
        .fetch_all(&db.pool)
        .await
        .unwrap();
    let mut expected = Vec::new();
    for (id, event_type) in ids.iter().zip(types) {
        for (n, names) in names.iter().enumerate() {
            let is_for = names.contains(&"*") || names.contains(&event_type);
            if is_for && !(n.is_multiple_of(4) && event_type == "T5") {
                expected.push((*id, n as i32));
            }
        }
    }
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn the_place_of_a_failure_is_found_among_many_handlers_and_under_the_longest_name() {
    let db = support::database().await;
    let lists: Vec<[String; 1]> = (0..30).map(|n| [format!("T{n}")]).collect();
    let names: Vec<Vec<&str>> = lists.iter().map(|list| list.iter().map(String::as_str).collect()).collect();
    let sql = "perform 1;\nperform 1 / (event.body->>'n')::int;\nraise exception 'no way'";
    let handlers: Vec<(&[&str], &str)> = names.iter().map(|names| (names.as_slice(), sql)).collect();
    let mut declaration = declare(&"n".repeat(48), &[], &handlers);
    declaration.version = 2_026_112_801;
    let mut running = Running::start(&db.pool, declaration).await.unwrap();
    let ids = insert(&db.pool, &["T23"]).await;
    match running.process(ids[0]).await.unwrap() {
        Outcome::Committed { failure: Some(failure), .. } => {
            assert_eq!(failure.place.as_deref(), Some("23.toml:12"), "{failure:?}");
        }
        other => panic!("{other:?}"),
    }
    let long = "select count(*) from pg_proc where proname like 'handle%nnn%'";
    assert_eq!(numbers(&db.pool, long).await, [1]);
}

#[tokio::test]
async fn what_an_event_was_is_told_although_its_handler_has_overwritten_it() {
    let db = support::database().await;
    let sql = "if true then event := null; end if; perform 1 / 0";
    let mut running = Running::start(&db.pool, declare("p", &[], &[(&["A"], sql)])).await.unwrap();
    let ids = insert(&db.pool, &["A"]).await;
    match running.process(ids[0]).await {
        Ok(Outcome::Committed { failure: Some(failure), .. }) => {
            assert_eq!((failure.event_id(), failure.event_type()), (Some(ids[0].into()), Some("A")));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_function_of_an_earlier_espd_goes_when_a_new_one_is_made() {
    let db = support::database().await;
    sqlx::raw_sql(
        "create function espd.project_p_v1(espd_epoch bigint) returns int language sql as 'select 1'",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let _running = Running::start(&db.pool, declare("p", &[], &[(&["A"], "null")])).await.unwrap();
    let functions: Vec<String> =
        sqlx::query_scalar("select proname::text from pg_proc where proname like '%\\_p\\_v1'")
            .fetch_all(&db.pool)
            .await
            .unwrap();
    assert_eq!(functions, ["handle_p_v1"]);
}
