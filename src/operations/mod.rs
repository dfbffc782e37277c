//! What operators see and do, without printing.

pub(crate) mod check;
pub mod databases;
pub(crate) mod doctor;
pub(crate) mod import_positions;
pub mod operator;
pub mod status;
