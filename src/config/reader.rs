//! Reads TOML: files, syntax, a tree of values with their places. Nothing here knows a key.

pub(crate) mod bounded;
pub(crate) mod context;
pub(crate) mod diagnostics;
pub(crate) mod include;
pub(crate) mod interpolation;
pub(crate) mod json;
pub(crate) mod key;
pub(crate) mod quantity;
pub(crate) mod scalars;
pub(crate) mod source_file;
pub(crate) mod string_literal;
pub(crate) mod syntax;
pub(crate) mod tree;
