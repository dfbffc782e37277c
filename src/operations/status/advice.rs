//! What is wrong with a processor, since when, and what to do about it.
//!
//! `espctl status` prints it; `--json` and the admin API carry it as data.

mod emissions;
mod holders;
mod states;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

pub(crate) use holders::{describe_wait, end_wait};

use super::ProcessorStatus;
use super::format::thousands;
use super::rebuild::RebuildStatus;
use super::worker::{RefusedReload, WorkerStatus};
use crate::operations::databases::usable::Unusable;
use crate::own_name::in_own_name;
use crate::processing::declaration::{ProcessorKind, Unsuitable};
use crate::processing::rebuild::LeftOut;
use crate::processing::tracker::FormerVersions;

/// One thing that needs attention. The field names are an interface: `espctl status --json` prints them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Advice {
    /// What it is about: a stable word for programs.
    pub topic: Topic,
    /// What is wrong, in one or two sentences.
    pub problem: String,
    /// When it began; for an event that is retried, when it failed last. `None`: not recorded.
    pub since: Option<DateTime<Utc>>,
    /// When espd tries again by itself. `None`: it does not, or at an unknown time.
    pub next_try_at: Option<DateTime<Utc>>,
    /// What to do.
    pub remedy: String,
    /// How it is told where several processors are in the same trouble; `None`: of each by itself.
    #[serde(skip)]
    pub shared: Option<SharedTrouble>,
}

/// A trouble that several processors may be in. What is equal in all but the processor is told once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SharedTrouble {
    /// The processor, as it is shown.
    pub processor: String,
    /// What is wrong, with the processors as the subject: `60 processors …`.
    pub predicate: String,
    /// What to do about all of them.
    pub remedy: String,
}

/// What advice depends on beside the status itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surroundings<'s> {
    /// The present time.
    pub(super) now: DateTime<Utc>,
    /// Host and process id of each daemon that runs workers on this database.
    pub(super) daemons: &'s [String],
    /// Workers of daemons that have given no sign of life for a while, and have not ended in order.
    pub(super) vanished: &'s [WorkerStatus],
    /// Why nothing can be handled by anybody.
    pub(super) unusable: Option<&'s Unusable>,
    /// Those of them that go on with an older configuration than they were to follow.
    pub(super) refused: &'s [RefusedReload],
    /// Whether the configuration that the question comes with declares the processor.
    pub(super) is_declared: bool,
    /// The version that it declares of the processor.
    pub(super) declared_version: Option<i32>,
    /// Since when the version that serves does, where it has taken the place of a lower one.
    pub(super) live_since: Option<DateTime<Utc>>,
    /// Why no daemon builds that version.
    pub(super) left_out: Option<LeftOut>,
    /// Why that version cannot be built beside another one.
    pub(super) unsuitable: Option<Unsuitable>,
    /// The versions that have served before and are kept.
    pub(super) former: &'s FormerVersions,
    /// Whether daemons with the configuration that the question comes with build raised versions.
    pub(super) daemons_build: bool,
    /// Whether the processor is declared synchronous, and is not.
    pub(super) is_not_yet_synchronous: bool,
}

/// What advice is about, the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Topic {
    /// The event store is not the one that the processor has followed.
    Diverged,
    /// The processor has stopped until an operator acts.
    Failed,
    /// An event fails again and again.
    Retrying,
    /// The infrastructure fails; no event is to blame.
    Outage,
    /// Another session holds a lock that the processor, or a reset of it, needs.
    Locked,
    /// There are events to handle, nothing fails, and the position does not move.
    StandingStill,
    /// No daemon runs the processor.
    Stopped,
    /// No daemon owns the processor, and another one is about to take it over.
    Standby,
    /// An operator has paused the processor.
    Paused,
    /// Events were set aside.
    DeadLetters,
    /// The event store has refused what a reactor has emitted.
    RefusedEmissions,
    /// What a reactor has emitted is due, and nothing moves it into the event store.
    OverdueEmissions,
    /// The worker process of the processor has ended and is not running again yet.
    WorkerDown,
    /// The daemon has refused the configuration that it was to follow. This concerns all processors alike.
    ReloadRefused,
    /// Rows are not what their events say.
    RowsDiffer,
    /// Other handlers than now have handled earlier events.
    HandlersChanged,
    /// A version that was built beside the serving one does not go live by itself.
    RebuildWaits,
    /// Another version than the declared one serves.
    OtherVersion,
    /// Nobody verifies the rows, though `[verify]` is declared.
    NotVerified,
    /// Open transactions hold the settled horizon back. This concerns all processors alike.
    HorizonHeldBack,
}

impl Advice {
    /// Advice about something that espd does not try again by itself.
    fn new(topic: Topic, problem: String, since: Option<DateTime<Utc>>, remedy: String) -> Self {
        let (problem, remedy) = (in_own_name(&problem).into_owned(), in_own_name(&remedy).into_owned());
        Self { topic, problem, since, next_try_at: None, remedy, shared: None }
    }

    /// The same advice, which is told once for all processors with an equal `predicate` and `remedy`.
    fn shared(self, status: &ProcessorStatus, predicate: String, remedy: &str) -> Self {
        let shared = SharedTrouble {
            processor: status.name.clone(),
            predicate,
            remedy: in_own_name(remedy).into_owned(),
        };
        Self { shared: Some(shared), ..self }
    }

    fn trying_again_at(self, next_try_at: Option<DateTime<Utc>>) -> Self {
        Self { next_try_at, ..self }
    }
}

/// Everything about this processor that needs attention, the most urgent first; empty if all is well.
pub(super) fn advise(status: &ProcessorStatus, surroundings: Surroundings<'_>) -> Vec<Advice> {
    let parts = [
        states::of_state(status, surroundings),
        holders::of_reset(status),
        of_dead_letters(status, surroundings),
        emissions::of_refused(status),
        emissions::of_overdue(status, surroundings.now),
        of_worker(status),
        of_refused_reload(status, surroundings.refused),
        of_rows_that_differ(status),
        of_rows_not_verified(status, surroundings.now),
        of_handler_change(status, surroundings.now),
        of_other_version(status, surroundings).map(|advice| not_synchronous(advice, surroundings)),
        holders::of_horizon(status, surroundings),
    ];
    let mut advice: Vec<Advice> = parts.into_iter().flatten().collect();
    advice.sort_by_key(|advice| advice.topic);
    advice
}

/// The events that the processor has not handled and does not try by itself.
fn of_dead_letters(status: &ProcessorStatus, surroundings: Surroundings<'_>) -> Option<Advice> {
    let (name, oldest) = (&status.name, status.oldest_dead_letter_at?);
    let became = if status.dead_letters == 1 {
        "was set aside as a dead letter"
    } else {
        "were set aside as dead letters"
    };
    let held_up = match surroundings.is_not_yet_synchronous {
        true => " It is declared synchronous, and is not before they are gone.",
        false => "",
    };
    let problem = format!("{} of {name} {became}.{held_up}", count(status.dead_letters, "event"));
    let remedy = format!(
        "`espctl dead-letters list {name}` shows them. Fix the handler, or the upcast where one could not be read, run `espctl reload`, then `espctl dead-letters \
         retry {name} --all`; `espctl dead-letters discard {name} EVENT` removes what no one needs."
    );
    let advice = Advice::new(Topic::DeadLetters, problem, Some(oldest), remedy);
    let predicate = "have events that were set aside as dead letters.".to_owned();
    Some(advice.shared(status, predicate, "`espctl dead-letters list` shows them, with the reasons."))
}

/// How long a change of handlers is told.
const HANDLER_CHANGE_TOLD: TimeDelta = TimeDelta::days(1);

/// Rows that the daemon has found to differ from what their events say.
fn of_rows_that_differ(status: &ProcessorStatus) -> Option<Advice> {
    let found = status.verification.as_ref().filter(|found| found.differing_rows > 0)?;
    let name = &status.name;
    let problem = format!(
        "{} of {name} {} not what {} events say.",
        count(found.differing_rows, "row"),
        if found.differing_rows == 1 { "is" } else { "are" },
        if found.differing_rows == 1 { "its" } else { "their" }
    );
    let remedy = format!(
        "`espctl verify {name}` shows all that differ, and since which event; `espctl rebuild {name}` brings them to what their \
         events say. This is told until `espctl verify {name}` of all rows finds no difference."
    );
    Some(Advice::new(Topic::RowsDiffer, problem, found.found_at, remedy))
}

/// For how long slices may not come before that is told: while a version is built, none do.
const UNVERIFIED_FOR: TimeDelta = TimeDelta::hours(1);

/// Rows that nobody verifies, though somebody wants that. Of what lasts, `espctl doctor` tells.
fn of_rows_not_verified(status: &ProcessorStatus, now: DateTime<Utc>) -> Option<Advice> {
    let found =
        status.unverified.as_ref().filter(|found| !found.lasting && now - found.since > UNVERIFIED_FOR)?;
    let name = &status.name;
    let problem = format!("`[verify]` stands still for {name}: {}.", found.because.trim_end_matches('.'));
    let remedy = format!(
        "Correct this. The daemon tries again by itself, at least once in an hour; `espctl verify {name} --sample 1` tries at once."
    );
    Some(Advice::new(Topic::NotVerified, problem, Some(found.since), remedy))
}

/// A version that serves although the configuration declares another one.
fn of_other_version(status: &ProcessorStatus, surroundings: Surroundings<'_>) -> Option<Advice> {
    let (name, version) = (&status.name, status.version);
    let other =
        status.rebuild.as_ref().filter(|build| build.is_as_declared == Some(false) && !build.is_running);
    if let Some((build, declared)) = other.zip(surroundings.declared_version) {
        return Some(of_other_build((name, version), declared, build, surroundings.daemons_build));
    }
    if let Some(because) = status.rebuild.as_ref().and_then(|build| build.blocked_because.as_ref()) {
        return Some(of_blocked_build(status, because));
    }
    if let Some(awaited) = status.outage.as_ref().and_then(|outage| outage.version) {
        return Some(of_awaited_version(status, awaited, surroundings));
    }
    // Which version is built, and how far that is, stands below the table.
    let is_built = status.rebuild.as_ref().is_some_and(|build| build.is_running);
    let declared = surroundings
        .declared_version
        .filter(|declared| *declared != version && status.position.get() > 0 && !is_built)?;
    if let Some(build) = status.rebuild.as_ref().filter(|build| build.version == declared) {
        return Some(of_resting_build(name, version, build, surroundings.daemons_build));
    }
    let problem = format!("Version {version} of {name} serves, and version {declared} is declared.");
    let remedy = if let Some(unsuitable) = surroundings.unsuitable.filter(|_| declared > version) {
        let (because, remedy) = (unsuitable.because(name), unsuitable.remedy(name, declared));
        format!("Nobody builds version {declared}, because {because}: {remedy}.")
    } else if let Some(left_out) = surroundings.left_out {
        format!("{}.", left_out.describe(name, declared).replacen('v', "V", 1))
    } else if surroundings.unsuitable.is_some() {
        format!(
            "Version {declared} was superseded: declare version {version}, or `espctl reset {name}` has version {declared} begin anew."
        )
    } else if declared > version {
        format!(
            "`espctl rebuild {name} --dry-run` shows what would change, `espctl rebuild {name}` builds version {declared} beside \
             it and lets it go live; `espctl reset {name} --in-place` drops and rebuilds the tables."
        )
    } else {
        let back = surroundings.former.rollback(name, declared).map_or_else(
            || format!("or its handlers under a higher version than that: version {declared} is not kept"),
            |rollback| format!("or go back with {rollback}"),
        );
        format!("Version {declared} was superseded: declare version {version}, {back}.")
    };
    Some(Advice::new(Topic::OtherVersion, problem, None, remedy))
}

/// The advice about another version, which also keeps a projector from becoming synchronous.
fn not_synchronous(advice: Advice, surroundings: Surroundings<'_>) -> Advice {
    if !surroundings.is_not_yet_synchronous {
        return advice;
    }
    let problem = format!(
        "{} It is declared synchronous, and is not before the declared version serves.",
        advice.problem
    );
    Advice { problem, ..advice }
}

/// A version that nothing is handled without, because the handlers of the one that serves are not there any more.
fn of_awaited_version(status: &ProcessorStatus, awaited: i32, surroundings: Surroundings<'_>) -> Advice {
    let ProcessorStatus { name, version, .. } = status;
    let build = status.rebuild.as_ref().filter(|build| build.version == awaited);
    let far = build.map_or_else(|| "is not begun".to_owned(), |build| build.describe());
    let problem = format!(
        "{name} waits for version {awaited}: version {version} serves what it has, because its handlers are not declared any more. \
         Version {awaited} {far}."
    );
    let remedy = match surroundings.left_out {
        // Someone has gone back to it, or taken the change back, and no daemon knows.
        _ if surroundings.declared_version == Some(*version) => format!(
            "The configuration declares version {version} again: `espctl reload` has the daemon go on with it."
        ),
        Some(left_out) => format!(
            "Declare version {version} again, as it was, and it goes on. {}.",
            left_out.describe(name, awaited).replacen('v', "V", 1)
        ),
        None if !surroundings.daemons_build => {
            format!("{NO_DAEMON} `espctl rebuild {name}` builds version {awaited} and lets it go live.")
        }
        None => format!(
            "It goes on by itself once version {awaited} is live: `espctl rebuild {name} --watch` shows how far it is. Where no daemon \
             builds, `espctl rebuild {name}` does."
        ),
    };
    let since = status.outage.as_ref().map(|outage| outage.since);
    Advice::new(Topic::OtherVersion, problem, since, remedy)
}

/// That a version is left to operators.
const NO_DAEMON: &str =
    "No daemon with this configuration goes on with it: `parallelism = 0` in `[rebuild]` leaves that to you.";

/// A version that is there beside the serving one, nobody works on now, and was built from another declaration than that of the
/// configuration.
fn of_other_build(
    (name, version): (&str, i32),
    declared: i32,
    build: &RebuildStatus,
    daemons_build: bool,
) -> Advice {
    let built = build.version;
    let other = if declared == built {
        format!("other tables or handlers than this configuration declares of version {built}")
    } else {
        format!("another declaration than this configuration's, which says version {declared}")
    };
    let waits = build.blocked_because.as_ref().or(build.rests_because.as_ref());
    let waits = waits.map(|because| format!(": {because}")).unwrap_or_default();
    let problem = format!(
        "Version {version} of {name} serves. Version {built} is there beside it, by {}, from {other}{waits}.",
        build.builder
    );
    let by_itself = if build.is_of_operator {
        "Daemons leave it to the operator who has begun it.".to_owned()
    } else if !daemons_build && declared >= built {
        NO_DAEMON.to_owned()
    } else if declared > built {
        format!("A daemon with this configuration builds version {declared} in its place.")
    } else if declared == built {
        format!(
            "A daemon with this configuration builds what is declared in its place, as soon as {} has ended or has read its \
             configuration again (`espctl reload`).",
            build.builder
        )
    } else {
        format!(
            "A daemon with this configuration gives it up once nobody has worked on it for a minute, or for a day where it waits for \
             somebody; {} does so as soon as it has read its configuration again (`espctl reload`).",
            build.builder
        )
    };
    let by_hand = if declared > version {
        format!(
            "`espctl rebuild {name}` builds what is declared, and `espctl rebuild abort {name}` gives up what is there."
        )
    } else {
        format!("`espctl rebuild abort {name}` gives it up.")
    };
    let topic = if waits.is_empty() { Topic::OtherVersion } else { Topic::RebuildWaits };
    Advice::new(topic, problem, Some(build.updated_at), format!("{by_itself} {by_hand}"))
}

/// A version that is there beside the serving one, and nobody works on.
fn of_resting_build(name: &str, version: i32, build: &RebuildStatus, daemons_build: bool) -> Advice {
    let because = build.rests_because.as_ref().filter(|_| build.phase == "waiting");
    let (declared, because) =
        (build.version, because.map(|because| format!(": {because}")).unwrap_or_default());
    let problem = format!(
        "Version {version} of {name} serves. Version {declared} is there beside it, and nobody works on it now{because}."
    );
    let goes_on = if daemons_build {
        format!(
            "A daemon that declares it goes on within a minute or two, at once after `espctl reload`, and lets it go live where nothing \
             keeps it from that; so does `espctl rebuild {name}`."
        )
    } else {
        format!(
            "{NO_DAEMON} `espctl rebuild {name}` goes on, and lets it go live where nothing keeps it from that."
        )
    };
    let remedy = format!("{goes_on} `espctl rebuild abort {name}` gives it up.");
    Advice::new(Topic::OtherVersion, problem, None, remedy)
}

/// A version that was built beside the serving one and does not go on by itself.
fn of_blocked_build(status: &ProcessorStatus, because: &str) -> Advice {
    let ProcessorStatus { name, version, rebuild, .. } = status;
    let build = rebuild.as_ref();
    let (built, since) = (build.map_or(0, |build| build.version), build.map(|build| build.updated_at));
    let problem = format!("Version {version} of {name} serves, and version {built} is not live: {because}.");
    let remedy = build.and_then(|build| build.remedy.clone()).unwrap_or_default();
    Advice::new(Topic::RebuildWaits, problem, since, remedy)
}

/// Rows that other handlers have made.
fn of_handler_change(status: &ProcessorStatus, now: DateTime<Utc>) -> Option<Advice> {
    let change = status.handler_change.as_ref().filter(|change| now - change.at < HANDLER_CHANGE_TOLD)?;
    let name = &status.name;
    let owner = change.owner.as_deref().unwrap_or("an unknown daemon");
    let problem = format!(
        "The handlers of {name} have changed: those of {owner} are not those that have handled the events up to {}.",
        change.position
    );
    if status.kind == ProcessorKind::Reactor.as_str() {
        let remedy = "Nothing, if the change is meant for later events: what the former handlers have done for earlier ones stays \
                      done. Two daemons have to declare the same.";
        return Some(Advice::new(Topic::HandlersChanged, problem, Some(change.at), remedy.to_owned()));
    }
    let remedy = format!(
        "`espctl rebuild {name}` shows what differs and makes the rows anew beside those that serve; what cannot be built beside, \
         `espctl reset {name}` empties and fills again. Nothing, if the change is meant for later events; but \
         two daemons have to declare the same."
    );
    let predicate = "have other handlers than those that have handled their earlier events.".to_owned();
    let advice = Advice::new(Topic::HandlersChanged, problem, Some(change.at), remedy);
    Some(advice.shared(
        status,
        predicate,
        "`espctl rebuild NAME` shows what differs and makes the rows anew beside those that serve; what cannot be built beside, \
         `espctl reset NAME` empties and fills again. Nothing, if the changes are meant for later events; but \
         two daemons have to declare the same.",
    ))
}

/// A configuration that the daemon of the processor does not follow. Who has no daemon may be declared in it.
fn of_refused_reload(status: &ProcessorStatus, refused: &[RefusedReload]) -> Option<Advice> {
    let owner = status.owner.as_ref().or(status.worker.as_ref().map(|worker| &worker.owner));
    let refusal = refused.iter().find(|refusal| owner.is_none_or(|owner| *owner == refusal.daemon))?;
    let mut lines = refusal.report.iter().flat_map(|entry| entry.lines());
    let problem = format!(
        "The daemon {} has read its configuration again and refused it, and goes on with the one before: {}",
        refusal.daemon,
        lines.next().unwrap_or("it does not say why")
    );
    let remedy =
        "`espctl check` shows everything that is wrong. Fix it, then run `espctl reload`.".to_owned();
    Some(Advice::new(Topic::ReloadRefused, problem, Some(refusal.at), remedy))
}

/// Why the worker process of the processor is not alive.
fn of_worker(status: &ProcessorStatus) -> Option<Advice> {
    let worker = status.worker.as_ref().filter(|worker| worker.is_down())?;
    if worker.starts == 0 {
        let waits = worker.last_end.as_deref().unwrap_or("unknown");
        let problem = format!("The daemon {} is waiting: {waits}.", worker.owner);
        let remedy = "`espctl doctor` tries every way to the databases.".to_owned();
        return Some(Advice::new(Topic::WorkerDown, problem, worker.last_end_at, remedy));
    }
    let ends = if worker.state == "crash_looping" { "keeps ending" } else { "has ended" };
    let problem = format!(
        "The worker {} of {} {ends}: {} after {}.",
        worker.worker,
        worker.owner,
        worker.last_end.as_deref().unwrap_or("unknown"),
        count(worker.starts, "start"),
    );
    let remedy = "Read the daemon's log (`journalctl -u espd`); `espctl check` and `espctl doctor` find what is wrong with \
                  declarations and databases."
        .to_owned();
    let advice = Advice::new(Topic::WorkerDown, problem, worker.last_end_at, remedy);
    Some(advice.trying_again_at(worker.next_start_at))
}

/// `1 attempt`, `12,345 attempts`.
pub(super) fn count(number: i64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", thousands(number))
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::super::examples::live;
    use super::super::groups::tell;
    use super::super::{HeldBy, ProcessorState};
    use super::*;
    use crate::processing::divergence::{Divergence, DivergenceKind};
    use crate::processing::tracker::{HandlerChange, Outage};

    static NONE: std::sync::LazyLock<FormerVersions> = std::sync::LazyLock::new(FormerVersions::default);

    fn alone(now: DateTime<Utc>) -> Surroundings<'static> {
        Surroundings {
            now,
            daemons: &[],
            vanished: &[],
            unusable: None,
            refused: &[],
            is_declared: true,
            declared_version: None,
            live_since: None,
            former: &NONE,
            daemons_build: true,
            is_not_yet_synchronous: false,
            left_out: None,
            unsuitable: None,
        }
    }

    fn topics(status: &ProcessorStatus) -> Vec<Topic> {
        advise(status, alone(Utc::now())).into_iter().map(|advice| advice.topic).collect()
    }

    fn divergence() -> Divergence {
        Divergence {
            kind: DivergenceKind::EventGone,
            position: 20.into(),
            event_id: Some(20.into()),
            event_uuid: None,
            last_common: 11.into(),
            head: 11.into(),
            partition: None,
            at: None,
        }
    }

    #[test]
    fn each_state_has_its_advice_and_a_live_processor_has_none() {
        for (state, expected) in [
            (ProcessorState::Live, None),
            (ProcessorState::CatchingUp, None),
            (ProcessorState::Running, None),
            (ProcessorState::Paused, Some(Topic::Paused)),
            (ProcessorState::Failed, Some(Topic::Failed)),
            (ProcessorState::Diverged, Some(Topic::Diverged)),
            (ProcessorState::Retrying, Some(Topic::Retrying)),
            (ProcessorState::Standby, Some(Topic::Standby)),
            (ProcessorState::Stopped, Some(Topic::Stopped)),
        ] {
            let diverged = (state == ProcessorState::Diverged).then(divergence);
            let status = ProcessorStatus { state, diverged, ..live("notes") };
            assert_eq!(topics(&status), Vec::from_iter(expected), "{state:?}");
        }
    }

    #[test]
    fn a_processor_that_stands_still_is_told_after_minutes() {
        let now = Utc::now();
        let standing = |minutes| ProcessorStatus {
            state: ProcessorState::CatchingUp,
            standing_since: Some(now - TimeDelta::minutes(minutes)),
            ..live("notes")
        };
        assert_eq!(advise(&standing(4), alone(now)), []);
        let advice = advise(&standing(6), alone(now));
        assert_eq!((advice[0].topic, advice[0].since), (Topic::StandingStill, standing(6).standing_since));
        assert!(advice[0].remedy.contains("start the daemon again"), "{advice:?}");
    }

    fn worker() -> WorkerStatus {
        WorkerStatus {
            processor: "notes".into(),
            worker: "notes".into(),
            owner: "web-1:4711".into(),
            pid: None,
            state: "crash_looping".into(),
            starts: 1,
            last_end: Some("signal SIGKILL".into()),
            last_end_at: Some(Utc::now()),
            next_start_at: Some(Utc::now()),
            recorded_at: Utc::now(),
            is_present: true,
        }
    }

    #[test]
    fn a_worker_that_was_there_lately_is_told_from_one_whose_daemon_is_gone() {
        let now = Utc::now();
        let stopped = |seconds, version| ProcessorStatus {
            state: ProcessorState::Stopped,
            version,
            position: 5.into(),
            worker: Some(WorkerStatus {
                pid: Some(7),
                state: "running".into(),
                recorded_at: now - TimeDelta::seconds(seconds),
                ..worker()
            }),
            ..live("notes")
        };
        let surroundings = Surroundings { declared_version: Some(1), ..alone(now) };
        let lately = advise(&stopped(7, 1), surroundings);
        assert!(
            lately[0].problem.contains("though it ran when its daemon looked last, 7 s ago"),
            "{lately:?}"
        );
        let gone = advise(&stopped(20, 1), surroundings);
        assert!(gone[0].problem.contains("web-1:4711, which ran notes, gives no sign of life"), "{gone:?}");
        assert_eq!(gone[0].since, Some(now - TimeDelta::seconds(20)));
        let superseded = advise(&stopped(7, 2), surroundings);
        assert_eq!(superseded.iter().map(|one| one.topic).collect::<Vec<_>>(), [Topic::OtherVersion]);
    }

    #[test]
    fn a_worker_that_is_down_explains_why_no_daemon_runs_the_processor() {
        let worker = worker();
        let status =
            ProcessorStatus { state: ProcessorState::Stopped, worker: Some(worker), ..live("notes") };
        let advice = advise(&status, alone(Utc::now()));
        assert_eq!(advice[0].topic, Topic::WorkerDown);
        assert_eq!(
            advice[0].problem,
            "The worker notes of web-1:4711 keeps ending: signal SIGKILL after 1 start."
        );
        assert!(advice[0].next_try_at.is_some() && advice.len() == 1, "{advice:?}");
    }

    #[test]
    fn the_most_urgent_advice_comes_first() {
        let holder = HeldBy {
            pid: Some(7),
            user: Some("import".into()),
            application_name: None,
            state: None,
            query: None,
            seconds: Some(60.0),
            prepared: None,
        };
        let status = ProcessorStatus {
            state: ProcessorState::Failed,
            dead_letters: 2,
            oldest_dead_letter_at: Some(Utc::now()),
            held_by: vec![holder],
            ..live("notes")
        };
        assert_eq!(topics(&status), [Topic::Failed, Topic::DeadLetters, Topic::HorizonHeldBack]);
        let now = Utc::now();
        let advice = advise(&status, alone(now));
        assert_eq!(advice[1].problem, "2 events of notes were set aside as dead letters.");
        let held_up = advise(&status, Surroundings { is_not_yet_synchronous: true, ..alone(now) });
        assert!(held_up[1].problem.ends_with("declared synchronous, and is not before they are gone."));
        assert_eq!(advice[2].since, Some(now - TimeDelta::seconds(60)));
        assert!(advice[2].remedy.contains("`select pg_terminate_backend(7)` ends process 7"), "{advice:?}");
    }

    #[test]
    fn an_outage_is_told_with_the_next_try_only_while_that_is_to_come() {
        let now = Utc::now();
        let outage = |next_try_at| Outage {
            since: now - TimeDelta::minutes(5),
            sqlstate: Some("53100".into()),
            message: "no space left on device".into(),
            tries: 9,
            version: None,
            next_try_at,
        };
        let waiting = |next_try_at| ProcessorStatus {
            state: ProcessorState::Waiting,
            outage: Some(outage(next_try_at)),
            ..live("notes")
        };
        let to_come = Some(now + TimeDelta::seconds(3));
        for (next_try_at, told) in [(to_come, to_come), (Some(now - TimeDelta::seconds(3)), None)] {
            let advice = advise(&waiting(next_try_at.unwrap()), alone(now));
            assert_eq!((advice[0].topic, advice[0].next_try_at), (Topic::Outage, told), "{advice:?}");
            assert_eq!(
                advice[0].problem,
                "notes waits: no space left on device [53100] after 9 attempts. No event is to blame and none is lost."
            );
        }
    }

    #[test]
    fn a_change_of_handlers_is_told_once_for_all_processors_that_it_concerns() {
        let now = Utc::now();
        let change = |position: i64| HandlerChange {
            at: now,
            position: position.into(),
            owner: Some("web-1:4711".into()),
            before: "a".into(),
            after: "b".into(),
        };
        let statuses: Vec<ProcessorStatus> = (1..=5)
            .map(|number| {
                let name = format!("notes_{number}");
                let mut status = ProcessorStatus { handler_change: Some(change(number)), ..live(&name) };
                status.advice = advise(&status, alone(now));
                status
            })
            .collect();
        let told = tell(&statuses, now);
        assert_eq!(told.len(), 1, "{told:?}");
        let problem = "5 processors have other handlers than those that have handled their earlier events.";
        assert_eq!(told[0].problem, problem);
    }

    #[test]
    fn a_processor_that_no_running_daemon_knows_is_told_from_one_that_no_daemon_runs() {
        let (state, updated_at) = (ProcessorState::Stopped, Some(Utc::now()));
        let status = ProcessorStatus { state, updated_at, owner: None, ..live("notes") };
        let daemons = ["web-1:4711".to_owned()];
        let surroundings = Surroundings { is_declared: false, daemons: &daemons, ..alone(Utc::now()) };
        let advice = advise(&status, surroundings);
        assert!(advice[0].problem.contains("not in the running configuration of web-1:4711"), "{advice:?}");
        assert!(advice[0].remedy.contains("`espctl reload`"), "{advice:?}");
        assert!(advice[0].remedy.contains("`espctl drop notes`"), "{advice:?}");
        let advice = advise(&status, alone(Utc::now()));
        assert!(advice[0].remedy.starts_with("Start `espd run`"), "{advice:?}");
        assert!(!advice[0].remedy.contains("espctl drop"), "what is declared is wanted: {advice:?}");
        let undeclared = Surroundings { is_declared: false, ..alone(Utc::now()) };
        assert!(advise(&status, undeclared)[0].remedy.contains("`espctl drop notes`"));
    }
}
