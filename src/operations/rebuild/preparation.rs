//! What is looked at before a version is built: whether it can be, and whether it is being built already.

use sqlx::{AssertSqlSafe, PgConnection};

use super::Listener;
use crate::event::Position;
use crate::operations::operator::{Operator, OperatorError};
use crate::processing::declaration::{Handling, ProcessorDeclaration, ProcessorKind, Unsuitable};
use crate::processing::processor::{describe_missing, describe_moved, find_missing, find_moved};
use crate::processing::rebuild::{Begun, Beside, RebuildRow, Rebuilds, find_declared};
use crate::processing::tracker::{ProcessorKey, TrackerRow};

/// Who builds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Operator,
    /// A daemon, by itself.
    Daemon,
}

impl Operator<'_> {
    /// Whether a rebuild of just this declaration is under way. One of another declaration is given up.
    pub(super) async fn find_same(
        &self,
        connection: &mut PgConnection,
        live: &ProcessorKey,
        declaration: &ProcessorDeclaration,
        listener: Listener<'_>,
    ) -> Result<bool, OperatorError> {
        let rebuilds = Rebuilds::new(self.trackers().schema());
        let Some(row) = rebuilds.find(&mut *connection, &live.name).await? else { return Ok(false) };
        if !row.state().is_under_way() {
            return Ok(false);
        }
        if self.is_same(&row, live, declaration) {
            (listener.note)(&format!("goes on with version {}, which {}", row.version, row.state()));
            return Ok(true);
        }
        (listener.note)(&format!(
            "gives up version {}, which {} was building from another declaration",
            row.version, row.started_by
        ));
        self.remove_version(connection, &live.name, Beside::Next, row.version).await?;
        Ok(false)
    }

    fn is_same(&self, row: &RebuildRow, live: &ProcessorKey, declaration: &ProcessorDeclaration) -> bool {
        row.fingerprint == self.whole_fingerprint(declaration)
            && (row.version, row.from_version) == (declaration.version, live.version)
    }

    /// Records who begins to build a version.
    pub(super) async fn note_begun(
        &self,
        connection: &mut PgConnection,
        live: &ProcessorKey,
        declaration: &ProcessorDeclaration,
        by: By,
    ) -> Result<(), OperatorError> {
        let (schema, name) = (&self.databases.scope.schema, &live.name);
        let begun = Begun {
            processor: name,
            version: declaration.version,
            from_version: live.version,
            fingerprint: &self.whole_fingerprint(declaration),
            building_in: &Beside::Next.schema(schema, name),
            operator: self.name,
            automatic: by == By::Daemon,
        };
        Ok(Rebuilds::new(self.trackers().schema()).begin(connection, &begun).await?)
    }

    /// Why a projector is not built again beside its tables when it is reset; `None`: it is.
    ///
    /// # Errors
    /// No processor of this name has run, or it is not declared; or the database does not answer.
    pub(crate) async fn why_in_place(&self, name: &str) -> Result<Option<String>, OperatorError> {
        let (row, declaration) = (self.find(name).await?, self.declaration(name)?);
        if let Some((because, _)) = self.find_unsuitable(&row, declaration) {
            return Ok(Some(because));
        }
        if declaration.synchronous.is_some() {
            return Ok(Some(format!("{name} is declared as synchronous")));
        }
        // Nobody may have noticed yet.
        if self.find_divergence(&row).await?.is_some() {
            return Ok(Some(format!("{name} has met another event store than the one that it has followed")));
        }
        let mut connection = self.databases.projections.acquire().await?;
        self.refuse_missing_tables(&mut connection, name).await?;
        let has_tables = !self.list_tables(&mut connection, name).await?.is_empty();
        Ok((!has_tables).then(|| format!("{name} has no tables yet")))
    }

    /// How the version that serves was declared, where the configuration declares another one and that is recorded: handlers in SQL
    /// are. `None`: as the configuration says, as far as anybody knows.
    ///
    /// # Errors
    /// No processor of this name has run, or it is not declared; or the database does not answer.
    pub(crate) async fn find_as_it_serves(
        &self,
        name: &str,
    ) -> Result<Option<ProcessorDeclaration>, OperatorError> {
        let (row, declaration) = (self.find(name).await?, self.declaration(name)?);
        if declaration.version == row.version {
            return Ok(None);
        }
        let mut connection = self.databases.projections.acquire().await?;
        let found = find_declared(&mut connection, self.trackers().schema(), name, row.version).await?;
        // One that was built beside another has a name of its own.
        let found = found.map(|declared| ProcessorDeclaration { name: name.to_owned(), ..declared });
        Ok(found.filter(|declared| matches!(declared.handling, Handling::Sql(_))))
    }

    /// Refuses to build beside tables of which one is missing: they could not be compared, nor exchanged.
    pub(super) async fn refuse_missing_tables(
        &self,
        connection: &mut PgConnection,
        name: &str,
    ) -> Result<(), OperatorError> {
        self.refuse_moved_tables(&mut *connection, name).await?;
        match find_missing(connection, self.trackers().schema(), name).await? {
            Some(tables) => Err(OperatorError::Blocked(describe_missing(name, &tables))),
            None => Ok(()),
        }
    }

    /// Refuses to build beside tables that are in another schema than the configured one.
    pub(super) async fn refuse_moved_tables(
        &self,
        connection: &mut PgConnection,
        name: &str,
    ) -> Result<(), OperatorError> {
        let configured = &self.databases.scope.schema;
        let moved = find_moved(connection, self.trackers().schema(), name, configured).await?;
        moved.map_or(Ok(()), |is_in| Err(OperatorError::Blocked(describe_moved(name, &is_in, configured))))
    }

    /// Refuses to look at tables that nobody has made yet.
    pub(super) async fn refuse_without_tables(
        &self,
        connection: &mut PgConnection,
        name: &str,
        beside: Beside,
    ) -> Result<(), OperatorError> {
        if matches!(beside, Beside::Verification | Beside::Part)
            && self.list_tables(connection, name).await?.is_empty()
        {
            return Err(OperatorError::Blocked(format!(
                "{name} has no tables yet, so there is nothing to compare: `espctl status {name}` says why"
            )));
        }
        Ok(())
    }

    /// Where the serving version is.
    pub(super) async fn find_position(
        &self,
        connection: &mut PgConnection,
        live: &ProcessorKey,
    ) -> Result<Position, OperatorError> {
        let statement = format!(
            "-- find_position\nselect position from {} where {}",
            self.trackers().table(),
            live.is_tracker()
        );
        let found: Option<Position> =
            sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).fetch_optional(connection).await?;
        found.ok_or_else(|| OperatorError::Rebuild(format!("{} serves another version now", live.name)))
    }

    /// The tables of a version, by their own names.
    pub(super) async fn list_tables(
        &self,
        connection: &mut PgConnection,
        name: &str,
    ) -> Result<Vec<String>, OperatorError> {
        let statement = format!(
            "-- list_tables\nselect table_name from {}.projection_tables where processor = $1 order by 1",
            self.trackers().schema()
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).bind(name);
        Ok(query.fetch_all(connection).await?)
    }
}

/// Says what publications of all tables do while a version is built: its rows have to survive a crash, so they are published as well.
pub(super) async fn warn_of_publications(
    connection: &mut PgConnection,
    listener: Listener<'_>,
) -> Result<(), sqlx::Error> {
    let statement = "-- list_publications_of_all
        select string_agg(pubname::text, ', ' order by pubname) from pg_catalog.pg_publication where puballtables";
    let found: Option<String> = sqlx::query_scalar(statement).persistent(false).fetch_one(connection).await?;
    if let Some(names) = found {
        (listener.note)(&format!(
            "publication {names} publishes all tables, so it publishes those of the new version under the names that they have until \
             it is live: a subscription to it stops at them. Publish single tables where PostgreSQL subscribes"
        ));
    }
    Ok(())
}

/// Why no version takes the place of a synchronous one, and what to do.
fn why_not_synchronous(name: &str) -> (String, String) {
    let remedy =
        "take `synchronous` out of its declaration, reload, run this again, and declare it as before";
    (Unsuitable::Synchronous.because(name), remedy.to_owned())
}

/// The error that says so.
pub(super) fn refuse_synchronous(name: &str) -> OperatorError {
    let (because, remedy) = why_not_synchronous(name);
    OperatorError::Blocked(format!("{because}: {remedy}"))
}

/// Refuses to build in parts, or to verify, what is not the declaration that serves.
fn refuse_other(
    row: &TrackerRow,
    declaration: &ProcessorDeclaration,
    beside: Beside,
) -> Result<(), OperatorError> {
    let (TrackerRow { name, version, .. }, declared) = (row, declaration.version);
    if matches!(beside, Beside::Verification | Beside::Part) && declared != *version {
        return Err(OperatorError::Blocked(format!(
            "version {version} of {name} serves, and the configuration declares version {declared}: only the declaration that \
             serves can be verified, or rebuilt in parts; `espctl rebuild {name} --dry-run` shows what the declared one would change"
        )));
    }
    Ok(())
}

impl Operator<'_> {
    /// Refuses what cannot be built beside, and says what can be done instead.
    pub(super) fn refuse_unsuitable(
        &self,
        row: &TrackerRow,
        declaration: &ProcessorDeclaration,
        beside: Beside,
    ) -> Result<(), OperatorError> {
        match self.find_unsuitable(row, declaration) {
            Some((because, remedy)) => Err(OperatorError::Blocked(format!("{because}: {remedy}"))),
            None => refuse_other(row, declaration, beside),
        }
    }

    /// Why a projector cannot be built beside, and what can be done instead.
    fn find_unsuitable(
        &self,
        row: &TrackerRow,
        declaration: &ProcessorDeclaration,
    ) -> Option<(String, String)> {
        let TrackerRow { name, version, .. } = row;
        let declared = declaration.version;
        if declaration.kind() == ProcessorKind::Projector
            && let Some(missing) = self.find_missing_program(declaration)
        {
            return Some(missing);
        }
        let unsuitable = Unsuitable::find(declaration, row.synchronous.is_some());
        if let Some(unsuitable) = unsuitable {
            Some(match unsuitable {
                Unsuitable::Synchronous => why_not_synchronous(name),
                _ => (unsuitable.because(name), format!("`espctl reset {name}` rebuilds {name} in place")),
            })
        } else if declared < *version {
            let because = format!(
                "version {version} of {name} serves, and the configuration declares version {declared}"
            );
            Some((
                because,
                format!(
                    "raise the version, or, where version {declared} is kept, go back with `espctl rollback {name}`"
                ),
            ))
        } else if row.diverged.is_some() {
            let because = format!("{name} has met another event store than the one that it has followed");
            Some((because, format!("`espctl status {name}` says what to do")))
        } else {
            None
        }
    }

    /// That a processor is in Rust, in another program than this one, and what to do.
    pub(super) fn find_missing_program(
        &self,
        declaration: &ProcessorDeclaration,
    ) -> Option<(String, String)> {
        let is_missing = matches!(declaration.handling, Handling::Native(_)) && self.native.is_none();
        is_missing.then(|| {
            let name = &declaration.name;
            let because = format!("the handlers of {name} are in Rust, in a program of their own");
            (because, format!("run this as a command of that program: `PROGRAM rebuild {name}`, for example"))
        })
    }
}
