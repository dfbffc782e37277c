//! The operator's tool, as a program: what it prints, what it changes, how it fails.

mod append;
mod check;
mod connect;
mod events;
mod operate;
mod status;
