//! `espctl forget` and `espctl keys`: personal data whose key is deleted, and the keys.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use sqlx::pool::PoolConnection;
use sqlx::{PgPool, Postgres};

use crate::config::{Config, DatabaseUrl};
use crate::espctl::output;
use crate::operations::databases::Databases;
use crate::operations::forgetting::{
    SUBJECT_FORGOTTEN, SubjectReport, announce, clean_up_and_report, try_to_announce,
};
use crate::operations::status::format::thousands;
use crate::personal_data::{ForgottenSubject, KEY_SCHEMA, KeyTable, MasterKey};

/// Where the keys are.
#[derive(Args)]
pub(crate) struct KeyPlace {
    /// URL of the database of the keys; without it, that of the events
    #[arg(long, value_name = "URL", env = "ESPD_KEYS_URL", hide_env_values = true)]
    keys_url: Option<String>,
    /// Schema of the tables of keys
    #[arg(long, value_name = "NAME", default_value = KEY_SCHEMA)]
    keys_schema: String,
}

impl KeyPlace {
    async fn open(&self, databases: &Databases) -> anyhow::Result<(PoolConnection<Postgres>, KeyTable)> {
        let pool = match &self.keys_url {
            None => databases.events.clone(),
            Some(url) => {
                let connector = DatabaseUrl::new(url.clone())?.connector()?.named("espctl");
                PgPool::connect_with(connector.connect().await.context("the database of the keys")?.options)
                    .await?
            }
        };
        Ok((pool.acquire().await?, KeyTable::new(&self.keys_schema)?))
    }
}

#[derive(Args)]
#[command(
    after_help = "The keys of the subject are deleted, and with them the use of every field that was sealed for him: in the store, in its\n\
    replicas and backups. It is recorded, snapshots of the aggregates are removed, an event SubjectForgotten is appended, for\n\
    projections that have to remove something, and what may hold data of the subject still is listed; that reads every event.\n\
    Running programs remember keys for a minute. docs/personal-data.md has the details.\n\n\
    Examples:\n  \
    espctl forget 149d5c70-a373-4857-91e2-1d5ea90c27e4 --why 'asked for on 2027-01-05'\n  \
    espctl forget customer-17 --yes --json"
)]
pub(crate) struct ForgetArguments {
    /// The subject, as the sealed fields name it
    subject: String,
    /// Why; it is recorded
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
    /// Append no event
    #[arg(long)]
    no_event: bool,
    #[command(flatten)]
    place: KeyPlace,
    /// Print one object instead of sentences
    #[arg(long)]
    json: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
}

#[derive(Subcommand)]
pub(crate) enum KeysCommand {
    /// Make the tables of keys where they are missing
    Create {
        #[command(flatten)]
        place: KeyPlace,
    },
    /// Wrap every key by another master key
    #[command(
        after_help = "Give the programs both master keys before (PostgresKeys::also_unwrapping), and take the old one away afterwards.\n\
        All keys are wrapped anew, or none. A file has 32 bytes in base64.\n\n\
        Example:\n  openssl rand -base64 32 > new.key\n  espctl keys rewrap --from old.key --to new.key"
    )]
    Rewrap {
        /// File with the present master key
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        /// File with the new master key
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        #[command(flatten)]
        place: KeyPlace,
    },
}

pub(crate) async fn keys(command: KeysCommand, databases: &Databases) -> anyhow::Result<()> {
    match command {
        KeysCommand::Create { place } => {
            let (mut connection, table) = place.open(databases).await?;
            table.create(&mut connection).await?;
            output::print(&format!("the tables of keys are in schema {}", place.keys_schema))
        }
        KeysCommand::Rewrap { from, to, place } => {
            let (from, to) = (MasterKey::from_file(from)?, MasterKey::from_file(to)?);
            let (mut connection, table) = place.open(databases).await?;
            let count = table.rewrap(&mut connection, &from, &to).await?;
            output::print(&format!("wrapped {} keys anew", thousands(i64::try_from(count)?)))
        }
    }
}

pub(crate) async fn forget(
    arguments: ForgetArguments,
    config: &Config,
    databases: &Databases,
) -> anyhow::Result<()> {
    let ForgetArguments { subject, why, no_event, place, json, yes } = arguments;
    let (mut connection, table) = place.open(databases).await?;
    let keys = table.count(&mut connection, &subject).await.context(
        "the keys cannot be read: `espctl keys create` makes their tables, --keys-url and --keys-schema name others",
    )?;
    let question = format!(
        "This deletes the key of {subject} for good: nobody will read what was sealed for this subject. Continue?"
    );
    if keys > 0 && !yes && !output::confirm(&question)? {
        return output::print("nothing was done");
    }
    if keys > 0 && !no_event {
        try_to_announce(databases, &subject).await.context(NOT_ANNOUNCED)?;
    }
    let forgotten = table.forget(&mut connection, &subject, &output::operator(), why.as_deref()).await?;
    let Some(forgotten) = forgotten else {
        bail!("subject {subject} has no key, and was never forgotten: nothing was done");
    };
    let is_announced = !no_event && announce(databases, &subject).await.context(LEFT_UNANNOUNCED)?;
    let report = clean_up_and_report(config, databases, &subject).await.context(LEFT)?;
    if json {
        let all = json!({ "forgotten": forgotten, "event": is_announced.then_some(SUBJECT_FORGOTTEN), "report": report });
        return output::print_verbatim(&serde_json::to_string_pretty(&all)?);
    }
    output::print(&lines(&forgotten, is_announced, &report).join("\n"))
}

/// What is said where the rest fails.
const LEFT: &str = "the keys are deleted; run this again for the rest";

/// What is said where the keys are gone and the event cannot be appended.
const LEFT_UNANNOUNCED: &str = "the keys are deleted, and the event SubjectForgotten cannot be appended: correct what refuses it, such as \
     its declared schema, and run this again for the rest; or run it with --no-event, and append an event of your own";

/// What is said where the event could not be appended once the keys are gone.
const NOT_ANNOUNCED: &str = "nothing was done, because the event SubjectForgotten could not be appended: correct what refuses it, such as its \
     declared schema; or run this with --no-event, and append an event of your own";

fn lines(forgotten: &ForgottenSubject, is_announced: bool, report: &SubjectReport) -> Vec<String> {
    let ForgottenSubject { subject, forgotten_at, forgotten_by, keys, .. } = forgotten;
    let SubjectReport { events, readers, reader_versions, got_sealed, got_sealed_versions, .. } = report;
    let SubjectReport { dead_letters, failing, differing_keys, pending, snapshots_removed, .. } = report;
    let at = forgotten_at.format("%Y-%m-%d %H:%M:%SZ");
    let mut lines =
        vec![format!("{subject} is forgotten since {at}, by {forgotten_by}; keys deleted: {keys}")];
    if is_announced {
        lines.push(format!("an event {SUBJECT_FORGOTTEN} says so to those who follow the store"));
    }
    let counts: Vec<String> =
        events.iter().map(|(name, count)| format!("{} {name}", thousands(*count))).collect();
    lines.push(match counts.as_slice() {
        [] => "no event has sealed fields of this subject".to_owned(),
        counts => format!("events with sealed fields of this subject: {}", counts.join(", ")),
    });
    if *snapshots_removed > 0 {
        lines.push(format!("snapshots removed: {snapshots_removed}"));
    }
    lines.push("what may hold something of it still:".to_owned());
    let mut add = |line: String| lines.push(format!("  {line}"));
    add("programs that run, for a minute".to_owned());
    readers.iter().for_each(|holder| add(format!("{} (it may have read the fields)", holder.describe())));
    reader_versions.iter().for_each(|version| add(format!("{} (the same)", version.describe())));
    got_sealed.iter().for_each(|holder| add(format!("{} (it has got them sealed)", holder.describe())));
    got_sealed_versions
        .iter()
        .for_each(|version| add(format!("{} (it has got them sealed)", version.describe())));
    for name in differing_keys {
        add(format!(
            "keys of rows of {name} that differ from what its events say, which `[verify]` keeps: `espctl verify {name}` forgets them \
             once nothing differs"
        ));
    }
    for (processor, count) in dead_letters {
        add(format!(
            "{count} dead letters of {processor}, whose failures may quote a field: `espctl dead-letters list {processor}`"
        ));
    }
    failing.iter().for_each(|name| add(format!("the failure that `espctl status {name}` shows")));
    if *pending > 0 {
        add(format!("{pending} pending emissions and scheduled events, sealed: `espctl emissions`"));
    }
    add("recorded commands, states of workflows, logs, what was appended before fields were sealed, and backups of the keys and of snapshots".to_owned());
    lines
}
