//! What tests of applications stand on: a private PostgreSQL for the test process, a database for each test.

mod database;
mod failure;
mod running;
mod server;

pub use database::{TestDatabase, database};
pub use failure::TestFailure;
pub use running::TestRunning;
