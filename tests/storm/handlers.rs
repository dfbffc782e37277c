//! The handlers outside of the database: in Rust, in a program, behind HTTP. This binary is all three.

mod native;
mod program;
mod receiver;

pub use native::main as daemon;
pub use program::{ARGUMENT as PROGRAM_ARGUMENT, main as program};
pub use receiver::{Accepted, Delivered, Notified, is_cursed, start as start_receiver};

/// The table of the projector in Rust, and its name.
pub const NATIVE_COUNTS: &str = "native_counts";

/// The table of the projector in a program, and its name.
pub const PROGRAM_COUNTS: &str = "program_counts";

/// The columns of both, as those of `counts`.
pub const COLUMNS: &str =
    "event_type text primary key, events bigint not null, amount bigint not null, last_event bigint not null";
