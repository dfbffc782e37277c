//! Finding an author's mistakes before they are deployed.
//!
//! Everything happens in one transaction that is rolled back, with tables in a schema of its own, so the
//! projector's own tables are neither touched nor locked. PostgreSQL is asked to judge, at three depths:
//!
//! 1. the tables and the extra DDL are created;
//! 2. the whole function is created, which finds errors of syntax;
//! 3. every handler made of plain statements is created once more as an SQL-language function, whose
//!    body PostgreSQL analyses at once: unknown tables, columns, functions, types. A handler with control
//!    flow is tried with an empty event instead, which finds such errors in the branches that it takes; what it
//!    does to tables that it does not declare is rolled back as well, but holds their locks until then.

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use crate::diagnostic::{DatabaseAnswer, Diagnostic};
use crate::handlers::batch::RowTables;
use crate::handlers::program;
use crate::handlers::sql::function::{
    COLUMNS, EventSource, ProcessorFunction, diagnose_compile_error, diagnose_refusal,
};
use crate::handlers::sql::reaction;
use crate::postgres::lexer::{self, Token, TokenKind};
use crate::postgres::quote::quote_identifier;
use crate::postgres::sqlstate::is_infrastructure_error;
use crate::processing::declaration::{HandledEvents, Handler, Handling, ProcessorDeclaration, SourceText};
use crate::store::layout::Layout;
use crate::store::upcast::Upcast;

/// SQLSTATE of an event that may not be emitted.
const NOT_EMITTED: &str = "ES004";

/// All mistakes that can be found in these declarations without running them for real.
///
/// Nothing stays behind. Fails only where the database cannot be asked.
pub async fn check(
    connection: &mut PgConnection,
    declarations: &[ProcessorDeclaration],
    projections_schema: &str,
) -> Result<Vec<Diagnostic>, sqlx::Error> {
    let mut faults = Vec::new();
    for declaration in declarations {
        faults.extend(foreign_tables(declaration, declarations));
        let mut scratch = Scratch::open(connection, projections_schema).await?;
        faults.extend(scratch.check(declaration).await?);
        scratch.close().await?;
    }
    Ok(faults)
}

/// All mistakes in the SQL of the upcasts of a store, judged by its database, which is not changed.
pub(crate) async fn check_upcasts(
    connection: &mut PgConnection,
    layout: &Layout,
    upcasts: &[Upcast],
) -> Result<Vec<Diagnostic>, sqlx::Error> {
    let (mut faults, mut source) = (Vec::new(), layout.source().to_owned());
    for upcast in upcasts {
        let before = faults.len();
        let texts = [(&upcast.body, ")::jsonb is not null"), (&upcast.when, ")")];
        for (sql, end) in texts.into_iter().filter_map(|(sql, end)| sql.as_ref().map(|sql| (sql, end))) {
            let head = format!("-- judge_upcast\nselect from {source} as event where (\n");
            let statement = format!("{head}{}\n{end} limit 0", sql.text);
            match sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&mut *connection).await {
                Ok(_) => {}
                Err(error) if is_infrastructure_error(&error) => return Err(error),
                Err(error) => faults.push(Diagnostic::of_refusal(sql, head.len(), &statement, &error)),
            }
        }
        // A wrong one would make those above it wrong as well.
        if faults.len() == before {
            source = upcast.over(&source);
        }
    }
    Ok(faults)
}

/// Handlers of types that no event is read as any more.
pub(crate) fn hidden_types(declarations: &[ProcessorDeclaration], upcasts: &[Upcast]) -> Vec<Diagnostic> {
    let mut faults = Vec::new();
    for handler in declarations.iter().flat_map(ProcessorDeclaration::handlers) {
        let types = handler.events.types().into_iter().flatten();
        for (name, upcast) in
            types.filter_map(|name| Some((name, upcasts.iter().find(|upcast| upcast.hides(name))?)))
        {
            let mut fault = Diagnostic::in_source(
                &handler.sql,
                0,
                format!("this is for {name}, which no event is read as"),
            );
            let new = upcast.event_type.as_deref().unwrap_or_default();
            fault.advice = Some(format!("an upcast reads {name} as {new}: handle {new}"));
            faults.push(fault);
        }
    }
    faults
}

/// The transaction and the schema that a declaration is tried in.
struct Scratch<'c> {
    transaction: sqlx::Transaction<'c, sqlx::Postgres>,
    schema: String,
}

impl<'c> Scratch<'c> {
    async fn open(connection: &'c mut PgConnection, projections_schema: &str) -> Result<Self, sqlx::Error> {
        let schema = format!("espd_check_{}", Uuid::new_v4().simple());
        let mut transaction = connection.begin().await?;
        let statement = format!(
            "create schema {schema};
             set local search_path = {schema}, {}, public;
             set local lock_timeout = '5s';
             set local statement_timeout = '30s';
             create table {schema}.espd_event (
               id bigint, uuid uuid, aggregate_id uuid, type text, version bigint, body jsonb, metadata jsonb,
               correlation_id uuid, causation_id uuid, created_at timestamptz
             )",
            quote_identifier(projections_schema)
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *transaction).await?;
        Ok(Self { transaction, schema })
    }

    async fn close(self) -> Result<(), sqlx::Error> {
        self.transaction.rollback().await
    }

    async fn check(&mut self, declaration: &ProcessorDeclaration) -> Result<Vec<Diagnostic>, sqlx::Error> {
        let mut faults = self.check_tables(declaration).await?;
        // Handlers cannot be judged without their tables.
        if let (Handling::Program(program), true) = (&declaration.handling, faults.is_empty()) {
            let tables =
                RowTables::read(&mut self.transaction, &self.schema, &declaration.table_names()).await?;
            return Ok(program::check(declaration, program, &tables).await);
        }
        if faults.is_empty() {
            faults.extend(self.check_function(declaration).await?);
        }
        if faults.is_empty() {
            self.pretend_to_react(declaration).await?;
            for handler in declaration.handlers() {
                faults.extend(self.check_handler(handler).await?);
            }
        }
        Ok(faults)
    }

    /// Lets what a reactor emits be judged without being stored; a projector may emit nothing.
    async fn pretend_to_react(&mut self, declaration: &ProcessorDeclaration) -> Result<(), sqlx::Error> {
        let statement = match &declaration.reaction {
            Some(reaction) => reaction::pretend(&declaration.name, reaction),
            None => return Ok(()),
        };
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *self.transaction).await.map(drop)
    }

    async fn check_tables(
        &mut self,
        declaration: &ProcessorDeclaration,
    ) -> Result<Vec<Diagnostic>, sqlx::Error> {
        let mut faults = Vec::new();
        for table in &declaration.tables {
            let head = format!("create table {}.{} (\n", self.schema, quote_identifier(&table.name));
            let statement = format!("{head}{}\n)", table.columns.text);
            if let Some(error) = self.attempt(&statement).await? {
                faults.push(Diagnostic::of_refusal(&table.columns, head.len(), &statement, &error));
            }
        }
        if faults.is_empty() {
            for ddl in &declaration.ddl {
                if let Some(error) = self.attempt(&ddl.text).await? {
                    faults.push(Diagnostic::of_refusal(ddl, 0, &ddl.text, &error));
                }
            }
        }
        Ok(faults)
    }

    async fn check_function(
        &mut self,
        declaration: &ProcessorDeclaration,
    ) -> Result<Vec<Diagnostic>, sqlx::Error> {
        let source = EventSource::Table { source: "espd_event", json_bodies: None, upcasts: &[] };
        let function = match ProcessorFunction::compile(declaration, &self.schema, &self.schema, source) {
            Ok(function) => function,
            Err(error) => return Ok(vec![diagnose_compile_error(declaration, error)]),
        };
        let error = self.attempt(&function.create).await?;
        Ok(error.map(|error| diagnose_refusal(declaration, &function, &error)).into_iter().collect())
    }

    async fn check_handler(&mut self, handler: &Handler) -> Result<Option<Diagnostic>, sqlx::Error> {
        let source = &handler.sql;
        // The lexer has accepted the text when the function was compiled.
        let tokens = lexer::tokens(&source.text).unwrap_or_default();
        if let Some(select) = lexer::statements(&tokens).find_map(bare_select) {
            let mut fault = Diagnostic::in_source(source, select, "the result of this select goes nowhere");
            fault.advice = Some("write perform instead of select, or select … into a variable".to_owned());
            return Ok(Some(fault));
        }
        let plain = lexer::statements(&tokens).all(is_plain);
        if plain && let Some(fault) = self.analyse(source, &tokens).await? {
            return Ok(Some(fault));
        }
        let emits = tokens.iter().any(|token| token.is_word("emit"));
        if plain && !emits { Ok(None) } else { self.try_with_an_empty_event(handler).await }
    }

    /// Has PostgreSQL analyse plain statements, as the body of an SQL-language function.
    async fn analyse(
        &mut self,
        source: &SourceText,
        tokens: &[Token<'_>],
    ) -> Result<Option<Diagnostic>, sqlx::Error> {
        let mut text = source.text.clone();
        for statement in lexer::statements(tokens).filter(|statement| statement[0].is_word("perform")) {
            // As long as the word that it replaces, so that places stay where they are.
            text.replace_range(statement[0].start..statement[0].end, "select ");
        }
        let head = format!(
            "create or replace function {0}.espd_handler(event {0}.espd_event) returns void language sql as $espd_body$",
            self.schema
        );
        let statement = format!("{head}{text}$espd_body$");
        let error = self.attempt(&statement).await?;
        Ok(error.map(|error| {
            let unknown_field = unknown_field(source, head.len(), &statement, &error);
            unknown_field.unwrap_or_else(|| Diagnostic::of_refusal(source, head.len(), &statement, &error))
        }))
    }

    /// Runs a handler with an event whose body is empty. Only what is wrong whatever the event counts.
    async fn try_with_an_empty_event(
        &mut self,
        handler: &Handler,
    ) -> Result<Option<Diagnostic>, sqlx::Error> {
        let source = &handler.sql;
        let create = format!(
            "create or replace function {0}.espd_handler(event {0}.espd_event) returns void language plpgsql as $espd_body$
             #variable_conflict use_column
             begin\n{1}\n;end $espd_body$",
            self.schema,
            source.text.trim_end().trim_end_matches(';')
        );
        let event_type = match &handler.events {
            HandledEvents::All => "",
            HandledEvents::Types(types) => types.first().map_or("", String::as_str),
        };
        let call = format!(
            "select {0}.espd_handler(row(1, gen_random_uuid(), gen_random_uuid(), {1}, 1, '{{}}', '{{}}', null, null, \
             clock_timestamp())::{0}.espd_event)",
            self.schema,
            crate::postgres::quote::quote_literal(event_type)
        );
        let Some(error) = self.attempt(&format!("{create};\n{call}")).await? else { return Ok(None) };
        let answer = DatabaseAnswer::of(&error);
        let about_the_text =
            answer.code == NOT_EMITTED || answer.code.starts_with("42") && answer.code != "42501";
        let offset = answer.offset_in(&source.text).unwrap_or(0);
        Ok(about_the_text.then(|| answer.at(source, offset)))
    }

    /// Runs a statement behind a savepoint; the inner error is the database's judgement of it.
    async fn attempt(&mut self, statement: &str) -> Result<Option<sqlx::Error>, sqlx::Error> {
        let mut savepoint = self.transaction.begin().await?;
        let outcome = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut *savepoint).await;
        match outcome {
            Ok(_) => savepoint.commit().await.map(|()| None),
            Err(error) if is_infrastructure_error(&error) => Err(error),
            Err(error) => savepoint.rollback().await.map(|()| Some(error)),
        }
    }
}

/// Whether a statement means the same in an SQL-language function as in PL/pgSQL.
fn is_plain(statement: &[Token<'_>]) -> bool {
    const WORDS: [&str; 7] = ["insert", "update", "delete", "merge", "with", "perform", "truncate"];
    let begins_plainly = WORDS.iter().any(|word| statement[0].is_word(word));
    let returning_into = statement
        .windows(2)
        .any(|pair| !pair[0].is_word("insert") && !pair[0].is_word("merge") && pair[1].is_word("into"));
    begins_plainly && !returning_into
}

/// A field that `event` does not have, which PostgreSQL takes for a column of an unknown table `event`.
fn unknown_field(
    source: &SourceText,
    lead: usize,
    statement: &str,
    error: &sqlx::Error,
) -> Option<Diagnostic> {
    const UNDEFINED_TABLE: &str = "42P01";
    let code = error.as_database_error()?.code()?;
    let offset = DatabaseAnswer::of(error).offset_in(statement)?.checked_sub(lead)?;
    let field = source.text.get(offset..)?.strip_prefix("event.").filter(|_| code == UNDEFINED_TABLE)?;
    let length = field.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(field.len());
    let mut fault = Diagnostic::in_source(source, offset, format!("event has no field {}", &field[..length]));
    fault.advice = Some(format!("it has {COLUMNS}"));
    Some(fault)
}

/// The place of a `select` whose result goes nowhere, which PL/pgSQL refuses only when it runs.
fn bare_select(statement: &[Token<'_>]) -> Option<usize> {
    let bare = statement[0].is_word("select") && !statement.iter().any(|token| token.is_word("into"));
    bare.then_some(statement[0].start)
}

/// Mentions of tables that another projector owns, where the text shows them.
fn foreign_tables(declaration: &ProcessorDeclaration, all: &[ProcessorDeclaration]) -> Vec<Diagnostic> {
    let owner_of = |table: &str| {
        all.iter()
            .find(|other| other.name != declaration.name && other.tables.iter().any(|own| own.name == table))
    };
    let mut faults = Vec::new();
    for handler in declaration.handlers() {
        let tokens = lexer::tokens(&handler.sql.text).unwrap_or_default();
        for token in mentioned_tables(&tokens) {
            let Some(owner) = token.name().and_then(|name| owner_of(&name)) else { continue };
            let message = format!("table {} belongs to projector {}", token.text, owner.name);
            let mut fault = Diagnostic::in_source(&handler.sql, token.start, message);
            fault.advice =
                Some(format!("declare a table of {}'s own, or handle the events here", declaration.name));
            faults.push(fault);
        }
    }
    faults
}

/// The last part of each name that stands where a table is named.
fn mentioned_tables<'a, 'b>(tokens: &'b [Token<'a>]) -> Vec<&'b Token<'a>> {
    const BEFORE_A_TABLE: [&str; 7] = ["into", "update", "from", "join", "table", "only", "truncate"];
    let mut mentioned = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        if !BEFORE_A_TABLE.iter().any(|word| token.is_word(word)) {
            continue;
        }
        let mut at = index + 1;
        while tokens.get(at + 1).is_some_and(|dot| dot.kind == TokenKind::Symbol && dot.text == ".") {
            at += 2;
        }
        mentioned.extend(tokens.get(at));
    }
    mentioned
}
