//! The report, in plain words.

use std::fmt::{self, Display};

use crate::campaign::Report;

/// Most complaints that are printed.
const COMPLAINTS_MAX: usize = 20;

impl Report {
    /// Whether espd has kept its promises.
    pub fn is_good(&self) -> bool {
        self.complaints.is_empty()
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tally, verdict, aftermath, .. } = self;
        let mut row = |name: &str, value: &dyn Display| writeln!(f, "  {name:<44}{value:>10}");
        row("workers killed (SIGKILL)", &tally.workers_killed)?;
        row("daemons killed (SIGKILL)", &tally.daemons_killed)?;
        row("PostgreSQL restarted (immediate)", &tally.servers_crashed)?;
        row("  of these, forgot ids that were drawn", &tally.ids_forgotten)?;
        row("workers stopped (SIGSTOP)", &tally.workers_frozen)?;
        row("  of these, woken after their lease", &tally.sleepers_woken)?;
        row("daemons and their workers stopped (SIGSTOP)", &tally.daemons_frozen)?;
        row("backends terminated", &tally.backends_terminated)?;
        row("network cut", &tally.network.cut)?;
        row("network swallowed everything", &tally.network.swallowed)?;
        row("network slow", &tally.network.delayed)?;
        row("versions raised", &tally.versions_raised)?;
        row("commands of operators about versions", &tally.operators.begun)?;
        row("  of these, killed (SIGKILL)", &tally.operators.killed)?;
        row("  of these, did what was asked", &tally.operators.succeeded)?;
        row("versions that went live", &self.versions.gone_live)?;
        row("versions that were given up", &self.versions.given_up)?;
        row("longest life of a child after its daemon", &format!("{} ms", tally.longest_orphan.as_millis()))?;
        row("claims of processors", &self.history.iter().map(|(_, seen)| seen.claims()).sum::<i64>())?;
        row("changes of owner", &self.history.iter().map(|(_, seen)| seen.owner_changes).sum::<u64>())?;
        row("looks at the trackers", &self.history.iter().map(|(_, seen)| seen.looks).sum::<u64>())?;
        row("events appended", &verdict.stored)?;
        row("  acknowledged", &verdict.acknowledged)?;
        row("  unknown: no answer, not asked again", &verdict.unknown)?;
        row("    of these, stored", &verdict.unknown_stored)?;
        row("  refused or rolled back", &verdict.absent)?;
        row("requests without an answer", &self.unanswered)?;
        row("lost", &verdict.lost)?;
        row("doubled", &verdict.doubled)?;
        row("inverted", &verdict.inverted)?;
        row("appends stored in part", &verdict.torn)?;
        row("events emitted, now and later", &verdict.emitted)?;
        row("  emissions lost", &verdict.emissions_lost)?;
        row("  emissions doubled", &verdict.emissions_doubled)?;
        row("requests accepted by a receiver", &verdict.delivered)?;
        row("  neither accepted nor set aside", &verdict.undelivered)?;
        row("  in the wrong order", &verdict.delivered_late)?;
        row("  set aside, as they should", &verdict.set_aside)?;
        row("left behind by versions", &verdict.left_behind)?;
        row("projections compared", &verdict.tables_compared)?;
        row("  rows compared", &verdict.rows_compared)?;
        row("  rows that differ from the fold", &verdict.rows_wrong)?;
        row("the store went back", &aftermath.times)?;
        row("  processors that noticed", &aftermath.diverged)?;
        row("  rows compared after the resets", &aftermath.rows_compared)?;
        row("errors planted for the verifier to notice", &self.controls)?;
        match self.converged_after {
            Some(time) => row("head reached after the faults", &format!("{:.1} s", time.as_secs_f64()))?,
            None => row("head reached after the faults", &"never")?,
        }
        row("time", &format!("{:.1} s", self.elapsed.as_secs_f64()))?;
        for complaint in self.complaints.iter().take(COMPLAINTS_MAX) {
            writeln!(f, "wrong: {complaint}")?;
        }
        if self.complaints.len() > COMPLAINTS_MAX {
            writeln!(f, "… and {} more", self.complaints.len() - COMPLAINTS_MAX)?;
        }
        Ok(())
    }
}
