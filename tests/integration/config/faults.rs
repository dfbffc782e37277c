//! Everything that is wrong is said at once: where, and what to write instead.

use espd::internals::config::EXAMPLE;
use proptest::prelude::*;

use super::{Folder, load};

/// The only fault of this text: line, column and the rest.
fn fault(text: &str) -> (usize, usize, String) {
    let faults = load(text).unwrap_err();
    let [fault] = faults.diagnostics() else { panic!("not one fault:\n{faults}") };
    assert!(fault.advice.as_ref().is_some_and(|advice| !advice.is_empty()));
    (fault.line.unwrap(), fault.column.unwrap(), fault.message.clone())
}

/// A projector named `p` with these lines added to it.
fn projector(lines: &str) -> String {
    format!("[projector]\nname = 'p'\n{lines}\n[[projector.on]]\nevents = ['A']\nsql = 'null'\n")
}

#[test]
fn everything_that_is_wrong_is_reported_at_once() {
    let folder = Folder::new(&[
        (
            "espd.toml",
            r#"include = ["processors/*.toml", "extra.toml"]
bach_size = 5

[event_store]
url    = "postgres://espd:hunter2@localhost:port/app"
layout = "eventsourcery"

[runner]
batch_sise        = 100
batch_time        = "2 weeks"
poll_interval_max = "${POLL_INTERVAL}"

[retry]
initial = "2m"

[[projector]]
"#,
        ),
        (
            "processors/lists.toml",
            r#"[projector]
name    = "Todo-Lists"
version = 0

[projector.tables]
todos = "id uuid primary key"

[[projector.on]]
events = ["*", "TodoAdded"]
sql = ""
"#,
        ),
        (
            "processors/todos.toml",
            r#"[projector]
name = "todos"

[projector.tables]
todos = "id uuid primary key"

[[projector.on]]
event = ["TodoAdded"]
sql = """
  insert into todos values (event.aggregate_id)
"#,
        ),
    ]);
    assert_eq!(folder.report(), REPORT.trim());
}

const REPORT: &str = r#"
espd.toml:1:33: there is no file extra.toml
    1 | include = ["processors/*.toml", "extra.toml"]
      |                                 ^^^^^^^^^^^^
      = name an existing file, or write a pattern with `*`, which may match nothing

espd.toml:2:1: unknown key `bach_size` at the top of this file
    2 | bach_size = 5
      | ^^^^^^^^^
      = did you mean `batch_size` of [runner] or [projector] or [reactor]? The keys known here: include, event_store, projections, runner, rebuild, retry, verify, log, admin, hooks, upcast, event, projector, reactor

espd.toml:5:10: not a PostgreSQL URL: invalid port number
    5 | url    = ***
      |          ^^^
      = write "postgres://user:password@host:5432/database", or take it from the environment: "${DATABASE_URL}"

espd.toml:6:10: unknown layout `eventsourcery`
    6 | layout = "eventsourcery"
      |          ^^^^^^^^^^^^^^^
      = did you mean "event_sourcery"? known: "espd", "event_sourcery"

espd.toml:9:1: unknown key `batch_sise` in [runner]
    9 | batch_sise        = 100
      | ^^^^^^^^^^
      = did you mean `batch_size`?

espd.toml:10:21: `2 weeks` is not allowed for `batch_time`
   10 | batch_time        = "2 weeks"
      |                     ^^^^^^^^^
      = write a number and a unit, "10ms" to "1h"; units: ms, s, m, h, d

espd.toml:11:22: the environment variable POLL_INTERVAL is not set, or empty
   11 | poll_interval_max = "${POLL_INTERVAL}"
      |                      ^^^^^^^^^^^^^^^^
      = set POLL_INTERVAL, or give a default: `${POLL_INTERVAL:-default}`

espd.toml:14:11: `max` is less than `initial`
   14 | initial = "2m"
      |           ^^^^
      = write a `max` that is at least `initial`

espd.toml:16:1: [projector] needs `name`
   16 | [[projector]]
      | ^^^^^^^^^^^^^
      = write `name = "…"`, unique among all processors

espd.toml:16:1: [projector] needs `on`
   16 | [[projector]]
      | ^^^^^^^^^^^^^
      = write [[projector.on]] with `events` and `sql` below it

processors/lists.toml:2:11: `Todo-Lists` is not a name for a processor
    2 | name    = "Todo-Lists"
      |           ^^^^^^^^^^^^
      = write up to 48 of a-z, 0-9 and _, beginning with a letter or _, for example `todo_lists`

processors/lists.toml:3:11: `0` is not allowed for `version`
    3 | version = 0
      |           ^
      = write a whole number from 1 to 2147483647, without quotes

processors/lists.toml:9:10: `*` stands for all types and cannot be combined with others
    9 | events = ["*", "TodoAdded"]
      |          ^^^^^^^^^^^^^^^^^^
      = write ["*"] alone, or split this into two handlers; both run, in order

processors/lists.toml:10:7: `sql` is empty
   10 | sql = ""
      |       ^^
      = write the SQL, or remove the key

processors/todos.toml:5:1: there is another table `todos`, at processors/lists.toml:6
    5 | todos = "id uuid primary key"
      | ^^^^^
      = a table belongs to one projector; give this one another name

processors/todos.toml:8:1: unknown key `event` in [[projector.on]]
    8 | event = ["TodoAdded"]
      | ^^^^^
      = did you mean `events`?

processors/todos.toml:9:7: not TOML: invalid multi-line basic string, expected `"`
    9 | sql = """
      |       ^
      = close this string

17 faults in the configuration
"#;

#[test]
fn each_rule_is_kept() {
    for (text, line, column, message) in [
        // Types and ranges.
        ("runner = 1", 1, 10, "`runner` must be a table, not an integer"),
        ("include = 'a.toml'", 1, 11, "`include` must be a list, not a string"),
        ("include = [1]", 1, 12, "`include` must be a string, not an integer"),
        ("include = ['[.toml']", 1, 12, "not a pattern: "),
        ("include = ['[z-a].toml']", 1, 12, "not a pattern: no character is in [z-a]"),
        ("include = ['espd.toml']", 1, 12, "a file cannot include itself"),
        (
            "[runner]\nbatch_size = 1\n[log]\nlevel = 'info'\n[runner]\n",
            5,
            2,
            "not TOML: `runner` is in line 1 already",
        ),
        (
            "[runner]\nbatch_size = 1\n[retry]\nmax = '9s'\nmax = '8s'\n",
            5,
            1,
            "not TOML: `max` is in line 4 already",
        ),
        ("[runner]\nbatch_size = 100001", 2, 14, "`100001` is not allowed for `batch_size`"),
        ("[runner]\nbatch_size = '1000'", 2, 14, "`1000` is not allowed for `batch_size`"),
        ("[runner]\nbatch_size = 99999999999999999999", 2, 14, "`99999999999999999999` is not allowed"),
        ("[runner]\nbatch_bytes = '2GiB'", 2, 15, "`2GiB` is not allowed for `batch_bytes`"),
        ("[runner]\nbatch_span = 0", 2, 14, "`0` is not allowed for `batch_span`"),
        ("[runner]\nbatch_time = 2", 2, 14, "`batch_time` must be a number with a unit, not an integer"),
        ("[runner]\nshutdown_timeout = '2h'", 2, 20, "`2h` is not allowed for `shutdown_timeout`"),
        ("[retry]\njitter = -0.1", 2, 10, "`-0.1` is not allowed for `jitter`"),
        ("[retry]\njitter = nan", 2, 10, "`nan` is not allowed for `jitter`"),
        ("[retry]\ninitial = '0s'", 2, 11, "`0s` is not allowed for `initial`"),
        ("[retry]\ninitial = 'x'\nmax = '1ms'", 2, 11, "`x` is not allowed for `initial`"),
        ("[retry]\nmax = 'x'\ninitial = '1d'", 2, 7, "`x` is not allowed for `max`"),
        ("[retry]\nstrategy = 'exponentail'", 2, 12, "unknown strategy `exponentail`"),
        ("[log]\nformat = 'text'", 2, 10, "unknown format `text`"),
        ("[log]\nlevel = 'debugg'", 2, 9, "`debugg` is not a log level"),
        ("[log]\nlevel = 'info,sqlx=loud'", 2, 9, "`info,sqlx=loud` is not a log filter"),
        // Databases and schemas.
        ("[event_store]\nurl = ''", 2, 7, "not a PostgreSQL URL: "),
        ("[event_store]\nurl = 'mysql://h/d'", 2, 7, "not a PostgreSQL URL: "),
        ("[event_store]\nschema = 'Espd'", 2, 10, "`Espd` is not a name for a schema"),
        ("[event_store]\nschema = 'pg_espd'", 2, 10, "the schema `pg_espd` belongs to PostgreSQL"),
        ("[event_store]\nschema = 'public'", 2, 10, "events and projections share the schema `public`"),
        ("[projections]\nschema = 'espd'", 2, 10, "events and projections share the schema `espd`"),
        // Variables.
        ("[log]\nlevel = '${NONE}'", 2, 10, "the environment variable NONE is not set, or empty"),
        ("[log]\nlevel = '${NONE'", 2, 10, "`${` without its `}`"),
        ("[log]\nlevel = '${N ONE}'", 2, 10, "`${N ONE}` is not one of the known forms"),
        ("[log]\nlevel = '${file:/nowhere}'", 2, 10, "cannot read /nowhere: "),
        // Projectors.
        (&projector("version = 2147483648"), 3, 11, "`2147483648` is not allowed for `version`"),
        (&projector("ddl = 'create index'"), 3, 7, "`ddl` must be a list, not a string"),
        (&projector("ddl = [' ']"), 3, 8, "`ddl` is empty"),
        (&projector("[projector.tables]\nT = 'a int'"), 4, 1, "`T` is not a name for a table"),
        (&projector("[projector.tables]\nevent = 'a int'"), 4, 1, "a table cannot be called `event`"),
        (&projector("[projector.tables]\nt = ''"), 4, 5, "`t` is empty"),
        (&projector("[projector.tables]\nt = ['a int']"), 4, 5, "`t` must be SQL as a string, not an array"),
        (&projector("[projector.retry]\nmax = '1ms'"), 4, 7, "`max` is less than `initial`"),
        (&projector("[projector.retry]\ninital = '1ms'"), 4, 1, "unknown key `inital` in [projector.retry]"),
        ("[projector]\nname = 'p'\non = []", 3, 6, "a projector without handlers does nothing"),
    ] {
        let (found_line, found_column, found) = fault(text);
        assert_eq!((found_line, found_column), (line, column), "{text}\n{found}");
        assert!(found.starts_with(message), "{text}\n{found}");
    }
}

#[test]
fn each_rule_for_handlers_is_kept() {
    for (lines, line, column, message) in [
        ("sql = 'null'", 3, 1, "[[projector.on]] needs `events`"),
        ("events = ['A']", 3, 1, "[[projector.on]] needs `sql`"),
        ("events = []\nsql = 'null'", 4, 10, "a handler without event types handles nothing"),
        ("events = 'A'\nsql = 'null'", 4, 10, "`events` must be a list, not a string"),
        ("events = ['A', '']\nsql = 'null'", 4, 16, "an event type is never empty"),
        ("events = ['A', 'B', 'A']\nsql = 'null'", 4, 21, "`A` is listed twice"),
        ("events = ['*', '*']\nsql = 'null'", 4, 16, "`*` is listed twice"),
        ("events = ['A', '*']\nsql = 'null'", 4, 10, "`*` stands for all types"),
        ("events = [\"A\\u0000\"]\nsql = 'null'", 4, 11, "`events` contains a NUL character"),
        ("events = ['A']\nsql = \"select '\\u0000'\"", 5, 7, "`sql` contains a NUL character"),
        ("events = ['A']\nsql = \"\"\"\n \t\n\"\"\"", 5, 7, "`sql` is empty"),
    ] {
        let (found_line, found_column, found) =
            fault(&format!("[projector]\nname = 'p'\n[[projector.on]]\n{lines}\n"));
        assert_eq!((found_line, found_column), (line, column), "{lines}\n{found}");
        assert!(found.starts_with(message), "{lines}\n{found}");
    }
}

#[test]
fn two_processors_cannot_have_one_name_or_one_table() {
    let one = "[projector]\nname = 'p'\n[projector.tables]\nt = 'a int'\n[[projector.on]]\nevents=['A']\nsql='null'\n";
    let folder =
        Folder::new(&[("espd.toml", "include = ['a.toml', 'b.toml']"), ("a.toml", one), ("b.toml", one)]);
    let report = folder.report();
    assert!(report.contains("b.toml:2:8: there is another processor `p`, at a.toml:2\n"), "{report}");
    assert!(report.contains("b.toml:4:1: there is another table `t`, at a.toml:4\n"), "{report}");
    assert!(report.ends_with("\n2 faults in the configuration"), "{report}");
}

#[test]
fn reading_continues_after_a_syntax_error() {
    let folder = Folder::new(&[
        (
            "espd.toml",
            "include = ['a.toml']\n[runner]\nbatch_size = ten\nbatch_tim = '1s'\n[log]\nlevel = \"info\n",
        ),
        ("a.toml", "[projector]\nname = 'P'\n"),
    ]);
    let faults = folder.load().unwrap_err();
    let places: Vec<_> =
        faults.diagnostics().iter().map(|fault| (fault.line.unwrap(), fault.column.unwrap())).collect();
    assert_eq!(places, [(3, 14), (4, 1), (6, 9), (1, 1), (2, 8)], "{faults}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = Folder::new(&[]);
    let report = folder.report();
    assert!(report.starts_with("espd.toml: cannot read the file: "), "{report}");
    assert!(report.contains("espctl config example"), "{report}");
}

#[test]
fn an_included_file_holds_processors_only() {
    let folder = Folder::new(&[("espd.toml", "include = ['a.toml']"), ("a.toml", "[runner]\n")]);
    let report = folder.report();
    assert!(report.starts_with("a.toml:1:2: unknown key `runner` at the top of this file\n"), "{report}");
    assert!(report.contains("move it to the main file"), "{report}");
}

#[test]
fn every_known_key_is_read() {
    for name in espd::internals::config::known_keys() {
        let (section, key) = name.rsplit_once('.').unwrap_or(("", &name));
        let header = match section {
            "" => String::new(),
            "projector.on" => "[[projector.on]]".to_owned(),
            _ => format!("[{section}]"),
        };
        let faults = load(&format!("{header}\n{key} = 1979-05-27\n")).unwrap_err();
        let complaint =
            faults.diagnostics().iter().find(|fault| fault.line == Some(2)).map(|fault| &fault.message);
        assert!(complaint.is_some_and(|message| message.contains(&format!("`{key}`"))), "{name}: {faults}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(
        start in 0..EXAMPLE.len(),
        length in 0usize..400,
        inserted in r#"(["'\[\]{}=#$,.\\\n\r\x00ü1a ]|"""|\$\{|\[\[projector\]\]\n|postgres://a:s3cret@h){0,6}"#,
    ) {
        let start = EXAMPLE.floor_char_boundary(start);
        let end = EXAMPLE.floor_char_boundary((start + length).min(EXAMPLE.len()));
        let text = format!("{}{inserted}{}", &EXAMPLE[..start], &EXAMPLE[end..]);
        if let Err(faults) = load(&text) {
            let report = faults.to_string();
            prop_assert!(!report.contains("s3cret"), "{report}");
            prop_assert!(faults.diagnostics().iter().all(|fault| fault.line.is_some()), "{report}");
        }
    }
}

#[test]
fn a_folder_is_called_one() {
    let folder = Folder::new(&[("espd.toml", "include = ['p']\n"), ("p/a.toml", "")]);
    let faults = folder.load().unwrap_err();
    let [fault] = faults.diagnostics() else { panic!("not one fault:\n{faults}") };
    assert!(fault.message.ends_with("p is a folder"), "{fault:?}");
    assert!(fault.advice.as_ref().unwrap().contains("\"p/*.toml\""), "{fault:?}");
}

#[test]
fn batches_do_not_grow_to_less_than_they_begin_with() {
    for text in [
        "[runner]\nbatch_size_max = 10\n".to_owned(),
        "[runner]\nbatch_size = 1000\nbatch_size_max = 999\n".to_owned(),
        format!("[runner]\nbatch_size = 50\n{}", projector("batch_size_max = 49")),
    ] {
        assert!(fault(&text).2.starts_with("`batch_size_max` is less than `batch_size`"), "{text}");
    }
    load("[runner]\nbatch_size = 10\nbatch_size_max = 10\n").unwrap();
}
