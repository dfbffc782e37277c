//! The version of a projector that is built beside the serving one, as its builder has written it down.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection};

use super::format::{format_duration, format_share, format_size, thousands};
use crate::event::Position;
use crate::postgres::sqlstate::is_missing_right;
use crate::processing::declaration::ProcessorDeclaration;
use crate::processing::rebuild::{Beside, Build, list_builds, whole_fingerprint};
use crate::store::layout::Layout;
use crate::store::upcast::Upcast;

/// What is said where more events come than are handled, instead of how long that takes.
pub(crate) const FALLS_BEHIND: &str = "falls behind: more is appended than is handled";

/// How far a version is that is to go live. The field names are an interface: `espctl status --json` prints them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct RebuildStatus {
    /// The version that is built.
    pub version: i32,
    /// `replaying` | `indexing` | `analyzing` | `comparing` | `checking` | `going_live` | `waiting`.
    pub phase: String,
    /// Every event at or below it is handled.
    pub position: Position,
    /// Where the serving version was then.
    pub target: Position,
    /// What share of the ids up to the target is handled: 0 to 1.
    pub share: f64,
    /// Events that were handled so far.
    pub handled: i64,
    /// Events that were handled in a second, in the last seconds.
    pub rate: f64,
    /// How long the rest takes at this speed; `None`: nobody knows yet.
    pub seconds_left: Option<f64>,
    /// Size of the new tables with their indexes.
    pub bytes: i64,
    /// Who builds it: an operator, or host and process id of a daemon.
    pub builder: String,
    /// Whether somebody works on it now.
    pub is_running: bool,
    /// Why it rests for now; `None`: it does not.
    pub rests_because: Option<String>,
    /// Why it does not go on by itself; `None`: it does.
    pub blocked_because: Option<String>,
    /// What to do about that.
    pub remedy: Option<String>,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When the builder has written this down.
    pub updated_at: DateTime<Utc>,
    /// Whether it is built from what the configuration declares; `None`: that is not known.
    pub is_as_declared: Option<bool>,
    /// Whether an operator has begun it, so that daemons leave it to him.
    #[serde(skip)]
    pub is_of_operator: bool,
    /// The fingerprint of what it is built from; `None`: it could not be begun.
    #[serde(skip)]
    pub(super) fingerprint: Option<String>,
}

impl From<Build> for RebuildStatus {
    fn from(build: Build) -> Self {
        let (position, target) = (build.position.get() as f64, build.target.get() as f64);
        Self {
            share: if target > 0.0 { (position / target).clamp(0.0, 1.0) } else { 1.0 },
            version: build.version,
            phase: build.phase,
            position: build.position,
            target: build.target,
            handled: build.handled,
            rate: if build.is_running { build.per_second } else { 0.0 },
            seconds_left: build.seconds_left.filter(|_| build.is_running),
            bytes: build.bytes,
            builder: build.builder,
            is_running: build.is_running,
            rests_because: build.rests_because,
            blocked_because: build.blocked_because,
            remedy: build.remedy,
            started_at: build.started_at,
            updated_at: build.updated_at,
            is_as_declared: None,
            is_of_operator: build.automatic == Some(false),
            fingerprint: build.fingerprint,
        }
    }
}

/// How long nothing may have been written down until that is worth a word: large batches and statements take a while.
const SILENT: TimeDelta = TimeDelta::seconds(30);

impl RebuildStatus {
    /// Finds out whether it is built from a declaration, with old events read through `upcasts`. The handlers in a program of Rust only
    /// that program knows.
    pub(super) fn compare_to(&mut self, declaration: &ProcessorDeclaration, upcasts: &[Upcast]) {
        let handlers = declaration.handler_fingerprint(upcasts);
        self.is_as_declared = match (&self.fingerprint, handlers) {
            (Some(_), _) if self.version != declaration.version => Some(false),
            (Some(built), Some(handlers)) => Some(*built == whole_fingerprint(declaration, &handlers)),
            _ => None,
        };
    }

    /// For how long whoever builds it has written nothing down, where that is long; `None`: it is not, or nobody builds it.
    fn silent_for(&self, now: DateTime<Utc>) -> Option<f64> {
        let silent = Some(now - self.updated_at).filter(|silent| self.is_running && *silent > SILENT);
        silent.map(|silent| silent.as_seconds_f64())
    }

    /// The same in one line, which begins with a verb: `replays events: …`.
    pub(crate) fn describe(&self) -> String {
        let mut parts = vec![
            format!(
                "position {} of {} ({})",
                thousands(self.position),
                thousands(self.target),
                format_share(self.position, self.target)
            ),
            format!("{} events handled", thousands(self.handled)),
        ];
        if self.phase == "replaying" && self.rate >= 1.0 {
            parts.push(format!("{}/s", thousands(self.rate as i64)));
        }
        match self.seconds_left.filter(|_| self.phase == "replaying") {
            Some(left) => parts.push(format!("{} left", format_duration(left))),
            None if self.phase == "replaying" && self.rate >= 1.0 => parts.push(FALLS_BEHIND.to_owned()),
            None => {}
        }
        parts.push(format_size(self.bytes));
        if let Some(silent) = self.silent_for(Utc::now()) {
            parts.push(format!("nothing was written down for {}", format_duration(silent)));
        }
        let doing = self.doing();
        // Nobody rests who is gone.
        match self.rests_because.as_ref().filter(|_| self.is_running) {
            Some(because) => format!("{doing}: {}; rests, because {because}", parts.join(", ")),
            None => format!("{doing}: {}", parts.join(", ")),
        }
    }

    fn doing(&self) -> String {
        let doing = match self.phase.as_str() {
            phase if phase != "waiting" && !self.is_running => {
                return format!(
                    "is not finished, and nobody builds it now (last {}, {} ago)",
                    self.builder,
                    format_duration((Utc::now() - self.updated_at).as_seconds_f64().max(0.0))
                );
            }
            // It could not begin, or an event has failed.
            "waiting" if self.position < self.target => return "is not complete, and waits".to_owned(),
            "waiting" => return "is built and waits".to_owned(),
            "indexing" => "makes its indexes",
            "analyzing" => "analyzes its tables",
            "comparing" => "is compared with the serving version",
            "checking" => "is checked",
            "going_live" => "goes live",
            _ => "handles events",
        };
        format!("{doing} (by {})", self.builder)
    }
}

/// The versions that are to go live, by the names of their projectors.
pub(crate) async fn list(
    connection: &mut PgConnection,
    layout: &Layout,
) -> Result<Vec<(String, RebuildStatus)>, sqlx::Error> {
    match list_builds(connection, &layout.quoted_schema()).await {
        // A role of before need not see these.
        Err(error) if is_missing_right(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
        Ok(builds) => Ok(builds
            .into_iter()
            .filter(|build| build.tracker == Beside::Next.name(&build.processor))
            .map(|build| (build.processor.clone(), build.into()))
            .collect()),
    }
}

/// Since when versions serve that have taken the place of lower ones, by the names of their projectors, with the versions.
pub(super) async fn list_gone_live(
    connection: &mut PgConnection,
    layout: &Layout,
) -> Result<BTreeMap<String, (i32, DateTime<Utc>)>, sqlx::Error> {
    let statement = format!(
        "-- list_gone_live
         select processor, version, updated_at from {}.rebuilds where state in ('live', 'merged') and from_version < version",
        layout.quoted_schema()
    );
    let query = sqlx::query_as(AssertSqlSafe(statement)).persistent(false);
    let found: Result<Vec<(String, i32, DateTime<Utc>)>, _> = query.fetch_all(connection).await;
    match found {
        Err(error) if is_missing_right(&error) => Ok(BTreeMap::new()),
        found => Ok(found?.into_iter().map(|(name, version, at)| (name, (version, at))).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_told_in_one_line() {
        let mut status = RebuildStatus {
            version: 2,
            phase: "replaying".into(),
            position: 1_200_000.into(),
            target: 5_000_000.into(),
            share: 0.24,
            handled: 1_100_000,
            rate: 81_000.4,
            seconds_left: Some(46.0),
            bytes: 312 << 20,
            builder: "web-1:4711".into(),
            is_running: true,
            rests_because: None,
            blocked_because: None,
            remedy: None,
            started_at: Utc::now(),
            updated_at: Utc::now(),
            is_as_declared: None,
            is_of_operator: false,
            fingerprint: None,
        };
        assert_eq!(
            status.describe(),
            "handles events (by web-1:4711): position 1,200,000 of 5,000,000 (24 %), 1,100,000 events handled, 81,000/s, 46s \
             left, 312 MiB"
        );
        let waiting = RebuildStatus { phase: "waiting".into(), ..status.clone() };
        assert!(
            waiting.describe().starts_with("is not complete, and waits: position"),
            "{}",
            waiting.describe()
        );
        let nearly =
            RebuildStatus { position: 4_999_999.into(), share: 4_999_999.0 / 5_000_000.0, ..waiting.clone() };
        assert!(
            nearly
                .describe()
                .starts_with("is not complete, and waits: position 4,999,999 of 5,000,000 (99 %), "),
            "{}",
            nearly.describe()
        );
        let built = RebuildStatus { position: waiting.target, ..waiting };
        assert!(built.describe().contains(" (100 %), "), "{}", built.describe());
        assert!(built.describe().starts_with("is built and waits: position"), "{}", built.describe());
        status.rests_because = Some("the disk is nearly full".into());
        assert!(
            status.describe().ends_with("; rests, because the disk is nearly full"),
            "{}",
            status.describe()
        );
        status.seconds_left = None;
        assert!(status.describe().contains(", 81,000/s, falls behind: more is"), "{}", status.describe());
        let frozen =
            RebuildStatus { updated_at: Utc::now() - TimeDelta::minutes(3), ..status.clone() }.describe();
        assert!(frozen.contains(", 312 MiB, nothing was written down for 3m"), "{frozen}");
        (status.is_running, status.rate) = (false, 0.0);
        let left = status.describe();
        assert!(left.starts_with("is not finished, and nobody builds it now (last web-1:4711, "), "{left}");
        assert!(left.ends_with(", 312 MiB"), "nobody who is gone rests: {left}");
    }
}
