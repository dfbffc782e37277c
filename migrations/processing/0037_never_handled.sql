-- Oldest program: 10
--
-- Those at or below `silent_until` that were never handled, because they were dead letters: what a handler does about them outside of
-- the database is not done yet, although a reset, or a build beside the version that serves, has it meet them again. In order; null:
-- there are none.
alter table :"schema".trackers add column if not exists never_handled bigint[];

-- As before (0009), but what was never handled is not met again.
create or replace function :"schema".set_aside(
  processor text,
  version   integer,
  partition integer,
  failure   jsonb,
  attempts  integer,
  blocks    boolean,
  reason    text default 'failed'
) returns void
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
begin
  insert into dead_letters
    (processor, version, partition, event_id, event_uuid, event_type, aggregate_id, reason, blocks, failure, attempts,
     replaying)
  select processor, version, partition, e.event_id, e.event_uuid, e.event_type, e.aggregate_id, reason, blocks,
    case reason when 'failed' then failure || jsonb_build_object('at', clock_timestamp()) end, attempts,
    e.event_id <= t.silent_until and not e.event_id = any (coalesce(t.never_handled, '{}'))
  from jsonb_populate_record(null::dead_letters, failure) as e, trackers as t
  where t.name = processor and t.version = version and t.partition = partition
  on conflict on constraint dead_letters_pkey do update
    set reason = excluded.reason, blocks = excluded.blocks, failure = excluded.failure, attempts = excluded.attempts;
end
$$;

-- As before (0033), but dead letters of a projector were never handled; and a store that has gone back once more since a daemon has
-- recorded how it differs (`last_common`, which is looked up again) has less in common.
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
  never_handled bigint[];
begin
  -- A batch that is under way ends first.
  select t.* into tracker from trackers as t
    where t.name = processor and t.version = version and t.partition = partition for update;
  if not found then
    return false;
  end if;
  common := least((tracker.diverged ->> 'last_common')::bigint, last_common);
  if tracker.kind = 'projector' and not repeat_effects then
    -- Those that it was to meet before another reset, and those that are dead letters now.
    never_handled := array(
      select n from unnest(tracker.never_handled) as u (n) where n > tracker.position
      union
      select d.event_id from dead_letters as d
        where d.processor = processor and d.version = version and d.partition = partition
          and d.event_id > to_position and not d.replaying
      order by 1);
  end if;
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
        never_handled = nullif(never_handled, '{}'),
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

-- As before (0017), but what was found now counts more than what a daemon has recorded: the store may have gone back again since.
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
  select t.position, coalesce(divergence, t.diverged) into stands_at, difference
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

-- Gives a projector that no daemon runs, and everything that refers to it, another name; ends every claim. Returns `false`,
-- and does nothing, if there is no such projector, or the name is taken: by a processor that has handled something, or has tables. A
-- tracker without both is there as soon as a daemon declares the new name, and gives way.
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
  if stands_at is null or new_name = processor then
    return false;
  end if;
  perform from trackers as t where t.name = new_name for update;
  if exists (select from trackers as t
             where t.name = new_name
               and (t.kind <> 'projector' or t.handled > 0
                    or exists (select from declarations as d where d.processor = t.name)
                    or exists (select from projection_tables as p where p.processor = t.name)
                    or exists (select from dead_letters as d where d.processor = t.name))) then
    return false;
  end if;
  -- Whoever has it claims it again, and goes on with what it is then.
  delete from signs_of_life as s where s.name = new_name;
  delete from trackers as t where t.name = new_name;
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
