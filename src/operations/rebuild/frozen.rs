//! The lock of whoever builds a version lasts as long as his session. A daemon that is frozen keeps it, and nothing moves: whoever else
//! wants to build ends the session, as a standby does with an owner who is frozen within a batch.

use sqlx::AssertSqlSafe;

use super::Listener;
use crate::operations::operator::{Operator, OperatorError};
use crate::postgres::quote::quote_literal;
use crate::postgres::sqlstate::is_missing_right;
use crate::processing::rebuild::{Beside, is_alive, key_of_lock};

/// How the sessions are called in which daemons build.
pub(crate) const BUILDS: &str = "espd: rebuild";

/// How the sessions are called in which daemons verify slices.
pub(crate) const VERIFIES_SLICES: &str = "espd (verify)";

/// For how long a session waits for its daemon that counts as frozen: one that builds, of a daemon that gives no sign of life; and one
/// that verifies a slice, of which nobody knows whose it is.
const FROZEN: (&str, &str) = ("15 seconds", "5 minutes");

impl Operator<'_> {
    /// Ends the sessions of a frozen daemon that has the lock of the versions of a processor: that one, and those whose transactions
    /// keep the trackers locked that the next one needs. Returns whether any was ended: not those of other roles, unless this role may.
    ///
    /// # Errors
    /// The database does not answer.
    pub(super) async fn end_frozen(&self, name: &str, listener: Listener<'_>) -> Result<bool, OperatorError> {
        let statement = format!(
            "-- end_frozen_builder
             with waiting as (
               select a.pid from pg_stat_activity as a
               -- What they wait for is their client, within a transaction or not.
               where a.datname = current_database() and a.wait_event_type = 'Client'
                 and (a.application_name = '{BUILDS}' and a.state_change < clock_timestamp() - interval '{}'
                        and not coalesce((select {lives} from {schema}.build_progress as b where b.tracker = {next}), false)
                      or a.application_name = '{VERIFIES_SLICES}' and a.state_change < clock_timestamp() - interval '{}')
             ), holder as (
               select l.pid from pg_locks as l join waiting using (pid)
               where l.locktype = 'advisory' and l.objsubid = 1 and l.granted
                 and l.database = (select oid from pg_database where datname = current_database())
                 and (l.classid::bigint << 32) | l.objid::bigint = {key}
             ), blocking as (
               select l.pid from {trackers} as t
               join pg_locks as l on l.locktype = 'transactionid' and l.granted and l.transactionid = t.xmax
               join waiting using (pid)
               where t.name in ({live}, {next}) and exists (select from holder)
             )
             select coalesce(bool_or(pg_terminate_backend(pid)), false)
             from (select pid from holder union select pid from blocking) as frozen",
            FROZEN.0,
            FROZEN.1,
            lives = is_alive(self.trackers().schema(), "b.builder"),
            schema = self.trackers().schema(),
            trackers = self.trackers().table(),
            key = key_of_lock(&quote_literal(name)),
            live = quote_literal(name),
            next = quote_literal(&Beside::Next.name(name)),
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
        match query.fetch_one(&self.databases.projections).await {
            Err(error) if is_missing_right(&error) => Ok(false),
            Err(error) => Err(error.into()),
            Ok(has_ended) => {
                if has_ended {
                    (listener.note)(&format!(
                        "has ended the session of a daemon that was at work on a version of {name} and gives no sign of life"
                    ));
                }
                Ok(has_ended)
            }
        }
    }
}
