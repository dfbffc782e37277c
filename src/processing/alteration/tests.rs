use super::*;
use crate::processing::declaration::{HandledEvents, Handler, Synchronous, TableDeclaration};

fn declared(columns: &str, handler: &str, ddl: &[&str]) -> ProcessorDeclaration {
    let events = HandledEvents::Types(vec!["A".to_owned()]);
    ProcessorDeclaration {
        name: "orders".into(),
        version: 1,
        tables: vec![
            TableDeclaration::new("orders", SourceText::unplaced(columns)),
            TableDeclaration::new("lines", SourceText::unplaced("id bigint, place int")),
        ],
        ddl: ddl.iter().map(|text| SourceText::unplaced(text)).collect(),
        handling: Handling::Sql(vec![Handler { events, sql: SourceText::unplaced(handler) }]),
        batch: Default::default(),
        retry: Default::default(),
        isolation: Default::default(),
        on_handler_change: Default::default(),
        handler_timeout: Default::default(),
        start: None,
        reads: vec![],
        synchronous: None,
        fold: true,
        aggregate_column: None,
        approve: Default::default(),
        checks: vec![],
        reactor: None,
        read_through: None,
        scope: None,
    }
}

const BEFORE: &str = "id bigint primary key, n numeric(10, 2)";
const INSERT: &str = "insert into orders values (event.id, 2 * event.id)";

fn altered(former: &ProcessorDeclaration, present: &ProcessorDeclaration) -> Result<String, String> {
    compare(former, present, present).map(|alteration| alteration.to_string())
}

fn added(after: &str, handler: &str) -> Result<Vec<String>, String> {
    let (former, present) = (declared(BEFORE, handler, &[]), declared(after, handler, &[]));
    let alteration = compare(&former, &present, &present)?;
    Ok(alteration.columns.into_iter().map(|column| column.definition).collect())
}

#[test]
fn columns_with_a_constant_or_nothing_behind_the_others_need_no_replay() {
    for definition in [
        "note text",
        "note text null",
        "note text default 'none'",
        "note text default 'now playing'",
        "of regclass",
        "region text default 'regclass'",
        "n2 numeric(4,1) not null default -1.5",
        "tags text[] default '{}'::text[] not null",
        "at timestamp with time zone",
        "at timestamptz default '2020-01-01'",
        "\"Big\" boolean default false",
    ] {
        let found = added(&format!("{BEFORE},\n  {definition}  -- why\n"), INSERT);
        assert_eq!(found, Ok(vec![definition.to_owned()]));
    }
    let two = added(&format!("{BEFORE}, a int, b int default 3"), INSERT);
    assert_eq!(two, Ok(vec!["a int".to_owned(), "b int default 3".to_owned()]));
    let constrained = added("id bigint, n int, note text, primary key (id)", INSERT);
    assert!(constrained.is_err(), "the key was declared otherwise");
}

#[test]
fn what_is_more_than_that_needs_a_replay() {
    for definition in [
        "note text default now()",
        "at timestamptz default 'now'",
        "at timestamptz default 'today 12:00'",
        "note text default 'now'::timestamptz",
        "of regclass default 'orders'",
        "of regclass[] default '{orders}'",
        "of bigint default 'orders'::regclass",
        "of text default 'orders'::REGCLASS",
        "at date default current_date",
        "note text not null",
        "note text not null default null",
        "place bigserial",
        "note text unique",
        "note text check (note <> '')",
        "note text references others",
        "twice bigint generated always as (n * 2) stored",
        "note text collate \"C\"",
        "unique (n)",
    ] {
        assert!(added(&format!("{BEFORE}, {definition}"), INSERT).is_err(), "{definition}");
    }
    for (after, why) in [
        ("id bigint primary key, note text, n numeric(10, 2)", "not the last one"),
        ("id bigint primary key, n numeric(10, 3), note text", "another column has changed"),
        ("id bigint primary key", "a column less"),
    ] {
        assert!(added(after, INSERT).is_err(), "{why}");
    }
    let view = ["create view numbers as select * from orders"];
    let after = format!("{BEFORE}, note text");
    let refused = altered(&declared(BEFORE, INSERT, &view), &declared(&after, INSERT, &view));
    assert_eq!(refused, Err("`ddl` makes more than indexes, which may depend on the columns".to_owned()));
    let row = "id bigint, check (id > 0 and orders is not null)";
    assert!(altered(&declared(row, INSERT, &[]), &declared(&format!("{row}, n int"), INSERT, &[])).is_err());
}

#[test]
fn the_same_tables_written_otherwise_are_the_same() {
    let (before, after) =
        (declared(BEFORE, INSERT, &[]), declared("ID bigint PRIMARY key,\nn numeric(10,2)", INSERT, &[]));
    assert!(compare(&before, &after, &after).unwrap().is_empty());
    for (one, other) in
        [("n int check (n <-1)", "n int check (n < -1)"), ("n int default 12", "n int default 1 2")]
    {
        let refused = altered(&declared(one, INSERT, &[]), &declared(other, INSERT, &[]));
        assert!(refused.is_err(), "{one} is not {other}");
    }
}

const INDEX: &str = "create index orders_n on orders (n)";

#[test]
fn plain_indexes_are_made_and_dropped() {
    let with = |ddl: &[&str]| declared(BEFORE, INSERT, ddl);
    let made = altered(
        &with(&[]),
        &with(&["-- by number\n create index if not exists \"By n\" on only orders using btree (n);"]),
    );
    assert_eq!(made, Ok("alters orders: makes index By n".to_owned()));
    assert_eq!(altered(&with(&[INDEX]), &with(&[])), Ok("alters orders: drops index orders_n".to_owned()));
    let view = "create view numbers as select n from orders";
    let both = altered(
        &with(&[INDEX, view]),
        &with(&[
            &format!("{view}; create index lines_place on lines (place)"),
            "create index orders_n on orders (n, id)",
        ]),
    );
    let both = both.unwrap();
    assert_eq!(
        both,
        "alters lines: makes index lines_place; alters orders: drops index orders_n, makes index orders_n"
    );
}

#[test]
fn what_is_no_plain_index_needs_a_replay() {
    let with = |ddl: &[&str]| declared(BEFORE, INSERT, ddl);
    for ddl in [
        "create unique index a on orders (n)",
        "create index on orders (n)",
        "create index concurrently a on orders (n)",
        "create index a on public.orders (n)",
        "create index a on others (n)",
        "create view a as select n from orders",
        "comment on table orders is 'x'",
    ] {
        assert!(altered(&with(&[]), &with(&[ddl])).is_err(), "{ddl}");
        assert!(altered(&with(&[ddl]), &with(&[])).is_err(), "{ddl}");
        assert!(altered(&with(&[ddl]), &with(&[ddl, INDEX])).is_ok(), "{ddl}");
    }
    let used = ["alter table orders cluster on orders_n"];
    assert!(altered(&with(&[INDEX, used[0]]), &with(&used)).is_err(), "it is needed");
    let mut parks = with(&[INDEX]);
    parks.retry.on_failure = OnFailure::Park;
    assert!(altered(&with(&[]), &parks).is_err());
    let catches = "begin delete from lines; exception when others then null; end";
    let catching = |ddl: &[&str]| declared(BEFORE, catches, ddl);
    assert!(altered(&catching(&[]), &catching(&[INDEX])).is_err(), "the index may refuse what it catches");
    let whole = ["create unique index a on orders (n) where (orders is not null)"];
    let wider = format!("{BEFORE}, note text");
    assert!(altered(&with(&whole), &declared(&wider, INSERT, &whole)).is_err(), "over whole rows");
    let plain = ["create unique index a on only orders (n)"];
    assert!(altered(&with(&plain), &declared(&wider, INSERT, &plain)).is_ok());
    let mut synchronous = with(&[INDEX]);
    synchronous.synchronous = Some(Synchronous::TotalOrder);
    assert!(altered(&with(&[]), &synchronous).is_err());
}

#[test]
fn columns_come_before_indexes_in_a_step_of_their_own() {
    let former = declared(BEFORE, INSERT, &[INDEX, "create index gone on orders (id)"]);
    let after = format!("{BEFORE}, note text");
    let present = declared(&after, INSERT, &["create index orders_note on orders (note)", INDEX]);
    let all = compare(&former, &present, &present).unwrap();
    assert_eq!(
        all.to_string(),
        "alters orders: adds column note text, drops index gone, makes index orders_note"
    );
    let (first, between) = all.first_step(&present);
    assert_eq!(first.to_string(), "alters orders: adds column note text, drops index gone");
    assert_eq!(between.ddl.iter().map(|ddl| ddl.text.as_str()).collect::<Vec<_>>(), [INDEX]);
    let rest = compare(&between, &present, &present).unwrap();
    let (last, declared) = rest.first_step(&present);
    assert_eq!((last.to_string(), declared), ("alters orders: makes index orders_note".to_owned(), present));
}

#[test]
fn handlers_that_name_what_they_need_do_not_see_the_column() {
    let after = format!("{BEFORE}, note text");
    for blind in [
        INSERT,
        "insert into orders (id, n) select event.id, count(*) from lines; delete from orders where id = 3;",
        "insert into orders select event.id, count(*) * 2 from lines on conflict do nothing",
        "insert into orders values (1, 2) on conflict (id) do update set n = orders.n + excluded.n * 2",
        "insert into orders as o values (1, 2) on conflict (id) do update set n = o.n + 1",
        "update orders set n = n * 2 where id = (event.body->>'note')::bigint",
        "update orders as o set n = o.n + (select max(l.place) from lines l where l.id = o.id)",
        "delete from only orders",
        "insert into lines select o.id, orders.n from orders o join orders on orders.id = o.id",
        "if exists (select 1 from orders where n ~* 'x') then delete from orders using lines; end if",
        "for r in select id from orders loop perform r.id; end loop",
        "delete from lines as l using orders as o where o.id = l.id",
    ] {
        assert!(added(&after, blind).is_ok(), "{blind}: {:?}", added(&after, blind));
    }
}

#[test]
fn a_handler_that_could_see_the_column_needs_a_replay() {
    let after = format!("{BEFORE}, note text");
    for seeing in [
        "insert into copies select * from orders",
        "insert into copies select o.* from orders as o",
        "insert into copies select id, * from orders",
        "select into r * from orders",
        "select distinct on (id) * into r from orders",
        "perform * from orders",
        "insert into orders values (1, 2) returning * into r",
        "insert into copies select row_to_json(o) from orders o",
        "insert into copies select o from orders o",
        "insert into copies select o.to_jsonb from orders o",
        "insert into copies select to_jsonb(orders)",
        "insert into copies select id from orders where x is distinct from orders",
        "insert into copies table orders",
        "declare r orders; begin end",
        "declare r orders%rowtype; begin end",
        "insert into orders values (1, 2, 'x')",
        "insert into orders select 1, a is distinct from b, 3 from lines",
        "insert into orders (select 1, 2)",
        "insert into orders table lines",
        "insert into orders overriding system value values (1, 2)",
        "update orders set n = (select max(note) from lines)",
        "update orders set n = \"note\"",
        "insert into orders values (1, 2) on conflict (id) do update set n = f(excluded)",
        "insert into orders values (1, 2) on conflict (id) do update set n = excluded.note",
        "execute 'insert into copies select * from orders'",
        "insert into copies select query_to_xml('select 1 from orders', true, true, '')",
        "insert into copies select n from lines natural join orders",
        "update orders set n = orders.to_json",
        "delete from public.orders where id = 1",
        "insert into copies select attname from pg_attribute",
        "merge into orders using lines on true when matched then delete",
        "insert into copies select count(orders) from orders",
        "insert into copies select n from lines, orders",
        "insert into copies select U&\"\\006frders\" from orders",
        "with c as (select o as whole from orders o) insert into copies select whole from c",
        "select n into orders from lines",
        "do $x$ begin insert into copies select to_jsonb(o) from orders o; end $x$",
        "DO 'begin null; end'",
        "insert into copies values ((format('{\"(%s,1)\"}', event.id)::_orders)[1]::text)",
        "insert into copies values (has_column_privilege('orders', 3::smallint, 'select'))",
        "insert into copies values ('orders'::regclass)",
        r"insert into copies values (E'order\x73'::regclass)",
    ] {
        assert!(added(&after, seeing).is_err(), "{seeing}");
    }
    let of_event = declared(
        &format!("{BEFORE}, created_at timestamptz"),
        "insert into lines values (event.created_at)",
        &[],
    );
    assert!(altered(&declared(BEFORE, "null", &[]), &of_event).is_ok());
}

#[test]
fn names_of_handlers_are_known() {
    let one = declared(BEFORE, "insert into orders (id) select Price(1), \"My f\"(2)", &[]);
    assert_eq!(called_names(&one), ["My f", "orders", "price"].map(str::to_owned).into());
    assert!(names(&one).contains("select"));
}
