//! Names of schemas, tables and processors: which are allowed, and how they are quoted.

use std::fmt;

use thiserror::Error;
use uuid::Uuid;

use super::quote::quote_identifier;

/// The longest name that espd gives, in bytes. Leaves room for suffixes within [`IDENTIFIER_LENGTH_MAX`].
pub(crate) const NAME_LENGTH_MAX: usize = 48;

/// The longest name that PostgreSQL keeps whole, in bytes.
pub(crate) const IDENTIFIER_LENGTH_MAX: usize = 63;

/// The digits of the hash in a name that would be too long.
const HASH_LENGTH: usize = 16;

/// Whether `name` is `[a-z_][a-z0-9_]{0,47}`: a name of a processor, a table or a schema.
pub(crate) fn is_name(name: &str) -> bool {
    is_identifier(name)
        && name.len() <= NAME_LENGTH_MAX
        && !name.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// Whether `name` is `[A-Za-z_][A-Za-z0-9_]{0,62}`: a name that somebody else has given, in the case that they wrote.
pub(crate) fn is_identifier(name: &str) -> bool {
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let goes_on_well = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    starts_well && goes_on_well && name.len() <= IDENTIFIER_LENGTH_MAX
}

/// A name that is derived from others, so that PostgreSQL keeps it whole: if it is too long, its end becomes a hash of all
/// of it.
pub(crate) fn fitting(name: String) -> String {
    if name.len() <= IDENTIFIER_LENGTH_MAX {
        return name;
    }
    let hash = Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).simple().to_string();
    let hash = &hash[..HASH_LENGTH];
    let kept = name.floor_char_boundary(IDENTIFIER_LENGTH_MAX - HASH_LENGTH - 1);
    format!("{}_{hash}", &name[..kept])
}

/// The name, if it is an identifier as [`is_identifier`] defines it.
pub(crate) fn identifier(name: &str) -> Result<&str, InvalidName> {
    if is_identifier(name) { Ok(name) } else { Err(InvalidName::Identifier { name: name.to_owned() }) }
}

/// The qualified and quoted name of a table or a sequence.
pub(crate) fn qualify(schema: &str, name: &str) -> Result<String, InvalidName> {
    Ok(format!("{}.{}", quote_identifier(identifier(schema)?), quote_identifier(identifier(name)?)))
}

/// A checked name of a schema. `Display` writes it quoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SchemaName(String);

impl SchemaName {
    /// Accepts what [`is_name`] accepts, except for the prefix that PostgreSQL reserves.
    pub(crate) fn new(name: &str) -> Result<Self, InvalidName> {
        if is_name(name) && !name.starts_with("pg_") {
            Ok(Self(name.to_owned()))
        } else {
            Err(InvalidName::Schema { name: name.to_owned() })
        }
    }

    /// The name, not quoted.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SchemaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&quote_identifier(&self.0))
    }
}

/// The name cannot be used for a schema, a table, a sequence or a channel.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidName {
    /// A schema of espd's own.
    #[error(
        "invalid schema name {name:?}: write up to 48 of a-z, 0-9 and _, starting with a letter or _, \
         and not with pg_"
    )]
    Schema {
        /// The name as given.
        name: String,
    },
    /// A table or a function of espd's own, whose name was chosen.
    #[error("invalid name {name:?} for {key}: {reason}")]
    Chosen {
        /// The key of the configuration that has the name.
        key: &'static str,
        /// The name as given.
        name: String,
        /// What is wrong with it, or what to write instead.
        reason: String,
    },
    /// A name in a store of another framework.
    #[error("invalid name {name:?}: write up to 63 letters, digits and _, not starting with a digit")]
    Identifier {
        /// The name as given.
        name: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_derived_name_fits_and_stays_its_own() {
        let name = |length: usize, end: &str| fitting(format!("{}{end}", "a".repeat(length - end.len())));
        assert_eq!(name(63, "_v1"), format!("{}_v1", "a".repeat(60)));
        for (one, other) in [(name(64, "_v1"), name(64, "_v2")), (name(200, "_v1"), name(200, "_v2"))] {
            assert_eq!((one.len(), other.len()), (63, 63));
            assert_ne!(one, other);
        }
        assert!(fitting("\u{e4}".repeat(40)).len() <= 63);
    }

    #[test]
    fn names_are_lower_case_and_fit() {
        for name in ["a", "_", "outstanding_todos", "t2", &"x".repeat(48)] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "2t", "Todos", "to-dos", "tödos", "a b", "a\0", &"x".repeat(49)] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn a_schema_of_postgresql_is_refused() {
        assert!(SchemaName::new("espd").is_ok() && SchemaName::new("pg_espd").is_err());
    }

    #[test]
    fn identifiers_keep_their_case_and_need_no_escaping() {
        assert_eq!(qualify("Shop", "newEvents").as_deref(), Ok("\"Shop\".\"newEvents\""));
        for name in ["", "9a", "a-b", "a\"b", "a.b", "a b", "ä", &"a".repeat(64)] {
            assert!(identifier(name).is_err(), "{name:?}");
        }
    }
}
