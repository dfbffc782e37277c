//! Handlers in SQL, on a real database.

mod confinement;
mod folding;
mod foreign_tables;
mod meaning;
mod projector;
mod reactor;
mod row_security;
mod synchronous;
mod tables;
