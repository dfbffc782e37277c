//! Imports point downward: which part of `src/` may name which, and no file is in a circle with another.
//!
//! The table is the architecture. A new folder, or a new arrow, is a change to this table and to ARCHITECTURE.md.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each folder or file directly below `src/`, with what it may import; the lowest floor first.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("event", &[]),
    ("retry", &[]),
    ("shutdown", &[]),
    ("postgres", &[]),
    ("visible", &[]),
    ("own_name", &[]),
    ("telemetry", &["own_name", "visible"]),
    ("diagnostic", &["postgres"]),
    ("schema", &["postgres"]),
    ("process", &["shutdown"]),
    ("store", &["event", "postgres", "retry", "schema", "shutdown"]),
    ("personal_data", &["event", "postgres", "store"]),
    ("aggregate", &["event", "store"]),
    ("commands", &["aggregate", "event", "postgres", "store"]),
    ("processors", &["event", "postgres"]),
    ("supervision", &["process"]),
    ("embedded", &["postgres", "process"]),
    ("processing", &["diagnostic", "event", "postgres", "process", "retry", "schema", "shutdown", "store"]),
    (
        "handlers",
        &[
            "aggregate",
            "diagnostic",
            "event",
            "own_name",
            "postgres",
            "process",
            "processing",
            "retry",
            "store",
        ],
    ),
    ("local", &["aggregate", "event", "handlers", "processing", "retry", "store"]),
    (
        "config",
        &["diagnostic", "handlers", "postgres", "processing", "retry", "store", "supervision", "telemetry"],
    ),
    (
        "worker",
        &[
            "event",
            "handlers",
            "postgres",
            "process",
            "processing",
            "retry",
            "schema",
            "shutdown",
            "store",
            "telemetry",
        ],
    ),
    (
        "operations",
        &[
            "config",
            "diagnostic",
            "embedded",
            "event",
            "handlers",
            "own_name",
            "personal_data",
            "postgres",
            "process",
            "processing",
            "processors",
            "retry",
            "schema",
            "store",
            "visible",
        ],
    ),
    (
        "espctl",
        &[
            "config",
            "diagnostic",
            "event",
            "handlers",
            "operations",
            "own_name",
            "personal_data",
            "postgres",
            "process",
            "processing",
            "processors",
            "store",
            "visible",
        ],
    ),
    (
        "admin",
        &[
            "config",
            "event",
            "operations",
            "own_name",
            "postgres",
            "process",
            "processing",
            "processors",
            "shutdown",
            "supervision",
            "telemetry",
        ],
    ),
    (
        "daemon",
        &[
            "admin",
            "aggregate",
            "config",
            "diagnostic",
            "embedded",
            "espctl",
            "event",
            "handlers",
            "local",
            "operations",
            "own_name",
            "postgres",
            "process",
            "processing",
            "processors",
            "retry",
            "schema",
            "shutdown",
            "store",
            "supervision",
            "telemetry",
            "worker",
        ],
    ),
];

#[test]
fn imports_point_downward() {
    let wrong = wrong_imports(&SourceTree::read(&source_folder()));
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn no_file_is_in_a_circle_with_another() {
    let circles = circles(&SourceTree::read(&source_folder()));
    assert!(circles.is_empty(), "\n{}", circles.join("\n"));
}

/// What the folders say of themselves in the table stands on something: an arrow leads to a lower line only.
#[test]
fn the_table_itself_points_downward() {
    let mut below = BTreeSet::new();
    for (name, may) in MAY_IMPORT {
        for lower in *may {
            assert!(below.contains(lower), "{name} stands below {lower}, which it may import");
        }
        below.insert(*name);
    }
}

#[test]
fn every_part_is_in_the_table() {
    let table: BTreeSet<String> = MAY_IMPORT.iter().map(|(name, _)| (*name).to_owned()).collect();
    let parts: BTreeSet<String> =
        SourceTree::read(&source_folder()).files.keys().map(|module| module[0].clone()).collect();
    assert_eq!(parts, table);
}

/// Files that may run a statement, or begin a transaction, without turning row security off first, each with why. A row
/// that a policy hides would look like a row that is not there, and a session of a pooler keeps no settings.
///
/// Everything else goes through `postgres::literal::simple` or `postgres::server_mark::begin`.
const MAY_LEAVE_ROW_SECURITY: &[(&str, &str)] = &[
    ("commands/log/postgres.rs", "writes, in the transaction of an application's library"),
    ("daemon/test_kit/server.rs", "sets up a server of its own"),
    ("embedded/mod.rs", "sets up a server of its own"),
    ("espctl/append.rs", "writes, in the transaction of an application's library"),
    ("handlers/batch/transaction.rs", "within the transaction that it begins so"),
    ("handlers/program/exchange.rs", "reads nothing"),
    ("handlers/scratch.rs", "within the transaction that it begins so"),
    ("handlers/sql.rs", "within transactions that it begins so"),
    ("handlers/sql/call.rs", "within transactions that it begins so, or behind their prelude"),
    ("handlers/sql/older.rs", "within the transaction that `prepare` begins so"),
    ("handlers/sql/share.rs", "makes a function"),
    ("handlers/sql/check.rs", "within the transaction of handlers/scratch.rs"),
    ("handlers/sql/check/upcasts.rs", "analyses expressions and reads no row"),
    ("handlers/sql/fold/probe.rs", "reads catalogs, and analyses expressions behind savepoints"),
    ("local/sqlite/workflow.rs", "SQLite has no row security"),
    ("operations/databases/ways.rs", "asks for the session only"),
    ("operations/doctor/server.rs", "reads settings"),
    ("operations/doctor/session.rs", "asks for the session only"),
    ("operations/unstored_events.rs", "sets a limit within the transaction that it begins so"),
    ("operations/event_schema.rs", "sets a limit within the transaction that it begins so"),
    ("operations/operator/lock_patience.rs", "names its session"),
    ("operations/operator/retire.rs", "within transactions that it begins so"),
    ("operations/rebuild.rs", "locks its session, sets limits and analyzes tables"),
    ("operations/rebuild/beginning.rs", "takes and releases a lock"),
    ("operations/rebuild/removal.rs", "sets limits, and removes versions by name"),
    ("operations/rebuild/shares.rs", "sets a limit of its session"),
    ("operations/rebuild/comparing.rs", "takes its snapshot, without a row of anybody's"),
    ("operations/rebuild/checks.rs", "sets limits within the transaction that it begins so"),
    ("operations/rebuild/part.rs", "sets a limit within the transaction that it begins so"),
    ("operations/rebuild/going_live.rs", "sets a limit within the transaction that it begins so"),
    ("operations/rebuild/part.rs", "sets a limit within the transaction that it begins so"),
    ("processing/emission/relay/moving.rs", "savepoints, within the transaction of the relay"),
    ("processing/processor/base.rs", "sets limits within the transaction of those who call it"),
    ("processing/processor/unreadable.rs", "savepoints, and the transaction of the batch"),
    ("processing/processor/tables.rs", "changes tables and reads catalogs"),
    ("processing/processor/tables/altering.rs", "within transactions that it or who calls it begins so"),
    ("processing/processor/tables/dependents.rs", "changes tables and reads catalogs"),
    (
        "processing/rebuild/difference.rs",
        "compares with row security turned off, within transactions of those who call it",
    ),
    ("processing/rebuild/indexes.rs", "changes indexes and reads catalogs"),
    ("processing/rebuild/rights.rs", "gives schemas and tables to owners"),
    ("processing/rebuild/shares.rs", "within transactions that it begins so"),
    ("processing/rebuild/place.rs", "within transactions that it begins so"),
    ("processing/rebuild/moves.rs", "within the transaction of those who call it"),
    ("processing/rebuild/outside.rs", "within the transaction of those who call it"),
    ("processing/rebuild/swap.rs", "within the transaction of those who call it"),
    ("processing/rebuild/views.rs", "makes views"),
    ("processing/runner/session.rs", "sets and reads settings"),
    ("processing/runner/sessions.rs", "resets settings"),
    ("processing/tracker/together.rs", "begins with `server_mark::prelude`"),
    ("schema/apply.rs", "within the transaction that it begins so"),
    ("schema/by_hand.rs", "within the transaction that it begins so"),
    ("store/history.rs", "reads the control file and the sequence"),
    ("store/horizon/durability.rs", "reads places of the log"),
    ("store/horizon/locks.rs", "reads locks and catalogs"),
    ("store/postgres/append/stray.rs", "commits what others have left"),
    ("store/postgres/connection.rs", "asks whether a transaction is open"),
    ("store/preconditions.rs", "reads settings"),
    ("store/sqlite/answer.rs", "SQLite has no row security"),
    ("store/sqlite/opening.rs", "SQLite has no row security"),
    ("store/preconditions/structure.rs", "reads catalogs"),
    ("worker/mark_keeper.rs", "reads nothing"),
];

#[test]
fn no_statement_overlooks_what_row_security_hides() {
    let found = leaving_row_security(&SourceTree::read(&source_folder()));
    let may: BTreeSet<String> = MAY_LEAVE_ROW_SECURITY.iter().map(|(file, _)| (*file).to_owned()).collect();
    assert_eq!(
        found, may,
        "use `postgres::literal::simple` or `postgres::server_mark::begin`, or say why not"
    );
}

#[test]
fn a_planted_statement_that_overlooks_hidden_rows_is_found() {
    for line in ["fn f() { sqlx::raw_sql(\"select 1\") }", "fn f() { connection.begin().await }"] {
        let copy = planted("store/witness.rs", line);
        let found = leaving_row_security(&SourceTree::read(copy.path()));
        assert!(found.contains("store/witness.rs"), "{line}: {found:?}");
    }
}

/// The files that run a statement of their own in the simple protocol, or begin a transaction without more.
fn leaving_row_security(tree: &SourceTree) -> BTreeSet<String> {
    let leaves = |text: &str| text.contains("raw_sql(") || text.contains(".begin()");
    let outside = tree.files.iter().filter(|(module, _)| module[0] != "postgres");
    outside
        .filter(|(_, text)| leaves(text))
        .map(|(module, _)| tree.paths[module].display().to_string())
        .collect()
}

/// A database of another encoding than UTF-8 refuses a whole statement for one character in a comment.
#[test]
fn statements_are_plain_ascii() {
    for path in files_below(&source_folder()) {
        let text = fs::read_to_string(&path).unwrap();
        let is_sql = path.extension().is_some_and(|extension| extension == "sql");
        // In Rust, a statement begins with the comment that names it.
        let statements = text.split("\"-- ").skip(1).map(|rest| rest.split('"').next().unwrap());
        let statements: Vec<&str> = if is_sql { vec![&text] } else { statements.collect() };
        for statement in statements {
            assert!(statement.is_ascii(), "{}: write plain ASCII in {statement}", path.display());
        }
    }
}

/// Integration tests share a server: one that counts, waits for or ends sessions of others passes alone only.
#[test]
fn tests_look_at_sessions_and_locks_of_their_own_database() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration");
    let found: Vec<String> = rust_files(&folder)
        .iter()
        .flat_map(|path| {
            let found = looking_at_others(&fs::read_to_string(path).unwrap());
            found.into_iter().map(|query| format!("{}: {query}", path.display())).collect::<Vec<_>>()
        })
        .collect();
    assert!(found.is_empty(), "add `datname = current_database()`: {found:#?}");
}

#[test]
fn a_planted_look_at_sessions_of_others_is_found() {
    let text =
        r#"run("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'espd'")"#;
    assert_eq!(looking_at_others(text).len(), 1);
    assert_eq!(looking_at_others(&text.replace("where", "where datname = current_database() and")).len(), 0);
}

/// What the example application shares with espd is compiled once.
#[test]
fn the_example_application_has_the_crates_of_espd() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (own, of_example) =
        (locked(&root.join("Cargo.lock")), locked(&root.join("examples/todo/Cargo.lock")));
    let names: BTreeSet<&String> = own.iter().map(|(name, _)| name).collect();
    let differing: Vec<_> = of_example.difference(&own).filter(|(name, _)| names.contains(name)).collect();
    assert!(
        differing.is_empty(),
        "copy Cargo.lock to examples/todo and run `cargo metadata` there: {differing:?}"
    );
}

/// The names and versions in a lock file.
fn locked(path: &Path) -> BTreeSet<(String, String)> {
    let text = fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    let mut found = BTreeSet::new();
    let value = |line: &str| line.split('"').nth(1).unwrap().to_owned();
    while let Some(line) = lines.next() {
        if line.starts_with("name = ") {
            found.insert((value(line), value(lines.next().unwrap())));
        }
    }
    found
}

/// The queries for sessions or locks by what those of other databases may be called as well.
fn looking_at_others(text: &str) -> Vec<String> {
    let tables = ["pg_stat_activity", "pg_locks"];
    let at = tables.iter().flat_map(|table| text.match_indices(table)).map(|(at, _)| at);
    let queries = at.map(|at| {
        let (before, behind) = (text[..at].rfind('"'), text[at..].find('"'));
        &text[before.unwrap_or_default()..behind.map_or(text.len(), |length| at + length)]
    });
    let is_by_name = |query: &&str| {
        ["application_name", "not granted", "locktype", "query like"].iter().any(|word| query.contains(word))
            && !["current_database()", "{HERE}", " pid = "].iter().any(|word| query.contains(word))
    };
    queries.filter(is_by_name).map(str::to_owned).collect()
}

/// The negative controls: what is planted into a copy of the sources is found.
#[test]
fn a_planted_import_is_found() {
    for (file, import, complaint) in [
        ("event.rs", "use crate::store::EventStore;", "event.rs: event may not import store"),
        ("retry.rs", "use crate::{event::Event, daemon};", "retry.rs: retry may not import daemon"),
        (
            "supervision/lifecycle.rs",
            "fn f() { crate::event::Event::f() }",
            "supervision/lifecycle.rs: supervision may not import event",
        ),
    ] {
        let copy = planted(file, import);
        let wrong = wrong_imports(&SourceTree::read(copy.path()));
        assert!(wrong.iter().any(|line| line == complaint), "{import} in {file}: {wrong:?}");
    }
}

#[test]
fn a_planted_circle_is_found() {
    // `subscription` uses the horizon.
    let copy = planted("store/horizon.rs", "use crate::store::subscription::Subscription;");
    let circles = circles(&SourceTree::read(copy.path()));
    assert!(circles.iter().any(|circle| circle.contains("store::subscription")), "{circles:?}");
}

/// A copy of the sources with one more line at the top of a file.
fn planted(file: &str, line: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let source = source_folder();
    for path in rust_files(&source) {
        let target = copy.path().join(path.strip_prefix(&source).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&path, &target).unwrap();
    }
    let target = copy.path().join(file);
    let text = fs::read_to_string(&target).unwrap();
    fs::write(&target, format!("{line}\n{text}")).unwrap();
    copy
}

fn source_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// A module's path below the crate: `["store", "horizon"]`.
type Module = Vec<String>;

/// The library's modules with their texts, without comments.
struct SourceTree {
    files: BTreeMap<Module, String>,
    /// Where each module's file is, below the folder of the sources.
    paths: BTreeMap<Module, PathBuf>,
}

impl SourceTree {
    fn read(source: &Path) -> Self {
        let mut tree = Self { files: BTreeMap::new(), paths: BTreeMap::new() };
        for file in rust_files(source) {
            let path = file.strip_prefix(source).unwrap();
            if path.starts_with("bin") || path == Path::new("lib.rs") {
                continue;
            }
            let mut module: Module =
                path.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()).collect();
            module.retain(|part| part != "mod");
            tree.files.insert(module.clone(), without_comments(&fs::read_to_string(&file).unwrap()));
            tree.paths.insert(module, path.to_owned());
        }
        tree
    }

    /// The module whose file an absolute path leads into: re-exports are followed to where the name comes from.
    fn module_of(&self, path: &[String]) -> Option<Module> {
        let depth = (1..=path.len()).rev().find(|depth| self.files.contains_key(&path[..*depth]))?;
        let module = path[..depth].to_vec();
        let Some(name) = path.get(depth) else { return Some(module) };
        for exported in re_exports(&self.files[&module]) {
            if exported.last() == Some(name) {
                let source: Module = module.iter().cloned().chain(exported.clone()).collect();
                if self.files.contains_key(&source[..=depth]) {
                    return self.module_of(&source);
                }
            }
        }
        Some(module)
    }
}

/// Each import that the table does not have.
fn wrong_imports(tree: &SourceTree) -> Vec<String> {
    let table: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    let mut wrong = Vec::new();
    for (module, text) in &tree.files {
        let part = module[0].as_str();
        let may = table.get(part).copied().unwrap_or_default();
        let named: BTreeSet<String> =
            paths_from("crate", text).into_iter().filter_map(|path| path.into_iter().next()).collect();
        for name in named {
            if name != part && table.contains_key(name.as_str()) && !may.contains(&name.as_str()) {
                wrong.push(format!("{}: {part} may not import {name}", tree.paths[module].display()));
            }
        }
    }
    wrong
}

/// Each circle of files. A file and the folder of its name are one thing in two parts, and may name each other.
fn circles(tree: &SourceTree) -> Vec<String> {
    let arrows: BTreeMap<&Module, BTreeSet<Module>> =
        tree.files.keys().map(|module| (module, imported_modules(tree, module))).collect();
    let reach = |from: &Module| {
        let mut seen: BTreeSet<Module> = BTreeSet::new();
        let mut open = vec![from.clone()];
        while let Some(module) = open.pop() {
            open.extend(arrows[&module].iter().filter(|next| seen.insert((*next).clone())).cloned());
        }
        seen
    };
    let reached: BTreeMap<&Module, BTreeSet<Module>> =
        tree.files.keys().map(|module| (module, reach(module))).collect();
    let mut found = BTreeSet::new();
    for (module, from_it) in &reached {
        let circle: Vec<String> =
            from_it.iter().filter(|other| reached[other].contains(*module)).map(|m| m.join("::")).collect();
        if circle.len() > 1 {
            found.insert(circle.join(" ↔ "));
        }
    }
    found.into_iter().collect()
}

fn imported_modules(tree: &SourceTree, module: &Module) -> BTreeSet<Module> {
    let code = tree.files[module].split("#[cfg(test)]\nmod tests").next().unwrap();
    let mut absolute = paths_from("crate", code);
    for path in paths_from("super", code) {
        let ups = 1 + path.iter().take_while(|part| *part == "super").count();
        let parent = &module[..module.len().saturating_sub(ups)];
        absolute.push(parent.iter().chain(&path[ups - 1..]).cloned().collect());
    }
    let own_folder = |other: &Module| other.starts_with(module) || module.starts_with(other);
    absolute.iter().filter_map(|path| tree.module_of(path)).filter(|other| !own_folder(other)).collect()
}

/// All paths that begin with `root::`, without it; `use root::{a, b::c}` gives two.
fn paths_from(root: &str, code: &str) -> Vec<Vec<String>> {
    let start = format!("{root}::");
    let mut found = Vec::new();
    for (at, _) in code.match_indices(&start) {
        let continues_a_path = code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
        if !continues_a_path {
            collect_paths(&code[at + start.len()..], &[], &mut found);
        }
    }
    found
}

/// The paths of a use tree, behind a prefix; returns what follows the tree.
fn collect_paths<'a>(text: &'a str, prefix: &[String], found: &mut Vec<Vec<String>>) -> &'a str {
    let mut path = prefix.to_vec();
    let mut rest = text.trim_start();
    loop {
        if let Some(mut group) = rest.strip_prefix('{') {
            loop {
                group = collect_paths(group, &path, found).trim_start();
                group = group.trim_start_matches(|c: char| c != ',' && c != '}');
                match group.strip_prefix(',').map(str::trim_start) {
                    Some(next) if !next.starts_with('}') => group = next,
                    Some(next) => return &next[1..],
                    None => return group.get(1..).unwrap_or_default(),
                }
            }
        }
        let name: &str = &rest[..rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())];
        if !name.is_empty() {
            path.push(name.to_owned());
        }
        rest = &rest[name.len()..];
        match rest.strip_prefix("::") {
            Some(next) if !name.is_empty() => rest = next,
            _ => break,
        }
    }
    path.retain(|part| part != "self");
    found.push(path);
    rest
}

/// The paths of `pub use child::…;` in a module, relative to it.
fn re_exports(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for line_start in ["\npub use ", "\npub(crate) use ", "\npub(super) use "] {
        for (at, _) in code.match_indices(line_start) {
            collect_paths(&code[at + line_start.len()..], &[], &mut found);
        }
    }
    found
}

fn without_comments(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).flat_map(|line| [line, "\n"]).collect()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = files_below(folder);
    files.retain(|file| file.extension().is_some_and(|extension| extension == "rs"));
    files
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            files.extend(files_below(&entry));
        } else {
            files.push(entry);
        }
    }
    files
}
