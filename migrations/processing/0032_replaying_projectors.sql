-- Oldest program: 10
--
-- A projector has effects as well, since handlers in Rust may act after their commits: a reset has it handle again what it has handled
-- before, and repeats no effect of that, as for a reactor. Otherwise as before (0017).
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
        silent_until = case when not repeat_effects then least(greatest(t.silent_until, t.position), common) else 0 end,
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
