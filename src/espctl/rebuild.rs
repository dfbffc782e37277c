//! `espctl rebuild`, `rollback` and `verify`: versions of a projector side by side.

mod difference;
mod going_live;
mod looking;
mod part;
mod telling;
mod watch;

use clap::{Args, Subcommand};

use crate::config::{Config, RebuildSection};
use crate::espctl::output;
use crate::handlers::native::Registry;
use crate::operations::databases::Databases;
use crate::operations::operator::Operator;
use crate::operations::rebuild::{Effort, GivenUp, GoLive, Rebuilding, Selection};
use crate::processing::rebuild::Beside;

pub(super) use going_live::build_again;
use going_live::go_live;
use looking::look;
use part::{PartArguments, SampleArguments, rebuild_part};
pub(super) use telling::describe_live;
use telling::{listener, note};

#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "The declared version is built beside the one that serves, in tables of its own, while that one goes on (one of a\n\
    program, or in Rust, serves what it has). Handlers in Rust run in their own program, which has this command as well.\n\
    Once it has caught up it is compared with the old one, and what differs is shown. If nothing differs, or you agree, it\n\
    goes live: the tables change places in one short transaction, with grants, policies, comments and publications. Where\n\
    the tables are declared alike and little differs, the difference is brought into them instead.\n\n\
    If it is killed, run it again: it goes on where it was.\n\n\
    With --aggregate, --type or --since only the rows of those aggregates are computed again and replaced, in one\n\
    transaction. For projectors whose rows are each written by the events of one aggregate alone.\n\n\
    Examples:\n  \
    espctl rebuild orders --dry-run\n  \
    espctl rebuild orders\n  \
    espctl rebuild orders --watch\n  \
    espctl rebuild orders --aggregate 149d5c70-a373-4857-91e2-1d5ea90c27e4\n  \
    espctl rebuild abort orders"
)]
pub(crate) struct RebuildArguments {
    #[command(subcommand)]
    command: Option<RebuildCommand>,
    /// Name of the projector
    #[arg(required = true)]
    name: Option<String>,
    /// Only show what the declared version would change: exit code 0 if nothing, 1 if something
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    part: PartArguments,
    /// How the new version goes live
    #[arg(long, value_enum, default_value_t)]
    go_live: GoLive,
    /// Go live whatever differs, without being asked
    #[arg(long, short)]
    yes: bool,
    /// How many sessions handle events at once, where the order of events of different aggregates does not matter; otherwise as
    /// `workers` in [rebuild] says
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i64).range(1..=16))]
    workers: Option<i64>,
    /// Build nothing, but show how far the version is that anybody builds, until that is over: exit code 0 if it is live,
    /// 1 if it was given up or waits for you
    #[arg(long, conflicts_with_all = ["dry_run", "yes", "go_live", "workers"])]
    watch: bool,
    /// Print what differs as JSON; with --watch, how far it is
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum RebuildCommand {
    /// Give up the version that is being built, and remove what a killed dry run or verification has left; the serving one stays as it is
    Abort {
        /// Name of the projector
        name: String,
    },
    /// Let the version that a daemon has built go live, whatever differs. Where the tables are declared alike and little differs, what
    /// differs is changed in the tables that serve, and no rollback leads back: `espctl rebuild NAME --go-live swap` keeps the former ones
    Approve {
        /// Name of the projector
        name: String,
    },
    /// Drop the former versions that are kept after a swap
    Drop {
        /// Name of the projector
        name: String,
        /// Do not ask for confirmation
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Args)]
#[command(
    after_help = "The version that served before handles what has come since, and the tables change places again. The version\n\
    that served until now is kept in its place. Daemons with a declaration of the newer version go on with the\n\
    older one until `espctl rebuild` is run again; where the events are in another database than the tables, they wait\n\
    until the older one is declared again. Another version that is declared or being built is given up, and\n\
    built again only then, or when its declaration changes.\n\n\
    Example:\n  espctl rollback orders"
)]
pub(crate) struct RollbackArguments {
    /// Name of the projector
    name: String,
    /// The version to go back to; otherwise the one that served last
    #[arg(long, value_name = "VERSION")]
    to: Option<i32>,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
}

#[derive(Args)]
#[command(
    after_help = "Handles all events again, in tables of its own beside those that serve, up to the position of the projector, and\n\
    compares every row by its key. Exit code 0 if the tables are what their events say, 1 if not. What was built for it\n\
    is dropped at the end; after a kill, a daemon or `espctl rebuild abort` drops it.\n\n\
    Where another version is declared than the one that serves, handlers in SQL are those that were recorded of it.\n\n\
    With --aggregate, --sample, --type or --since only the rows of those aggregates are verified. Where rows can be\n\
    attributed to aggregates, it also says since which event a row differs.\n\n\
    Examples:\n  \
    espctl verify orders\n  \
    espctl verify orders --sample 1\n  \
    espctl verify orders --aggregate 149d5c70-a373-4857-91e2-1d5ea90c27e4"
)]
pub(crate) struct VerifyArguments {
    /// Name of the projector
    name: String,
    #[command(flatten)]
    part: PartArguments,
    #[command(flatten)]
    sample: SampleArguments,
    /// Print what differs as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn rebuild(
    arguments: RebuildArguments,
    config: &Config,
    databases: &Databases,
    native: Option<&Registry>,
) -> anyhow::Result<()> {
    let me = output::operator();
    let databases = databases.with_upcasts(&config.upcasts);
    let operator = Operator { databases: &databases, declared: &config.processors, name: &me, native };
    let effort = effort(config, arguments.workers);
    match (arguments.command, arguments.name) {
        (Some(RebuildCommand::Abort { name }), _) => abort(operator, &name).await,
        (Some(RebuildCommand::Approve { name }), _) => approve(operator, &name).await,
        (Some(RebuildCommand::Drop { name, yes }), _) => drop_former(&operator, &name, yes).await,
        (None, Some(name)) if arguments.watch => watch::watch(operator, &name, arguments.json).await,
        (None, Some(name)) if arguments.part.is_given() => {
            let RebuildArguments { part, dry_run, yes, json, .. } = arguments;
            rebuild_part(operator, &name, &part.selection(&config.upcasts), dry_run, yes, json).await
        }
        (None, Some(name)) if arguments.dry_run => {
            look(operator, &name, Beside::DryRun, &Selection::default(), effort, arguments.json).await
        }
        (None, name) => {
            let name = name.unwrap_or_default();
            let RebuildArguments { go_live: wanted, yes, json, .. } = arguments;
            go_live(operator, &name, wanted, effort, (yes, json)).await
        }
    }
}

async fn abort(operator: Operator<'_>, name: &str) -> anyhow::Result<()> {
    let GivenUp { version, left } = operator.abort_rebuild(name).await?;
    let versions = version.iter().map(|version| format!("version {version} of {name} was given up"));
    let left =
        left.iter().map(|beside| format!("what {} has left was removed", describe_left(*beside, name)));
    output::print(&versions.chain(left).collect::<Vec<String>>().join("\n"))
}

async fn approve(operator: Operator<'_>, name: &str) -> anyhow::Result<()> {
    let (version, way) = operator.approve_rebuild(name).await?;
    let how = match way {
        Some(GoLive::Merge) => {
            ". What differs is changed in the tables that serve, so no rollback leads back".to_owned()
        }
        Some(_) => {
            if let Some(published) = operator.describe_published(name).await? {
                note(&published);
            }
            format!(". The former tables are kept, so `espctl rollback {name}` goes back to them")
        }
        None => String::new(),
    };
    let when = if operator.databases.daemons_build {
        format!(
            "goes live as soon as the daemon has caught up and its checks pass: `espctl rebuild {name} --watch` shows it"
        )
    } else {
        format!(
            "is approved. With this configuration no daemon lets it go live (`parallelism = 0` in `[rebuild]`): `espctl rebuild \
             {name}` does"
        )
    };
    output::print(&format!("version {version} of {name} {when}{how}"))
}

pub(crate) async fn verify(
    arguments: VerifyArguments,
    config: &Config,
    databases: &Databases,
    native: Option<&Registry>,
) -> anyhow::Result<()> {
    let me = output::operator();
    let databases = databases.with_upcasts(&config.upcasts);
    let VerifyArguments { name, part, sample, json } = arguments;
    let mut declared = config.processors.clone();
    let operator = Operator { databases: &databases, declared: &config.processors, name: &me, native };
    if let Some(serving) = operator.find_as_it_serves(&name).await? {
        let version = serving.version;
        note(&format!(
            "verifies version {version}, which serves, as it was declared: another version is declared now"
        ));
        declared.retain(|one| one.name != name);
        declared.push(serving);
    }
    let operator = Operator { declared: &declared, ..operator };
    let selection = Selection { sample: sample.sample, ..part.selection(&config.upcasts) };
    look(operator, &name, Beside::Verification, &selection, effort(config, None), json).await
}

pub(crate) async fn rollback(
    arguments: RollbackArguments,
    config: &Config,
    databases: &Databases,
    native: Option<&Registry>,
) -> anyhow::Result<()> {
    let RollbackArguments { name, to, yes } = arguments;
    let me = output::operator();
    let databases = databases.with_upcasts(&config.upcasts);
    let operator = Operator { databases: &databases, declared: &config.processors, name: &me, native };
    let mut former = Rebuilding::begin_rollback(operator, &name, to, listener()).await?;
    let (live, version) = former.versions();
    let question =
        format!("This lets version {version} of {name} serve again instead of version {live}. Continue?");
    if !yes && !output::confirm(&question)? {
        former.end().await?;
        return output::print("nothing was done");
    }
    former.catch_up().await?;
    let way = former.go_live(GoLive::Swap, GoLive::Swap).await?;
    former.end().await?;
    output::print(&describe_live(&name, live, version, &way))?;
    let declared = operator.declaration(&name).map_or(version, |declaration| declaration.version);
    if operator.databases.elsewhere && declared != version {
        note(&format!(
            "its handlers are not in this database, because the events are in another one: {name} handles nothing before version \
             {version} is declared again, as it was"
        ));
    }
    Ok(())
}

/// What an operator's build may take: it does not rest while events are appended, because somebody waits for it.
fn effort(config: &Config, workers: Option<i64>) -> Effort {
    let RebuildSection { workers: declared, database_size_max, .. } = config.rebuild;
    Effort { workers: workers.unwrap_or(declared), database_size_max, ..Effort::default() }
}

/// What was there to be looked at only, and who has left it.
fn describe_left(beside: Beside, name: &str) -> String {
    match beside {
        Beside::DryRun => format!("a dry run of {name} that was broken off"),
        Beside::Verification => format!("a verification of {name} that was broken off"),
        Beside::Part => format!("a rebuild of some rows of {name} that was broken off"),
        Beside::Next | Beside::Archived(_) => format!("a rebuild of {name} that is over"),
    }
}

async fn drop_former(operator: &Operator<'_>, name: &str, yes: bool) -> anyhow::Result<()> {
    let question = format!(
        "This drops the former versions of {name} with their tables: nobody can go back to them. Continue?"
    );
    // Without one, nothing but functions that nobody can go back to is dropped.
    if !yes && operator.has_former(name).await? && !output::confirm(&question)? {
        return output::print("nothing was done");
    }
    let versions = operator.drop_archived(name).await?;
    let versions: Vec<String> =
        versions.iter().map(|version| format!("version {version} of {name} was dropped")).collect();
    output::print(&if versions.is_empty() {
        "no former version is kept".to_owned()
    } else {
        versions.join("\n")
    })
}
