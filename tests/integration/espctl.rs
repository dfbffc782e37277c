//! The operator's tool, as a program: what it prints, what it changes, how it fails.

mod append;
mod check;
mod connect;
mod delete_aggregate;
mod doctor;
mod events;
mod explain;
mod forget;
mod graph;
mod manual;
mod migrate;
mod new;
mod operate;
mod operators;
mod rebuild;
mod rebuild_part;
mod reload;
mod reset;
mod reset_locks;
mod retire;
mod roles;
mod schema;
mod status;
mod trace;
mod trouble;
mod visible;
