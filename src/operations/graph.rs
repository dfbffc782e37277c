//! The topology of a configuration: which processor handles which types of events, emits which, owns which tables, and reads
//! whose.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::operations::status::format::wrap;
use crate::processing::declaration::{HandledEvents, Handling, ProcessorDeclaration};

/// A processor with all that it is connected to.
#[derive(Debug, Serialize)]
pub(crate) struct GraphNode {
    name: String,
    kind: &'static str,
    /// What handles the events: `sql`, `native`, `command` or `webhook`.
    handling: &'static str,
    /// The types that it handles, `*` for all; `None`: only its own program knows.
    handles: Option<Vec<String>>,
    emits: Vec<String>,
    tables: Vec<String>,
    /// The tables of others that it says it reads.
    reads: Vec<String>,
    /// Its state in the database, where that was asked for.
    state: Option<String>,
}

impl GraphNode {
    fn of(declaration: &ProcessorDeclaration, states: &BTreeMap<String, String>) -> Self {
        let reactor = declaration.reactor.as_ref();
        let emits = reactor.map(|reactor| reactor.emits.clone()).unwrap_or_default();
        Self {
            name: declaration.name.clone(),
            kind: declaration.kind().as_str(),
            handling: match declaration.handling {
                Handling::Sql(_) => "sql",
                Handling::Native(_) => "native",
                Handling::Program(_) => "command",
                Handling::Webhook(_) => "webhook",
            },
            handles: handled_types(declaration),
            emits,
            tables: declaration.table_names(),
            reads: declaration.reads.iter().map(|table| table.text.clone()).collect(),
            state: states.get(&declaration.name).cloned(),
        }
    }
}

fn handled_types(declaration: &ProcessorDeclaration) -> Option<Vec<String>> {
    let is_told_elsewhere =
        declaration.handling == Handling::Native(HandledEvents::All) && declaration.tables.is_empty();
    if is_told_elsewhere {
        return None;
    }
    let types = declaration.event_types();
    Some(types.map_or(vec!["*".to_owned()], |types| types.into_iter().map(str::to_owned).collect()))
}

/// The nodes of all declared processors, in the order of the configuration. `states`: by name.
pub(crate) fn nodes(
    declarations: &[ProcessorDeclaration],
    states: &BTreeMap<String, String>,
) -> Vec<GraphNode> {
    declarations.iter().map(|declaration| GraphNode::of(declaration, states)).collect()
}

/// What the names of a processor's connections stand behind.
const INDENT: &str = "           ";

/// The processors with what they are connected to, for people. No line is longer than `width`, as far as names allow.
pub(crate) fn as_text(nodes: &[GraphNode], width: usize) -> String {
    let mut text = String::new();
    for node in nodes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{}  {}, {}", node.name, node.kind, node.handling);
        text.push_str(&node.state.as_ref().map_or(String::new(), |state| format!(", {state}")));
        text.push('\n');
        let unknown = || vec!["what its own program says".to_owned()];
        let owned = |table: &String| match nodes.iter().find(|node| node.tables.contains(table)) {
            Some(owner) => format!("{table} (of {})", owner.name),
            None => table.clone(),
        };
        let lines = [
            ("handles", node.handles.clone().unwrap_or_else(unknown)),
            ("emits", node.emits.clone()),
            ("owns", node.tables.clone()),
            ("reads", node.reads.iter().map(owned).collect()),
            ("leads to", followers(node, nodes)),
        ];
        for (label, names) in lines.into_iter().filter(|(_, names)| !names.is_empty()) {
            let names = wrap(&names.join(", "), Some(width), INDENT);
            let _ = writeln!(text, "  {label:<9}{}", &names[INDENT.len()..]);
        }
    }
    text.trim_end().to_owned()
}

/// The processors that handle what a node emits.
fn followers(node: &GraphNode, nodes: &[GraphNode]) -> Vec<String> {
    let handles = |other: &&GraphNode| {
        let types = other.handles.as_deref().unwrap_or_default();
        node.emits.iter().any(|emitted| types.contains(emitted) || types.iter().any(|name| name == "*"))
    };
    nodes.iter().filter(handles).map(|other| other.name.clone()).collect()
}

/// A corner of the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Corner<'n> {
    Type(&'n str),
    Processor(&'n str, &'n str),
    Table(&'n str),
}

/// The connections, each in the direction in which data flows, and what they are; `is_read`: the data only is looked at.
fn connections(nodes: &[GraphNode]) -> Vec<(Corner<'_>, Corner<'_>, bool)> {
    let mut found = Vec::new();
    for node in nodes {
        let processor = Corner::Processor(&node.name, node.state.as_deref().unwrap_or(""));
        let handled = node.handles.iter().flatten();
        found.extend(handled.map(|name| (Corner::Type(name), processor, false)));
        found.extend(node.emits.iter().map(|name| (processor, Corner::Type(name), false)));
        found.extend(node.tables.iter().map(|name| (processor, Corner::Table(name), false)));
        found.extend(node.reads.iter().map(|name| (Corner::Table(name), processor, true)));
    }
    found
}

/// Each corner once, with a number.
fn numbered<'n>(nodes: &'n [GraphNode]) -> BTreeMap<Corner<'n>, usize> {
    let alone = nodes.iter().map(|node| Corner::Processor(&node.name, node.state.as_deref().unwrap_or("")));
    let connected = connections(nodes).into_iter().flat_map(|(from, to, _)| [from, to]);
    let corners: std::collections::BTreeSet<Corner<'n>> = alone.chain(connected).collect();
    corners.into_iter().enumerate().map(|(number, corner)| (corner, number)).collect()
}

fn label(corner: Corner<'_>) -> String {
    match corner {
        Corner::Type("*") => "all events".to_owned(),
        Corner::Processor(name, state) if !state.is_empty() => format!("{name} ({state})"),
        Corner::Type(name) | Corner::Processor(name, _) | Corner::Table(name) => name.to_owned(),
    }
}

/// The graph in the language of Graphviz.
pub(crate) fn as_dot(nodes: &[GraphNode]) -> String {
    let quote = |text: String| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let numbers = numbered(nodes);
    let mut text = "digraph espd {\n  rankdir = LR;\n".to_owned();
    for (corner, number) in &numbers {
        let shape = match corner {
            Corner::Type(_) => "note",
            Corner::Processor(..) => "box",
            Corner::Table(_) => "cylinder",
        };
        let _ = writeln!(text, "  n{number} [shape = {shape}, label = \"{}\"];", quote(label(*corner)));
    }
    for (from, to, is_read) in connections(nodes) {
        let style = if is_read { " [style = dashed]" } else { "" };
        let _ = writeln!(text, "  n{} -> n{}{style};", numbers[&from], numbers[&to]);
    }
    text + "}"
}

/// The graph in the language of Mermaid.
pub(crate) fn as_mermaid(nodes: &[GraphNode]) -> String {
    let quote = |text: String| text.replace('"', "#quot;").replace('\n', " ");
    let numbers = numbered(nodes);
    let mut text = "flowchart LR\n".to_owned();
    for (corner, number) in &numbers {
        let (open, close) = match corner {
            Corner::Type(_) => (">", "]"),
            Corner::Processor(..) => ("[", "]"),
            Corner::Table(_) => ("[(", ")]"),
        };
        let _ = writeln!(text, "  n{number}{open}\"{}\"{close}", quote(label(*corner)));
    }
    for (from, to, is_read) in connections(nodes) {
        let arrow = if is_read { "-.->" } else { "-->" };
        let _ = writeln!(text, "  n{} {arrow} n{}", numbers[&from], numbers[&to]);
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, handles: &[&str], emits: &[&str], tables: &[&str], reads: &[&str]) -> GraphNode {
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        GraphNode {
            name: name.to_owned(),
            kind: if emits.is_empty() { "projector" } else { "reactor" },
            handling: "sql",
            handles: Some(owned(handles)),
            emits: owned(emits),
            tables: owned(tables),
            reads: owned(reads),
            state: None,
        }
    }

    #[test]
    fn a_graph_says_who_is_connected_with_whom() {
        let nodes = [
            node("todos", &["TodoAdded"], &[], &["todos"], &[]),
            node("reminders", &["TodoAdded"], &["Reminded \"x\""], &[], &["todos"]),
            node("audit", &["*"], &[], &["log"], &[]),
        ];
        let text = as_text(&nodes, 80);
        assert!(text.contains("reads    todos (of todos)\n  leads to audit\n"), "{text}");
        let dot = as_dot(&nodes);
        assert!(dot.contains("label = \"Reminded \\\"x\\\"\"") && dot.contains("[style = dashed]"), "{dot}");
        assert!(dot.starts_with("digraph espd {") && dot.ends_with('}'));
        let mermaid = as_mermaid(&nodes);
        assert!(mermaid.contains("[(\"todos\")]") && mermaid.contains("Reminded #quot;x#quot;"), "{mermaid}");
        assert_eq!(mermaid.matches("-->").count() + mermaid.matches("-.->").count(), 7, "{mermaid}");
    }

    #[test]
    fn text_fits_the_width() {
        let many: Vec<String> = (0..30).map(|number| format!("SomethingHappened{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let text = as_text(&[node("p", &many, &[], &[], &[])], 80);
        assert!(text.lines().count() > 5 && text.lines().all(|line| line.len() <= 80), "{text}");
    }
}
