//! The handlers as they stand in the function, so that each event meets its own, in the order of the declaration.
//!
//! A few handlers stand behind one another, each with a condition, which is not asked any more once one has held if no event is for
//! two of them. Of many, an event looks up which are its own, and each of
//! those is found by halving: the number of conditions that an event meets hardly grows with the handlers.
//!
//! An event of many handlers costs more all the same. Each statement has a plan of its own, and where hundreds take turns,
//! a plan has left the processor's caches when it is used again. The same statements in a loop without any condition slow
//! down as well (`benches/many_handlers.rs` states that floor). Trees of 3 to 20 branches, one of bits, and a lookup
//! by comparing texts were measured in place of the halving, and none was faster.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::json;

use super::CompileError;
use crate::handlers::sql::event_source::literals;
use crate::handlers::sql::gate::{escape, may_change_event};
use crate::postgres::lexer::{self, TokenKind};
use crate::postgres::quote::quote_literal;
use crate::processing::declaration::{HandledEvents, Handler};

/// Up to so many handlers are tried one after another.
const SEQUENCE_MAX: usize = 8;

/// The handlers as they stand in the function.
pub(super) struct Dispatch<'h> {
    handlers: &'h [Handler],
    /// The text of each, ready to be put in its place.
    bodies: Vec<Body<'h>>,
    /// What the function's own names begin with.
    own: &'h str,
    text: String,
    /// Byte offset at which the author's text of each begins.
    starts: Vec<usize>,
}

/// One handler's text.
struct Body<'h> {
    text: &'h str,
    /// Whether its last statement has its semicolon.
    is_closed: bool,
    /// Whether it may leave the loop that it stands in.
    jumps: bool,
    may_change_event: bool,
}

impl<'h> Body<'h> {
    fn of(index: usize, handler: &'h Handler) -> Result<Self, CompileError> {
        let text = &handler.sql.text;
        let refuse = |(offset, message)| CompileError { handler: index, offset, message };
        let tokens =
            lexer::tokens(text).map_err(|unclosed| refuse((unclosed.start, unclosed.to_string())))?;
        escape(&tokens).map_or(Ok(()), |escape| Err(refuse(escape)))?;
        Ok(Self {
            text,
            is_closed: tokens.last().is_none_or(|token| token.kind == TokenKind::Semicolon),
            jumps: tokens.iter().any(|token| token.is_word("exit") || token.is_word("continue")),
            may_change_event: may_change_event(&tokens),
        })
    }
}

impl<'h> Dispatch<'h> {
    /// Reads the handlers; refuses what would reach beyond its place.
    pub(super) fn of(handlers: &'h [Handler]) -> Result<Self, CompileError> {
        let bodies = handlers.iter().enumerate().map(|(index, handler)| Body::of(index, handler));
        let bodies = bodies.collect::<Result<_, _>>()?;
        Ok(Self { handlers, bodies, own: "", text: String::new(), starts: Vec::new() })
    }

    /// Whether one of the handlers may change `event`.
    pub(super) fn may_change_event(&self) -> bool {
        self.bodies.iter().any(|body| body.may_change_event)
    }

    /// The text of all handlers, and the byte offset at which each begins; `own` begins the function's own names.
    pub(super) fn write(mut self, own: &'h str) -> (String, Vec<usize>) {
        self.own = own;
        match self.handlers.len() {
            0..=SEQUENCE_MAX => self.write_sequence(),
            count => self.write_lookup(count),
        }
        (self.text, self.starts)
    }

    fn write_sequence(&mut self) {
        let is_chain = self.is_chain();
        for index in 0..self.handlers.len() {
            self.open(index, if is_chain && index > 0 { "elsif" } else { "if" });
            self.write_body(index);
            if !is_chain || index + 1 == self.handlers.len() {
                self.close(index);
            }
        }
    }

    /// Whether each event is for one handler at most, whatever a handler does to its record.
    fn is_chain(&self) -> bool {
        let (routes, others) = routes(self.handlers);
        !self.may_change_event() && others.is_empty() && routes.values().all(|route| route.len() == 1)
    }

    fn open(&mut self, index: usize, asks: &str) {
        match &self.handlers[index].events {
            HandledEvents::All => self.text.push_str("        begin\n"),
            HandledEvents::Types(types) => {
                // Writing to a String cannot fail.
                let _ = writeln!(self.text, "        {asks} event.type in ({}) then", literals(types));
            }
        }
    }

    fn close(&mut self, index: usize) {
        self.text.push_str(match self.handlers[index].events {
            HandledEvents::All => "        end;\n",
            HandledEvents::Types(_) => "        end if;\n",
        });
    }

    /// Looks up the handlers of the event's type, and calls each.
    fn write_lookup(&mut self, count: usize) {
        let (routes, others) = routes(self.handlers);
        let own = self.own;
        if others.is_empty() && routes.values().all(|route| route.len() == 1) {
            let only: BTreeMap<&str, usize> = routes.iter().map(|(name, route)| (*name, route[0])).collect();
            let only = quote_literal(&json!(only).to_string());
            // Another type, which is not read at all, would be behind the last handler.
            let _ = writeln!(
                self.text,
                "        {own}handler := coalesce(({only}::jsonb -> event.type::text)::integer, {count});"
            );
            self.write_tree(0, count + 1);
            return;
        }
        let lists: BTreeMap<&str, String> =
            routes.iter().map(|(name, route)| (*name, array(route))).collect();
        let (lists, others) = (quote_literal(&json!(lists).to_string()), quote_literal(&array(&others)));
        let _ = writeln!(
            self.text,
            "        foreach {own}handler in array coalesce({lists}::jsonb ->> event.type::text, {others})::integer[] loop"
        );
        self.write_tree(0, count);
        self.text.push_str("        end loop;\n");
    }

    /// Finds the handler of a number from `from` to `upto`, exclusive, by halving.
    fn write_tree(&mut self, from: usize, upto: usize) {
        if from == self.handlers.len() {
            return self.text.push_str("        null;\n");
        }
        if upto - from == 1 {
            return self.write_body(from);
        }
        let half = from.midpoint(upto);
        let _ = writeln!(self.text, "        if {}handler < {half} then", self.own);
        self.write_tree(from, half);
        self.text.push_str("        else\n");
        self.write_tree(half, upto);
        self.text.push_str("        end if;\n");
    }

    fn write_body(&mut self, index: usize) {
        let (guarded, own) = (self.may_change_event(), self.own);
        if guarded {
            let _ = writeln!(self.text, "        event := {own}event;");
        }
        let Body { text, is_closed, jumps, .. } = self.bodies[index];
        // A loop of its own to leave, so that it cannot leave the loop over the events.
        if jumps {
            let _ = writeln!(self.text, "        for {own}once in 1..1 loop");
        }
        self.starts.push(self.text.len());
        self.text.push_str(text);
        // On a line of its own: the text may end in a comment.
        self.text.push_str(if is_closed { "\n" } else { "\n        ;\n" });
        self.text.push_str(if jumps { "        end loop;\n" } else { "" });
    }
}

/// The handlers of each type by number, and those of all other types.
fn routes(handlers: &[Handler]) -> (BTreeMap<&str, Vec<usize>>, Vec<usize>) {
    let named = handlers.iter().filter_map(|handler| handler.events.types()).flatten();
    let mut routes: BTreeMap<&str, Vec<usize>> = named.map(|name| (name, Vec::new())).collect();
    let mut others = Vec::new();
    for (index, handler) in handlers.iter().enumerate() {
        match handler.events.types() {
            Some(types) => types.iter().for_each(|name| routes.entry(name).or_default().push(index)),
            None => {
                routes.values_mut().for_each(|route| route.push(index));
                others.push(index);
            }
        }
    }
    (routes, others)
}

/// An array of numbers, as PostgreSQL reads it from a text.
fn array(numbers: &[usize]) -> String {
    format!("{{{}}}", numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
}
