//! What the pages name exists: the targets of their links, and in the comparisons with other frameworks each command, key
//! of the configuration, SQL function and Rust function.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use espd::internals::config::known_keys;
use tokio::sync::Mutex;

use super::page::{anchors, code_spans, links, prose, rows};
use crate::support::program::Installation;
use crate::support::{SCHEMA, database};

const COMPARISONS: [&str; 3] = ["docs/from-eventsourcery.md", "docs/from-sequent.md", "docs/from-sourced.md"];

/// What a comparison says of a feature.
const ANSWERS: [&str; 4] = ["yes", "partly", "otherwise", "not yet"];

#[test]
fn links_lead_somewhere() {
    let pages: BTreeMap<PathBuf, String> =
        pages().into_iter().map(|page| (page.clone(), std::fs::read_to_string(page).unwrap())).collect();
    let mut dead = Vec::new();
    for (page, text) in &pages {
        let inside = links(&prose(text)).into_iter().filter(|link| !link.contains("://"));
        dead.extend(inside.filter(|link| !leads_somewhere(page, link)).map(|link| (page.clone(), link)));
    }
    assert_eq!(dead, []);
}

fn leads_somewhere(page: &Path, link: &str) -> bool {
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = if file.is_empty() { page.to_owned() } else { page.parent().unwrap().join(file) };
    let has_anchor =
        || std::fs::read_to_string(&target).is_ok_and(|text| anchors(&text).iter().any(|one| one == anchor));
    target.exists() && (anchor.is_empty() || has_anchor())
}

fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let patterns = ["*.md", "docs/*.md", "examples/*/*.md", "migrations/*.md"];
    let found = patterns.iter().flat_map(|pattern| glob::glob(root.join(pattern).to_str().unwrap()).unwrap());
    found.map(Result::unwrap).collect()
}

#[tokio::test]
async fn what_the_comparisons_name_exists() {
    let known = Known::gather().await;
    let mut faults = Vec::new();
    for page in COMPARISONS {
        let rows = rows(&super::read(page));
        assert!(rows.len() > 50, "{page}: {} rows", rows.len());
        for row in rows {
            let found = known.faults_of(&row).await;
            faults.extend(found.into_iter().map(|fault| format!("{page}: {row:?}: {fault}")));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// What can be named.
struct Known {
    keys: BTreeSet<String>,
    relations_and_functions: BTreeSet<String>,
    source: String,
    installation: Installation,
    help: Mutex<BTreeMap<String, String>>,
}

impl Known {
    async fn gather() -> Self {
        let names = sqlx::query_scalar(
            "select proname::text from pg_proc where pronamespace = to_regnamespace($1)
             union select relname::text from pg_class where relnamespace = to_regnamespace($1)",
        );
        let relations_and_functions =
            names.bind(SCHEMA).fetch_all(&database().await.pool).await.unwrap().into_iter().collect();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/**/*.rs");
        let files = glob::glob(root.to_str().unwrap()).unwrap();
        let source = files.map(|file| std::fs::read_to_string(file.unwrap()).unwrap()).collect();
        let keys = known_keys().into_iter().collect();
        let (installation, help) = (Installation::without_database(""), Mutex::default());
        Self { keys, relations_and_functions, source, installation, help }
    }

    /// What is wrong with a row of a comparison: its feature, the answer, and where it is here.
    async fn faults_of(&self, row: &[String]) -> Vec<String> {
        let [_, answer, how] = row else { return vec!["it has not three cells".to_owned()] };
        let mut named = !links(how).is_empty();
        let mut faults = Vec::new();
        for span in code_spans(how) {
            match self.has(&span).await {
                Ok(is_looked_up) => named |= is_looked_up,
                Err(fault) => faults.push(format!("`{span}`: {fault}")),
            }
        }
        if !ANSWERS.contains(&answer.as_str()) || !(named || answer == "not yet") {
            faults.push("it does not say where the feature is".to_owned());
        }
        faults
    }

    /// Whether the text names something that exists; `false` if it is no name of a kind that can be looked up.
    async fn has(&self, span: &str) -> Result<bool, String> {
        if span.starts_with("espctl ") || span.starts_with("espd ") {
            return self.has_command(span).await.map(|()| true);
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || "_.[]:".contains(c);
        let name: String = span.chars().take_while(|c| is_name(*c)).collect();
        if let Some(function) = name.strip_prefix("espd.") {
            return present(self.relations_and_functions.contains(function), "the schema has no such thing");
        }
        if let Some((of, item)) = name.split_once("::") {
            return present(self.defines(of) && self.defines(item), "src/ defines no such thing");
        }
        if let Some(item) = span.strip_suffix('!') {
            return present(self.source.contains(&format!("macro_rules! {item}")), "there is no such macro");
        }
        let key = name.trim_matches(['[', ']', '.']).to_owned();
        let section = key.split('.').next().unwrap_or_default();
        let is_key = span.starts_with('[') || (key.contains('.') && self.is_section(section));
        if is_key {
            present(self.is_section(&key) || self.keys.contains(&key), "there is no such key")
        } else {
            Ok(false)
        }
    }

    fn is_section(&self, name: &str) -> bool {
        self.keys.iter().any(|key| key == name || key.starts_with(&format!("{name}.")))
    }

    fn defines(&self, name: &str) -> bool {
        let words = ["fn", "struct", "enum", "trait", "mod", "type"];
        let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        words.iter().any(|word| {
            let definition = format!("{word} {name}");
            self.source.match_indices(&definition).any(|(at, _)| ends(&self.source[at + definition.len()..]))
        })
    }

    /// Follows the words of a command as far as there are commands below; what follows are options, which its help has to
    /// name, and values.
    async fn has_command(&self, span: &str) -> Result<(), String> {
        let plain = span.replace(['[', ']', '|'], " ");
        let mut words = plain.split_whitespace().peekable();
        let program = words.next().unwrap_or_default();
        let mut path = Vec::new();
        let mut help = self.help(program, &path).await?;
        while let Some(below) = commands_in(&help) {
            let Some(word) = words.next_if(|word| !word.starts_with('-')) else { break };
            present(below.iter().any(|known| *known == word), &format!("there is no command {word}"))?;
            path.push(word.to_owned());
            help = self.help(program, &path).await?;
        }
        let options = words.filter(|word| word.starts_with("--"));
        let mut unknown = options.filter(|option| !help.split_whitespace().any(|word| word == *option));
        unknown.next().map_or(Ok(()), |option| Err(format!("its help does not name {option}")))
    }

    /// What a command's `--help` prints; each is asked once.
    async fn help(&self, program: &str, path: &[String]) -> Result<String, String> {
        let name = format!("{program} {}", path.join(" "));
        if let Some(help) = self.help.lock().await.get(&name) {
            return Ok(help.clone());
        }
        let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
        arguments.push("--help");
        let outcome = match program {
            "espctl" => self.installation.espctl(&arguments).await,
            _ => self.installation.espd(&arguments).await,
        };
        if outcome.code != Some(0) {
            return Err(outcome.stderr);
        }
        self.help.lock().await.insert(name, outcome.stdout.clone());
        Ok(outcome.stdout)
    }
}

fn commands_in(help: &str) -> Option<BTreeSet<String>> {
    let (_, list) = help.split_once("\nCommands:\n")?;
    let list = list.lines().take_while(|line| !line.is_empty());
    Some(list.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect())
}

fn present(is_there: bool, otherwise: &str) -> Result<bool, String> {
    if is_there { Ok(true) } else { Err(otherwise.to_owned()) }
}

#[tokio::test]
async fn what_does_not_exist_is_noticed() {
    let known = Known::gather().await;
    let there = [
        "espctl dead-letters retry NAME [--all]",
        "espd run",
        "espd.append(events)",
        "PostgresEventStore::append_at",
        "event_type!",
        "retry.max_attempts",
        "[[upcast]]",
        "[hooks]",
    ];
    for span in there {
        assert_eq!(known.has(span).await, Ok(true), "{span}");
    }
    let gone = [
        "espctl dead-letters revive",
        "espctl wait --forever",
        "espctl undo",
        "espd.appendix()",
        "PostgresEventStore::undo",
    ];
    for span in gone.iter().chain(&["events_type!", "retry.attempts", "[[downcast]]"]) {
        assert!(known.has(span).await.is_err(), "{span}");
    }
    assert_eq!(known.has("TodoAdded").await, Ok(false));
}
