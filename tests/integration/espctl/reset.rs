//! What depends on a projector's tables when they are dropped: carried over, recreated, or told before it is lost.

use sqlx::{AssertSqlSafe, PgPool};

use crate::support;
use crate::support::Database;
use crate::support::facts::{append, eventually, position, reaches};
use crate::support::program::{Installation, Program};

const TODOS: &str = "[projector]\nname = 'todos'\n\
     ddl = ['create index todos_title on todos (title)', 'create view titles as select title from todos']\n\
     [projector.tables]\ntodos = 'id bigint primary key, title text, tenant text'\n\
     [[projector.on]]\nevents = ['A']\nsql = \"insert into todos values (event.id, 't', 'a')\"\n";

const LABELS: &str = "[projector]\nname = 'labels'\n\
     [projector.tables]\nlabels = 'id bigint primary key, todo_id bigint'\n\
     [[projector.on]]\nevents = ['B']\nsql = \"insert into labels values (event.id, null)\"\n";

/// A projector that has handled five events.
async fn running() -> (Database, Installation, Program) {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "[runner]\npoll_interval_max = '50ms'\n");
    installation.declare("todos", TODOS).declare("labels", LABELS);
    append(&db.pool, 5).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "todos", 5).await;
    reaches(&db.pool, "labels", 5).await;
    (db, installation, daemon)
}

async fn execute(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.unwrap();
}

async fn fact(pool: &PgPool, query: &str) -> String {
    let query = format!("select ({query})::text");
    let fact: Option<String> = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(pool).await.unwrap();
    fact.unwrap_or_default()
}

/// Roles are the server's, so each database of a test has its own.
fn dba(db: &Database) -> String {
    let (name, other) = (&db.name, format!("other_{}", db.name));
    format!(
        "create role tenant_{name}; create role {other};
         grant select, insert on todos to tenant_{name}; grant select on todos to {other} with grant option;
         grant update (title) on todos to {other};
         comment on table todos is 'What is \"to do\"'; comment on column todos.title is 'it''s short';
         alter table todos enable row level security; alter table todos force row level security;
         create policy tenants on todos for select to tenant_{name} using (tenant = current_user);
         create policy writes on todos as restrictive for insert with check (tenant is not null);
         create publication changes_{name} for table todos, labels;"
    )
}

/// Everything that a DBA has added and that can be carried over.
async fn additions(pool: &PgPool) -> [String; 7] {
    [
        fact(pool, "select array_agg(a::text order by a::text) from pg_class, unnest(relacl) as a where oid = 'todos'::regclass").await,
        fact(pool, "select array_agg(a::text order by a::text) from pg_attribute, unnest(attacl) as a where attrelid = 'todos'::regclass").await,
        fact(pool, "obj_description('todos'::regclass) || col_description('todos'::regclass, 2)").await,
        fact(pool, "select relrowsecurity::text || relforcerowsecurity from pg_class where oid = 'todos'::regclass").await,
        fact(pool, "select array_agg(format('%s %s %s %s %s %s', policyname, permissive, roles, cmd, qual, with_check) order by 1)
                    from pg_policies where tablename = 'todos'").await,
        fact(pool, "select array_agg(pubname || ' ' || tablename order by tablename) from pg_publication_tables where tablename in ('todos', 'labels')").await,
        fact(pool, "select array_agg(indexname order by indexname) from pg_indexes where tablename = 'todos'").await,
    ]
}

#[tokio::test]
async fn a_projector_begins_where_it_is_declared_and_a_reset_leads_back_there() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "[runner]\npoll_interval_max = '50ms'\n");
    let declare = |start: &str| {
        let declared =
            LABELS.replacen("name =", &format!("start = {start}\nname ="), 1).replace("'B'", "'A'");
        installation.declare("labels", &declared);
    };
    declare("'now'");
    append(&db.pool, 5).await;
    let outcome = installation.espctl(&["check"]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(
        outcome.stderr.contains("labels.toml: projector labels begins with the events that"),
        "{outcome:?}"
    );
    let daemon = installation.start_daemon();
    reaches(&db.pool, "labels", 5).await;
    append(&db.pool, 3).await;
    reaches(&db.pool, "labels", 8).await;
    assert_eq!(fact(&db.pool, "select array_agg(id) from labels").await, "{6,7,8}");
    let said = installation.espctl(&["reset", "labels", "--in-place", "--yes"]).await.printed();
    assert_eq!(said, "labels was at 8, is at 5\n");
    reaches(&db.pool, "labels", 8).await;
    assert_eq!(fact(&db.pool, "select array_agg(id) from labels").await, "{6,7,8}");
    daemon.stop().await;

    // A position holds as it is declared now.
    declare("7");
    installation.espctl(&["reset", "labels", "--in-place", "--yes"]).await.printed();
    let daemon = installation.start_daemon();
    reaches(&db.pool, "labels", 8).await;
    assert_eq!(fact(&db.pool, "select array_agg(id) from labels").await, "{8}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_reset_carries_over_grants_comments_policies_and_publications() {
    let (db, installation, daemon) = running().await;
    execute(&db.pool, &dba(&db)).await;
    let before = additions(&db.pool).await;
    assert!(before.iter().all(|fact| !fact.is_empty()), "{before:?}");
    let question = installation.espctl(&["reset", "todos", "--in-place"]).await.complained(1);
    assert!(question.contains("carries over") && question.contains("policy tenants"), "{question}");
    installation.espctl(&["reset", "todos", "--in-place", "--yes"]).await.printed();
    assert_eq!(additions(&db.pool).await, before);
    reaches(&db.pool, "todos", 5).await;
    assert_eq!(fact(&db.pool, "select count(*) from todos").await, "5");
    assert_eq!(fact(&db.pool, "select count(*) from titles").await, "5", "declared DDL is there again");
    daemon.stop().await;
}

#[tokio::test]
async fn rights_that_were_taken_away_do_not_come_back() {
    let (db, installation, daemon) = running().await;
    let role = format!("reader_{}", db.name);
    let sql = format!(
        "create role {role}; alter default privileges grant select on tables to {role};
         grant select on todos to {role}; revoke select on todos from {role}; grant insert on todos to {role}"
    );
    execute(&db.pool, &sql).await;
    installation.espctl(&["reset", "todos", "--in-place", "--yes"]).await.printed();
    let may = format!(
        "has_table_privilege('{role}', 'todos', 'select')::text || has_table_privilege('{role}', 'todos', 'insert')"
    );
    assert_eq!(fact(&db.pool, &may).await, "falsetrue");
    daemon.stop().await;
}

const OTHERS: &str = "alter table labels add constraint of_todo foreign key (todo_id) references todos;
     create view public.strange as select id from todos;
     create materialized view public.stranger as select id from public.strange;
     create function audit() returns trigger language plpgsql as 'begin return new; end';
     create trigger audited after insert on todos for each row execute function audit();
     create index todos_tenant on todos (tenant);
     alter table todos add constraint short check (length(title) < 100);
     alter table todos add column noted_by_hand text";

#[tokio::test]
async fn a_reset_refuses_to_drop_what_others_have_made_unless_it_is_told_to() {
    let (db, installation, daemon) = running().await;
    execute(&db.pool, &dba(&db)).await;
    execute(&db.pool, OTHERS).await;
    let before = additions(&db.pool).await;
    for arguments in [&["reset", "todos", "--in-place", "--yes"][..], &["reset", "todos", "--in-place"]] {
        let complaint = installation.espctl(arguments).await.complained(1);
        for lost in [
            "view public.strange",
            "materialized view public.stranger",
            "constraint of_todo on public.labels",
            "trigger audited on public.todos",
            "index public.todos_tenant",
            "constraint short on public.todos",
            "column public.todos.noted_by_hand",
            "--cascade",
        ] {
            assert!(complaint.contains(lost), "{lost}: {complaint}");
        }
        assert!(!complaint.contains("todos_title") && !complaint.contains("titles"), "{complaint}");
    }
    assert_eq!(additions(&db.pool).await, before);
    assert_eq!(position(&db.pool, "todos").await, 5);
    assert_eq!(fact(&db.pool, "select count(*) from public.stranger").await, "5");

    let question = installation.espctl(&["reset", "todos", "--in-place", "--cascade"]).await.complained(1);
    assert!(question.contains("drops for good") && question.contains("view public.strange"), "{question}");
    let said = installation.espctl(&["reset", "todos", "--in-place", "--cascade", "--yes"]).await.printed();
    assert!(said.contains("was at 5, is at 0"), "{said}");
    assert_eq!(
        fact(&db.pool, "to_regclass('public.strange') is null and to_regclass('public.stranger') is null")
            .await,
        "true"
    );
    let mut expected = before;
    expected[6] = "{todos_pkey,todos_title}".to_owned();
    assert_eq!(additions(&db.pool).await, expected);
    daemon.stop().await;
}

#[tokio::test]
async fn what_the_author_takes_out_of_the_declaration_goes_without_a_word() {
    let (db, installation, daemon) = running().await;
    let changed = TODOS
        .replace("ddl = ['create index todos_title on todos (title)', 'create view titles as select title from todos']\n", "")
        .replace(", tenant text", "")
        .replace(", 'a')", ")");
    installation.declare("todos", &changed);
    installation.espctl(&["reset", "todos", "--in-place", "--yes"]).await.printed();
    assert_eq!(additions(&db.pool).await[6], "{todos_pkey}");
    daemon.stop().await;
}

/// How a DBA has tuned the tables, which no object of its own stands for.
const TUNING: &str = "alter table todos alter column title set statistics 500;
     alter table todos alter column title set storage external;
     do $$ begin
       if current_setting('server_version_num')::int >= 140000 then
         execute 'alter table todos alter column tenant set compression pglz';
       end if;
     end $$;
     alter table todos alter column tenant set (n_distinct = 7);
     alter table todos set unlogged;
     alter table todos cluster on todos_title;
     alter index todos_pkey set (fillfactor = 70);
     alter index todos_title set (fillfactor = 80);
     comment on index todos_pkey is 'the key''s index'; comment on constraint todos_pkey on todos is 'the key';
     comment on index todos_title is 'by title';
     revoke truncate, references on todos from current_user";

async fn tuning(pool: &PgPool) -> String {
    let columns = "select array_agg(format('%s %s %s %s %s', attname, attstattarget, attstorage, to_jsonb(a)->>'attcompression', attoptions)
                   order by attname) from pg_attribute as a where attrelid = 'todos'::regclass and attnum > 0";
    let relations =
        "select array_agg(format('%s %s %s %s %s', relname, relpersistence, reloptions, indisclustered,
                     obj_description(c.oid, 'pg_class')) order by relname)
                     from pg_class as c left join pg_index as i on i.indexrelid = c.oid
                     where c.oid = 'todos'::regclass or i.indrelid = 'todos'::regclass";
    let others = "select array_agg(obj_description(oid, 'pg_constraint')) from pg_constraint where conname = 'todos_pkey'";
    let rights = "select array_agg(a::text order by a::text) from pg_class, unnest(relacl) as a where oid = 'todos'::regclass";
    let mut facts = Vec::new();
    for query in [columns, relations, others, rights] {
        facts.push(fact(pool, query).await);
    }
    facts.join("\n")
}

#[tokio::test]
async fn a_reset_carries_over_how_tables_columns_and_keys_were_tuned() {
    let (db, installation, daemon) = running().await;
    let as_made = tuning(&db.pool).await;
    execute(&db.pool, TUNING).await;
    let tuned = tuning(&db.pool).await;
    for word in [
        "500 e",
        "{n_distinct=7}",
        "todos u",
        "fillfactor=70",
        "fillfactor=80",
        " t by title",
        "the key's index",
        "the key",
    ] {
        assert!(tuned.contains(word) && !as_made.contains(word), "{word}: {tuned}");
    }
    installation.espctl(&["reset", "todos", "--in-place", "--yes"]).await.printed();
    assert_eq!(tuning(&db.pool).await, tuned);
    reaches(&db.pool, "todos", 5).await;
    // What a DBA takes back is not the daemon's to bring again.
    execute(&db.pool, "alter table todos set logged; alter table todos set without cluster").await;
    let taken_back = tuning(&db.pool).await;
    installation.espctl(&["reset", "todos", "--in-place", "--yes"]).await.printed();
    assert_eq!(tuning(&db.pool).await, taken_back);
    daemon.stop().await;
}

#[tokio::test]
async fn what_cannot_be_carried_over_to_the_new_shape_is_told_as_well() {
    let (db, installation, daemon) = running().await;
    execute(&db.pool, "create policy tenants on todos using (tenant = current_user); alter table todos enable row level security").await;
    installation.declare("todos", &TODOS.replace(", tenant text", "").replace(", 'a')", ")"));
    let complaint = installation.espctl(&["reset", "todos", "--in-place", "--yes"]).await.complained(1);
    assert!(complaint.contains("policy tenants on public.todos"), "{complaint}");
    assert_eq!(fact(&db.pool, "select count(*) from pg_policies where tablename = 'todos'").await, "1");
    daemon.stop().await;
}

#[tokio::test]
async fn a_table_that_somebody_has_dropped_is_told_with_its_remedy_before_an_event_needs_it() {
    let (db, installation, daemon) = running().await;
    daemon.stop().await;
    execute(&db.pool, "drop table todos cascade").await;
    let remedy = "`espctl reset todos --in-place`";
    let checked = installation.espctl(&["check"]).await;
    assert!(checked.code == Some(0) && checked.stderr.contains(remedy), "{checked:?}");
    let planned = installation.espctl(&["plan"]).await;
    assert_eq!(planned.code, Some(2), "{planned:?}");
    let said = "todos: stops, because somebody has dropped or renamed public.todos, which todos needs";
    assert!(planned.stdout.contains(said) && planned.stdout.contains(remedy), "{planned:?}");

    let daemon = installation.start_daemon();
    let status = eventually("the trouble", async || {
        Some(installation.status("todos").await).filter(|status| status["state"] == "failed")
    })
    .await;
    assert!(status["last_error"]["message"].as_str().unwrap().contains(remedy), "{status}");
    let complaint = installation.espctl(&["reset", "todos", "--yes"]).await.complained(1);
    assert!(complaint.contains(remedy), "{complaint}");
    let complaint = installation.espctl(&["rebuild", "todos", "--dry-run"]).await.complained(1);
    assert!(complaint.contains(remedy), "{complaint}");
    let names = "select string_agg(name, ', ' order by name) from espd.trackers";
    assert_eq!(fact(&db.pool, names).await, "labels, todos");

    installation.espctl(&["reset", "todos", "--in-place", "--yes"]).await.printed();
    reaches(&db.pool, "todos", 5).await;
    assert_eq!(fact(&db.pool, "select count(*) from todos").await, "5");
    let last = append(&db.pool, 1).await;
    reaches(&db.pool, "todos", last).await;
    daemon.stop().await;
}

/// Whoever asks for effects expects some.
#[tokio::test]
async fn a_projector_in_sql_has_no_effects_to_repeat() {
    let (db, installation, daemon) = running().await;
    for way in [&["--in-place"][..], &["--to", "1"], &[]] {
        let arguments = [&["reset", "labels", "--repeat-effects", "--yes"][..], way].concat();
        let complaint = installation.espctl(&arguments).await.complained(1);
        assert!(complaint.contains("labels are SQL and have no effects to repeat"), "{complaint}");
    }
    let logged: i64 =
        sqlx::query_scalar("select count(*) from espd.operator_log").fetch_one(&db.pool).await.unwrap();
    assert_eq!(logged, 0);
    daemon.stop().await;
}

/// A processor that begins anew may be of another kind than it was.
#[tokio::test]
async fn a_projector_that_begins_anew_as_a_reactor_is_shown_as_one() {
    let (db, installation, daemon) = running().await;
    daemon.stop().await;
    let reactor = "[reactor]\nname = 'labels'\nemits = ['C']\nstart = 'beginning'\n\
        [[reactor.on]]\nevents = ['B']\nsql = \"perform espd.emit('C', event.aggregate_id, '{}')\"\n";
    installation.declare("labels", reactor);
    installation.espctl(&["reset", "labels", "--in-place", "--yes"]).await.printed();
    let daemon = installation.start_daemon();
    let last = append(&db.pool, 1).await;
    reaches(&db.pool, "labels", last).await;
    assert_eq!(installation.status("labels").await["kind"], "reactor");
    assert_eq!(fact(&db.pool, "select kind from espd.trackers where name = 'todos'").await, "projector");
    daemon.stop().await;
}
