-- Events set aside for one processor, because it could not handle them, or because they must not overtake one of their
-- aggregate that it could not handle. Written in the transaction that moves the position over the event, so an event is
-- either handled, or here, or still to come.
create table if not exists :"schema".dead_letters (
  processor          text        not null,
  partition          integer     not null default 0,
  event_id           bigint      not null,
  event_uuid         uuid        not null,
  event_type         text        not null,
  aggregate_id       uuid        not null,
  -- failed: the processor could not handle it. waiting: an earlier event of its aggregate is here.
  reason             text        not null check (reason in ('failed', 'waiting')),
  -- Whether later events of the aggregate wait behind it (`on_failure = "park"`) or go on (`"skip"`).
  blocks             boolean     not null,
  -- Why it could not be handled the last time; null for one that only waits.
  failure            jsonb,
  attempts           integer     not null default 0,
  set_aside_at       timestamptz not null default clock_timestamp(),
  tried_at           timestamptz,
  -- An operator wants it handled now; the processor's owner does that, in order of the ids.
  retry_requested_at timestamptz,
  -- A reactor had handled it before a reset, and failed only when it met it again: a retry repeats no effects.
  replaying          boolean     not null default false,
  primary key (processor, partition, event_id)
);

-- Whose later events have to wait?
create index if not exists dead_letters_aggregate_idx
  on :"schema".dead_letters (processor, partition, aggregate_id, event_id) where blocks;

create index if not exists dead_letters_retry_idx
  on :"schema".dead_letters (processor, partition, event_id) where retry_requested_at is not null;

-- How many are there, and how old is the oldest? Read for every status.
create index if not exists dead_letters_age_idx on :"schema".dead_letters (processor, partition, set_aside_at);

alter table :"schema".operator_log drop constraint if exists operator_log_action_check;
alter table :"schema".operator_log add constraint operator_log_action_check
  check (action in ('reset', 'pause', 'resume', 'retry', 'retry_dead_letters', 'discard_dead_letters'));

-- Sets an event aside that must not be handled now, because it is a dead letter already, or an earlier event of its
-- aggregate is one that later events wait behind. Returns whether that is so. The caller has locked the tracker.
create or replace function :"schema".set_aside_behind(
  processor text, partition int, event_id bigint, event_uuid uuid, event_type text, aggregate_id uuid
) returns boolean
language plpgsql
set search_path = :"schema", pg_temp
as $$
#variable_conflict use_variable
begin
  if exists (select from dead_letters as d
             where d.processor = processor and d.partition = partition and d.event_id = event_id) then
    return true;
  elsif exists (select from dead_letters as d
                where d.processor = processor and d.partition = partition and d.aggregate_id = aggregate_id
                  and d.event_id < event_id and d.blocks) then
    insert into dead_letters
      (processor, partition, event_id, event_uuid, event_type, aggregate_id, reason, blocks, replaying)
    select processor, partition, event_id, event_uuid, event_type, aggregate_id, 'waiting', true,
      event_id <= t.silent_until
    from trackers as t where t.name = processor and t.partition = partition;
    return true;
  end if;
  return false;
end
$$;

-- Removes a dead letter that was handled again. The next one that only waited behind it follows, also where it was set
-- aside after the retry had been asked for. The caller has locked the tracker.
create or replace function :"schema".remove_dead_letter(processor text, partition int, event_id bigint) returns void
language plpgsql
set search_path = :"schema", pg_temp
as $$
#variable_conflict use_variable
declare
  removed dead_letters;
begin
  delete from dead_letters as d
    where d.processor = processor and d.partition = partition and d.event_id = event_id
    returning * into removed;
  if removed.blocks and removed.retry_requested_at is not null then
    update dead_letters as d set retry_requested_at = removed.retry_requested_at
      where d.processor = processor and d.partition = partition and d.reason = 'waiting'
        and d.retry_requested_at is null
        and d.event_id = (
          select min(n.event_id) from dead_letters as n
          where n.processor = processor and n.partition = partition and n.aggregate_id = removed.aggregate_id
            and n.event_id > event_id and n.blocks);
  end if;
end
$$;
