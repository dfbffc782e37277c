//! What the appenders wanted and what they were told: their own record, outside PostgreSQL.

use espd::event::{Appended, Version};
use uuid::Uuid;

/// The event types of the load.
pub const OPENED: &str = "AccountOpened";
pub const DEPOSITED: &str = "MoneyDeposited";
pub const WITHDRAWN: &str = "MoneyWithdrawn";
pub const CLOSED: &str = "AccountClosed";
pub const NOTED: &str = "NoteAdded";

/// The type that no appender appends, but a reactor emits.
pub const GREETED: &str = "AccountGreeted";

/// The same, at a later time.
pub const REMINDED: &str = "AccountReminded";

/// An event that an appender wants to be stored.
#[derive(Debug, Clone)]
pub struct Draft {
    pub uuid: Uuid,
    pub aggregate_id: Uuid,
    pub event_type: &'static str,
    pub amount: i64,
    /// The aggregate's version just before the event, if the appender insists on one.
    pub expected: Option<Version>,
}

impl Draft {
    /// A draft without an expectation, with a fresh uuid.
    pub fn new(rng: &mut fastrand::Rng, aggregate_id: Uuid, event_type: &'static str, amount: i64) -> Self {
        Self { uuid: draw_uuid(rng), aggregate_id, event_type, amount, expected: None }
    }
}

/// A random uuid that the seed decides.
pub fn draw_uuid(rng: &mut fastrand::Rng) -> Uuid {
    uuid::Builder::from_random_bytes(rng.u128(..).to_be_bytes()).into_uuid()
}

/// What an appender knows about one append: all of it is stored, or nothing.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The server has said that it is stored, and where (`None`: that, but not where).
    Acknowledged(Option<Vec<Appended>>),
    /// The server has not answered, and was not asked again.
    Unknown,
    /// It was refused or rolled back.
    Absent,
}

/// One append and what came of it.
#[derive(Debug, Clone)]
pub struct Append {
    pub drafts: Vec<Draft>,
    pub outcome: Outcome,
}

/// The record of one appender, or of all.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    pub appends: Vec<Append>,
    /// Requests that were not answered, whether or not they were repeated.
    pub unanswered: u64,
    /// Answers that must not be given.
    pub complaints: Vec<String>,
}

impl Ledger {
    /// Takes over what another appender has recorded.
    pub fn merge(&mut self, other: Self) {
        self.appends.extend(other.appends);
        self.unanswered += other.unanswered;
        self.complaints.extend(other.complaints);
    }
}
