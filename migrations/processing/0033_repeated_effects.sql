-- Oldest program: 10
--
-- A reactor whose effects are repeated after a reset meets its events in the order in which it met them before, but much faster. What
-- it emits for later under a key is held until it is where it was: the event that cancels or replaces it may be still to come, while
-- its time is over.
alter table :"schema".trackers add column if not exists repeated_until bigint not null default 0;

-- As before (0032), and remembers up to which position effects are repeated.
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
        silent_until = case when not repeat_effects then least(greatest(t.silent_until, t.position), common) else 0 end,
        repeated_until = case when repeat_effects then least(greatest(t.repeated_until, t.position), common) else 0 end,
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

-- Emits an event at a later time, from the transaction of the batch on. With a key it can be cancelled, and takes the
-- place of an earlier one by that key.
--
-- The table of events may be in another database, and a statement is planned as a whole. So those that name that table
-- stand alone, and are not reached there.
create or replace function :"schema".emit_at(
  type text, aggregate_id uuid, body jsonb, at timestamptz, key text default null, metadata jsonb default null
) returns void
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
declare
  emission record;
  cause    uuid;
begin
  if emit_at.at is null then
    raise exception using errcode = 'ES004', message = format('%s is emitted at no time: it is null', emit_at.type);
  end if;
  emission := begin_emission(emit_at.type, emit_at.metadata);
  if emission.uuid is null then
    return;
  end if;
  if current_setting('espd.outbox', true) is distinct from 'on' then
    -- One that has been moved into the store is not emitted again. But what gave way to it before a reset gives way again.
    select e.causation_id into cause from events as e where e.uuid = emission.uuid;
    if found then
      delete from emissions as e
        where e.reactor = current_setting('espd.reactor') and e.key = emit_at.key and e.uuid <> emission.uuid
          and (select c.id from events as c where c.uuid = e.causation_id)
              <= (select c.id from events as c where c.uuid = cause);
      return;
    end if;
  end if;
  perform keep_emission(
    emission.uuid, emission.metadata, emit_at.type, emit_at.aggregate_id, emit_at.body, emit_at.at, emit_at.key);
end
$$;
