-- list_dependents
-- What is on the tables of a processor, and what depends on them: everything that `drop table ... cascade` takes away.
-- `statement` makes it again on a table of the same name; null where that is for whoever has made it. Rights are made
-- again whether or not there are any. `apart`: it is not a part of one of the tables. The parameters are objects without tables that espd has
-- made as well, by class and id: what depends on them is listed, and they are not.
with recursive owned as (
  select c.oid
  from {schema}.projection_tables as p
    join pg_namespace as n on n.nspname = p.table_schema
    join pg_class as c on c.relnamespace = n.oid and c.relname = p.table_name
  where p.processor = {processor}{on_tables}
), own (classid, objid) as (
  select * from unnest({classes}::oid[], {objects}::oid[])
), closure (classid, objid) as (
  (select 'pg_class'::regclass::oid, oid from owned union all select o.classid, o.objid from own as o)
  union
  select linked.classid, linked.objid
  from closure as c cross join lateral (
    select d.classid, d.objid from pg_depend as d
    where d.refclassid = c.classid and d.refobjid = c.objid and d.deptype in ('n', 'a', 'i', 'P', 'S')
    union all
    -- A view is a rule that it cannot be without.
    select d.refclassid, d.refobjid from pg_depend as d
    where d.classid = c.classid and d.objid = c.objid and d.deptype = 'i'
  ) as linked
), relations as (
  select r.oid, format('%I.%I', n.nspname, r.relname) as name, r.relkind, r.relowner, r.relacl, r.reloptions,
    r.relrowsecurity, r.relforcerowsecurity, r.relreplident, r.relpersistence, r.oid in (select oid from owned) as is_owned,
    -- A partition is a table of the processor as well.
    r.oid in (select oid from owned) or r.relispartition and exists (select from pg_partition_ancestors(r.oid) as a
      where a.relid in (select oid from owned)) as is_part
  from closure as c
    join pg_class as r on c.classid = 'pg_class'::regclass and r.oid = c.objid
    join pg_namespace as n on n.oid = r.relnamespace
  where r.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
), objects as (
  select c.classid, c.objid, case i.type when 'table constraint' then 'constraint' else i.type end as type, i.identity,
    case c.classid
      when 'pg_constraint'::regclass then (select conrelid from pg_constraint where oid = c.objid)
      when 'pg_trigger'::regclass then (select tgrelid from pg_trigger where oid = c.objid)
      when 'pg_policy'::regclass then (select polrelid from pg_policy where oid = c.objid)
      when 'pg_attrdef'::regclass then (select adrelid from pg_attrdef where oid = c.objid)
      when 'pg_publication_rel'::regclass then (select prrelid from pg_publication_rel where oid = c.objid)
      when 'pg_rewrite'::regclass then (select ev_class from pg_rewrite where oid = c.objid)
      when 'pg_statistic_ext'::regclass then (select stxrelid from pg_statistic_ext where oid = c.objid)
      when 'pg_class'::regclass then coalesce(
        (select indrelid from pg_index where indexrelid = c.objid),
        (select d.refobjid from pg_depend as d join pg_class as s on s.oid = d.objid
         where d.classid = 'pg_class'::regclass and d.objid = c.objid and s.relkind = 'S' and d.deptype in ('a', 'i')
           and d.refclassid = 'pg_class'::regclass limit 1),
        c.objid)
    end as relation
  from closure as c cross join lateral pg_identify_object(c.classid, c.objid, 0) as i
  where coalesce(i.schema, '') <> 'pg_toast' and (c.classid, c.objid) not in (select o.classid, o.objid from own as o)
    -- Not the types of rows and arrays, but those that others have made of them.
    and (c.classid <> 'pg_type'::regclass or exists (select from pg_type where oid = c.objid and typtype in ('d', 'r')))
    and not (c.classid = 'pg_class'::regclass and c.objid in (select oid from owned))
    and not (c.classid = 'pg_trigger'::regclass and exists (select from pg_trigger where oid = c.objid and tgisinternal))
    and not (c.classid = 'pg_rewrite'::regclass
             and exists (select from pg_rewrite where oid = c.objid and rulename = '_RETURN'))
    and not (c.classid = 'pg_constraint'::regclass
             and exists (select from pg_constraint where oid = c.objid and contype = 'n'))
    and not (c.classid = 'pg_class'::regclass
             and exists (select from pg_constraint where conindid = c.objid and contype in ('p', 'u', 'x')))
), grants as (
  select r.name, r.relkind, a.privilege_type, a.is_grantable, a.grantee, null::name as column_name
  from relations as r cross join lateral aclexplode(r.relacl) as a where a.grantee <> r.relowner
  union all
  select r.name, r.relkind, a.privilege_type, a.is_grantable, a.grantee, t.attname
  from relations as r join pg_attribute as t on t.attrelid = r.oid and t.attnum > 0 and not t.attisdropped
    cross join lateral aclexplode(t.attacl) as a
  where a.grantee <> r.relowner
), columns as (
  select r.name as relation, format('%s.%I', r.name, t.attname) as name, quote_ident(t.attname) as quoted, t.attstattarget,
    case when t.attstorage <> y.typstorage then
      case t.attstorage when 'p' then 'plain' when 'e' then 'external' when 'm' then 'main' else 'extended' end end as storage,
    -- There from PostgreSQL 14 on.
    case to_jsonb(t)->>'attcompression' when 'p' then 'pglz' when 'l' then 'lz4' end as compression, t.attoptions
  from relations as r
    join pg_attribute as t on t.attrelid = r.oid and t.attnum > 0 and not t.attisdropped
    join pg_type as y on y.oid = t.atttypid
  where r.is_part
), indexes as (
  select r.name as relation, format('%I.%I', n.nspname, x.relname) as name, quote_ident(x.relname) as quoted, x.oid,
    x.reloptions, x.reltablespace, i.indisclustered
  from relations as r
    join pg_index as i on i.indrelid = r.oid
    join pg_class as x on x.oid = i.indexrelid
    join pg_namespace as n on n.oid = x.relnamespace
  where r.is_part
), withheld as (
  -- What owners have by default, and have taken from themselves.
  select r.name, r.relkind, r.relowner, string_agg(lower(d.privilege_type), ', ' order by d.privilege_type) as privileges
  from relations as r
    cross join lateral aclexplode(acldefault((case r.relkind when 'S' then 's' else 'r' end)::"char", r.relowner)) as d
  where r.relacl is not null and d.grantee = r.relowner
    and not exists (select from aclexplode(r.relacl) as a
                    where a.grantee = r.relowner and a.privilege_type = d.privilege_type)
  group by r.name, r.relkind, r.relowner
), items (place, item, statement, apart, is_right) as (
  select 1, format('column %s.%I', r.name, t.attname), null, false, false
  from relations as r join pg_attribute as t on t.attrelid = r.oid and t.attnum > 0 and not t.attisdropped
  where r.is_owned
  union all
  select 2, format('option %s of %s', option, r.name), format('alter table %s set (%s)', r.name, option), false, false
  from relations as r cross join lateral unnest(r.reloptions) as option where r.is_part
  union all
  select 2, format('toast option %s of %s', option, r.name), format('alter table %s set (toast.%s)', r.name, option), false, false
  from relations as r join pg_class as c on c.oid = r.oid join pg_class as t on t.oid = c.reltoastrelid
    cross join lateral unnest(t.reloptions) as option where r.is_part
  union all
  -- What takes long is for whoever has done it.
  select 2, format('tablespace %I of %s', s.spcname, r.name), null, false, false
  from relations as r join pg_class as c on c.oid = r.oid
    join pg_database as b on b.datname = current_database()
    join pg_tablespace as s on s.oid = coalesce(nullif(c.reltablespace, 0), b.dattablespace)
  where r.is_part
  union all
  select 5, format('tablespace %I of index %s', s.spcname, x.name), null, false, false
  from indexes as x join pg_tablespace as s on s.oid = x.reltablespace
  union all
  select 2, format('not null of column %s.%I', r.name, t.attname), null, false, false
  from relations as r join pg_attribute as t on t.attrelid = r.oid and t.attnum > 0 and not t.attisdropped
  where r.is_part and t.attnotnull
  union all
  select 8, format('security label of table %s for %I', r.name, l.provider),
    format('security label for %I on table %s is %L', l.provider, r.name, l.label), false, false
  from relations as r join pg_seclabel as l on l.classoid = 'pg_class'::regclass and l.objoid = r.oid and l.objsubid = 0
  where r.is_part
  union all
  select 8, format('security label of column %s.%I for %I', r.name, t.attname, l.provider),
    format('security label for %I on column %s.%I is %L', l.provider, r.name, t.attname, l.label), false, false
  from relations as r join pg_seclabel as l on l.classoid = 'pg_class'::regclass and l.objoid = r.oid
    join pg_attribute as t on t.attrelid = r.oid and t.attnum = l.objsubid
  where r.is_part and t.attnum > 0
  union all
  select 2, format('statistics target %s of column %s', c.attstattarget, c.name),
    format('alter table %s alter column %s set statistics %s', c.relation, c.quoted, c.attstattarget), false, false
  from columns as c where c.attstattarget >= 0
  union all
  select 2, format('storage %s of column %s', c.storage, c.name),
    format('alter table %s alter column %s set storage %s', c.relation, c.quoted, c.storage), false, false
  from columns as c where c.storage is not null
  union all
  select 2, format('compression %s of column %s', c.compression, c.name),
    format('alter table %s alter column %s set compression %s', c.relation, c.quoted, c.compression), false, false
  from columns as c where c.compression is not null
  union all
  select 2, format('option %s of column %s', option, c.name),
    format('alter table %s alter column %s set (%s)', c.relation, c.quoted, option), false, false
  from columns as c cross join lateral unnest(c.attoptions) as option
  union all
  select 2, format('%s state of %s', state, r.name), format('alter table %s set %s', r.name, state), false, false
  from relations as r
    cross join lateral (select case r.relpersistence when 'u' then 'unlogged' else 'logged' end as state) as s
  where r.is_owned and r.relkind = 'r' and r.relpersistence in ('u', 'p')
  union all
  select 5, format('option %s of index %s', option, x.name), format('alter index %s set (%s)', x.name, option), false, false
  from indexes as x cross join lateral unnest(x.reloptions) as option
  union all
  select 5, format('cluster mark of %s on %s', x.relation, x.name),
    format('alter table %s cluster on %s', x.relation, x.quoted), false, false
  from indexes as x where x.indisclustered
  union all
  select 3, format('row level security of %s', r.name), format('alter table %s enable row level security', r.name),
    false, false
  from relations as r where r.is_part and r.relrowsecurity
  union all
  select 3, format('forced row level security of %s', r.name),
    format('alter table %s force row level security', r.name), false, false
  from relations as r where r.is_part and r.relforcerowsecurity
  union all
  select 4, format('%s %s', o.type, o.identity),
    case o.classid
      when 'pg_policy'::regclass then (
        select format('create policy %I on %s as %s for %s to %s', p.polname, r.name,
            case when p.polpermissive then 'permissive' else 'restrictive' end,
            case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete'
              else 'all' end,
            (select string_agg(case role when 0 then 'public' else quote_ident(pg_get_userbyid(role)) end, ', ')
             from unnest(p.polroles) as role))
          || coalesce(' using (' || pg_get_expr(p.polqual, p.polrelid) || ')', '')
          || coalesce(' with check (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')', '')
        from pg_policy as p join relations as r on r.oid = p.polrelid and r.is_part where p.oid = o.objid)
      when 'pg_publication_rel'::regclass then (
        -- Lists of columns and filters of rows are there from PostgreSQL 15 on.
        select format('alter publication %I add table %s', b.pubname, r.name)
          || case when to_jsonb(m)->>'prattrs' is null then '' else (
               select format(' (%s)', string_agg(quote_ident(named.attname), ', '))
               from jsonb_array_elements_text(to_jsonb(t)->'attnames') as named (attname)) end
          || coalesce(' where (' || (to_jsonb(t)->>'rowfilter') || ')', '')
        from pg_publication_rel as m
          join pg_publication as b on b.oid = m.prpubid
          join relations as r on r.oid = m.prrelid and r.is_part
          join pg_publication_tables as t
            on t.pubname = b.pubname and format('%I.%I', t.schemaname, t.tablename) = r.name
        where m.oid = o.objid)
    end,
    coalesce(o.relation not in (select oid from owned), true), false
  from objects as o
  union all
  select 5, format('replica identity of %s', r.name), format('alter table %s replica identity %s', r.name,
    case r.relreplident when 'f' then 'full' when 'n' then 'nothing'
      else (select 'using index ' || quote_ident(x.relname) from pg_index as i join pg_class as x on x.oid = i.indexrelid
            where i.indrelid = r.oid and i.indisreplident) end), false, false
  from relations as r where r.is_part and r.relreplident <> 'd'
  union all
  -- What was granted is granted again, and nothing else: neither default privileges nor a table that comes back bring back what was
  -- taken away.
  select 6, format('rights on %s', r.name), format(
    'do $do$ declare who text; begin
       for who in select distinct case a.grantee when 0 then ''public'' else quote_ident(pg_get_userbyid(a.grantee)) end
                  from pg_class as c cross join lateral (
                    select g.grantee from aclexplode(c.relacl) as g
                    union all
                    select g.grantee from pg_attribute as t cross join lateral aclexplode(t.attacl) as g where t.attrelid = c.oid) as a
                  where c.oid = to_regclass(%L) and a.grantee <> c.relowner loop
         execute ''revoke all on %s %s from '' || who || '' cascade'';
       end loop;
     end $do$', r.name, case r.relkind when 'S' then 'sequence' else 'table' end, replace(r.name, '''', '''''')), false, true
  from relations as r
  union all
  select 6, format('rights on %s %s', m.type, m.identity), format(
    'do $do$ declare who text; begin
       if to_%s(%L) is null then return; end if;
       for who in select distinct case a.grantee when 0 then ''public'' else quote_ident(pg_get_userbyid(a.grantee)) end
                  from %s as c cross join lateral aclexplode(coalesce(c.%s, acldefault(%L, c.%s))) as a
                  where c.oid = to_%s(%L) and a.grantee <> c.%s loop
         execute ''revoke all on %s %s from '' || who || '' cascade'';
       end loop;
       %s
     end $do$', m.regtype, m.identity, m.catalog, m.acl, m.acltype, m.owner, m.regtype, m.identity, m.owner, m.type,
    replace(m.identity, '''', ''''''), m.granted), false, true
  from (
    select o.*, (
        select string_agg(format('grant %s on %s %s to %s%s;', a.privilege_type, o.type, o.identity,
          case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end,
          case when a.is_grantable then ' with grant option' else '' end), ' ' order by a.grantee, a.privilege_type)
        from aclexplode(o.rights) as a where a.grantee <> o.owned_by) as granted
    from (
      select 'routine' as type, i.identity, 'regprocedure' as regtype, 'pg_proc' as catalog, 'proacl' as acl, 'f' as acltype,
        'proowner' as owner, p.proowner as owned_by, coalesce(p.proacl, acldefault('f', p.proowner)) as rights
      from own as m join pg_proc as p on m.classid = 'pg_proc'::regclass and p.oid = m.objid
        cross join lateral pg_identify_object(m.classid, m.objid, 0) as i
      union all
      select 'type', i.identity, 'regtype', 'pg_type', 'typacl', 'T', 'typowner', y.typowner,
        coalesce(y.typacl, acldefault('T', y.typowner))
      from own as m join pg_type as y on m.classid = 'pg_type'::regclass and y.oid = m.objid and y.typtype in ('e', 'd', 'r', 'c')
        cross join lateral pg_identify_object(m.classid, m.objid, 0) as i) as o
  ) as m
  union all
  select 7, format('%s%s on %s for %s', lower(g.privilege_type), coalesce(' (' || quote_ident(g.column_name) || ')', ''), g.name,
      grantee.name),
    format('grant %s%s on %s %s to %s%s', g.privilege_type, coalesce(' (' || quote_ident(g.column_name) || ')', ''),
      case g.relkind when 'S' then 'sequence' else 'table' end, g.name, grantee.name,
      case when g.is_grantable then ' with grant option' else '' end), false, true
  from grants as g cross join lateral (
    select case g.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(g.grantee)) end as name) as grantee
  union all
  select 9, format('%s on %s taken from its owner %I', w.privileges, w.name, pg_get_userbyid(w.relowner)),
    format('revoke %s on %s %s from %I', w.privileges, case w.relkind when 'S' then 'sequence' else 'table' end, w.name,
      pg_get_userbyid(w.relowner)), false, true
  from withheld as w
  union all
  select 8, format('comment on %s %s', of.type, of.identity),
    format('comment on %s %s is %L', of.type, of.identity, d.description), false, false
  from (
    select 'pg_class'::regclass::oid as classid, r.oid as objid, 0 as objsubid, 'table' as type, r.name as identity
    from relations as r where r.is_part
    union all
    select 'pg_class'::regclass::oid, r.oid, t.attnum, 'column', format('%s.%I', r.name, t.attname)
    from relations as r join pg_attribute as t on t.attrelid = r.oid and t.attnum > 0 and not t.attisdropped
    union all
    select o.classid, o.objid, 0, o.type, o.identity from objects as o
    union all
    -- The index of a key, which is no object of its own above.
    select 'pg_class'::regclass::oid, x.oid, 0, 'index', x.name from indexes as x
    where not exists (select from objects as o where o.classid = 'pg_class'::regclass and o.objid = x.oid)
  ) as of join pg_description as d
    on d.classoid = of.classid and d.objoid = of.objid and d.objsubid = of.objsubid
  union all
  -- Objects without tables have the comments that are made with them; where none is, they get that of the former ones.
  select 8, format('comment on %s %s', i.type, i.identity), format(
    'do $do$ begin
       if exists (select from %1$s as o where o.oid = to_%2$s(%3$L) and obj_description(o.oid, %1$L) is null) then
         execute %4$L;
       end if;
     end $do$', c.relname, m.regtype, i.identity, format('comment on %s %s is %L', i.type, i.identity, d.description)), false, false
  from (
    select o.classid, o.objid, case o.classid when 'pg_proc'::regclass then 'regprocedure' when 'pg_type'::regclass then 'regtype'
      else 'regclass' end as regtype
    from own as o where o.classid in ('pg_proc'::regclass, 'pg_type'::regclass)
      or o.classid = 'pg_class'::regclass and o.objid in (select r.oid from relations as r)
  ) as m join pg_class as c on c.oid = m.classid
    join pg_description as d on d.classoid = m.classid and d.objoid = m.objid and d.objsubid = 0
    cross join lateral pg_identify_object(m.classid, m.objid, 0) as i
)
select item, statement, apart, is_right from items order by place, item
