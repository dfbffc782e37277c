//! A wallet: money is added and drawn, and there is never less than nothing in it.

use espd::prelude::*;
use serde::Deserialize;

use crate::answer::Refusal;

espd::event_set! {
    /// What happens to a wallet. Amounts are in cents.
    pub enum WalletEvent {
        /// Somebody has a wallet now.
        WalletCreated { owner: String },
        /// Money was put in.
        MoneyAdded { amount: u32, purpose: String },
        /// Money was taken out.
        MoneyDrawn { amount: u32, purpose: String },
    }
}

/// A wallet as decisions see it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wallet {
    /// Signed: whatever events there are, folding them must not fail.
    balance: i64,
}

impl Aggregate for Wallet {
    type Event = WalletEvent;

    fn evolve(&mut self, event: &WalletEvent) {
        match event {
            WalletEvent::WalletCreated(_) => {}
            WalletEvent::MoneyAdded(added) => self.balance += i64::from(added.amount),
            WalletEvent::MoneyDrawn(drawn) => self.balance -= i64::from(drawn.amount),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateWallet {
    pub owner: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddMoney {
    pub amount: u32,
    #[serde(default)]
    pub purpose: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrawMoney {
    pub amount: u32,
    #[serde(default)]
    pub purpose: String,
}

impl Decide<CreateWallet> for Wallet {
    type Refusal = Refusal;

    fn decide(&self, create: &CreateWallet, context: &Context) -> Result<Vec<WalletEvent>, Refusal> {
        if context.exists() {
            return Err(Refusal::new("exists", "there is such a wallet"));
        }
        Ok(espd::events![WalletCreated { owner: create.owner.clone() }])
    }
}

impl Decide<AddMoney> for Wallet {
    type Refusal = Refusal;

    fn decide(&self, add: &AddMoney, context: &Context) -> Result<Vec<WalletEvent>, Refusal> {
        require_wallet_and_amount(context, add.amount)?;
        Ok(espd::events![MoneyAdded { amount: add.amount, purpose: add.purpose.clone() }])
    }
}

impl Decide<DrawMoney> for Wallet {
    type Refusal = Refusal;

    fn decide(&self, draw: &DrawMoney, context: &Context) -> Result<Vec<WalletEvent>, Refusal> {
        require_wallet_and_amount(context, draw.amount)?;
        if i64::from(draw.amount) > self.balance {
            let message = format!("there are only {} cents in the wallet", self.balance);
            return Err(Refusal::new("too_little", &message));
        }
        Ok(espd::events![MoneyDrawn { amount: draw.amount, purpose: draw.purpose.clone() }])
    }
}

fn require_wallet_and_amount(context: &Context, amount: u32) -> Result<(), Refusal> {
    if !context.exists() {
        return Err(Refusal::unknown("wallet"));
    }
    if amount == 0 {
        return Err(Refusal::new("no_amount", "an amount is at least one cent"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use espd::aggregate::testing::given;

    use super::*;

    #[test]
    fn no_more_can_be_drawn_than_there_is() {
        let draw = |amount| DrawMoney { amount, purpose: "bread".into() };
        given::<Wallet>(espd::events![
            WalletCreated { owner: "Ada".into() },
            MoneyAdded { amount: 500, purpose: "pocket money".into() },
        ])
        .when(&draw(300))
        .then(espd::events![MoneyDrawn { amount: 300, purpose: "bread".into() }])
        .when(&draw(300))
        .then_refused_as(|refusal| assert_eq!(refusal.message, "there are only 200 cents in the wallet"))
        .when(&draw(0))
        .then_refused_as(|refusal| assert_eq!(refusal.code, "no_amount"));
    }

    #[test]
    fn a_wallet_from_which_too_much_was_drawn_is_still_a_wallet() {
        let draw = DrawMoney { amount: 1, purpose: String::new() };
        given::<Wallet>(espd::events![
            WalletCreated { owner: "Ada".into() },
            MoneyDrawn { amount: 5, purpose: "by another program".into() },
        ])
        .when(&draw)
        .then_refused_as(|refusal| assert_eq!(refusal.code, "too_little"));
    }

    #[test]
    fn there_is_no_money_without_a_wallet() {
        let add = AddMoney { amount: 1, purpose: String::new() };
        given::<Wallet>([]).when(&add).then_refused_as(|refusal| assert_eq!(refusal.code, "unknown"));
    }
}
