-- Oldest program: 10
--
-- As before, but where others own many tables, it does not look at each of them for each batch. Then the locks of the session are
-- looked at, which tell exactly what the transaction may have written or dropped; and only what it has locked so is looked up among
-- the tables of others, with the tables that it is a partition of. Where that finds something, the transaction is examined as before.
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
  -- So many tables of others are looked at one by one: of more, the locks are.
  few constant integer := 20;
  -- The claim whose first batch was examined in this session.
  examined constant text := 'espd.examined_' || processor;
  written record;
begin
  if processor ~ '\$[a-z]' then
    perform refuse_beyond(processor);
  end if;
  if exists (select from projection_tables as t where t.processor <> processor offset few) then
    -- An expression of its own: it is prepared for its execution whether it is needed or not.
    if not exists (
      with recursive locked as materialized (
        select l.relation from pg_locks as l
        where l.locktype = 'relation' and l.pid = pg_backend_pid() and l.granted
          and l.mode in ('RowExclusiveLock', 'AccessExclusiveLock')
          and l.database = (select d.oid from pg_database as d where d.datname = current_database())
      ), reached as (
        select l.relation as oid from locked as l
        union
        select i.inhparent from reached as r join pg_inherits as i on i.inhrelid = r.oid
      )
      select from reached as r
        left join (pg_class as c join pg_namespace as n on n.oid = c.relnamespace) on c.oid = r.oid
      where c.oid is null or exists (
        select from projection_tables as t
        where t.table_schema = n.nspname and t.table_name = c.relname and t.processor <> processor
          and not exists (select from trackers as s where s.name = t.processor and s.synchronous is not null)))
    then
      if current_setting(examined, true) is distinct from epoch::text then
        perform set_config(examined, epoch::text, false);
      end if;
      return;
    end if;
  end if;
  if current_setting(examined, true) is not distinct from epoch::text and current_setting('track_counts') = 'on'
    and not exists (select from owned_relations as o
      where o.processor <> processor and (o.oid is null or age(o.changed) <= 0
        or pg_stat_get_xact_tuples_inserted(o.oid) + pg_stat_get_xact_tuples_updated(o.oid)
           + pg_stat_get_xact_tuples_deleted(o.oid) > 0)
        and not exists (select from trackers as t where t.name = o.processor and t.synchronous is not null))
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
      and not exists (select from trackers as t where t.name = o.processor and t.synchronous is not null)
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
