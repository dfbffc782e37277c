//! `espctl roles`: prints the script that creates roles with few rights, with the names of this configuration.

use clap::Args;

use crate::config::Config;
use crate::espctl::output;
use crate::postgres::quote::quote_identifier;
use crate::store::layout::{CreatedBy, Layout, Order};

/// The script with psql variables, so that it also runs under psql as it is.
const ROLES: &str = include_str!("../../migrations/roles.sql");

#[derive(Args)]
#[command(
    after_help = "Prints SQL and changes nothing: read it, then run it with psql. docs/roles.md says what the roles are for.\n\n\
    Example:\n  espctl roles | psql --single-transaction -v ON_ERROR_STOP=1 \"$DATABASE_URL\""
)]
pub(crate) struct Arguments {}

pub(crate) fn run(config: &Config) -> anyhow::Result<()> {
    let layout = Layout::new(&config.event_store.layout, &config.event_store.schema)?;
    let own = ROLES
        .replace(":\"projections\"", &quote_identifier(&config.projections.schema))
        .replace("schema :\"schema\"", &format!("schema {}", layout.quoted_schema()));
    let text = match &layout.created_by {
        CreatedBy::Migrations => own,
        CreatedBy::Framework(framework) => {
            let Order::DrawnInTransaction { sequence, .. } = &layout.order;
            // The framework's application appends with rights of its own; the roles of espd only read.
            let kept: Vec<&str> =
                own.lines().filter(|line| !line.starts_with("grant insert on :\"schema\".events")).collect();
            let schema = quote_identifier(&framework.schema);
            format!(
                "{}\n\n-- The store of {} is read only.\ngrant usage on schema {schema} to espd_reader;\n\
                 grant select on {} to espd_reader;\ngrant select on sequence {} to espd_reader;",
                kept.join("\n"),
                framework.name,
                layout.events_table(),
                sequence
            )
        }
    };
    output::print_verbatim(text.replace(":\"schema\"", &layout.quoted_schema()).trim_end())
}
