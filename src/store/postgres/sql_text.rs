//! Text that was put together from a layout, as a statement.

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

/// Text as a statement. The only parts that vary are names from a layout, which has checked and quoted them.
pub(super) fn sql(text: String) -> SqlStr {
    AssertSqlSafe(text).into_sql_str()
}
