-- What a workflow sets aside holds its instance back: later events of the same instance wait behind it, whatever their aggregate is.
-- Time-outs are in a stream of their own, and had overtaken the event that was set aside.
-- Oldest program: 10

-- The instance of a workflow that the event belongs to; null: later events of its aggregate wait.
alter table :"schema".dead_letters add column if not exists instance text;
create index if not exists dead_letters_instance_idx
  on :"schema".dead_letters (processor, version, partition, instance, event_id) where instance is not null;

-- As before (0037), and takes note of the instance that a failure names.
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
    (processor, version, partition, event_id, event_uuid, event_type, aggregate_id, instance, reason, blocks, failure, attempts,
     replaying)
  select processor, version, partition, e.event_id, e.event_uuid, e.event_type, e.aggregate_id, e.instance, reason, blocks,
    case reason when 'failed' then failure || jsonb_build_object('at', clock_timestamp()) end, attempts,
    e.event_id <= t.silent_until and not e.event_id = any (coalesce(t.never_handled, '{}'))
  from jsonb_populate_record(null::dead_letters, failure) as e, trackers as t
  where t.name = processor and t.version = version and t.partition = partition
  on conflict on constraint dead_letters_pkey do update
    set reason = excluded.reason, blocks = excluded.blocks, failure = excluded.failure, attempts = excluded.attempts,
        instance = coalesce(excluded.instance, dead_letters.instance);
end
$$;

-- Sets an event aside that must not be handled now, because an earlier one of its instance is a dead letter that later ones wait
-- behind. Of one that an operator has set aside, or that has ended its worker, no instance is known: then it is its aggregate, which
-- the instance is mostly named after. Returns whether that is so. The caller has locked the tracker.
create or replace function :"schema".set_aside_behind_instance(
  processor text, version int, partition int, event_id bigint, event_uuid uuid, event_type text, aggregate_id text,
  instance text
) returns boolean
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  first record;
begin
  select coalesce(d.instance, d.aggregate_id) as line into first from dead_letters as d
    where d.processor = processor and d.version = version and d.partition = partition
      and d.event_id < event_id and d.blocks
      and (d.instance = instance or d.instance is null and d.aggregate_id in (aggregate_id, instance))
    order by d.event_id limit 1;
  if not found then
    return false;
  end if;
  perform set_aside(processor, version, partition,
    jsonb_build_object('event_id', event_id, 'event_uuid', event_uuid, 'event_type', event_type,
      'aggregate_id', aggregate_id, 'instance', first.line),
    attempts => 0, blocks => true, reason => 'waiting');
  return true;
end
$$;

-- As before (0014), and the next one is that of the same instance, where one is known.
create or replace function :"schema".remove_dead_letter(
  processor text, version int, partition int, event_id bigint
) returns void
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  removed dead_letters;
begin
  if current_setting('synchronous_commit') = 'off' then
    perform set_config('synchronous_commit', 'local', true);
  end if;
  delete from dead_letters as d
    where d.processor = processor and d.version = version and d.partition = partition and d.event_id = event_id
    returning * into removed;
  if removed.blocks and removed.retry_requested_at is not null then
    update dead_letters as d set retry_requested_at = removed.retry_requested_at
      where d.processor = processor and d.version = version and d.partition = partition and d.reason = 'waiting'
        and d.retry_requested_at is null
        and d.event_id = (
          select min(n.event_id) from dead_letters as n
          where n.processor = processor and n.version = version and n.partition = partition
            and coalesce(n.instance, n.aggregate_id) = coalesce(removed.instance, removed.aggregate_id)
            and n.event_id > event_id and n.blocks);
  end if;
end
$$;

-- The records of steps go with the dead letter that they are of, whoever removes it: one that was discarded had left them.
create or replace function :"schema".forget_steps_of_dead_letter() returns trigger
language plpgsql security definer set search_path = :"schema", pg_temp set row_security = off
as $$
begin
  delete from workflow_steps as s where s.workflow = old.processor and s.event_uuid = old.event_uuid;
  return null;
end
$$;

drop trigger if exists forget_steps_of_dead_letter on :"schema".dead_letters;
create trigger forget_steps_of_dead_letter after delete on :"schema".dead_letters for each row
execute function :"schema".forget_steps_of_dead_letter();
