-- Oldest program: 10
--
-- A version that is built beside the serving one handles events that the serving one has handled, some of them many times: for a
-- dry run, for each verification. So what it writes outside of its own schema would be written again each time; and what it reads
-- of the tables of the serving version was made by other handlers than its own. A batch of it that does so does not commit.
create or replace function :"schema".refuse_beyond(processor text) returns void
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
set jit = off
as $$
#variable_conflict use_variable
declare
  live constant text := split_part(processor, '$', 1);
  reached record;
begin
  -- Whoever reads or writes a table holds a lock on it to the end of the transaction.
  with locked as materialized (
    select l.relation, bool_or(l.mode in ('RowExclusiveLock', 'AccessExclusiveLock')) as is_written
    from pg_locks as l
    where l.locktype = 'relation' and l.pid = pg_backend_pid() and l.granted
      and l.database = (select d.oid from pg_database as d where d.datname = current_database())
    group by l.relation
  )
  select format('%I.%I', n.nspname, c.relname) as name, l.is_written into reached
    from locked as l join pg_class as c on c.oid = l.relation join pg_namespace as n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'm', 'f') and n.nspname !~ '^pg_'
      and n.nspname not in (select t.table_schema from projection_tables as t where t.processor = processor)
      and (l.is_written and n.nspname <> current_schema()
           or c.oid in (select o.oid from owned_relations as o where o.processor = live and o.oid is not null))
    order by l.is_written desc, name limit 1;
  if reached.is_written then
    raise exception using errcode = 'ES006',
      message = format('the batch has written table %s, which %s does not declare: each build and each verification would write '
        'it again, so nothing of it is committed', reached.name, live),
      hint = format('Declare the table under [projector.tables] of %s, or have a reactor write it.', live);
  elsif found then
    raise exception using errcode = 'ES006',
      message = format('the batch has read table %s of the version of %s that serves, whose rows other handlers have made',
        reached.name, live),
      hint = 'Declare the table in this version as well, or have the handler need what is in the event alone.';
  end if;
end
$$;

-- As before, and what a version beside the serving one must not do. One that has served before (orders$1) goes on where it was.
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
  if processor ~ '\$[a-z]' then
    perform refuse_beyond(processor);
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

-- Agrees that the version which was built and compared goes live, whatever differs. Returns which version that is; null where there is
-- none: nobody agrees to what nobody has seen.
create or replace function :"schema".approve_rebuild(operator text, processor text) returns integer
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  approved integer;
begin
  update rebuilds as r set approved_at = clock_timestamp(), approved_by = operator
    where r.processor = processor and r.state in ('verified', 'differs')
    returning r.version into approved;
  if approved is not null then
    update build_progress as b set blocked_because = null, remedy = null where b.tracker = processor || '$next';
    perform log_act(operator, 'approve_rebuild', processor, 0, null, null, jsonb_build_object('version', approved));
  end if;
  return approved;
end
$$;
