//! A to-do list and a wallet: commands come in over HTTP and become events, processors of espd keep tables up to date, and
//! queries read the tables.
//!
//! | file | |
//! |---|---|
//! | `todo.rs`, `wallet.rs` | the aggregates: events, state, commands, decisions |
//! | `service.rs` | what the handlers share: the store, the repository, the processors |
//! | `web.rs` | routes: a command each, and the queries |
//! | `answer.rs` | what a command has come to, as HTTP |
//! | `queries.rs` | reads the tables of the projectors |
//! | `processors/` | the projectors and the reactor, in SQL |

pub mod answer;
pub mod queries;
pub mod service;
pub mod todo;
pub mod wallet;
pub mod web;
