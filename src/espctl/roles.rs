//! `espctl roles`: prints the script that creates roles with few rights, with the names of this configuration.

use clap::Args;

use crate::config::Config;
use crate::espctl::output;
use crate::postgres::name::{InvalidName, identifier};
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::processing::tracker::Trackers;
use crate::store::layout::{CreatedBy, Layout, Order, Positions};

/// The script with psql variables, so that it also runs under psql as it is.
const ROLES: &str = include_str!("../../migrations/roles.sql");

/// A role that reads projections. Tables that are made later, by whoever makes them now or by the daemon's role, are
/// readable from the beginning.
const READER: &str = r#"-- A role that reads the projections, and how far they are. No one logs in as it: grant it to the roles that do.
do $$ begin
  if not exists (select from pg_roles where rolname = {name}) then create role {reader} nologin; end if;
end $$;
do $$ begin
  if not exists (select from pg_namespace where nspname = {projections_name}) then create schema {projections}; end if;
end $$;
grant usage on schema {schema}, {projections} to {reader};
grant select on {trackers} to {reader};
do $$
declare
  made record;
begin
  for made in
    select format('%I.%I', p.table_schema, p.table_name) as name from {schema}.projection_tables as p
    where to_regclass(format('%I.%I', p.table_schema, p.table_name)) is not null
  loop
    execute 'grant select on ' || made.name || ' to {reader}';
  end loop;
  for made in
    select t.tableowner as owner
    from {schema}.projection_tables as p
      join pg_tables as t on t.schemaname = p.table_schema and t.tablename = p.table_name
    union
    select rolname from pg_roles where rolname = 'espd_daemon'
  loop
    execute format('alter default privileges for role %I in schema {projections} grant select on tables to {reader}', made.owner);
  end loop;
end $$;"#;

/// The script for one role that reads projections.
fn reader_script(reader: &str, config: &Config) -> anyhow::Result<String> {
    let layout = Layout::new(&config.event_store.layout, &config.event_store.schema)?;
    Ok(READER
        .replace("{name}", &quote_literal(reader))
        .replace("{reader}", &quote_identifier(reader))
        .replace("{trackers}", Trackers::of(&layout).table())
        .replace("{schema}", &layout.quoted_schema())
        .replace("{projections_name}", &quote_literal(&config.projections.schema))
        .replace("{projections}", &quote_identifier(&config.projections.schema)))
}

/// Lets the daemon's role read the positions of the framework's own processors. Their table may be in another database.
fn grant_positions(Positions { qualified, .. }: &Positions) -> String {
    format!(
        "-- What `espctl import-positions` reads. Tables that a processor takes over have to belong to espd_daemon: `alter table ... owner to`.\n\
         do $$ begin\n  if to_regclass({}) is not null then\n    grant select on {qualified} to espd_daemon;\n  end if;\nend $$;",
        quote_literal(qualified)
    )
}

#[derive(Args)]
#[command(
    after_help = "Prints SQL and changes nothing: read it, then run it with psql. docs/roles.md says what the roles are for.\n\n\
    Examples:\n  espctl roles --reader web | psql \"$DATABASE_URL\"\n  espctl roles | psql --single-transaction -v ON_ERROR_STOP=1 \"$DATABASE_URL\""
)]
pub(crate) struct Arguments {
    /// Print instead the SQL for a role of this name that reads the projections, and how far they are, and no events
    #[arg(long, value_name = "NAME", value_parser = parse_role)]
    reader: Option<String>,
}

fn parse_role(name: &str) -> Result<String, InvalidName> {
    identifier(name).map(str::to_owned)
}

pub(crate) fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<()> {
    if let Some(reader) = &arguments.reader {
        return output::print_verbatim(&reader_script(reader, config)?);
    }
    let layout = Layout::new(&config.event_store.layout, &config.event_store.schema)?;
    let own = layout
        .name_in(ROLES)
        .replace(":\"projections\"", &quote_identifier(&config.projections.schema))
        .replace("schema :\"schema\"", &format!("schema {}", layout.quoted_schema()));
    let text = match &layout.created_by {
        CreatedBy::Migrations => own,
        CreatedBy::Framework(framework) => {
            let Order::DrawnInTransaction { sequence, .. } = &layout.order;
            // The framework's application appends with rights of its own; the roles of espd only read.
            let of_appenders = [
                " on :\"schema\".events ",
                "scheduled_events",
                ".snapshots ",
                ".commands ",
                ".tag_heads ",
                ".tag_events ",
                ".unique_keys ",
                ".delete_aggregate ",
            ];
            let appends = |line: &&str| of_appenders.iter().any(|part| line.contains(part));
            let kept: Vec<&str> = own.lines().filter(|line| !appends(line)).collect();
            let schema = quote_identifier(&framework.schema);
            format!(
                "{}\n\n-- The store of {} is read only.\ngrant usage on schema {schema} to espd_reader;\n\
                 grant select on {} to espd_reader;\ngrant select on sequence {} to espd_reader;\n{}",
                kept.join("\n"),
                framework.name,
                layout.events_table(),
                sequence,
                layout.positions.as_ref().map_or_else(String::new, grant_positions)
            )
        }
    };
    output::print_verbatim(text.replace(":\"schema\"", &layout.quoted_schema()).trim_end())
}
