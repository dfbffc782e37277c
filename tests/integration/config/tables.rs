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
