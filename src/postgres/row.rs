//! Structs from rows, field by column of the same name.
//!
//! sqlx has a derive for this, but its macro crates would build the driver twice.

/// Implements `sqlx::FromRow` for a struct, given its fields once more.
macro_rules! from_row {
    ($struct:ty { $($field:ident),+ $(,)? }) => {
        impl<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow> for $struct {
            fn from_row(row: &'r sqlx::postgres::PgRow) -> Result<Self, sqlx::Error> {
                use sqlx::Row as _;
                Ok(Self { $($field: row.try_get(stringify!($field))?),+ })
            }
        }
    };
}

pub(crate) use from_row;
