//! Workers as real processes: started, watched, restarted, killed, stopped.

mod closures;
mod hooks;
mod isolation;
mod restarts;
mod workers;
