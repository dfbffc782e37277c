-- Operators act through these functions alone: each does one act and records it, with the operator that is named and the
-- login that has really asked. They run with the rights of their owner, so an operator needs no right on the tables, and
-- nothing can be done past the log. Which role may call which one, migrations/roles.sql says. The functions that have no
-- `security definer` (log_act, reset_tracker, change_emissions) are parts of others, and of no use to somebody without
-- rights on the tables.
-- Oldest program: 10

-- Who was connected, whatever name the program gives; and what else there is to know about the act.
alter table :"schema".operator_log add column if not exists login text;
alter table :"schema".operator_log alter column login set default session_user;
alter table :"schema".operator_log add column if not exists detail jsonb;
-- Not every act is about one processor.
alter table :"schema".operator_log alter column processor drop not null;
alter table :"schema".operator_log alter column partition drop not null;
alter table :"schema".operator_log alter column from_position drop not null;
alter table :"schema".operator_log alter column to_position drop not null;

create or replace function :"schema".log_act(
  operator text, action text, processor text, partition integer, from_position bigint, to_position bigint,
  detail jsonb default null
) returns void
language sql
set search_path = :"schema", pg_temp
set row_security = off
as $$
  insert into operator_log (operator, action, processor, partition, from_position, to_position, detail)
    values (operator, action, processor, partition, from_position, to_position, jsonb_strip_nulls(detail))
$$;

-- Pauses a processor, which keeps its owner. Returns whether it was running.
create or replace function :"schema".pause_processor(
  operator text, processor text, version integer, partition integer
) returns boolean
language plpgsql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  stands_at bigint;
begin
  update trackers as t set paused_at = clock_timestamp(), paused_by = operator
    where t.name = processor and t.version = version and t.partition = partition and t.paused_at is null
    returning t.position into stands_at;
  if not found then
    return false;
  end if;
  perform log_act(operator, 'pause', processor, partition, stands_at, stands_at);
  return true;
end
$$;

-- Lets a paused or failed processor continue. Returns whether it was paused or failed. Where it had stopped, or waited for
-- the end of an outage, its claim ends, so that the runner prepares it again and forgets what it has counted. Otherwise the
-- claim goes on, and so does the count.
create or replace function :"schema".resume_processor(
  operator text, processor text, version integer, partition integer
) returns boolean
language plpgsql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  stands_at bigint;
begin
  update trackers as t
    set paused_at = null, paused_by = null, failed_at = null, outage = null,
        next_retry_at = case when t.attempts > 0 then clock_timestamp() end,
        attempts = case when t.failed_at is null then t.attempts else 0 end,
        epoch = t.epoch + case when t.failed_at is null and t.outage is null then 0 else 1 end,
        lease_until = case when t.failed_at is null and t.outage is null then t.lease_until end
    where t.name = processor and t.version = version and t.partition = partition
      and (t.paused_at is not null or t.failed_at is not null)
    returning t.position into stands_at;
  if not found then
    return false;
  end if;
  perform log_act(operator, 'resume', processor, partition, stands_at, stands_at);
  return true;
end
$$;

-- Has the failing event tried now, with attempts that are counted anew. Returns whether there was a failure or an outage,
-- and no pause. The claim ends, so that the runner prepares the processor again.
create or replace function :"schema".retry_processor(
  operator text, processor text, version integer, partition integer
) returns boolean
language plpgsql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  stands_at bigint;
begin
  update trackers as t
    set next_retry_at = case when t.attempts > 0 or t.failed_at is not null then clock_timestamp() end,
        failed_at = null, outage = null, attempts = 0, epoch = t.epoch + 1, lease_until = null
    where t.name = processor and t.version = version and t.partition = partition
      and t.paused_at is null and (t.attempts > 0 or t.failed_at is not null or t.outage is not null)
    returning t.position into stands_at;
  if not found then
    return false;
  end if;
  perform log_act(operator, 'retry', processor, partition, stands_at, stands_at);
  return true;
end
$$;

-- Lets a processor continue from its position although its store is not the one that it has followed. `divergence` says
-- how the store differs where no daemon has recorded that. The witness is the last event at or below the position in the
-- store as it is. Returns whether there was a difference.
create or replace function :"schema".accept_history(
  operator text, processor text, version integer, partition integer, divergence jsonb,
  witness_at bigint, witness_id bigint, witness_uuid uuid
) returns boolean
language plpgsql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  stands_at bigint;
  difference jsonb;
begin
  select t.position, coalesce(t.diverged, divergence) into stands_at, difference
    from trackers as t
    where t.name = processor and t.version = version and t.partition = partition for update;
  if difference is null then
    return false;
  end if;
  delete from witnesses as w
    where w.processor = processor and w.version = version and w.partition = partition
      and w.id > (difference ->> 'last_common')::bigint;
  update trackers as t
    set diverged = null, witness_at = witness_at, witness_id = witness_id, witness_uuid = witness_uuid,
        events_partitions = null, epoch = t.epoch + 1, lease_until = null, updated_at = clock_timestamp()
    where t.name = processor and t.version = version and t.partition = partition;
  perform log_act(operator, 'accept_history', processor, partition, stands_at, stands_at, difference);
  return true;
end
$$;

-- Sets the position back (or forward), ends every claim, and records who did it. Returns whether there was a tracker.
--
-- `rebuilt_as`: the version of tables that have been made anew; null where the tables stay. `last_common`: events beyond it
-- are not in the store as the processor has handled them; null where they are, or where a daemon has recorded that already.
create or replace function :"schema".reset_tracker(
  operator text, processor text, version integer, partition integer, to_position bigint, rebuilt_as integer,
  repeat_effects boolean, last_common bigint, witness_at bigint, witness_id bigint, witness_uuid uuid
) returns boolean
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  tracker trackers;
  common bigint;
begin
  -- A batch that is under way ends first.
  select t.* into tracker from trackers as t
    where t.name = processor and t.version = version and t.partition = partition for update;
  if not found then
    return false;
  end if;
  common := coalesce((tracker.diverged ->> 'last_common')::bigint, last_common);
  -- The processor meets these events again. A reactor that suppresses its effects leaves them alone, although it has not
  -- handled them, so it keeps its dead letters.
  delete from dead_letters as d
    where d.processor = processor and d.version = version and d.partition = partition
      and d.event_id > least(to_position, common)
      and (tracker.kind = 'projector' or repeat_effects or d.event_id > common);
  -- A delivery beyond the position stays delivered, unless its effects are to be repeated.
  delete from deliveries as d
    where d.processor = processor and d.version = version and d.partition = partition
      and d.event_id > least(to_position, common)
      and (repeat_effects or not d.is_done or d.event_id > common);
  delete from witnesses as w
    where w.processor = processor and w.version = version and w.partition = partition
      and w.id > least(to_position, common);
  update trackers as t
    set version = coalesce(rebuilt_as, t.version), position = to_position, epoch = t.epoch + 1,
        owner = null, owner_label = null, lease_until = null,
        silent_until = case when t.kind = 'reactor' and not repeat_effects
                            then least(greatest(t.silent_until, t.position), common) else 0 end,
        diverged = null, witness_at = witness_at, witness_id = witness_id, witness_uuid = witness_uuid,
        events_partitions = null,
        handlers = case when rebuilt_as is null then t.handlers end,
        handler_change = case when rebuilt_as is null then t.handler_change end,
        handled = case when rebuilt_as is null then t.handled else 0 end, caught_up = false, attempts = 0,
        last_error = null, next_retry_at = null, failed_at = null, updated_at = clock_timestamp()
    where t.name = processor and t.version = version and t.partition = partition;
  perform log_act(operator, 'reset', processor, partition, tracker.position, to_position, jsonb_build_object(
    'rebuilt_as', rebuilt_as, 'repeat_effects', nullif(repeat_effects, false), 'last_common', common));
  return true;
end
$$;

-- Moves the position of a processor. Its tables stay as they are.
create or replace function :"schema".reset_processor(
  operator text, processor text, version integer, partition integer, to_position bigint, repeat_effects boolean,
  last_common bigint, witness_at bigint, witness_id bigint, witness_uuid uuid
) returns boolean
language sql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
  select reset_tracker(operator, processor, version, partition, to_position, null, repeat_effects, last_common,
    witness_at, witness_id, witness_uuid)
$$;

-- Records that the tables of a processor have been made anew, as version `rebuilt_as`, in this transaction.
create or replace function :"schema".rebuild_processor(
  operator text, processor text, version integer, partition integer, to_position bigint, rebuilt_as integer,
  repeat_effects boolean, last_common bigint, witness_at bigint, witness_id bigint, witness_uuid uuid
) returns boolean
language sql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
  select reset_tracker(operator, processor, version, partition, to_position, rebuilt_as, repeat_effects, last_common,
    witness_at, witness_id, witness_uuid)
$$;

-- Asks the owner of a processor to handle these dead letters again. Returns when, and which of them there are.
create or replace function :"schema".retry_dead_letters(
  operator text, processor text, versions integer[], partitions integer[], events bigint[],
  out requested_at timestamptz, out requested bigint[]
)
language plpgsql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
begin
  requested_at := clock_timestamp();
  with again as (
    update dead_letters as d set retry_requested_at = requested_at
    from unnest(versions, partitions, events) as s (version, partition, event_id)
    where d.processor = processor and d.version = s.version and d.partition = s.partition and d.event_id = s.event_id
    returning d.partition, d.event_id
  ), logged as (
    insert into operator_log (operator, action, processor, partition, from_position, to_position, detail)
    select operator, 'retry_dead_letters', processor, a.partition, min(a.event_id), max(a.event_id),
      jsonb_build_object('count', count(*))
    from again as a group by a.partition
  )
  select coalesce(array_agg(a.event_id order by a.event_id), '{}') into requested from again as a;
end
$$;

-- Removes these dead letters of a processor for good. Returns how many there were.
create or replace function :"schema".discard_dead_letters(
  operator text, processor text, versions integer[], partitions integer[], events bigint[]
) returns bigint
language plpgsql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  discarded bigint;
begin
  with gone as (
    delete from dead_letters as d
    using unnest(versions, partitions, events) as s (version, partition, event_id)
    where d.processor = processor and d.version = s.version and d.partition = s.partition and d.event_id = s.event_id
    returning d.partition, d.event_id
  ), logged as (
    insert into operator_log (operator, action, processor, partition, from_position, to_position, detail)
    select operator, 'discard_dead_letters', processor, g.partition, min(g.event_id), max(g.event_id),
      jsonb_build_object('count', count(*))
    from gone as g group by g.partition
  )
  select count(*) into discarded from gone;
  return discarded;
end
$$;

-- Removes pending emissions of a reactor (`cancel_emissions`), or has those that were refused tried again at once
-- (`retry_emissions`). What is null selects nothing. Returns how many there are. The positions in the log are ids of
-- emissions.
create or replace function :"schema".change_emissions(
  operator text, action text, reactor text, id bigint, key text, type text, only_refused boolean
) returns bigint
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  number bigint;
begin
  with meant as (
    select e.id, e.partition from emissions as e
    where e.reactor = reactor and (id is null or e.id = id) and (key is null or e.key = key)
      and (type is null or e.type = type) and (not only_refused or e.attempts > 0)
    for update
  ), gone as (
    delete from emissions as e using meant as m where action = 'cancel_emissions' and e.id = m.id
  ), again as (
    update emissions as e set next_try_at = clock_timestamp()
    from meant as m where action = 'retry_emissions' and e.id = m.id
  ), logged as (
    insert into operator_log (operator, action, processor, partition, from_position, to_position, detail)
    select operator, action, reactor, m.partition, min(m.id), max(m.id),
      jsonb_strip_nulls(jsonb_build_object('count', count(*), 'key', key, 'type', type))
    from meant as m group by m.partition
  )
  select count(*) into number from meant;
  return number;
end
$$;

create or replace function :"schema".cancel_emissions(
  operator text, reactor text, id bigint default null, key text default null, type text default null,
  only_refused boolean default false
) returns bigint
language sql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$ select change_emissions(operator, 'cancel_emissions', reactor, id, key, type, only_refused) $$;

create or replace function :"schema".retry_emissions(
  operator text, reactor text, id bigint default null, key text default null, type text default null
) returns bigint
language sql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$ select change_emissions(operator, 'retry_emissions', reactor, id, key, type, true) $$;

-- Asks these daemons to read their configuration again. Returns the requests.
create or replace function :"schema".request_reload(operator text, owners uuid[]) returns setof bigint
language sql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
  with requested as (
    insert into reload_requests (owner, operator) select o, operator from unnest(owners) as o returning id, owner
  ), logged as (
    insert into operator_log (operator, action, detail)
    select operator, 'reload', jsonb_build_object('request', r.id, 'daemon', r.owner) from requested as r
  )
  select r.id from requested as r order by r.id
$$;

-- Locks the tracker of a processor that no daemon runs to the end of the transaction. Returns its position; null where
-- there is no tracker. Raises 55006 while a daemon runs it.
create or replace function :"schema".lock_unowned(processor text, version integer, partition integer) returns bigint
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  tracker trackers;
begin
  select t.* into tracker from trackers as t
    where t.name = processor and t.version = version and t.partition = partition for update;
  if tracker.lease_until > clock_timestamp() then
    raise exception using errcode = '55006',
      message = format('%s is run by %s', processor, coalesce(tracker.owner_label, tracker.owner::text));
  end if;
  return tracker.position;
end
$$;

-- Removes the tracker of a processor that no daemon runs, with everything that refers to it. Returns whether there was one.
-- The tables are dropped by whoever owns them, in the same transaction.
create or replace function :"schema".drop_processor(
  operator text, processor text, version integer, partition integer
) returns boolean
language plpgsql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  stood_at constant bigint := lock_unowned(processor, version, partition);
  letters bigint;
  pending bigint;
begin
  if stood_at is null then
    return false;
  end if;
  delete from dead_letters as d
    where d.processor = processor and d.version = version and d.partition = partition;
  get diagnostics letters = row_count;
  delete from emissions as e where e.reactor = processor and e.partition = partition;
  get diagnostics pending = row_count;
  delete from deliveries as d
    where d.processor = processor and d.version = version and d.partition = partition;
  delete from signs_of_life as s
    where s.name = processor and s.version = version and s.partition = partition;
  delete from carried_over as c where c.processor = processor;
  delete from trackers as t where t.name = processor and t.version = version and t.partition = partition;
  perform log_act(operator, 'drop', processor, partition, stood_at, stood_at,
    jsonb_build_object('version', version, 'dead_letters', letters, 'emissions', pending));
  return true;
end
$$;

-- Gives a projector that no daemon runs, and everything that refers to it, another name; ends every claim. Returns `false`,
-- and does nothing, if the name is taken or there is no such projector.
create or replace function :"schema".rename_processor(
  operator text, processor text, version integer, partition integer, new_name text
) returns boolean
language plpgsql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  stands_at constant bigint := lock_unowned(processor, version, partition);
begin
  if stands_at is null or exists (select from trackers as t where t.name = new_name) then
    return false;
  end if;
  update dead_letters as d set processor = new_name
    where d.processor = processor and d.version = version and d.partition = partition;
  update deliveries as d set processor = new_name
    where d.processor = processor and d.version = version and d.partition = partition;
  update witnesses as w set processor = new_name
    where w.processor = processor and w.version = version and w.partition = partition;
  update declarations as d set processor = new_name where d.processor = processor;
  update projection_tables as p set processor = new_name where p.processor = processor;
  update carried_over as c set processor = new_name where c.processor = processor;
  delete from signs_of_life as s
    where s.name = processor and s.version = version and s.partition = partition;
  update trackers as t
    set name = new_name, epoch = t.epoch + 1, owner = null, owner_label = null, lease_until = null
    where t.name = processor and t.version = version and t.partition = partition;
  perform log_act(operator, 'rename', new_name, partition, stands_at, stands_at, jsonb_build_object('from', processor));
  return true;
end
$$;

revoke execute on function :"schema".pause_processor, :"schema".resume_processor, :"schema".retry_processor,
  :"schema".accept_history, :"schema".reset_processor, :"schema".rebuild_processor, :"schema".retry_dead_letters,
  :"schema".discard_dead_letters, :"schema".request_reload, :"schema".drop_processor, :"schema".rename_processor
  from public;
