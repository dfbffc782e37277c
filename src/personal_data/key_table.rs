//! The tables of keys: who has which key, and who was forgotten.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};
use tokio::sync::OnceCell;

use super::cipher::{KeyBytes, name_of, new_key, open, seal};
use super::keys::{KeyError, MasterKey, SubjectKey, SubjectKeys, SubjectState};
use crate::postgres::name::{InvalidName, SchemaName};
use crate::postgres::row::from_row;
use crate::postgres::{server_mark, transaction};

/// The schema of the tables, if no other one is named.
pub(crate) const KEY_SCHEMA: &str = "espd_keys";

/// Whoever forgets a subject waits for those who make keys, and they for him: no subject has a key that was forgotten.
const LOCK: &str = "-- lock_keys\nselect pg_advisory_xact_lock(hashtextextended('espd keys', 0))";
const LOCK_SHARED: &str =
    "-- lock_keys_shared\nselect pg_advisory_xact_lock_shared(hashtextextended('espd keys', 0))";

/// Connections to the keys; one thread asks at a time.
const CONNECTIONS: u32 = 2;

/// The tables `subject_keys` and `forgotten_subjects` in a schema of their own, in any database.
#[derive(Debug, Clone)]
pub(crate) struct KeyTable {
    schema: SchemaName,
}

/// The record of a subject that was forgotten.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ForgottenSubject {
    /// Who was forgotten.
    pub subject: String,
    /// When that was done, for the first time.
    pub forgotten_at: DateTime<Utc>,
    /// Who has done it.
    pub forgotten_by: String,
    /// Why.
    pub why: Option<String>,
    /// How many keys were deleted.
    pub keys: i64,
}

from_row!(ForgottenSubject { subject, forgotten_at, forgotten_by, why, keys });

impl KeyTable {
    pub(crate) fn new(schema: &str) -> Result<Self, InvalidName> {
        Ok(Self { schema: SchemaName::new(schema)? })
    }

    /// Makes the tables where they are missing.
    pub(crate) async fn create(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let schema = &self.schema;
        let statements = [
            format!("create schema if not exists {schema}"),
            format!(
                "create table if not exists {schema}.subject_keys (
                   subject    text        not null,
                   number     integer     not null,
                   -- Wrapped by the master key of this name.
                   wrapped    text        not null,
                   master     text        not null,
                   created_at timestamptz not null default clock_timestamp(),
                   primary key (subject, number)
                 )"
            ),
            format!(
                "create table if not exists {schema}.forgotten_subjects (
                   subject      text        not null primary key,
                   forgotten_at timestamptz not null default clock_timestamp(),
                   forgotten_by text        not null,
                   login        text        not null default session_user,
                   why          text,
                   keys         bigint      not null
                 )"
            ),
        ];
        for statement in statements {
            sqlx::query(AssertSqlSafe(format!("-- create_key_tables\n{statement}")))
                .execute(&mut *connection)
                .await?;
        }
        Ok(())
    }

    /// The wrapped keys of these subjects, and which of them were forgotten: subject, number, wrapped, master.
    async fn find(&self, pool: &PgPool, subjects: &[String]) -> Result<Vec<Row>, sqlx::Error> {
        let statement = format!(
            "-- find_subject_keys
             select subject, number, wrapped, master from {0}.subject_keys where subject = any ($1)
             union all
             select subject, 0, '', '' from {0}.forgotten_subjects where subject = any ($1)",
            self.schema
        );
        sqlx::query_as(AssertSqlSafe(statement)).persistent(false).bind(subjects).fetch_all(pool).await
    }

    /// Keeps a first key of each subject that has none and was not forgotten.
    async fn insert(
        &self,
        pool: &PgPool,
        subjects: &[String],
        wrapped: &[String],
        master: &str,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- insert_subject_keys
             insert into {0}.subject_keys (subject, number, wrapped, master)
             select n.subject, 1, n.wrapped, $3 from unnest($1::text[], $2::text[]) as n (subject, wrapped)
             where not exists (select from {0}.subject_keys as k where k.subject = n.subject)
               and not exists (select from {0}.forgotten_subjects as f where f.subject = n.subject)
             order by n.subject
             on conflict do nothing",
            self.schema
        );
        let mut transaction = transaction::begin(pool, server_mark::begin(None)).await?;
        sqlx::query(LOCK_SHARED).persistent(false).execute(&mut *transaction).await?;
        let query = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(subjects).bind(wrapped);
        query.bind(master).execute(&mut *transaction).await?;
        transaction.commit().await
    }

    /// Deletes the keys of a subject and records that. `None`: it has no key, and was never forgotten.
    pub(crate) async fn forget(
        &self,
        connection: &mut PgConnection,
        subject: &str,
        by: &str,
        why: Option<&str>,
    ) -> Result<Option<ForgottenSubject>, sqlx::Error> {
        let schema = &self.schema;
        let mut transaction = connection.begin_with(server_mark::begin(None)).await?;
        sqlx::query(LOCK).persistent(false).execute(&mut *transaction).await?;
        let forget = format!(
            "-- forget_subject
             with gone as (
               delete from {schema}.subject_keys where subject = $1 returning number
             )
             insert into {schema}.forgotten_subjects (subject, forgotten_by, why, keys)
             select $1, $2, $3, count(*) from gone having count(*) > 0
             on conflict (subject) do update set keys = forgotten_subjects.keys + excluded.keys"
        );
        let query = sqlx::query(AssertSqlSafe(forget)).persistent(false);
        query.bind(subject).bind(by).bind(why).execute(&mut *transaction).await?;
        let read = format!(
            "-- read_forgotten_subject
             select subject, forgotten_at, forgotten_by, why, keys from {schema}.forgotten_subjects where subject = $1"
        );
        let query = sqlx::query_as(AssertSqlSafe(read)).persistent(false).bind(subject);
        let forgotten = query.fetch_optional(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(forgotten)
    }

    /// How many keys a subject has.
    pub(crate) async fn count(
        &self,
        connection: &mut PgConnection,
        subject: &str,
    ) -> Result<i64, sqlx::Error> {
        let statement = format!(
            "-- count_subject_keys\nselect count(*) from {}.subject_keys where subject = $1",
            self.schema
        );
        sqlx::query_scalar(AssertSqlSafe(statement))
            .persistent(false)
            .bind(subject)
            .fetch_one(connection)
            .await
    }

    /// Wraps every key anew that is not wrapped by `new` yet. Returns how many there were. All or none is done.
    pub(crate) async fn rewrap(
        &self,
        connection: &mut PgConnection,
        old: &MasterKey,
        new: &MasterKey,
    ) -> Result<u64, KeyError> {
        let mut transaction = connection.begin_with(server_mark::begin(None)).await?;
        let statement = format!(
            "-- list_keys_to_rewrap
             select subject, number, wrapped, master from {}.subject_keys where master <> $1 for update",
            self.schema
        );
        let query = sqlx::query_as(AssertSqlSafe(statement)).persistent(false).bind(name_of(&new.0));
        let rows: Vec<Row> = query.fetch_all(&mut *transaction).await?;
        let unwrapped: Vec<(&Row, SubjectKey)> = rows
            .iter()
            .map(|row| Ok((row, unwrap(std::slice::from_ref(old), row)?)))
            .collect::<Result<_, KeyError>>()?;
        let wrapped: Vec<String> =
            unwrapped.iter().map(|(row, key)| wrap(new, &row.0, row.1, &key.0)).collect();
        let update = format!(
            "-- rewrap_keys
             update {}.subject_keys as k set wrapped = n.wrapped, master = $4
             from unnest($1::text[], $2::integer[], $3::text[]) as n (subject, number, wrapped)
             where k.subject = n.subject and k.number = n.number",
            self.schema
        );
        let subjects: Vec<&str> = rows.iter().map(|row| row.0.as_str()).collect();
        let numbers: Vec<i32> = rows.iter().map(|row| row.1).collect();
        let query =
            sqlx::query(AssertSqlSafe(update)).persistent(false).bind(subjects).bind(numbers).bind(wrapped);
        let done = query.bind(name_of(&new.0)).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(done.rows_affected())
    }
}

/// A key as it is kept: subject, number, wrapped, the name of the master key. Number 0: the subject was forgotten.
type Row = (String, i32, String, String);

fn wrap(master: &MasterKey, subject: &str, number: i32, key: &KeyBytes) -> String {
    seal(&master.0, &associated(subject, number), key)
}

fn unwrap(masters: &[MasterKey], (subject, number, wrapped, name): &Row) -> Result<SubjectKey, KeyError> {
    let master = masters.iter().find(|master| name_of(&master.0) == *name);
    let opened = master.and_then(|master| open(&master.0, &associated(subject, *number), wrapped).ok());
    let key = opened.and_then(|bytes| KeyBytes::try_from(bytes).ok()).map(SubjectKey);
    let (subject, number, master) = (subject.clone(), *number, name.clone());
    key.ok_or(KeyError::Wrapped { subject, number, master })
}

fn associated(subject: &str, number: i32) -> Vec<u8> {
    [b"espd key of a subject".as_slice(), &number.to_be_bytes(), subject.as_bytes()].concat()
}

/// Keys in PostgreSQL, in the database of the events or in another one, wrapped by a master key.
///
/// They are in the schema `espd_keys`, unless another one is named. Backups of it must expire before those of the events do:
/// who has an old key and an old event can read it.
#[derive(Debug)]
pub struct PostgresKeys {
    table: KeyTable,
    options: PgConnectOptions,
    /// Connects in the runtime of the thread that asks for keys.
    pool: OnceCell<PgPool>,
    /// The first one wraps.
    masters: Vec<MasterKey>,
}

impl PostgresKeys {
    /// The keys in the database that `pool` leads to, through connections of their own.
    pub fn new(pool: &PgPool, master: MasterKey) -> Self {
        let table = KeyTable::new(KEY_SCHEMA).expect("the name of a schema");
        let options = (*pool.connect_options()).clone().application_name("espd keys");
        Self { table, options, pool: OnceCell::new(), masters: vec![master] }
    }

    /// The same keys, in another schema.
    ///
    /// # Errors
    /// The name cannot be that of a schema.
    pub fn in_schema(self, schema: &str) -> Result<Self, InvalidName> {
        Ok(Self { table: KeyTable::new(schema)?, ..self })
    }

    /// The same keys; also those that are wrapped by an earlier master key are read.
    #[must_use]
    pub fn also_unwrapping(mut self, earlier: MasterKey) -> Self {
        self.masters.push(earlier);
        self
    }

    /// Makes the tables where they are missing, as `espctl keys create` does.
    ///
    /// # Errors
    /// The database refused, or could not be reached.
    pub async fn create_tables(&self) -> Result<(), KeyError> {
        let mut connection = PgConnection::connect_with(&self.options).await?;
        self.table.create(&mut connection).await?;
        Ok(connection.close().await?)
    }

    /// Forgets a subject: its keys are deleted, and that is recorded, with who has done it and why. `None`: it has no key and was never
    /// forgotten. To forget it again changes nothing.
    ///
    /// This is what makes the fields unreadable. `espctl forget` does more: it appends an event `SubjectForgotten` for those who follow the
    /// store, removes snapshots, and finds what else may hold something. Running programs remember keys for a minute;
    /// [`PersonalData::clear`](super::PersonalData::clear) ends that in this one.
    ///
    /// # Errors
    /// The database refused, or could not be reached.
    pub async fn forget(
        &self,
        subject: &str,
        by: &str,
        why: Option<&str>,
    ) -> Result<Option<ForgottenSubject>, KeyError> {
        let mut connection = PgConnection::connect_with(&self.options).await?;
        let forgotten = self.table.forget(&mut connection, subject, by, why).await?;
        connection.close().await?;
        Ok(forgotten)
    }

    async fn pool(&self) -> &PgPool {
        let connect = async || {
            let settings =
                PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(super::keyring::PATIENCE);
            settings.connect_lazy_with(self.options.clone())
        };
        self.pool.get_or_init(connect).await
    }
}

#[async_trait]
impl SubjectKeys for PostgresKeys {
    async fn find(&self, subjects: &[String]) -> Result<HashMap<String, SubjectState>, KeyError> {
        let mut found: HashMap<String, SubjectState> = HashMap::new();
        for row in self.table.find(self.pool().await, subjects).await? {
            if row.1 == 0 {
                found.insert(row.0, SubjectState::Forgotten);
                continue;
            }
            let key = unwrap(&self.masters, &row)?;
            let state = found.entry(row.0).or_insert_with(|| SubjectState::Keys(BTreeMap::new()));
            if let SubjectState::Keys(keys) = state {
                keys.insert(row.1, key);
            }
        }
        Ok(found)
    }

    async fn create(&self, subjects: &[String]) -> Result<(), KeyError> {
        let master = &self.masters[0];
        let wrapped: Vec<String> =
            subjects.iter().map(|subject| wrap(master, subject, 1, &new_key())).collect();
        Ok(self.table.insert(self.pool().await, subjects, &wrapped, &name_of(&master.0)).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_key_belongs_to_its_subject_number_and_master() {
        let (master, other) = (MasterKey::new([1; 32]), MasterKey::new([2; 32]));
        let key = new_key();
        let row = |subject: &str, number, by: &MasterKey| {
            (subject.to_owned(), number, wrap(&master, "ada", 1, &key), name_of(&by.0))
        };
        let both = [other.clone(), master.clone()];
        assert_eq!(unwrap(&both, &row("ada", 1, &master)).ok(), Some(SubjectKey(key)));
        for wrong in [row("bob", 1, &master), row("ada", 2, &master), row("ada", 1, &other)] {
            let error = unwrap(&both, &wrong).expect_err("it is refused");
            assert!(error.to_string().contains(&format!("of subject {}", wrong.0)), "{error}");
        }
        assert!(unwrap(&[other], &row("ada", 1, &master)).is_err());
    }
}
