//! What is added to a project: new files, and lines in front of the comments that say where they go.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use super::declared::{has_event, has_fields, has_type};
use super::formatting::formatted;
use super::naming::{Field, Name};
use super::project::write;

/// How a comment begins in front of which lines are added.
const MARK: &str = "// espctl new: ";

/// What is to be written: nothing, until everything is known to be possible.
struct Changes<'p> {
    project: &'p Path,
    texts: BTreeMap<PathBuf, String>,
}

impl<'p> Changes<'p> {
    fn begin(project: &'p Path) -> anyhow::Result<Self> {
        let is_project = project.join("espd.toml").is_file() && project.join("src/web.rs").is_file();
        ensure!(
            is_project,
            "this folder is no project of espctl new: make one with `espctl new NAME`, and go there"
        );
        Ok(Self { project, texts: BTreeMap::new() })
    }

    /// Adds a file, which must not be there yet.
    fn file(&mut self, path: &str, text: String) -> anyhow::Result<()> {
        ensure!(!self.project.join(path).exists(), "{path} is there already");
        self.texts.insert(path.into(), text);
        Ok(())
    }

    /// The text of a file, with what is to be added to it.
    fn text(&mut self, path: &str) -> anyhow::Result<&mut String> {
        if !self.texts.contains_key(Path::new(path)) {
            let text = fs::read_to_string(self.project.join(path))
                .with_context(|| format!("{path} cannot be read"))?;
            self.texts.insert(path.into(), text);
        }
        self.texts.get_mut(Path::new(path)).context("it was read just now")
    }

    /// Adds lines to a file, in front of the comment for what they are and as far to the right.
    fn lines(&mut self, path: &str, what: &str, lines: &str) -> anyhow::Result<()> {
        let text = self.text(path)?;
        let mark = format!("{MARK}{what}\n");
        let missing = || format!("{path} has no line `{MARK}{what}`: put it where {what} are to be added");
        let at = text.find(&mark).with_context(missing)?;
        let begin = text[..at].rfind('\n').map_or(0, |before| before + 1);
        let indent: String = text[begin..at].chars().take_while(|c| *c == ' ').collect();
        let indented =
            |line: &str| if line.is_empty() { "\n".to_owned() } else { format!("{indent}{line}\n") };
        let added: String = lines.lines().map(indented).collect();
        text.insert_str(begin, &added);
        Ok(())
    }

    /// Adds a route for a command of an aggregate, and the import of its module if it is not there.
    fn route(&mut self, aggregate: &Name, path: &str, handler: &str, command: &str) -> anyhow::Result<()> {
        let (module, of_type) = (aggregate.underscored(), aggregate.camel());
        let import = format!("use crate::{module};");
        if !self.text("src/web.rs")?.lines().any(|line| line == import) {
            self.lines("src/web.rs", "imports", &import)?;
        }
        let route =
            format!(".route(\"{path}\", post({handler}::<{module}::{of_type}, {module}::{command}>))");
        self.lines("src/web.rs", "routes", &route)
    }

    /// Writes everything and says what.
    fn write(self) -> anyhow::Result<Vec<String>> {
        let mut done = Vec::new();
        for (path, text) in &self.texts {
            let target = self.project.join(path);
            let what = if target.exists() { "changed" } else { "made" };
            let is_rust = path.extension().is_some_and(|extension| extension == "rs");
            write(&target, &if is_rust { formatted(self.project, text) } else { text.clone() })?;
            done.push(format!("{what} {}", path.display()));
        }
        Ok(done)
    }
}

pub(super) fn aggregate(project: &Path, name: &Name) -> anyhow::Result<Vec<String>> {
    name.require_aggregate()?;
    let mut changes = Changes::begin(project)?;
    let (module, of_type) = (name.underscored(), name.camel());
    let text = include_str!("template/aggregate.rs.txt")
        .replace("@Type@", &of_type)
        .replace("@words@", &module.replace('_', " "));
    changes.file(&format!("src/{module}.rs"), text)?;
    changes.lines("src/lib.rs", "modules", &format!("pub mod {module};"))?;
    changes.route(name, &format!("/{}s", name.hyphenated()), "create", &format!("Create{of_type}"))?;
    changes.write()
}

pub(super) fn event(
    project: &Path,
    name: &Name,
    fields: &[Field],
    aggregate: &Name,
) -> anyhow::Result<Vec<String>> {
    let mut changes = Changes::begin(project)?;
    let file = format!("src/{}.rs", aggregate.underscored());
    ensure!(!has_event(changes.text(&file)?, name), "{file} has the event {} already", name.camel());
    require_new_type(changes.text(&file)?, name, &file)?;
    add_event(&mut changes, name, fields, aggregate)?;
    changes.write()
}

pub(super) fn command(
    project: &Path,
    name: &Name,
    fields: &[Field],
    aggregate: &Name,
    event: &Name,
) -> anyhow::Result<Vec<String>> {
    let mut changes = Changes::begin(project)?;
    let command = name.camel();
    let file = format!("src/{}.rs", aggregate.underscored());
    let text = changes.text(&file)?;
    ensure!(
        !has_type(text, &command),
        "{file} has the command {command} already, or another type of this name"
    );
    require_new_type(text, name, &file)?;
    ensure!(
        command != event.camel(),
        "a command and its event have different names: PayOrder, and --event OrderPaid"
    );
    if has_event(text, event) {
        require_same_fields(text, event, fields, &file)?;
    } else {
        require_new_type(text, event, &file)?;
        add_event(&mut changes, event, fields, aggregate)?;
    }
    changes.lines(&file, "commands", &decision(&command, fields, aggregate, event))?;
    let path = format!("/{}s/{{id}}/{}", aggregate.hyphenated(), name.hyphenated());
    changes.route(aggregate, &path, "command", &command)?;
    changes.write()
}

pub(super) fn projector(project: &Path, name: &Name, events: &[Name]) -> anyhow::Result<Vec<String>> {
    let mut changes = Changes::begin(project)?;
    let name = name.underscored();
    let text = include_str!("template/projector.toml.txt")
        .replace("@name@", &name)
        .replace("@events@", &listed(events));
    changes.file(&format!("processors/{name}.toml"), text)?;
    changes.write()
}

pub(super) fn reactor(
    project: &Path,
    name: &Name,
    events: &[Name],
    emits: &Name,
) -> anyhow::Result<Vec<String>> {
    let mut changes = Changes::begin(project)?;
    let name = name.underscored();
    let text = include_str!("template/reactor.toml.txt")
        .replace("@name@", &name)
        .replace("@events@", &listed(events))
        .replace("@emits@", &emits.camel());
    changes.file(&format!("processors/{name}.toml"), text)?;
    let mut done = changes.write()?;
    done.push(format!(
        "{0} goes to the stream that the handled event is in. An aggregate that is loaded from there has to know it: espctl new event {0} \
         --aggregate …",
        emits.camel()
    ));
    Ok(done)
}

/// Requires that a type of this name can be declared in the file of an aggregate.
fn require_new_type(text: &str, name: &Name, file: &str) -> anyhow::Result<()> {
    name.require_type()?;
    let of_type = name.camel();
    let is_new = !has_type(text, &of_type) && !has_event(text, name);
    ensure!(is_new, "{file} has a type {of_type} already: choose another name");
    Ok(())
}

/// Requires that an event that is there can be made of the fields of a command.
fn require_same_fields(text: &str, event: &Name, fields: &[Field], file: &str) -> anyhow::Result<()> {
    let event_type = event.camel();
    let same = has_fields(text, event, fields).with_context(|| {
        format!(
            "{file} declares the fields of {event_type} in a struct of its own: write the command by hand"
        )
    })?;
    let given = braces(fields, ": ", |field| &field.of_type);
    ensure!(
        same,
        "{file} has the event {event_type} with other fields than {given}: give the command the fields of its event, or another event"
    );
    Ok(())
}

fn add_event(
    changes: &mut Changes<'_>,
    name: &Name,
    fields: &[Field],
    aggregate: &Name,
) -> anyhow::Result<()> {
    let file = format!("src/{}.rs", aggregate.underscored());
    let declared = format!(
        "/// {}.\n{} {},",
        sentence(name),
        name.camel(),
        braces(fields, ": ", |field| &field.of_type)
    );
    changes.lines(&file, "events", &declared)?;
    changes.lines(&file, "evolve", &format!("{}Event::{}(_) => {{}}", aggregate.camel(), name.camel()))
}

/// A command, and what the aggregate does about it.
fn decision(command: &str, fields: &[Field], aggregate: &Name, event: &Name) -> String {
    let (of_type, event) = (aggregate.camel(), event.camel());
    let declared: String =
        fields.iter().map(|field| format!("    pub {}: {},\n", field.name.as_str(), field.of_type)).collect();
    let body = if fields.is_empty() { "{}".to_owned() } else { format!("{{\n{declared}}}") };
    let given = if fields.is_empty() { "_" } else { "command" };
    let values: Vec<String> =
        fields.iter().map(|field| format!("{0}: command.{0}.clone()", field.name.as_str())).collect();
    let made = if values.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", values.join(", ")) };
    include_str!("template/command.rs.txt")
        .replace("@command@", command)
        .replace("@Type@", &of_type)
        .replace("@body@", &body)
        .replace("@given@", given)
        .replace("@words@", &aggregate.underscored().replace('_', " "))
        .replace("@event@", &format!("{event} {made}"))
}

/// `{ amount: u32 }`.
fn braces<'f>(fields: &'f [Field], between: &str, value: impl Fn(&'f Field) -> &'f str) -> String {
    let members: Vec<String> =
        fields.iter().map(|field| format!("{}{between}{}", field.name.as_str(), value(field))).collect();
    if members.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", members.join(", ")) }
}

/// `Order paid`.
fn sentence(name: &Name) -> String {
    let words = name.underscored().replace('_', " ");
    words[..1].to_ascii_uppercase() + &words[1..]
}

/// `"OrderPaid", "OrderSent"`.
fn listed(events: &[Name]) -> String {
    let quoted: Vec<String> = events.iter().map(|event| format!("\"{}\"", event.camel())).collect();
    quoted.join(", ")
}
