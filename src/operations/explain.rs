//! Which path the batches of a SQL projector take: folded into their net effect, or event by event, and why.

use std::fmt::Write as _;

use serde::Serialize;

use crate::config::Config;
use crate::handlers::sql;
use crate::operations::databases::Databases;
use crate::operations::other_role::refuse_other_role;
use crate::processing::declaration::{Handler, ProcessorDeclaration};

/// What is known of the handlers of a processor.
#[derive(Debug, Serialize)]
pub(crate) struct Explanation {
    name: String,
    kind: &'static str,
    handlers: Vec<ExplainedHandler>,
}

/// A handler, with the path that a batch takes which meets handlers like this one only.
#[derive(Debug, Serialize)]
struct ExplainedHandler {
    /// The types that it handles, `*` for all.
    events: Vec<String>,
    file: String,
    line: usize,
    /// `fold` or `loop`
    path: &'static str,
    /// Why it is not folded.
    reason: Option<String>,
}

/// Asks the database what becomes of the handlers; changes nothing.
pub(crate) async fn explain(
    declaration: &ProcessorDeclaration,
    config: &Config,
    databases: &Databases,
) -> anyhow::Result<Explanation> {
    let is_elsewhere = config.direct_projections_url().is_some();
    let layout = (!is_elsewhere).then_some(&databases.layout);
    let mut connection = databases.projections.acquire().await?;
    refuse_other_role(&mut *connection, "which path its batches take").await?;
    let refusals =
        sql::explain_folding(&mut connection, declaration, &databases.layout, &databases.scope, layout)
            .await?;
    let handlers = declaration.handlers().iter().zip(refusals);
    Ok(Explanation {
        name: declaration.name.clone(),
        kind: declaration.kind().as_str(),
        handlers: handlers.map(|(handler, refusal)| explained(handler, refusal)).collect(),
    })
}

fn explained(handler: &Handler, reason: Option<String>) -> ExplainedHandler {
    let events = handler.events.types();
    ExplainedHandler {
        events: events.map_or(vec!["*".to_owned()], |types| types.into_iter().map(str::to_owned).collect()),
        file: handler.sql.file.clone(),
        line: handler.sql.line,
        path: if reason.is_none() { "fold" } else { "loop" },
        reason,
    }
}

impl Explanation {
    /// For people.
    pub(crate) fn as_text(&self) -> String {
        let mut text = format!("{}  {}, {}\n", self.name, self.kind, self.summary());
        for handler in &self.handlers {
            let place = format!("{}:{}", handler.file, handler.line);
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {}  ({place})", handler.events.join(", "));
            let _ = match &handler.reason {
                None => writeln!(text, "    fold"),
                Some(reason) => writeln!(text, "    loop: {reason}"),
            };
        }
        text.trim_end().to_owned()
    }

    fn summary(&self) -> &'static str {
        let others: Vec<&ExplainedHandler> =
            self.handlers.iter().filter(|handler| handler.reason.is_some()).collect();
        if self.handlers.is_empty() {
            "not in SQL: it gets one event after another"
        } else if others.is_empty() {
            "its batches are folded"
        } else if others.len() == self.handlers.len() || others.iter().any(|other| other.events == ["*"]) {
            "its batches are handled event by event"
        } else {
            "batches are folded that meet no handler with a reason"
        }
    }
}
