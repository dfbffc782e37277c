//! The sections of the file, each read key by key: the rules that no table of keys can say.

pub(crate) mod admin;
pub(crate) mod event;
pub(crate) mod events;
pub(crate) mod hooks;
pub(crate) mod isolation;
pub(crate) mod log;
pub(crate) mod processor;
pub(crate) mod program;
pub(crate) mod rebuild;
pub(crate) mod retry;
pub(crate) mod runner;
pub(crate) mod settings;
pub(crate) mod store;
pub(crate) mod upcast;
pub(crate) mod verify;
pub(crate) mod webhook;
