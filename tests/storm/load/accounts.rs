//! Appenders that use `append_events`: on aggregates of their own, shared with others, and contested.

use std::time::Duration;

use fastrand::Rng;
use uuid::Uuid;

use super::Appender;
use super::client::Client;
use crate::ledger::{CLOSED, DEPOSITED, Draft, NOTED, OPENED, Outcome, WITHDRAWN, draw_uuid};

/// Most accounts that one owner has; more are forgotten about.
const ACCOUNTS_MAX: usize = 40;

/// Appends to accounts that no other client touches, with expected versions: it can never be refused.
pub struct Owner {
    client: Client,
    rng: Rng,
    accounts: Vec<Account>,
}

/// An account as its owner knows it.
#[derive(Debug, Clone)]
struct Account {
    id: Uuid,
    version: i64,
    open: bool,
}

impl Account {
    fn draw(rng: &mut Rng) -> Self {
        Self { id: draw_uuid(rng), version: 0, open: false }
    }

    /// What happens to the account next.
    fn next(&mut self, rng: &mut Rng) -> Draft {
        let event_type = match (self.open, rng.u8(..10)) {
            (false, _) => OPENED,
            (true, 0) => CLOSED,
            (true, 1..=3) => WITHDRAWN,
            (true, _) => DEPOSITED,
        };
        self.happen(rng, event_type)
    }

    fn happen(&mut self, rng: &mut Rng, event_type: &'static str) -> Draft {
        let amount = rng.i64(1..=1000);
        let draft =
            Draft { expected: Some(self.version.into()), ..Draft::new(rng, self.id, event_type, amount) };
        self.version += 1;
        self.open = event_type != CLOSED;
        draft
    }
}

impl Owner {
    pub fn new((client, rng): (Client, Rng)) -> Self {
        Self { client, rng, accounts: Vec::new() }
    }

    /// One event, several of one account, or a transfer between two; the accounts change along.
    fn plan(&mut self) -> Vec<Draft> {
        let Self { rng, accounts, .. } = self;
        if accounts.is_empty() || rng.u8(..8) == 0 {
            accounts.push(Account::draw(rng));
        }
        if accounts.len() > ACCOUNTS_MAX {
            accounts.swap_remove(rng.usize(..accounts.len()));
        }
        rng.shuffle(accounts);
        match (rng.u8(..10), &mut accounts[..]) {
            (0..2, [from, to, ..]) if from.open && to.open => {
                vec![from.happen(rng, WITHDRAWN), to.happen(rng, DEPOSITED)]
            }
            (2..4, [account, ..]) => (0..rng.u8(2..=20)).map(|_| account.next(rng)).collect(),
            (_, [account, ..]) => vec![account.next(rng)],
            (_, []) => Vec::new(),
        }
    }
}

impl Appender for Owner {
    async fn act(&mut self) {
        let drafts = self.plan();
        let touched: Vec<Uuid> = drafts.iter().map(|draft| draft.aggregate_id).collect();
        let outcome = self.client.append(drafts, &mut self.rng).await;
        if matches!(outcome, Outcome::Acknowledged(_)) {
            return;
        }
        if matches!(outcome, Outcome::Absent) {
            self.client.complain(format!("refused on accounts of its own: {touched:?}"));
        }
        // Nobody knows where they are now.
        self.accounts.retain(|account| !touched.contains(&account.id));
    }

    fn pause(&self) -> Duration {
        Duration::from_millis(30)
    }

    fn into_client(self) -> Client {
        self.client
    }
}

/// Appends to aggregates that others append to as well, without any expectation.
pub struct Sharer {
    client: Client,
    rng: Rng,
    aggregates: Vec<Uuid>,
}

impl Sharer {
    pub fn new((client, rng): (Client, Rng), aggregates: Vec<Uuid>) -> Self {
        Self { client, rng, aggregates }
    }
}

impl Appender for Sharer {
    async fn act(&mut self) {
        let Self { client, rng, aggregates } = self;
        let mut draft = || {
            let (aggregate, amount) = (aggregates[rng.usize(..aggregates.len())], rng.i64(1..=1000));
            Draft::new(rng, aggregate, NOTED, amount)
        };
        let mut drafts = vec![draft()];
        while drafts.len() < 3 && drafts[0].amount % 2 == 0 {
            drafts.push(draft());
        }
        client.append(drafts, rng).await;
    }

    fn pause(&self) -> Duration {
        Duration::from_millis(40)
    }

    fn into_client(self) -> Client {
        self.client
    }
}

/// Appends with the expected version that it has just read, in a race with others: often refused.
pub struct Racer {
    client: Client,
    rng: Rng,
    aggregates: Vec<Uuid>,
}

impl Racer {
    pub fn new((client, rng): (Client, Rng), aggregates: Vec<Uuid>) -> Self {
        Self { client, rng, aggregates }
    }

    async fn read_version(&mut self, aggregate: Uuid) -> Option<i64> {
        let statement =
            "-- read_version\nselect coalesce(max(version), 0) from espd.events where aggregate_id = $1";
        let read =
            sqlx::query_scalar(statement).bind(aggregate).fetch_one(self.client.connection().await).await;
        if read.is_err() {
            self.client.hang_up();
        }
        read.ok()
    }
}

impl Appender for Racer {
    async fn act(&mut self) {
        let aggregate = self.aggregates[self.rng.usize(..self.aggregates.len())];
        let Some(version) = self.read_version(aggregate).await else { return };
        let rng = &mut self.rng;
        let amount = rng.i64(1..=1000);
        let draft = Draft { expected: Some(version.into()), ..Draft::new(rng, aggregate, NOTED, amount) };
        self.client.append(vec![draft], rng).await;
    }

    fn pause(&self) -> Duration {
        Duration::from_millis(20)
    }

    fn into_client(self) -> Client {
        self.client
    }
}
