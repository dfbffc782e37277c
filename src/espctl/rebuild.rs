//! `espctl rebuild`, `rollback` and `verify`: versions of a projector side by side.

mod difference;
mod part;
mod watch;

use std::sync::Mutex;

use clap::{Args, Subcommand};

use crate::config::{Config, RebuildSection};
use crate::espctl::output;
use crate::handlers::native::Registry;
use crate::operations::databases::Databases;
use crate::operations::operator::Operator;
use crate::operations::rebuild::{
    Effort, FailedCheck, GivenUp, GoLive, Listener, Progress, Rebuilding, Selection, Way, find_since,
};
use crate::operations::status::FALLS_BEHIND;
use crate::operations::status::format::{format_duration, format_share, thousands};
use crate::process::exit_code::{Exit, ExitCode};
use crate::processing::rebuild::{Beside, Difference};

use difference::render;
use part::{PartArguments, SampleArguments, rebuild_part};

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
    older one until `espctl rebuild` is run again. Another version that is declared or being built is given up, and\n\
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
        (Some(RebuildCommand::Abort { name }), _) => {
            let GivenUp { version, left } = operator.abort_rebuild(&name).await?;
            let mut lines: Vec<String> =
                version.iter().map(|version| format!("version {version} of {name} was given up")).collect();
            lines.extend(
                left.iter()
                    .map(|beside| format!("what {} has left was removed", describe_left(*beside, &name))),
            );
            output::print(&lines.join("\n"))
        }
        (Some(RebuildCommand::Approve { name }), _) => {
            let (version, way) = operator.approve_rebuild(&name).await?;
            let how = match way {
                Some(GoLive::Merge) => {
                    ". What differs is changed in the tables that serve, so no rollback leads back".to_owned()
                }
                Some(_) => {
                    format!(". The former tables are kept, so `espctl rollback {name}` goes back to them")
                }
                None => String::new(),
            };
            output::print(&format!(
                "version {version} of {name} goes live as soon as the daemon has caught up and its checks pass: `espctl rebuild {name} --watch` shows it{how}"
            ))
        }
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
    output::print(&describe_live(&name, live, version, &way))
}

/// What an operator's build may take: it does not rest while events are appended, because somebody waits for it.
fn effort(config: &Config, workers: Option<i64>) -> Effort {
    let RebuildSection { workers: declared, database_size_max, .. } = config.rebuild;
    Effort { workers: workers.unwrap_or(declared), database_size_max, ..Effort::default() }
}

/// Builds the declared version, compares it, and has it go live.
async fn go_live(
    operator: Operator<'_>,
    name: &str,
    wanted: GoLive,
    effort: Effort,
    (yes, json): (bool, bool),
) -> anyhow::Result<()> {
    let next = Rebuilding::begin(operator, name, Beside::Next, listener()).await?;
    let mut next = next.with_effort(effort);
    let (live, version) = next.versions();
    match bring_live(&mut next, name, wanted, (yes, json)).await {
        Ok(way) => {
            next.end().await?;
            let kept = format!(
                "version {live} of {name} serves as before, version {version} is kept beside it: `espctl rebuild {name}` goes on, \
                 `espctl rebuild abort {name}` gives it up"
            );
            let outcome = way.map_or(kept, |way| describe_live(name, live, version, &way));
            // Programs read one document on standard output.
            if json {
                note(&outcome);
                return Ok(());
            }
            output::print(&outcome)
        }
        Err(error) => {
            next.end_failed(&format!("{error:#}")).await;
            Err(error)
        }
    }
}

/// As [`go_live`], of a version that is begun. `None`: the operator has not agreed.
async fn bring_live(
    next: &mut Rebuilding<'_>,
    name: &str,
    wanted: GoLive,
    (yes, json): (bool, bool),
) -> anyhow::Result<Option<Way>> {
    let (live, version) = next.versions();
    if let Some(warning) = next.foresee(wanted).await? {
        note(&format!("warning: {warning}"));
    }
    next.catch_up().await?;
    note("caught up: comparing the versions");
    let difference = next.compare().await?;
    let way = next.choose_way(wanted, &difference).await?;
    show(name, &difference, json)?;
    refuse_failed(name, live, &next.run_checks().await?)?;
    let question = format!("Version {version} of {name} {}. Go live?", describe_way(way));
    if !yes && !difference.is_none() {
        let has_terminal = output::has_terminal();
        if !has_terminal || !output::confirm(&question)? {
            next.decline(way).await?;
            if has_terminal {
                return Ok(None);
            }
            let message = format!(
                "version {live} of {name} serves as before, version {version} is kept beside it: add --yes to agree, which goes on \
                 from there; `espctl rebuild abort {name}` gives it up\n{question}"
            );
            return Err(Exit { code: ExitCode::Failure, message }.into());
        }
    }
    Ok(Some(next.go_live(way, wanted).await?))
}

/// Builds the declared version of a projector and has it go live, whatever differs, for an operator who has agreed to just that.
/// Returns which version that is, and how it has gone live.
pub(super) async fn build_again(operator: Operator<'_>, name: &str) -> anyhow::Result<(i32, Way)> {
    let mut next = Rebuilding::begin(operator, name, Beside::Next, listener()).await?;
    let (_, version) = next.versions();
    match bring_live_again(&mut next, name).await {
        Ok(way) => {
            next.end().await?;
            Ok((version, way))
        }
        Err(error) => {
            next.end_failed(&format!("{error:#}")).await;
            Err(error)
        }
    }
}

/// As [`build_again`], of a version that is begun.
async fn bring_live_again(next: &mut Rebuilding<'_>, name: &str) -> anyhow::Result<Way> {
    let (live, _) = next.versions();
    // Where a swap would take something from others, what differs can still be brought into their tables.
    let obstacles = next.foresee(GoLive::Auto).await?;
    next.catch_up().await?;
    let difference = next.compare().await?;
    let wanted = if obstacles.is_some() { GoLive::Merge } else { GoLive::Auto };
    let way = next.choose_way(wanted, &difference).await;
    let way = match (way, obstacles) {
        (Err(_), Some(obstacles)) => anyhow::bail!(
            "{obstacles}; or `espctl reset {name} --in-place --cascade` drops what others have made, with the tables"
        ),
        (way, _) => way?,
    };
    refuse_failed(name, live, &next.run_checks().await?)?;
    Ok(next.go_live(way, wanted).await?)
}

/// # Errors
/// Checks of the author have failed.
fn refuse_failed(name: &str, live: i32, failed: &[FailedCheck]) -> Result<(), Exit> {
    if failed.is_empty() {
        return Ok(());
    }
    let failed: Vec<String> = failed.iter().map(FailedCheck::describe).collect();
    let message = format!(
        "{}. Version {live} of {name} serves as before: correct the handlers or the check, then run this again",
        failed.join("; ")
    );
    Err(Exit { code: ExitCode::Failure, message })
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

/// Builds a version only to see how it differs from the one that serves.
async fn look(
    operator: Operator<'_>,
    name: &str,
    beside: Beside,
    selection: &Selection,
    effort: Effort,
    json: bool,
) -> anyhow::Result<()> {
    let scratch = Rebuilding::begin_with(operator, name, beside, selection, listener()).await?;
    let mut scratch = scratch.with_effort(effort);
    let versions = scratch.versions();
    if beside == Beside::DryRun
        && let Some(warning) = scratch.foresee_swap().await?
    {
        note(&format!("warning: {warning}"));
    }
    let compared = match scratch.catch_up().await {
        Ok(()) => scratch.compare().await,
        Err(error) => Err(error),
    };
    let checked = match &compared {
        Ok(_) => scratch.run_checks().await,
        Err(_) => Ok(Vec::new()),
    };
    scratch.remove().await?;
    let (mut difference, failed) = (compared?, checked?);
    if !failed.is_empty() {
        show(name, &difference, json)?;
        refuse_failed(name, versions.0, &failed)?;
    }
    let is_as_it_was = match beside {
        Beside::Verification | Beside::Part => !difference.has_rows(),
        _ => !difference.changes_what_is_read(),
    };
    if is_as_it_was {
        if beside == Beside::Verification && selection.is_whole() {
            operator.clear_found(name).await?;
        }
        return show(name, &difference, json);
    }
    if beside == Beside::Verification
        && let Some(reason) = find_since(operator, name, &mut difference, listener()).await?
    {
        note(&format!("since which event is not known: {reason}"));
    }
    show(name, &difference, json)?;
    let message = match beside {
        Beside::Verification | Beside::Part => format!("the tables of {name} are not what their events say"),
        _ if versions.0 == versions.1 => {
            format!("what is declared now of version {} of {name} would change what it shows", versions.1)
        }
        _ => format!("version {} of {name} would change what version {} shows", versions.1, versions.0),
    };
    Err(Exit { code: ExitCode::Failure, message }.into())
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

fn show(name: &str, difference: &Difference, json: bool) -> anyhow::Result<()> {
    if json {
        return output::print_verbatim(&serde_json::to_string_pretty(difference)?);
    }
    output::print(&render(name, difference))
}

fn describe_way(way: GoLive) -> &'static str {
    match way {
        GoLive::Merge => {
            "would be merged: the rows above are changed in the tables that serve, and no rollback leads back (`--go-live swap` keeps \
             the former ones)"
        }
        GoLive::Auto | GoLive::Swap => {
            "would be swapped in: its tables take the place of those that serve, which are kept"
        }
    }
}

pub(super) fn describe_live(name: &str, former: i32, version: i32, way: &Way) -> String {
    match way {
        Way::Merged(rows) => format!(
            "version {version} of {name} is live: {} rows of its tables were changed",
            thousands(i64::try_from(*rows).unwrap_or(i64::MAX))
        ),
        Way::Swapped(archive) if former == version => format!(
            "version {version} of {name} is live; the former tables are kept in schema {archive}: `espctl rebuild drop {name}` \
             drops them"
        ),
        Way::Swapped(archive) => format!(
            "version {version} of {name} is live; version {former} is kept in schema {archive}: `espctl rollback {name}` goes \
             back to it, `espctl rebuild drop {name}` drops it"
        ),
    }
}

fn listener() -> Listener<'static> {
    Listener { progress: &tell_progress, note: &note }
}

/// Says something while a command goes on. That it cannot be said is no reason to stop.
fn note(text: &str) {
    static LAST: Mutex<String> = Mutex::new(String::new());
    if let Ok(mut last) = LAST.lock()
        && *last != text
    {
        let _ = output::print_note(text);
        text.clone_into(&mut last);
    }
}

fn tell_progress(progress: Progress) {
    let Progress { position, target, handled, per_second, seconds_left, .. } = progress;
    let left = match seconds_left {
        Some(seconds) => format!(", {} left", format_duration(seconds)),
        None if per_second >= 1.0 => format!(", {FALLS_BEHIND}"),
        None => String::new(),
    };
    note(&format!(
        "building: position {} of {} ({}), {} events handled, {}/s{left}",
        thousands(position),
        thousands(target),
        format_share(position, target),
        thousands(handled),
        thousands(per_second as i64)
    ));
}
