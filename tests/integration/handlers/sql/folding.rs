//! A folded batch leaves what the loop leaves: rows, position, counts, and the event that fails.

mod cases;

use std::fmt::Write as _;

use espd::event::Position;
use espd::internals::declaration::{ProcessorDeclaration, SourceText};
use espd::internals::processor::Outcome;
use sqlx::AssertSqlSafe;

use self::cases::Case;
use crate::support::facts::eventually;
use crate::support::projectors::{Running, declare};
use crate::support::{self, Database};

/// What has become of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    Folded,
    /// It was tried, and left to the loop.
    LeftToLoop,
    NotTried,
}

/// A projector with the same handlers twice, folded and not.
struct Twins {
    folded: Running,
    looped: Running,
    tables: Vec<String>,
}

impl Twins {
    /// `{p}` in tables and handlers distinguishes the two.
    async fn start(db: &Database, name: &str, tables: &[(&str, &str)], handlers: Handlers<'_>) -> Self {
        Self::start_with(db, name, tables, handlers, &[]).await
    }

    /// As [`Self::start`], with statements behind the tables.
    async fn start_with(
        db: &Database,
        name: &str,
        tables: &[(&str, &str)],
        handlers: Handlers<'_>,
        ddl: &[&str],
    ) -> Self {
        let of = |prefix: &str, fold: bool| -> ProcessorDeclaration {
            let tables: Vec<_> = tables
                .iter()
                .map(|(table, columns)| (table.replace("{p}", prefix), columns.replace("{p}", prefix)))
                .collect();
            let handlers: Vec<_> =
                handlers.iter().map(|(types, sql)| (*types, sql.replace("{p}", prefix))).collect();
            let tables: Vec<_> =
                tables.iter().map(|(table, columns)| (table.as_str(), columns.as_str())).collect();
            let handlers: Vec<_> = handlers.iter().map(|(types, sql)| (*types, sql.as_str())).collect();
            let ddl = ddl.iter().map(|sql| SourceText::unplaced(&sql.replace("{p}", prefix))).collect();
            ProcessorDeclaration { fold, ddl, ..declare(&format!("{prefix}{name}"), &tables, &handlers) }
        };
        let folded = Running::start(&db.pool, of("f", true)).await.unwrap();
        let looped = Running::start(&db.pool, of("l", false)).await.unwrap();
        Self { folded, looped, tables: tables.iter().map(|(table, _)| (*table).to_owned()).collect() }
    }

    /// One batch of each, which have to be the same; returns what became of the folded one.
    async fn batch(&mut self, db: &Database, upto: i64, size: i64) -> (Path, Outcome) {
        let name = self.folded.claim.key.name.clone();
        let forget = format!("select set_config('espd.fold_{name}', '', false)");
        sqlx::query(AssertSqlSafe(forget)).execute(&mut self.folded.connection).await.unwrap();
        (self.folded.limits.size, self.looped.limits.size) = (size, size);
        let looped = self.looped.process(upto).await.unwrap();
        let folded = self.folded.process(upto).await.unwrap();
        assert_eq!(without_names(&folded), without_names(&looped));
        for table in &self.tables {
            let (ours, theirs) =
                (rows(db, &table.replace("{p}", "f")).await, rows(db, &table.replace("{p}", "l")).await);
            assert_eq!(ours, theirs, "{table} up to {upto}");
        }
        let trackers = "select count(distinct (position, witness_at, witness_id, witness_uuid)) from espd.trackers where name = any ($1)";
        let names = vec![name.clone(), self.looped.claim.key.name.clone()];
        let distinct: i64 = sqlx::query_scalar(trackers).bind(names).fetch_one(&db.pool).await.unwrap();
        assert_eq!(distinct, 1, "the trackers of {name} differ");
        (self.path().await, folded)
    }

    /// What has become of the last batch.
    async fn path(&mut self) -> Path {
        let ask = format!("select current_setting('espd.fold_{}')", self.folded.claim.key.name);
        let said: String =
            sqlx::query_scalar(AssertSqlSafe(ask)).fetch_one(&mut self.folded.connection).await.unwrap();
        match said.as_str() {
            "" => Path::NotTried,
            "{0,0}" => Path::Folded,
            _ => Path::LeftToLoop,
        }
    }

    /// Steps over an event that has failed, as a dead letter would.
    async fn step_over(&mut self, db: &Database, event: i64) {
        for running in [&mut self.folded, &mut self.looped] {
            let statement = "update espd.trackers set position = $1, witness_at = null, witness_id = null, witness_uuid = null
                where name = $2";
            sqlx::query(statement).bind(event).bind(&running.claim.key.name).execute(&db.pool).await.unwrap();
            running.claim.position = event.into();
        }
    }
}

/// What a batch has come to, without what the two necessarily call differently.
fn without_names(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Committed { position, handled, failure } => {
            let failure = failure.as_ref().map(|failure| {
                let failure = serde_json::to_value(failure).unwrap();
                format!("{} {} {}", failure["event_id"], failure["event_uuid"], failure["sqlstate"])
            });
            format!("{position:?} {handled} {failure:?}")
        }
        other => format!("{other:?}"),
    }
}

async fn rows(db: &Database, table: &str) -> String {
    let statement =
        format!("select coalesce(string_agg(t::text, E'\\n' order by t::text), '') from {table} as t");
    sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(&db.pool).await.unwrap()
}

/// Inserts events, each with a type and a body; returns the last id.
async fn append(db: &Database, events: &[(String, String)]) -> i64 {
    let (types, bodies): (Vec<&str>, Vec<&str>) =
        events.iter().map(|(name, body)| (name.as_str(), body.as_str())).unzip();
    let statement = "insert into espd.events (aggregate_id, type, version, body)
         select gen_random_uuid(), type, 1, body::jsonb from unnest($1::text[], $2::text[]) with ordinality as e (type, body, place)
         order by place";
    sqlx::query(statement).bind(types).bind(bodies).execute(&db.pool).await.unwrap();
    sqlx::query_scalar("select max(id) from espd.events").fetch_one(&db.pool).await.unwrap()
}

/// Goes to the end in batches, over the events that fail; counts what became of the batches.
async fn run(db: &Database, twins: &mut Twins, upto: i64, mut size: impl FnMut() -> i64) -> [usize; 3] {
    let mut paths = [0; 3];
    loop {
        let (path, outcome) = twins.batch(db, upto, size()).await;
        paths[path as usize] += 1;
        let Outcome::Committed { position, failure, .. } = outcome else { panic!("{outcome:?}") };
        if let Some(failure) = failure {
            let failure = serde_json::to_value(&failure).unwrap();
            twins.step_over(db, failure["event_id"].as_i64().unwrap()).await;
        } else if position == Position::from(upto) {
            return paths;
        }
    }
}

async fn explore(seed: u64, declarations: usize, streams: usize) -> [usize; 3] {
    let db = support::database().await;
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut paths = [0; 3];
    for number in 0..declarations {
        let mut case = Case::throw(&mut dice);
        let (declared, declared_tables) = (case.handlers.clone(), case.tables.clone());
        let handlers: Vec<(Vec<&str>, &str)> = declared
            .iter()
            .map(|handler| (handler.types.iter().map(String::as_str).collect(), handler.sql.as_str()))
            .collect();
        let handlers: Vec<(&[&str], &str)> =
            handlers.iter().map(|(types, sql)| (types.as_slice(), *sql)).collect();
        let tables: Vec<(&str, &str)> =
            declared_tables.iter().map(|(name, columns)| (name.as_str(), columns.as_str())).collect();
        let mut told = String::new();
        for (types, sql) in &handlers {
            let _ = writeln!(told, "{types:?}: {sql}");
        }
        eprintln!("seed {seed}, declaration {number}: {tables:?}\n{told}");
        let mut twins = Twins::start(&db, &format!("_{number}"), &tables, &handlers).await;
        // What was appended for others is not for these.
        let start: i64 = sqlx::query_scalar("select coalesce(max(id), 0) from espd.events")
            .fetch_one(&db.pool)
            .await
            .unwrap();
        twins.step_over(&db, start).await;
        for _ in 0..streams {
            let events = case.stream(&mut dice);
            let upto = append(&db, &events).await;
            let found = run(&db, &mut twins, upto, || dice.i64(32..120)).await;
            paths.iter_mut().zip(found).for_each(|(sum, more)| *sum += more);
        }
        for (table, _) in &tables {
            for prefix in ["f", "l"] {
                let drop = format!("drop table {}", table.replace("{p}", prefix));
                sqlx::query(AssertSqlSafe(drop)).execute(&db.pool).await.unwrap();
            }
        }
        sqlx::query("delete from espd.projection_tables").execute(&db.pool).await.unwrap();
    }
    eprintln!("folded, left to the loop, not tried: {paths:?}");
    paths
}

#[tokio::test]
async fn whatever_is_declared_and_whatever_happens_a_fold_is_the_loop() {
    let [folded, left, not_tried] = explore(1, 30, 6).await;
    assert!(folded > 150 && left > 20, "{folded} folded, {left} left to the loop, {not_tried} not tried");
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn whatever_is_declared_and_whatever_happens_a_fold_is_the_loop_many_minutes_long() {
    for seed in 100..112 {
        explore(seed, 60, 15).await;
    }
}

/// Handlers by the types of their events.
type Handlers<'a> = &'a [(&'a [&'a str], &'a str)];

const TODOS: &[(&str, &str)] = &[(
    "{p}todos",
    "id bigint primary key, title text not null, n integer default 0, note varchar(9), other text",
)];

const HANDLERS: Handlers = &[
    (&["Added"], "insert into {p}todos (id, title) values ((event.body->>'k')::bigint, event.body->>'t')"),
    (
        &["Changed"],
        "update {p}todos set title = event.body->>'t', note = coalesce(event.body->>'note', note), n = n + (event.body->>'n')::int
         where id = (event.body->>'k')::bigint",
    ),
    (&["Set"], "update {p}todos set n = (event.body->>'n')::int where id = (event.body->>'k')::bigint"),
    (&["Removed"], "delete from {p}todos where id = (event.body->>'k')::bigint"),
];

fn event(name: &str, key: i64, more: &str) -> (String, String) {
    (name.to_owned(), format!("{{\"k\": {key}, \"t\": \"t{key}\", \"n\": 1{more}}}"))
}

/// Enough events for a batch to be folded.
fn crowd(from: i64) -> Vec<(String, String)> {
    (from..from + 40).flat_map(|key| [event("Added", key, ""), event("Changed", key, "")]).collect()
}

async fn execute(db: &Database, statement: &str) {
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&db.pool).await.unwrap();
}

#[tokio::test]
async fn what_could_see_the_difference_is_noticed_by_the_next_batch() {
    let changes = [
        "create trigger audit before update on {t} for each row execute function public.audit_change()",
        "create trigger audit after insert on {t} execute function public.audit_change()",
        "create rule audit as on update to {t} do also insert into public.audit values (new.id)",
        "create unique index {t}_other on {t} (other)",
        "create index {t}_ratio on {t} ((10 / nullif(n, 0)))",
        "create index {t}_some on {t} (title) where n > 3",
        "alter table {t} add foreign key (id) references public.keys on delete cascade",
        "create table {t}_lines (id bigint references {t} on delete set null)",
        "alter table {t} add check (n < 3)",
        "alter table {t} add exclude using btree (other with =)",
        "alter table {t} alter other set default clock_timestamp()::date::text",
        "alter table {t} alter other set default 'x'",
        "alter table {t} alter n set not null",
        "alter table {t} add doubled integer generated always as (n * 2) stored",
        "alter table {t} add serial bigint generated always as identity",
        "alter table {t} add counted bigserial",
        "alter table {t} enable row level security",
        "alter table {t} alter note type varchar(20)",
        "create table {t}_child () inherits ({t})",
    ];
    let db = support::database().await;
    execute(
        &db,
        "create table public.audit (id bigint);
         create table public.keys (id bigint primary key);
         insert into public.keys select generate_series(0, 1000);
         create function public.audit_change() returns trigger language plpgsql as
           $$ begin insert into public.audit values (1); return new; end $$",
    )
    .await;
    for (number, change) in changes.into_iter().enumerate() {
        let tables = [(TODOS[0].0.replace("todos", &format!("todos{number}")), TODOS[0].1)];
        let tables: Vec<(&str, &str)> =
            tables.iter().map(|(name, columns)| (name.as_str(), *columns)).collect();
        let handlers: Vec<_> = HANDLERS
            .iter()
            .map(|(types, sql)| (*types, sql.replace("todos", &format!("todos{number}"))))
            .collect();
        let handlers: Vec<(&[&str], &str)> =
            handlers.iter().map(|(types, sql)| (*types, sql.as_str())).collect();
        let mut twins = Twins::start(&db, &format!("_c{number}"), &tables, &handlers).await;
        let start: i64 = sqlx::query_scalar("select coalesce(max(id), 0) from espd.events")
            .fetch_one(&db.pool)
            .await
            .unwrap();
        twins.step_over(&db, start).await;
        let upto = append(&db, &crowd(1)).await;
        assert_eq!(twins.batch(&db, upto, 1_000).await.0, Path::Folded, "before {change}");
        for prefix in ["f", "l"] {
            execute(&db, &change.replace("{t}", &format!("{prefix}todos{number}"))).await;
        }
        let upto = append(&db, &crowd(100)).await;
        assert_eq!(twins.batch(&db, upto, 1_000).await.0, Path::LeftToLoop, "{change}");
        // It is not even tried where the table has been like that from the beginning, unless that does no harm.
        let name = format!("_d{number}");
        let tables = [(format!("{{p}}others{number}"), TODOS[0].1)];
        let tables: Vec<(&str, &str)> =
            tables.iter().map(|(name, columns)| (name.as_str(), *columns)).collect();
        let handlers: Vec<_> = HANDLERS
            .iter()
            .map(|(types, sql)| (*types, sql.replace("todos", &format!("others{number}"))))
            .collect();
        let handlers: Vec<(&[&str], &str)> =
            handlers.iter().map(|(types, sql)| (*types, sql.as_str())).collect();
        let ddl = change.replace("{t}", &format!("{{p}}others{number}"));
        let mut twins = Twins::start_with(&db, &name, &tables, &handlers, &[&ddl]).await;
        twins.step_over(&db, upto).await;
        let upto = append(&db, &crowd(200)).await;
        let harmless =
            ["set default 'x'", "varchar(20)", "n set not null"].iter().any(|end| change.ends_with(end));
        let expected = if harmless { Path::Folded } else { Path::NotTried };
        assert_eq!(twins.batch(&db, upto, 1_000).await.0, expected, "{change}, from the beginning");
    }
    let audited: Vec<i64> =
        sqlx::query_scalar("select count(*) from public.audit").fetch_all(&db.pool).await.unwrap();
    assert!(audited[0] > 0);
}

#[tokio::test]
async fn what_the_order_of_events_decides_is_left_to_the_loop() {
    type Case = (&'static str, Vec<(String, String)>, Path);
    let cases: [Case; 9] = [
        ("a row is inserted twice", vec![event("Added", 500, ""), event("Added", 500, "")], Path::LeftToLoop),
        (
            "a row that was there is inserted and removed",
            vec![event("Added", 1, ""), event("Removed", 1, "")],
            Path::LeftToLoop,
        ),
        (
            "a value that is overwritten is null",
            vec![event("Changed", 5, ", \"t\": null"), event("Changed", 5, "")],
            Path::LeftToLoop,
        ),
        (
            "a value that is overwritten cannot be read",
            vec![event("Set", 6, ", \"n\": \"x\""), event("Set", 6, "")],
            Path::LeftToLoop,
        ),
        (
            "a value that is overwritten is too long",
            vec![event("Changed", 7, ", \"note\": \"0123456789\""), event("Changed", 7, ", \"note\": \"0\"")],
            Path::LeftToLoop,
        ),
        (
            "a sum is out of range, and comes back",
            vec![event("Set", 8, ", \"n\": 2147483647"), event("Changed", 8, ""), event("Set", 8, "")],
            Path::LeftToLoop,
        ),
        (
            "a sum of a row that is removed is out of range",
            vec![event("Set", 9, ", \"n\": 2147483647"), event("Changed", 9, ""), event("Removed", 9, "")],
            Path::LeftToLoop,
        ),
        (
            "a row is removed and comes again",
            vec![event("Removed", 3, ""), event("Changed", 3, ""), event("Added", 3, "")],
            Path::Folded,
        ),
        (
            "a row comes and goes, and is changed when it is not there",
            vec![
                event("Changed", 900, ""),
                event("Added", 900, ""),
                event("Set", 900, ""),
                event("Removed", 900, ""),
            ],
            Path::Folded,
        ),
    ];
    let db = support::database().await;
    let mut twins = Twins::start(&db, "_order", TODOS, HANDLERS).await;
    let upto = append(&db, &crowd(1)).await;
    assert_eq!(run(&db, &mut twins, upto, || 1_000).await, [1, 0, 0]);
    for (number, (what, events, expected)) in cases.into_iter().enumerate() {
        let mut all = crowd(1_000 * (number as i64 + 1));
        all.splice(17..17, events);
        let upto = append(&db, &all).await;
        let (path, outcome) = twins.batch(&db, upto, 1_000).await;
        assert_eq!(path, expected, "{what}: {outcome:?}");
        let Outcome::Committed { failure, .. } = outcome else { panic!("{what}") };
        assert_eq!(failure.is_some(), expected == Path::LeftToLoop, "{what}");
        if let Some(failure) = failure {
            let failure = serde_json::to_value(&failure).unwrap();
            twins.step_over(&db, failure["event_id"].as_i64().unwrap()).await;
            run(&db, &mut twins, upto, || 1_000).await;
        }
    }
}

#[tokio::test]
async fn a_handler_of_all_events_that_only_the_database_refuses_is_met_by_every_batch() {
    let db = support::database().await;
    let all: (&[&str], &str) = (
        &["*"],
        "insert into {p}todos (id, title) values (-event.id, event.type) on conflict (id) do update set n = excluded.n",
    );
    let handlers: Vec<_> = HANDLERS.iter().copied().chain([all]).collect();
    let mut twins = Twins::start(&db, "_all", TODOS, &handlers).await;
    let upto = append(&db, &crowd(1)).await;
    assert_eq!(run(&db, &mut twins, upto, || 1_000).await, [0, 0, 1]);
    assert_eq!(rows(&db, "ftodos").await.lines().count(), 120);
}

#[tokio::test]
async fn after_a_doubt_the_next_batches_are_not_even_tried_and_soon_they_are_again() {
    let db = support::database().await;
    let mut twins = Twins::start(&db, "_back", TODOS, HANDLERS).await;
    let mut upto = 0;
    for batch in 0..8 {
        let mut events = crowd(1_000 * batch);
        if batch < 2 {
            // Too long for the varchar: the loop steps over it.
            events.push(event("Changed", 999_999, ", \"note\": \"0123456789\""));
        }
        upto = append(&db, &events).await;
    }
    let mut said = Vec::new();
    let running = &mut twins.folded;
    running.limits.size = 81;
    while running.claim.position < Position::from(upto) {
        let outcome = running.process(upto).await.unwrap();
        assert!(matches!(outcome, Outcome::Committed { failure: None, .. }), "{outcome:?}");
        let ask = "select current_setting('espd.fold_f_back')";
        let setting: String = sqlx::query_scalar(ask).fetch_one(&mut running.connection).await.unwrap();
        said.push(setting);
    }
    assert_eq!(said[..4], ["{1,1}", "{0,1}", "{0,0}", "{0,0}"], "{said:?}");
}

/// The parser calls itself for each level: on the stack of a task, such handlers ended the process.
#[tokio::test]
async fn deep_expressions_take_no_stack_of_the_task() {
    let db = support::database().await;
    let sum = format!("insert into {{p}}sums (id, n) values (event.id, {})", ["1"; 1500].join(" + "));
    let (open, close) = ("case when event.version > 0 then (".repeat(20), ") end".repeat(20));
    let nested = format!("update {{p}}sums set n = {open}2{close} where id = event.id - 1");
    let tables = &[("{p}sums", "id bigint primary key, n bigint not null")];
    let mut twins = Twins::start(&db, "_deep", tables, &[(&["Added"], &sum), (&["Changed"], &nested)]).await;
    let events: Vec<_> = (0..64)
        .map(|number| (if number % 2 == 0 { "Added" } else { "Changed" }.to_owned(), "{}".to_owned()))
        .collect();
    let upto = append(&db, &events).await;
    let (path, outcome) = twins.batch(&db, upto, 64).await;
    assert_eq!(path, Path::Folded, "{outcome:?}");
}

/// Of many statements, the one that an event meets is chosen by its type.
#[tokio::test]
async fn many_handlers_are_folded() {
    let db = support::database().await;
    let declared: Vec<(String, String)> = (0..300)
        .map(|number| {
            let key = "(event.body->>'k')::bigint";
            let sql = match number % 3 {
                0 => format!(
                    "insert into {{p}}todos (id, title, n) values ({key}, event.body->>'t', {number})"
                ),
                1 => format!("update {{p}}todos set n = {number}, note = 'of {number}' where id = {key}"),
                _ => format!("delete from {{p}}todos where id = {key}"),
            };
            (format!("T'{number}\""), sql)
        })
        .collect();
    let types: Vec<[&str; 1]> = declared.iter().map(|(name, _)| [name.as_str()]).collect();
    let handlers: Vec<(&[&str], &str)> =
        types.iter().zip(&declared).map(|(types, (_, sql))| (types.as_slice(), sql.as_str())).collect();
    let mut twins = Twins::start(&db, "_many", TODOS, &handlers).await;
    let of = |number: i64, key: i64| event(&declared[number as usize].0, key, "");
    let born = (0..400).map(|key| of(key % 100 * 3, key));
    let changed = (0..400).filter(|key| key % 2 == 0).map(|key| of(key % 97 * 3 + 1, key));
    let gone = (0..400).filter(|key| key % 7 == 0).map(|key| of(key % 89 * 3 + 2, key));
    let events: Vec<_> = born.chain(changed).chain(gone).collect();
    let upto = append(&db, &events).await;
    assert_eq!(run(&db, &mut twins, upto, || 10_000).await, [1, 0, 0]);
    assert_eq!(rows(&db, "ftodos").await.lines().count(), 342);
}

/// What is too much for one statement is handled in parts, and not event by event.
#[tokio::test]
async fn a_batch_of_too_many_bytes_is_folded_in_parts() {
    let db = support::database().await;
    let tables = &[("{p}notes", "id bigint primary key, note text")];
    let insert = "insert into {p}notes (id, note) values (event.id, event.body->>'t')";
    let mut twins = Twins::start(&db, "_large", tables, &[(&["Added"], insert)]).await;
    let body = |number: u64| format!(r#"{{"t": "{}"}}"#, fastrand::Rng::with_seed(number).u128(..));
    let events: Vec<_> = (0..400).map(|number| ("Added".to_owned(), body(number))).collect();
    let upto = append(&db, &events).await;
    for running in [&mut twins.folded, &mut twins.looped] {
        (running.limits.size, running.limits.bytes) = (400, 5_000);
    }
    let mut handled = Vec::new();
    while handled.iter().sum::<i32>() < 400 {
        let Outcome::Committed { handled: some, .. } = twins.folded.process(upto).await.unwrap() else {
            panic!()
        };
        handled.push(some);
    }
    while twins.looped.claim.position < Position::from(upto) {
        twins.looped.process(upto).await.unwrap();
    }
    assert!(handled.len() > 3 && handled.iter().all(|some| *some < 100), "{handled:?}");
    assert_eq!(rows(&db, "fnotes").await, rows(&db, "lnotes").await);
    let said: String = sqlx::query_scalar("select current_setting('espd.fold_f_large')")
        .fetch_one(&mut twins.folded.connection)
        .await
        .unwrap();
    assert_eq!(said, "{0,0}", "the last batch was folded");
}

/// Reading a body takes its time, so a batch of bodies that are too many bytes is not read to find that out.
#[tokio::test]
async fn bodies_outside_of_their_rows_are_not_read_before_they_are_handled() {
    let db = support::database().await;
    let tables = &[("{p}pages", "id bigint primary key, note text")];
    let insert = "insert into {p}pages (id, note) values (event.id, event.body->>'n')";
    let mut twins = Twins::start(&db, "_outside", tables, &[(&["Added"], insert)]).await;
    let mut dice = fastrand::Rng::with_seed(1);
    let mut body = |length: usize| -> String { (0..length).map(|_| dice.alphanumeric()).collect() };
    let events: Vec<_> =
        (0..200).map(|_| ("Added".to_owned(), format!(r#"{{"n": 1, "t": "{}"}}"#, body(50_000)))).collect();
    let upto = append(&db, &events).await;
    // Whoever reads one body meets its pages about this often.
    let written = pages_met(&db.pool).await;
    let running = &mut twins.folded;
    (running.limits.size, running.limits.bytes) = (1_000, 250_000);
    let mut batches = 0;
    while running.claim.position < Position::from(upto) {
        running.process(upto).await.unwrap();
        batches += 1;
    }
    assert!(batches > 30, "{batches}");
    assert_eq!(rows(&db, "fpages").await.lines().count(), 200);
    sqlx::query("select pg_stat_force_next_flush()").execute(&mut running.connection).await.unwrap();
    let read = pages_met(&db.pool).await - written;
    // Read before each batch, it would be twenty times as much.
    assert!(read < written, "{read} beside {written}");
}

/// How often pages of what is kept outside of the rows of events were met, once the statistics tell.
async fn pages_met(pool: &sqlx::PgPool) -> i64 {
    let query =
        "select pg_stat_force_next_flush()::text, toast_blks_read + toast_blks_hit from pg_statio_user_tables
        where relid = 'espd.events'::regclass";
    let mut before = 0;
    eventually("the statistics", async || {
        let (_, met): (String, i64) = sqlx::query_as(query).fetch_one(pool).await.unwrap();
        let is_steady = met > 0 && met == std::mem::replace(&mut before, met);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        is_steady.then_some(met)
    })
    .await
}

/// Sorts that do not fit into memory keep rows that compare equal in no order, so the order of events has to be part of each.
#[tokio::test]
async fn the_events_of_a_row_are_folded_in_their_order_also_where_keys_are_constant_or_equal() {
    let db = support::database().await;
    for (name, key, keys) in [
        ("_constant", "1, 1", "id = 1 and twin = 1"),
        (
            "_equal",
            "(event.body->>'k')::int, (event.body->>'k')::int",
            "id = (event.body->>'k')::int and twin = (event.body->>'k')::int",
        ),
    ] {
        let table = format!("{{p}}rows{name}");
        let insert = format!("insert into {table} values ({key}, 0, event.body->>'t')");
        let update =
            format!("update {table} set n = (event.body->>'n')::int, t = event.body->>'t' where {keys}");
        let handlers: Handlers = &[(&["Added"], &insert), (&["Set"], &update)];
        let columns = "id integer, twin integer, n integer, t text, primary key (id, twin)";
        let mut twins = Twins::start(&db, name, &[(&table, columns)], handlers).await;
        let start: i64 = sqlx::query_scalar("select coalesce(max(id), 0) from espd.events")
            .fetch_one(&db.pool)
            .await
            .unwrap();
        twins.step_over(&db, start).await;
        execute_on(&mut twins.folded, "set work_mem = '64kB'").await;
        let padding = "x".repeat(100);
        let event =
            |name: &str, n: i32| (name.to_owned(), format!(r#"{{"k": 1, "n": {n}, "t": "{n}{padding}"}}"#));
        let events: Vec<_> = (0..5_000).map(|n| event(if n == 0 { "Added" } else { "Set" }, n)).collect();
        let upto = append(&db, &events).await;
        assert_eq!(twins.batch(&db, upto, 5_000).await.0, Path::Folded, "{name}");
        // The loop reads by an index, so it needs no room.
        let short = "set temp_file_limit = '100kB'; set enable_sort = off; set enable_seqscan = off; set enable_bitmapscan = off";
        execute_on(&mut twins.folded, short).await;
        let upto = append(&db, &events[1..]).await;
        let outcome = twins.folded.process(upto).await.unwrap();
        assert!(matches!(outcome, Outcome::Committed { failure: None, .. }), "{outcome:?}");
        assert_eq!(twins.path().await, Path::LeftToLoop, "{name}");
    }
}

async fn execute_on(running: &mut Running, statement: &str) {
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut running.connection).await.unwrap();
}

/// The row of an index has a limit of its own, which many values reach together.
#[tokio::test]
async fn values_that_may_be_too_long_for_an_index_together_are_left_to_the_loop() {
    let db = support::database().await;
    let columns = "id bigint primary key, a text, b text, c text, d text, e text, f text, g text";
    let insert = "insert into {p}wide (id) values (event.id)";
    let set = "update {p}wide set a = event.body->>'t', b = event.body->>'t', c = event.body->>'t', d = event.body->>'t', \
        e = event.body->>'t', f = event.body->>'t', g = event.body->>'t' where id = (event.body->>'k')::bigint";
    let ddl = ["create index {p}wide_all on {p}wide (a, b, c, d, e, f, g)"];
    let handlers: Handlers = &[(&["Added"], insert), (&["Set"], set)];
    let mut twins = Twins::start_with(&db, "_wide", &[("{p}wide", columns)], handlers, &ddl).await;
    let added: Vec<_> = (0..40).map(|_| ("Added".to_owned(), "{}".to_owned())).collect();
    let upto = append(&db, &added).await;
    assert_eq!(twins.batch(&db, upto, 1_000).await.0, Path::Folded);
    let mut dice = fastrand::Rng::with_seed(1);
    let mut long = || -> String { (0..384).map(|_| dice.alphanumeric()).collect() };
    let mut set = Vec::new();
    for key in 1..=40 {
        for text in [long(), "short".to_owned()] {
            set.push(("Set".to_owned(), format!(r#"{{"k": {key}, "t": "{text}"}}"#)));
        }
    }
    let upto = append(&db, &set).await;
    let (path, outcome) = twins.batch(&db, upto, 1_000).await;
    assert_eq!(path, Path::LeftToLoop);
    let Outcome::Committed { failure, .. } = outcome else { panic!("{outcome:?}") };
    assert!(failure.is_some_and(|failure| failure.message.contains("index row size")));
}
