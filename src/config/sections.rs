//! The sections of the file, each read key by key.

pub(crate) mod admin;
pub(crate) mod hooks;
pub(crate) mod isolation;
pub(crate) mod processor;
pub(crate) mod program;
pub(crate) mod store;
pub(crate) mod upcast;
pub(crate) mod webhook;
