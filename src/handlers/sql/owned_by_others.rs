//! What a processor has made by another role than the one that is to run it now: PostgreSQL lets nobody but its owner replace a function, and a
//! table of another role may be written by those only who were given that right.

use sqlx::{AssertSqlSafe, PgConnection};

use super::function_names;
use crate::postgres::quote::quote_identifier;
use crate::postgres::row::from_row;
use crate::processing::declaration::ProcessorDeclaration;

/// Functions and tables that others own, so that the processor cannot run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnedByOthers {
    /// The role that is to run the processor.
    role: String,
    objects: Vec<Object>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Object {
    role: String,
    owner: String,
    /// `function espd.handle_notes_v1(…)`, as a statement names it.
    name: String,
    /// The same for people, without the arguments.
    short_name: String,
}

from_row!(Object { role, owner, name, short_name });

impl OwnedByOthers {
    /// What belongs to whom, as a clause.
    pub(crate) fn describe(&self) -> String {
        let names: Vec<&str> = self.objects.iter().map(|object| object.short_name.as_str()).collect();
        let (belongs, them) = if names.len() == 1 { ("belongs", "it") } else { ("belong", "them") };
        let mut owners: Vec<&str> = self.objects.iter().map(|object| object.owner.as_str()).collect();
        owners.sort_unstable();
        owners.dedup();
        format!(
            "{} {belongs} to {}, and {}, which is to run it, has to own {them}",
            names.join(", "),
            owners.join(", "),
            self.role
        )
    }

    /// The statements that give everything to the role that is to run the processor.
    pub(crate) fn statements(&self) -> String {
        let statement = |object: &Object| format!("alter {} owner to {};", object.name, object.role);
        self.objects.iter().map(statement).collect::<Vec<_>>().join(" ")
    }

    /// What to do, as a clause.
    pub(crate) fn remedy(&self) -> String {
        format!("as a superuser, run `{}`", self.statements())
    }
}

/// What others own of a processor's functions, and of its tables, where these may not even be written; `None`: nothing.
pub(crate) async fn find_owned_by_others(
    connection: &mut PgConnection,
    schema: &str,
    declaration: &ProcessorDeclaration,
) -> Result<Option<OwnedByOthers>, sqlx::Error> {
    let statement = "
        -- find_owned_by_others
        select quote_ident(current_user) as role, quote_ident(pg_get_userbyid(p.proowner)) as owner,
               format('function %I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) as name,
               format('function %I.%I', n.nspname, p.proname) as short_name
        from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
        where n.nspname = $1 and p.proname = any ($2) and not pg_has_role(p.proowner, 'usage')
        union all
        select quote_ident(current_user), quote_ident(pg_get_userbyid(c.relowner)), format('table %I.%I', n.nspname, c.relname),
               format('table %I.%I', n.nspname, c.relname)
        from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
        where c.oid in (select o.oid from {schema}.owned_relations as o where o.processor = $3)
          and c.relkind in ('r', 'p') and not pg_has_role(c.relowner, 'usage')
          and not has_table_privilege(c.oid, 'insert, update, delete')
        order by 4";
    let statement = statement.replace("{schema}", &quote_identifier(schema));
    let names = function_names(&declaration.name, declaration.version);
    let objects: Vec<Object> = sqlx::query_as(AssertSqlSafe(statement))
        .persistent(false)
        .bind(schema)
        .bind(names.as_slice())
        .bind(&declaration.name)
        .fetch_all(connection)
        .await?;
    let role = objects.first().map(|object| object.role.clone());
    Ok(role.map(|role| OwnedByOthers { role, objects }))
}
