//! Handlers in SQL, on a real database.

mod projector;
mod reactor;
