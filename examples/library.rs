//! The write side in one file: events, an aggregate, decisions, a repository, several aggregates at once, snapshots, tests.
//! `docs/aggregates.md` explains it.
//!
//! `cargo run --example library`

use espd::aggregate::{PostgresSnapshots, SnapshotFormat};
use espd::prelude::*;

espd::event_set! {
    /// What happens to a book.
    pub enum BookEvent {
        /// Somebody has taken it home.
        BookLent { to: String } = "book.lent" was ["BookTaken"],
        /// It is back.
        BookReturned {},
    }
}

/// A book of the library.
#[derive(Debug, Clone, Default, PartialEq)]
struct Book {
    lent_to: Option<String>,
}

impl Aggregate for Book {
    type Event = BookEvent;

    fn evolve(&mut self, event: &BookEvent) {
        self.lent_to = match event {
            BookEvent::BookLent(lent) => Some(lent.to.clone()),
            BookEvent::BookReturned(_) => None,
        };
    }
}

struct LendBook {
    to: String,
}

#[derive(Debug, PartialEq)]
enum Refused {
    LentTo(String),
}

impl Decide<LendBook> for Book {
    type Refusal = Refused;

    fn decide(&self, lend: &LendBook, _: &Context) -> Result<Vec<BookEvent>, Refused> {
        match &self.lent_to {
            Some(somebody) => Err(Refused::LentTo(somebody.clone())),
            None => Ok(espd::events![BookLent { to: lend.to.clone() }]),
        }
    }
}

espd::event_set! {
    /// What happens to an account.
    pub enum AccountEvent {
        /// Somebody has put money in.
        MoneyAdded { amount: u32 },
        /// Somebody has taken money out.
        MoneyDrawn { amount: u32 },
    }
}

#[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
struct Account {
    balance: i64,
}

impl Aggregate for Account {
    type Event = AccountEvent;

    fn snapshots() -> Option<SnapshotFormat<Self>> {
        Some(SnapshotFormat::json("account", 1).every(500))
    }

    fn evolve(&mut self, event: &AccountEvent) {
        match event {
            AccountEvent::MoneyAdded(added) => self.balance += i64::from(added.amount),
            AccountEvent::MoneyDrawn(drawn) => self.balance -= i64::from(drawn.amount),
        }
    }
}

/// The accounts of a store in PostgreSQL, with snapshots beside the events.
pub fn accounts(store: PostgresEventStore) -> Result<Repository<PostgresEventStore>, AppendError> {
    let snapshots = PostgresSnapshots::of(&store)?;
    Ok(Repository::new(store).with_snapshots(snapshots))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    test_of_the_decisions();
    lend().await?;
    transfer().await
}

async fn lend() -> Result<(), Box<dyn std::error::Error>> {
    let repository = Repository::new(MemoryEventStore::new()); // or PostgresEventStore, SqliteEventStore
    let book = Id::<Book>::generate();
    let key = Uuid::new_v4();

    let lent = repository.execute(&book, &LendBook { to: "Ada".into() }).command_id(key).await?;
    assert_eq!((lent.version.get(), lent.state.lent_to.as_deref()), (1, Some("Ada")));

    // The same command again: an answer that was lost on its way. Nothing is decided, nothing is stored.
    let again = repository.execute(&book, &LendBook { to: "Ada".into() }).command_id(key).await?;
    assert!(again.is_repeated && again.appended == lent.appended);

    // What would happen, without anything being stored.
    let returned = |_: &Book, _: &Context| Ok::<_, Refused>(espd::events![BookReturned {}]);
    let planned = repository.decide(&book, returned).dry_run().await?;
    assert_eq!((planned.events.len(), planned.state.lent_to), (1, None));

    // The caller has seen version 1, and nothing may have happened since.
    match repository.execute(&book, &LendBook { to: "Bob".into() }).expecting(1).await {
        Err(ExecuteError::Refused(Refused::LentTo(somebody))) => println!("{somebody} has it"),
        Err(ExecuteError::Conflict { since, .. }) => println!("{} events have come since", since.len()),
        other => println!("{other:?}"),
    }
    Ok(())
}

async fn transfer() -> Result<(), Box<dyn std::error::Error>> {
    let repository = Repository::new(MemoryEventStore::new());
    let (mine, yours) = (Id::<Account>::generate(), Id::<Account>::generate());

    let mut work = repository.unit_of_work();
    work.load_all(&[mine.clone(), yours.clone()]).await?; // one statement
    work.record(&mine, espd::events![MoneyAdded { amount: 30 }, MoneyDrawn { amount: 10 }]).await?;
    work.record(&yours, espd::events![MoneyAdded { amount: 10 }]).await?;
    work.commit().await?; // one append: all or nothing

    println!(
        "{} and {}",
        repository.load(&mine).await?.state.balance,
        repository.load(&yours).await?.state.balance
    );
    Ok(())
}

fn test_of_the_decisions() {
    use espd::aggregate::testing::given;

    given::<Book>(espd::events![BookLent { to: "Ada".into() }, BookReturned {}])
        .when(&LendBook { to: "Bob".into() })
        .then(espd::events![BookLent { to: "Bob".into() }])
        .when(&LendBook { to: "Eve".into() })
        .then_refused(&Refused::LentTo("Bob".into()));
}
