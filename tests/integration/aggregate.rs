//! The write side: aggregates, commands and what keeps them consistent.

mod boundary;
mod executing;
mod properties;
mod snapshots;
mod units_of_work;

use espd::prelude::*;

espd::event_set! {
    /// What happens to an account.
    pub enum AccountEvent {
        /// Somebody has put money in.
        MoneyAdded { amount: u32 },
        /// Somebody has taken money out.
        MoneyDrawn { amount: u32 },
    }
}

/// An account: what is in it, and how often that has changed.
#[derive(Debug, Clone, Default, PartialEq)]
struct Account {
    balance: u32,
    changes: u32,
}

impl Aggregate for Account {
    type Event = AccountEvent;

    fn evolve(&mut self, event: &AccountEvent) {
        self.changes += 1;
        match event {
            AccountEvent::MoneyAdded(added) => self.balance += added.amount,
            AccountEvent::MoneyDrawn(drawn) => self.balance -= drawn.amount,
        }
    }
}

struct AddMoney(u32);

struct DrawMoney(u32);

/// There is not as much.
#[derive(Debug, PartialEq)]
struct TooLittle(u32);

impl Decide<AddMoney> for Account {
    type Refusal = std::convert::Infallible;

    fn decide(&self, add: &AddMoney, _: &Context) -> Result<Vec<AccountEvent>, Self::Refusal> {
        Ok(espd::events![MoneyAdded { amount: add.0 }])
    }
}

impl Decide<DrawMoney> for Account {
    type Refusal = TooLittle;

    fn decide(&self, draw: &DrawMoney, _: &Context) -> Result<Vec<AccountEvent>, TooLittle> {
        match self.balance.checked_sub(draw.0) {
            Some(_) if draw.0 == 0 => Ok(Vec::new()),
            Some(_) => Ok(espd::events![MoneyDrawn { amount: draw.0 }]),
            None => Err(TooLittle(self.balance)),
        }
    }
}
