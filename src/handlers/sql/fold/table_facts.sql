-- read_table_facts
-- What the catalog says about a table: what could see whether a batch is folded, and what `fingerprint` is made of.
select c.oid::bigint as oid,
  array_remove(array[
    case when c.relkind <> 'r' or c.relispartition then format('%s is no plain table', c.relname) end,
    case when c.relhassubclass then format('%s has tables that inherit from it', c.relname) end,
    case when exists (select from pg_inherits as i where i.inhrelid = c.oid) then format('%s inherits from another table', c.relname) end,
    case when c.relhasrules then format('there is a rule on %s', c.relname) end,
    case when c.relrowsecurity then format('row security is on for %s', c.relname) end,
    case when c.relreplident not in ('d', 'f') then format('the replica identity of %s is not its primary key', c.relname) end,
    case when c.relnatts > 200 then format('%s has more than 200 columns', c.relname) end,
    case when (select count(*) from pg_index as i where i.indrelid = c.oid and i.indisprimary and i.indimmediate and i.indisvalid) <> 1
      then format('%s has no primary key that is checked at once', c.relname) end
  ], null)
  || array(select format('trigger %s on %s', t.tgname, c.relname) from pg_trigger as t where t.tgrelid = c.oid and not t.tgisinternal order by 1)
  || array(select format('%s %s on %s', case k.contype when 'c' then 'check constraint' when 'f' then 'foreign key'
        when 'u' then 'unique constraint' when 'x' then 'exclusion constraint' else 'constraint' end, k.conname, c.relname)
      from pg_constraint as k where k.conrelid = c.oid and k.contype not in ('p', 'n') order by 1)
  || array(select format('foreign key %s of %s', k.conname, k.conrelid::regclass)
      from pg_constraint as k where k.confrelid = c.oid and k.contype = 'f' order by 1)
  || case when exists (select from pg_trigger as t where t.tgrelid = c.oid and t.tgisinternal)
      and not exists (select from pg_constraint as k where k.contype = 'f' and c.oid in (k.conrelid, k.confrelid))
      then array[format('a constraint on %s has triggers', c.relname)] else '{}' end
  || array(select format('%s %s on %s', case when i.indisunique then 'unique index' when i.indisexclusion then 'exclusion index'
        when i.indexprs is not null then 'index on an expression' when i.indpred is not null then 'partial index'
        else 'index' end, x.relname, c.relname)
      from pg_index as i join pg_class as x on x.oid = i.indexrelid join pg_am as m on m.oid = x.relam
      where i.indrelid = c.oid and not i.indisprimary
        and not exists (select from pg_constraint as k where k.conindid = i.indexrelid and k.conrelid = c.oid)
        and (i.indisunique or i.indisexclusion or i.indexprs is not null or i.indpred is not null
          or m.amname not in ('btree', 'hash', 'brin')
          or exists (select from unnest(i.indclass::oid[]) as o(opclass) where o.opclass >= 16384)) order by 1)
  || array(select format('%s column %s of %s', case when a.attgenerated <> '' then 'generated' else 'identity' end, a.attname, c.relname)
      from pg_attribute as a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        and (a.attgenerated <> '' or a.attidentity <> '') order by 1) as obstacles,
  {{fingerprint}} as fingerprint
from pg_class as c
where c.oid = to_regclass($1)
