-- Oldest program: 10
--
-- A projector can be synchronous: its handlers run in the statement that inserts an event, in the transaction of whoever appends
-- it. Then a trigger on the table of events calls them, once for a statement, with the events that it has inserted. There is no
-- trigger where there is no such projector.
--
-- Each event is handled once: what is there when the trigger is made is handled by batches before, and nobody can insert
-- meanwhile, because making it locks the table against writers; every later event meets the trigger. Whether a trigger is there
-- is a question of the catalog, which no snapshot hides, so that also holds for transactions that began earlier. The tracker
-- says that the projector is synchronous, and batches only move its position: at or below the settled horizon all is handled.
--
-- `aggregate_order`: appends do not wait for one another; the events of one aggregate come in their order.
-- `total_order`: appends take turns, from before they draw their ids to their commit, so events come in the order of their ids.
alter table :"schema".trackers add column if not exists synchronous text
  check (synchronous in ('aggregate_order', 'total_order'));

-- Holds appends back until the one before has ended: a trigger before each statement that inserts events.
create or replace function :"schema".take_turn() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_xact_lock(hashtextextended('espd: turns of ' || tg_table_schema || '.' || tg_table_name, 0));
  return null;
end
$$;

-- Whether the events of a projector are handled when they are inserted.
create or replace function :"schema".is_synchronous(processor text, version integer, partition integer) returns boolean
language sql
set search_path = :"schema", pg_temp
set row_security = off
as $$
  select exists (select from trackers as t
    where t.name = is_synchronous.processor and t.version = is_synchronous.version
      and t.partition = is_synchronous.partition and t.synchronous is not null)
$$;

-- Keeps everybody from inserting events to the end of the transaction, once those that do have ended, and returns the last event; 0
-- where there is none. Null, without any lock, where the projector is not to become synchronous now: its claim is no longer
-- valid, it is paused or has failed, or events are set aside for it.
create or replace function :"schema".hold_appends(
  processor text, version integer, partition integer, epoch bigint
) returns bigint
language plpgsql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
begin
  if not exists (select from trackers as t
      where t.name = processor and t.version = version and t.partition = partition and t.epoch = epoch
        and t.synchronous is null and t.paused_at is null and t.failed_at is null and t.diverged is null)
    or exists (select from dead_letters as d where d.processor = processor and d.version = version)
  then
    return null;
  end if;
  execute format('lock table %s in share row exclusive mode', format('%I.events', current_schema()));
  return coalesce((select max(e.id) from events as e), 0);
end
$$;

-- The names of the triggers of a synchronous projector: the one that calls its handlers, the one that takes turns.
create or replace function :"schema".synchronous_triggers(
  processor text, version integer, out handling name, out turns name
)
language sql immutable
set search_path = pg_catalog, pg_temp
as $$ select processor || '_v' || version, processor || '_v' || version || '_t' $$;

-- Makes a projector synchronous that has handled every event, in the transaction of `hold_appends`. `handlers` is the function in
-- espd's schema that handles the events that a statement has inserted.
create or replace function :"schema".begin_synchronous(
  processor text, version integer, partition integer, epoch bigint, ordering text, handlers text
) returns void
language plpgsql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  events constant text := format('%I.events', current_schema());
  triggers record := synchronous_triggers(processor, version);
  left_over name;
begin
  for left_over in
    select t.tgname from pg_trigger as t
    where t.tgrelid = events::regclass and t.tgname in (triggers.handling, triggers.turns)
  loop
    execute format('drop trigger %I on %s', left_over, events);
  end loop;
  execute format('create trigger %I after insert on %s referencing new table as "Inserted events of espd"
                  for each statement execute function %I.%I()', triggers.handling, events, current_schema(), handlers);
  -- Also for sessions that take their events for those of a replica.
  execute format('alter table %s enable always trigger %I', events, triggers.handling);
  if ordering = 'total_order' then
    execute format('create trigger %I before insert on %s for each statement execute function %I.take_turn()',
                   triggers.turns, events, current_schema());
    execute format('alter table %s enable always trigger %I', events, triggers.turns);
  end if;
  update trackers as t set synchronous = ordering
    where t.name = processor and t.version = version and t.partition = partition and t.epoch = epoch;
  if not found then
    raise exception 'the claim of % is no longer valid', processor;
  end if;
end
$$;

-- Takes the triggers of a projector away, once nobody inserts events any more, and returns the last event, which it has handled as all
-- before it. Waits for five seconds at most. A trigger that cannot be dropped at once, because somebody reads events at this moment,
-- stays, disabled.
create or replace function :"schema".drop_synchronous_triggers(
  processor text, version integer, out last_id bigint, out last_uuid uuid
)
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  events constant text := format('%I.events', current_schema());
  triggers record := synchronous_triggers(processor, version);
  ids constant regclass := pg_get_serial_sequence(events, 'id');
  deadline constant timestamptz := clock_timestamp() + interval '1 second';
  one name;
begin
  begin
    if current_setting('lock_timeout') in ('0', '30s') then
      perform set_config('lock_timeout', '5s', true);
    end if;
    execute format('lock table %s in share row exclusive mode', events);
  exception when lock_not_available then
    raise exception using errcode = '55P03',
      message = format('%s is synchronous, and a transaction that appends has not ended in time: try again', processor);
  end;
  -- Whoever has drawn an id and not inserted its event yet would insert it behind the last one, where nobody looks for it.
  while exists (select from pg_locks as l
      where l.locktype = 'relation' and l.relation = ids and l.mode = 'RowExclusiveLock' and l.granted
        and l.database = (select d.oid from pg_database as d where d.datname = current_database())
        and l.pid is distinct from pg_backend_pid())
  loop
    if clock_timestamp() > deadline then
      raise exception using errcode = '55P03',
        message = format('%s is synchronous, and a transaction has drawn the id of an event that it has not inserted: try again', processor);
    end if;
    perform pg_sleep(0.01);
  end loop;
  foreach one in array array[triggers.handling, triggers.turns] loop
    if exists (select from pg_trigger as t where t.tgrelid = events::regclass and t.tgname = one) then
      begin
        execute format('lock table %s in access exclusive mode nowait', events);
        execute format('drop trigger %I on %s', one, events);
      exception when lock_not_available then
        execute format('alter table %s disable trigger %I', events, one);
      end;
    end if;
  end loop;
  select e.id, e.uuid into last_id, last_uuid from events as e order by e.id desc limit 1;
end
$$;

-- Keeps a tracker and the triggers of its projector in step, whatever statement changes the tracker: a synchronous projector becomes
-- an asynchronous one that has handled every event when it is paused, reset, renamed or dropped, or `synchronous` is taken away. And
-- a batch of a program that does not know of synchronous projectors moves no position, because it would have handled
-- events for the second time.
create or replace function :"schema".follow_synchronous() returns trigger
language plpgsql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
declare
  is_reset constant boolean := tg_op = 'UPDATE' and new.epoch <> old.epoch and new.position <> old.position;
  last record;
begin
  if tg_op = 'DELETE' then
    perform drop_synchronous_triggers(old.name, old.version);
    return old;
  end if;
  if new.synchronous is not null and not is_reset and not (old.paused_at is null and new.paused_at is not null)
    and (new.name, new.version, new.partition) = (old.name, old.version, old.partition)
  then
    if new.position <> old.position and current_setting('espd.synchronous', true) is distinct from 'on' then
      raise exception using errcode = '57ES1', message =
        old.name || ' is synchronous, and this program does not know that: only a newer one can run it';
    end if;
    return new;
  end if;
  last := drop_synchronous_triggers(old.name, old.version);
  new.synchronous := null;
  if not is_reset then
    -- The owner claims the tracker again, and sees what it is now.
    new.epoch := greatest(new.epoch, old.epoch + 1);
    if last.last_id > new.position then
      new.position := last.last_id;
      new.witness_at := last.last_id;
      new.witness_id := last.last_id;
      new.witness_uuid := last.last_uuid;
    end if;
  end if;
  return new;
end
$$;

drop trigger if exists follow_synchronous on :"schema".trackers;
create trigger follow_synchronous before update on :"schema".trackers for each row
when (old.synchronous is not null) execute function :"schema".follow_synchronous();
drop trigger if exists forget_synchronous on :"schema".trackers;
create trigger forget_synchronous before delete on :"schema".trackers for each row
when (old.synchronous is not null) execute function :"schema".follow_synchronous();

revoke execute on function :"schema".hold_appends, :"schema".begin_synchronous from public;

-- As before, but for the tables of synchronous projectors: a batch that emits an event writes them, by the trigger.
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
