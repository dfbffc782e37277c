-- Oldest program: 10
--
-- A processor's tables are made from events by that processor alone: rows that another one has written or removed would be
-- wrong after its next reset, and nobody would know. So a batch that has written a table of another processor does not
-- commit, however it has done so: in a handler's own statement, in `execute`, a function, a trigger, or by the cascade of a
-- foreign key.

-- The tables that processors own, with their partitions. `oid` is null where there is no such table, and `changed` says which
-- transaction has written its entry in the catalog.
create or replace view :"schema".owned_relations as
  with recursive owned as (
    select t.processor, t.table_schema || '.' || t.table_name as name, c.oid, c.xmin as changed, c.relhassubclass
    from :"schema".projection_tables as t
    left join (pg_namespace as n join pg_class as c on c.relnamespace = n.oid)
      on n.nspname = t.table_schema and c.relname = t.table_name
    union all
    select o.processor, o.name, c.oid, c.xmin, c.relhassubclass
    from owned as o join pg_inherits as i on i.inhparent = o.oid join pg_class as c on c.oid = i.inhrelid
    where o.relhassubclass
  )
  select o.processor, o.name, o.oid, o.changed from owned as o;

-- Raises ES006 where the transaction has written a table that another processor than this one owns.
--
-- Whoever writes a table holds a lock on it to the end of the transaction, so the locks of this session tell exactly. But
-- looking at locks holds up everybody who wants one, so it is done for the first batch of a claim in a session, and whenever
-- something else hints at a write: rows that the transaction counts for such a table (together with those that the
-- session has not reported yet), a table that was truncated (its entry in the catalog is newer than the transaction), or a
-- table that is not there. Where nothing is counted, the locks are looked at for each batch.
create or replace function :"schema".refuse_foreign_writes(processor text, epoch bigint) returns void
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
-- It has a few rows to look at, each by an index.
set jit = off
set plan_cache_mode = force_generic_plan
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_variable
declare
  -- The claim whose first batch was examined in this session.
  examined constant text := 'espd.examined_' || processor;
  written record;
begin
  if current_setting(examined, true) is not distinct from epoch::text and current_setting('track_counts') = 'on'
    and not exists (select from owned_relations as o
      where o.processor <> processor and (o.oid is null or age(o.changed) <= 0
        or pg_stat_get_xact_tuples_inserted(o.oid) + pg_stat_get_xact_tuples_updated(o.oid)
           + pg_stat_get_xact_tuples_deleted(o.oid) > 0))
  then
    return;
  end if;
  with locked as materialized (
    select l.relation, l.mode from pg_locks as l
    where l.locktype = 'relation' and l.pid = pg_backend_pid() and l.granted
      and l.mode in ('RowExclusiveLock', 'AccessExclusiveLock')
      and l.database = (select d.oid from pg_database as d where d.datname = current_database())
  )
  select o.name, o.processor as owner, o.oid is null as is_gone into written
    from owned_relations as o
    where o.processor <> processor and (o.oid in (select l.relation from locked as l)
      or o.oid is null and exists (select from locked as l where l.mode = 'AccessExclusiveLock'
        and not exists (select from pg_class as c where c.oid = l.relation)))
    order by o.name limit 1;
  if found then
    raise exception using errcode = 'ES006',
      message = format('the batch has %s table %s, which belongs to processor %s: nothing of it is committed',
        case when written.is_gone then 'dropped' else 'written' end, written.name, written.owner),
      hint = format('%s may change its own tables only: by its statements, and by functions, triggers and foreign keys that '
        'they reach. Reading is allowed: reads = ["..."].', processor);
  end if;
  perform set_config(examined, epoch::text, false);
end
$$;

comment on function :"schema".refuse_foreign_writes is 'Keeps a batch from committing that has written tables of other processors.';
