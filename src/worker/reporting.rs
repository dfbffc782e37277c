//! Tells the supervisor about once a second how the processors of this worker are.

use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::process::orphans::Collector;
use crate::process::report::{Condition, Report, ReportPipe};
use crate::processing::heartbeat::Heartbeat;
use crate::telemetry;

/// Time between two heartbeats.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// A processor, and what the supervisor already knows about it.
pub(super) struct ReportedProcessor {
    name: String,
    heartbeat: Heartbeat,
    condition: Option<Condition>,
    /// How many events the processor has set aside.
    set_aside: u64,
}

/// Reports until the process ends.
pub(super) async fn report(mut processors: Vec<ReportedProcessor>) {
    let Some(pipe) = ReportPipe::from_standard_output() else { return };
    let mut orphans = Collector::new();
    let mut ticks = tokio::time::interval(INTERVAL);
    let mut lost_lines = 0;
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        pipe.try_send(&heartbeat(&processors));
        let lines = telemetry::lost_lines() - lost_lines;
        if lines > 0 && pipe.try_send(&Report::LogLinesLost { lines }) {
            lost_lines += lines;
        }
        orphans.collect();
        for processor in &mut processors {
            processor.report_condition(&pipe);
            processor.report_failure(&pipe);
            processor.report_divergence(&pipe);
            processor.report_set_aside(&pipe);
        }
    }
}

impl ReportedProcessor {
    pub(super) fn new(name: String, heartbeat: Heartbeat) -> Self {
        Self { name, heartbeat, condition: None, set_aside: 0 }
    }

    fn report_condition(&mut self, pipe: &ReportPipe) {
        let condition = self.heartbeat.condition();
        let report = Report::Condition { processor: self.name.clone(), condition };
        if self.condition != Some(condition) && pipe.try_send(&report) {
            self.condition = Some(condition);
        }
    }

    fn report_failure(&self, pipe: &ReportPipe) {
        self.heartbeat.report_failure(|failure, left_out| {
            let failure = Box::new(failure.clone().bounded());
            pipe.try_send(&Report::Failed { processor: self.name.clone(), failure, left_out })
        });
    }

    fn report_divergence(&self, pipe: &ReportPipe) {
        self.heartbeat.report_divergence(|divergence| {
            let divergence = Box::new(divergence.clone().bounded());
            pipe.try_send(&Report::Diverged { processor: self.name.clone(), divergence })
        });
    }

    fn report_set_aside(&mut self, pipe: &ReportPipe) {
        let (set_aside, last_event_id, failure) = self.heartbeat.set_aside();
        let events = set_aside - self.set_aside;
        let report = Report::SetAside {
            processor: self.name.clone(),
            events,
            last_event_id: last_event_id.get(),
            failure: failure.map(|failure| Box::new(failure.bounded())),
        };
        if events > 0 && pipe.try_send(&report) {
            self.set_aside = set_aside;
        }
    }
}

fn heartbeat(processors: &[ReportedProcessor]) -> Report {
    let overdue = processors.iter().map(|processor| (processor.heartbeat.overdue(), &processor.name));
    let (time, name) = overdue.max().unzip();
    let overdue_ms = time.unwrap_or_default().as_millis() as u64;
    Report::Heartbeat { overdue_ms, overdue: name.filter(|_| overdue_ms > 0).cloned() }
}
