-- find_obstacles
-- Why the database keeps tables from being altered without a replay, the first reason only. $1: schema of the tables, $2: tables that gain
-- columns, $3, $4, $5: tables, names and types of the columns, $6: names that handlers call, $7: all names in handlers,
-- $8: texts of the handlers, $9: all tables that are altered, $10: indexes that are made and must not be there yet.
with altered as (
  select t.name, c.oid, c.relkind, c.relowner, c.reltype, t.name = any ($2) as is_widened
  from unnest($9::text[]) as t (name)
    left join pg_class as c on c.oid = to_regclass(quote_ident($1) || '.' || quote_ident(t.name))
), of_users as (
  -- What an extension has made knows no tables of a projector, but may run a text.
  select p.oid, p.proname, p.proargtypes, p.prorettype from pg_proc as p
  where p.pronamespace not in ('pg_catalog'::regnamespace::oid, coalesce(to_regnamespace('{schema}')::oid, 0::oid))
)
select reason from (
  select 1 as place, format('there is no table %s', name) as reason
    from altered where oid is null or relkind not in ('r', 'p')
  union all
  select 2, format('the role %s does not own %s', current_user, name)
    from altered where oid is not null and not pg_has_role(relowner, 'usage')
  union all
  select 3, format('%s has a column %s already', t.name, n.column_name)
    from unnest($3::text[], $4::text[]) as n (table_name, column_name)
      join altered as t on t.name = n.table_name
      join pg_attribute as a on a.attrelid = t.oid and a.attname = n.column_name and not a.attisdropped
  union all
  select 4, format('the type %s of column %s is a domain, or not known', n.type_name, n.column_name)
    from unnest($4::text[], $5::text[]) as n (column_name, type_name)
    where not coalesce((select t.typtype in ('b', 'e', 'r', 'm') and coalesce(e.typtype in ('b', 'e', 'r', 'm'), true)
      from pg_type as t left join pg_type as e on e.oid = t.typelem where t.oid = to_regtype(n.type_name)), false)
  union all
  select 5, format('there is a relation %s already', n.name)
    from unnest($10::text[]) as n (name) where to_regclass(quote_ident($1) || '.' || quote_ident(n.name)) is not null
  union all
  select 6, format('trigger %s sees the rows of %s', g.tgname, t.name)
    from altered as t join pg_trigger as g on g.tgrelid = t.oid where t.is_widened and not g.tgisinternal
  union all
  select 6, format('trigger %s on %s, which a handler may write, may see the rows', g.tgname, c.oid::regclass)
    from pg_trigger as g join pg_class as c on c.oid = g.tgrelid
    where cardinality($2::text[]) > 0 and not g.tgisinternal and c.relname = any ($7::text[])
      and not exists (select from altered as t where t.oid = c.oid and t.is_widened)
  union all
  select 7, format('rule %s sees the rows of %s', r.rulename, t.name)
    from altered as t join pg_rewrite as r on r.ev_class = t.oid where t.is_widened
  union all
  select 8, format('a handler may call function %s, which may see the rows', p.oid::regprocedure)
    from of_users as p where cardinality($2::text[]) > 0 and p.proname = any ($6::text[])
  union all
  select 9, format('function %s is about rows of %s', p.oid::regprocedure, t.name)
    from altered as t join of_users as p on t.reltype = any (p.proargtypes) where t.is_widened
  union all
  select 10, format('a handler may read view %s, which may show the rows', c.oid::regclass)
    from pg_class as c where cardinality($2::text[]) > 0 and c.relkind in ('v', 'm', 'f') and c.relname = any ($7::text[])
      and c.relnamespace not in ('pg_catalog'::regnamespace::oid, 'information_schema'::regnamespace::oid)
  union all
  -- Defaults, generated columns, checks and expressions of indexes call functions, which may read whole rows of any table.
  select 12, format('function %s, which a default, a check or an index of %s calls, may see the rows', p.oid::regprocedure, c.relname)
    from of_users as p join pg_depend as d on d.refclassid = 'pg_proc'::regclass and d.refobjid = p.oid
      left join pg_attrdef as f on d.classid = 'pg_attrdef'::regclass and f.oid = d.objid
      left join pg_constraint as k on d.classid = 'pg_constraint'::regclass and k.oid = d.objid
      left join pg_index as i on d.classid = 'pg_class'::regclass and i.indexrelid = d.objid
      join pg_class as c on c.oid = coalesce(f.adrelid, k.conrelid, i.indrelid)
    where cardinality($2::text[]) > 0 and (c.relname = any ($7::text[]) or c.relname = any ($9::text[]))
  union all
  select 11, format('a handler may use operator %s, whose function may see the rows', o.oid::regoperator)
    from pg_operator as o where cardinality($2::text[]) > 0 and o.oprnamespace <> 'pg_catalog'::regnamespace::oid
      and exists (select from unnest($8::text[]) as h (text) where strpos(h.text, o.oprname) > 0)
      and not exists (select from pg_depend as d
        where d.classid = 'pg_operator'::regclass and d.objid = o.oid and d.deptype = 'e')
) as all_reasons
order by place, reason limit 1
