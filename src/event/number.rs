//! The numbers of the event store, each as a type of its own.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueRef, Postgres};
use sqlx::{Decode, Encode, Type};

/// Declares a number of the event store: a newtype of `i64` that neither mixes with another such number nor with a plain
/// integer, and that PostgreSQL, JSON and command lines see as the bare number.
macro_rules! number {
    ($(#[$documentation:meta])* $name:ident) => {
        $(#[$documentation])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(i64);

        impl $name {
            /// The largest value: as an upper bound, it means no bound.
            pub const MAX: Self = Self(i64::MAX);

            /// Makes one of a plain number, as it was read from elsewhere.
            pub const fn new(number: i64) -> Self {
                Self(number)
            }

            /// The plain number, as the event store keeps it.
            pub const fn get(self) -> i64 {
                self.0
            }

            /// The one that follows. After [`Self::MAX`] comes nothing: it is its own successor.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }

            /// The one `count` places further on, at most [`Self::MAX`].
            #[must_use]
            pub const fn advanced_by(self, count: i64) -> Self {
                Self(self.0.saturating_add(count))
            }
        }

        impl From<i64> for $name {
            fn from(number: i64) -> Self {
                Self(number)
            }
        }

        impl From<$name> for i64 {
            fn from(number: $name) -> Self {
                number.0
            }
        }

        /// A test compares with what it expects, which is written as a number.
        impl PartialEq<i64> for $name {
            fn eq(&self, number: &i64) -> bool {
                self.0 == *number
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }

        impl FromStr for $name {
            type Err = ParseIntError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }

        impl Type<Postgres> for $name {
            fn type_info() -> PgTypeInfo {
                <i64 as Type<Postgres>>::type_info()
            }

            fn compatible(other: &PgTypeInfo) -> bool {
                <i64 as Type<Postgres>>::compatible(other)
            }
        }

        impl PgHasArrayType for $name {
            fn array_type_info() -> PgTypeInfo {
                <i64 as PgHasArrayType>::array_type_info()
            }
        }

        impl Encode<'_, Postgres> for $name {
            fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
                <i64 as Encode<'_, Postgres>>::encode_by_ref(&self.0, buffer)
            }
        }

        impl Decode<'_, Postgres> for $name {
            fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
                <i64 as Decode<'_, Postgres>>::decode(value).map(Self)
            }
        }
    };
}

number! {
    /// Place of an event in the store: its `id`.
    ///
    /// Positions ascend in the order in which events become readable; they may have gaps. Where a position says how far
    /// something has got, every event up to it, itself included, is done with.
    Position
}

impl Position {
    /// The position before the first event: 0. A reader at this position has read nothing.
    pub const START: Self = Self(0);

    /// The position just before this one. A reader at that position reads this one next.
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// How many places lie after this position up to and including `later`; negative if that comes before this one.
    pub const fn distance_to(self, later: Self) -> i64 {
        later.0.saturating_sub(self.0)
    }
}

number! {
    /// Place of an event in its aggregate: 1, 2, 3 … without gaps. The version of an aggregate is that of its last event.
    Version
}

impl Version {
    /// The version of an aggregate without events: 0.
    pub const NONE: Self = Self(0);

    /// The version of the first event of an aggregate: 1.
    pub const FIRST: Self = Self(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_a_bare_number() {
        assert_eq!(serde_json::to_string(&Position::new(7)).unwrap(), "7");
        assert_eq!(serde_json::from_str::<Version>("7").unwrap(), 7);
    }

    #[test]
    fn positions_and_versions_stay_within_their_range() {
        assert_eq!((Position::MAX.next(), Position::START.next()), (Position::MAX, Position::new(1)));
        assert_eq!(Version::MAX.advanced_by(2), Version::MAX);
        assert_eq!(Position::new(3).distance_to(Position::new(10)), 7);
        assert_eq!(Position::new(3).previous(), 2);
        assert_eq!("12".parse(), Ok(Position::new(12)));
        assert_eq!(format!("{:>4}", Version::new(7)), "   7");
    }
}
