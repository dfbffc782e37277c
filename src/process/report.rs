//! What a worker tells its supervisor: lines of JSON on standard output, about once a second.
//!
//! Nothing waits for the supervisor: a line that does not fit into the pipe is not written. The next one
//! says the same, or better.

use std::os::fd::AsFd as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::unix::pipe;
use tokio::time::MissedTickBehavior;

use crate::event::Position;
use crate::processing::heartbeat::{Condition, Heart};

/// Between two beats.
const INTERVAL: Duration = Duration::from_secs(1);

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub(crate) enum Report {
    /// The process turns.
    Beat {
        /// For how long the longest broken promise of a processor has been broken, in milliseconds.
        silent_ms: u64,
        /// Which one that is; absent where none is.
        silent: Option<String>,
    },
    /// A processor has come into this condition.
    Condition {
        /// Its name.
        processor: String,
        /// What it is about.
        condition: Condition,
    },
    /// A processor has set events aside.
    SetAside {
        /// Its name.
        processor: String,
        /// How many since it told so the last time.
        events: u64,
        /// The last of them.
        last_event_id: Position,
    },
}

/// A processor and its signs of life.
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) heart: Heart,
    /// The condition that the supervisor knows.
    pub(crate) reported: Option<Condition>,
    /// How many events set aside the supervisor knows.
    pub(crate) set_aside: u64,
}

/// Reports until the process ends.
pub(crate) async fn report(mut members: Vec<Member>) {
    let Some(pipe) = open() else { return };
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        write(&pipe, &beat(&members));
        for member in &mut members {
            member.report_condition(&pipe);
            member.report_set_aside(&pipe);
        }
    }
}

impl Member {
    pub(crate) fn new(name: String, heart: Heart) -> Self {
        Self { name, heart, reported: None, set_aside: 0 }
    }

    fn report_condition(&mut self, pipe: &pipe::Sender) {
        let condition = self.heart.condition();
        let report = Report::Condition { processor: self.name.clone(), condition };
        if self.reported != Some(condition) && write(pipe, &report) {
            self.reported = Some(condition);
        }
    }

    fn report_set_aside(&mut self, pipe: &pipe::Sender) {
        let (set_aside, last_event_id) = self.heart.set_aside();
        let events = set_aside - self.set_aside;
        if events > 0
            && write(pipe, &Report::SetAside { processor: self.name.clone(), events, last_event_id })
        {
            self.set_aside = set_aside;
        }
    }
}

fn beat(members: &[Member]) -> Report {
    let silences = members.iter().map(|member| (member.heart.silence(), &member.name));
    let (silence, name) = silences.max().unzip();
    let silent_ms = silence.unwrap_or_default().as_millis() as u64;
    Report::Beat { silent_ms, silent: name.filter(|_| silent_ms > 0).cloned() }
}

/// Standard output, if it is the supervisor's pipe.
fn open() -> Option<pipe::Sender> {
    let own = std::io::stdout().as_fd().try_clone_to_owned().ok()?;
    pipe::Sender::from_owned_fd(own).ok()
}

/// Whether the line fitted. It is far shorter than what the kernel writes in one piece.
fn write(pipe: &pipe::Sender, report: &Report) -> bool {
    let Ok(mut line) = serde_json::to_string(report) else { return false };
    line.push('\n');
    pipe.try_write(line.as_bytes()).is_ok()
}
