//! Tables are declared by the text between the parentheses, by all that stands behind the name in `create table`, or by a
//! table with `columns`, `options` and `comment`.

use espd::internals::config::Config;

use super::{Folder, load};

const PROJECTOR: &str = "[projector]\nname = 'p'\non = { events = ['A'], sql = 'null' }\n";

#[test]
fn a_table_is_a_text_or_has_columns_options_and_a_comment() {
    let text = format!(
        "{PROJECTOR}[projector.tables]\nplain = 'id int'\nwhole = '(id int) with (fillfactor = 70)'\n\
         [projector.tables.parted]\ncolumns = 'at date not null'\noptions = 'partition by range (at)'\n\
         comment = \"it's ${{NOT}} replaced\"\n"
    );
    let folder = Folder::new(&[("espd.toml", &text)]).with("NOT", "not");
    let config = folder.load().unwrap_or_else(|faults| panic!("{faults}"));
    let tables = &config.processors[0].tables;
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(names, ["plain", "whole", "parted"]);
    assert_eq!(tables[1].columns.text, "(id int) with (fillfactor = 70)");
    let Config { processors, .. } = load(&text.replace("${NOT}", "$${NOT}")).unwrap();
    let shown = serde_json::to_value(&processors[0].tables[2]).unwrap();
    assert_eq!(shown["options"]["text"], "partition by range (at)");
    assert_eq!(shown["comment"], "it's ${NOT} replaced");
}

#[test]
fn faults_in_a_table_are_placed() {
    let text = format!(
        "{PROJECTOR}[projector.tables]\na = 1\n[projector.tables.b]\ncolums = 'id int'\n\
         [projector.tables.c]\ncolumns = ''\noptions = 7\n[projector.tables.D]\ncolumns = 'id int'\n"
    );
    let report = Folder::new(&[("espd.toml", &text)]).report();
    for words in [
        "espd.toml:5:5: `a` must be SQL as a string, not an integer",
        "espd.toml:7:1: unknown key `colums` in [projector.tables.NAME]",
        "[projector.tables.NAME] needs `columns`",
        "espd.toml:9:11: `columns` is empty",
        "espd.toml:10:11: `options` must be SQL as a string, not an integer",
        "`D` is not a name for a table",
    ] {
        assert!(report.contains(words), "{words}\n---\n{report}");
    }
}

/// Such a projector, whose `aggregate_column` is in the fourth line.
fn keyed(column: &str, tables: &str, ddl: &str) -> String {
    format!("{PROJECTOR}ddl = [{ddl}]\naggregate_column = '{column}'\n{tables}")
}

#[test]
fn an_aggregate_column_that_a_declared_table_lacks_is_refused_where_that_shows() {
    let tables = "[projector.tables]\norders = 'order_id uuid primary key, \"N\" int, check (\"N\" > 0)'\n";
    let lines = format!("{tables}lines = 'line_id uuid, order_id uuid'\n");
    let faults = |column: &str, tables: &str| {
        Folder::new(&[("espd.toml", &keyed(column, tables, "'create index on orders (order_id)'"))]).report()
    };
    for (column, tables, words) in [
        ("orderid", tables, "espd.toml:5:20: table orders has no column orderid"),
        ("orderid", tables, "did you mean \"order_id\"?"),
        ("line_id", &lines, "espd.toml:5:20: table orders has no column line_id"),
        ("check", tables, "table orders has no column check"),
        ("order_id", "", "espd.toml:5:20: no table is declared that could have the column order_id"),
    ] {
        let report = faults(column, tables);
        assert!(report.contains(words), "{words}\n---\n{report}");
    }
    let other = faults("line_id", &lines);
    assert!(!other.contains("table lines"), "{other}");
}

#[test]
fn an_aggregate_column_that_only_the_database_knows_is_no_fault_of_the_file() {
    let alter = "'alter table orders add key uuid'";
    for (columns, ddl) in [
        ("order_id uuid", ""),
        ("(id uuid, n int)", ""),
        ("like others including all", ""),
        ("n int) inherits (others", ""),
        ("n int", alter),
    ] {
        let column = if columns == "order_id uuid" { "order_id" } else { "key" };
        let text = keyed(column, &format!("[projector.tables]\norders = '{columns}'\n"), ddl);
        load(&text).unwrap_or_else(|faults| panic!("{columns}: {faults}"));
    }
    load(&format!("{PROJECTOR}aggregate_column = 'key'\n[projector.tables.orders]\ncolumns = 'n int'\noptions = 'inherits (others)'\n"))
        .unwrap();
}

#[test]
fn declared_sql_is_one_list_of_columns_and_ends_no_transaction() {
    let report = |columns: &str, ddl: &str| {
        let text = format!(
            "[projector]\nname = 'p'\nddl = [{ddl}]\n[projector.tables]\nt = '{columns}'\n\
             [[projector.on]]\nevents = ['A']\nsql = 'perform 1'\n"
        );
        load(&text).map(drop).map_err(|faults| faults.to_string())
    };
    for (columns, found) in [
        ("id int); delete from a; create table b (id int", "`;` ends the statement that creates t"),
        ("(id int); delete from a", "`;` ends the statement that creates t"),
        ("id int;", "`;` ends the statement that creates t"),
    ] {
        let report = report(columns, "").unwrap_err();
        assert!(report.contains(found) && report.contains("1 fault"), "{report}");
    }
    for (statement, command) in [
        ("commit", "commit"),
        ("create index on t (id); Rollback", "Rollback"),
        ("end", "end"),
        ("prepare transaction \\u0027x\\u0027", "prepare"),
    ] {
        let report = report("id int", &format!("\"{statement}\"")).unwrap_err();
        assert!(report.contains(&format!("`{command}` is not for ddl")), "{report}");
    }
    let fine = "\"create function f() returns int language sql begin atomic select 1; end; create index on t (id);\"";
    assert_eq!(report("(id int, n numeric(5, 2)) with (fillfactor = 70);", fine), Ok(()));
}

#[test]
fn a_misspelt_number_of_attempts_is_one_fault() {
    let report = load("[retry]\nmax_attemps = 3\non_failure = 'park'\n").unwrap_err().to_string();
    assert!(report.contains("did you mean `max_attempts`?") && report.contains("1 fault"), "{report}");
    let report = load("[retry]\non_failure = 'park'\n").unwrap_err().to_string();
    assert!(report.contains("`park` as `on_failure` never happens"), "{report}");
}
