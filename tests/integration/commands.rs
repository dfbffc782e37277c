//! Commands from outside: read, checked, routed, recorded.

mod beside;
mod input;
mod middleware;
mod recording;
mod routing;
mod secrets;
mod web;

use espd::prelude::*;
use serde::{Deserialize, Serialize};
use validator::Validate;

espd::event_set! {
    /// What happens to a book.
    pub enum BookEvent {
        /// Somebody has taken it home.
        BookLent { to: String, days: u32 },
        /// It is back.
        BookReturned {},
    }
}

/// A book of a library.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Book {
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

#[derive(Debug, Clone, Serialize, Deserialize, Validate)]
pub struct LendBook {
    pub book: Id<Book>,
    #[validate(length(min = 1, max = 80))]
    pub to: String,
    #[validate(range(min = 1, max = 30))]
    pub days: u32,
}

impl Command for LendBook {
    const NAME: &'static str = "LendBook";
    type Aggregate = Book;

    fn aggregate_id(&self) -> Id<Book> {
        self.book.clone()
    }
}

/// Does nothing if the book is there.
#[derive(Debug, Clone, Serialize, Deserialize, Validate)]
pub struct ReturnBook {
    pub book: Id<Book>,
}

impl Command for ReturnBook {
    const NAME: &'static str = "ReturnBook";
    type Aggregate = Book;

    fn aggregate_id(&self) -> Id<Book> {
        self.book.clone()
    }
}

#[derive(Debug, PartialEq, Serialize)]
pub enum Refused {
    LentToAnother { to: String },
    NeverLent,
}

espd::refusal!(
    Refused,
    message = |refused| match refused {
        Refused::LentToAnother { to } => format!("{to} has the book"),
        Refused::NeverLent => "the book was never lent".to_owned(),
    },
    status = |refused| if *refused == Refused::NeverLent { 404 } else { 422 },
);

impl Decide<LendBook> for Book {
    type Refusal = Refused;

    fn decide(&self, lend: &LendBook, _: &Context) -> Result<Vec<BookEvent>, Refused> {
        match &self.lent_to {
            Some(to) if *to == lend.to => Ok(Vec::new()),
            Some(to) => Err(Refused::LentToAnother { to: to.clone() }),
            None => Ok(espd::events![BookLent { to: lend.to.clone(), days: lend.days }]),
        }
    }
}

impl Decide<ReturnBook> for Book {
    type Refusal = Refused;

    fn decide(&self, _: &ReturnBook, context: &Context) -> Result<Vec<BookEvent>, Refused> {
        match context.exists() {
            true => Ok(self.if_changed(espd::events![BookReturned {}])),
            false => Err(Refused::NeverLent),
        }
    }
}

fn lend(book: &Id<Book>, to: &str) -> LendBook {
    LendBook { book: book.clone(), to: to.to_owned(), days: 14 }
}

fn router<S: EventStore + Clone + 'static>(store: &S) -> Commands<S> {
    Commands::new(Repository::new(store.clone())).register_all::<(LendBook, ReturnBook)>()
}

async fn count_events<S: EventStore>(store: &S) -> usize {
    store.read_after(Position::START, None, None, 1_000).await.unwrap().len()
}

/// Runs a test on the memory store and on PostgreSQL, each with its log of commands.
macro_rules! on_both {
    ($name:ident, $check:ident) => {
        #[tokio::test]
        async fn $name() {
            let memory = MemoryEventStore::new();
            $check(memory.clone(), espd::commands::MemoryCommandLog::of(memory)).await;
            let (_pool, postgres) = crate::store::store().await;
            let log = espd::commands::PostgresCommandLog::of(&postgres).unwrap();
            $check(postgres, log).await;
        }
    };
}
use on_both;
