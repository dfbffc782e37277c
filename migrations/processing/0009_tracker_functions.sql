-- What a batch does to a tracker, written once. Every side calls these functions: the functions that are compiled from
-- handlers in SQL, and the daemon for handlers outside of the database. They keep no state of a session, so they work
-- behind a transaction pooler.

-- Locks a tracker to the end of the transaction. Returns no row where the tracker is not as the caller says: its claim is
-- no longer valid (`epoch`), its position is another one (`at_position`), or an operator has paused it. What is null does
-- not matter.
--
-- `parking` says whether a later event may be a dead letter, or have to wait behind one. Events up to `silent_until` were
-- handled before a reset. With `dead_letter` this row is locked as well, and both say what is true of its event;
-- `silent_until` is null where an operator has discarded the dead letter.
create or replace function :"schema".lock_tracker(
  processor   text,
  version     integer,
  partition   integer,
  epoch       bigint  default null,
  at_position bigint  default null,
  dead_letter bigint  default null,
  even_paused boolean default false
) returns table (locked_position bigint, silent_until bigint, parking boolean)
language plpgsql
set search_path = :"schema", pg_temp
as $$
#variable_conflict use_variable
begin
  select t.position, t.silent_until into locked_position, silent_until
    from trackers as t
    where t.name = processor and t.version = version and t.partition = partition
      and (epoch is null or t.epoch = epoch)
      and (at_position is null or t.position = at_position)
      and (even_paused or t.paused_at is null)
    for update;
  if not found then
    return;
  end if;
  if dead_letter is null then
    parking := exists (select from dead_letters as d
        where d.processor = processor and d.version = version and d.partition = partition and d.blocks)
      or exists (select from dead_letters as d
        where d.processor = processor and d.version = version and d.partition = partition
          and d.event_id > locked_position);
  else
    parking := false;
    -- Its event was never handled, unless it became a dead letter when it was met again after a reset.
    select case when d.replaying then dead_letter else 0 end into silent_until
      from dead_letters as d
      where d.processor = processor and d.version = version and d.partition = partition and d.event_id = dead_letter
      for update;
  end if;
  return next;
end
$$;

-- Moves the position of a tracker, lets its lease run on, and ends an outage, because whoever commits is alive and has
-- what it needs. Returns false where the claim is no longer valid or the position is another one.
--
-- `failing`: the event behind the new position has failed. It is the same event as before where none was handled, and its
-- attempts are counted on. With `last_error`, an event waits for another attempt while others go on: after `attempts`
-- attempts, in `retry_in`. A null `caught_up` or `rate` leaves what is there.
create or replace function :"schema".advance_tracker(
  processor     text,
  version       integer,
  partition     integer,
  epoch         bigint,
  from_position bigint,
  to_position   bigint,
  handled       integer,
  lease         interval,
  caught_up     boolean  default null,
  rate          real     default null,
  failing       boolean  default false,
  attempts      integer  default 0,
  last_error    jsonb    default null,
  retry_in      interval default null
) returns boolean
language plpgsql
set search_path = :"schema", pg_temp
as $$
#variable_conflict use_variable
declare
  same_failure constant boolean := failing and handled = 0 and last_error is null;
begin
  if handled = 0 then
    -- No effect depends on this commit: if it is lost in a crash, the same events are passed again.
    perform set_config('synchronous_commit', 'off', true);
  end if;
  update trackers as t
    set position = to_position, handled = t.handled + handled,
        caught_up = coalesce(caught_up, t.caught_up), rate = coalesce(rate, t.rate),
        lease_until = clock_timestamp() + lease, updated_at = clock_timestamp(), outage = null,
        attempts = case when same_failure then t.attempts else attempts end,
        last_error = case when same_failure then t.last_error
                          else last_error || jsonb_build_object('at', clock_timestamp()) end,
        next_retry_at = clock_timestamp() + retry_in
    where t.name = processor and t.version = version and t.partition = partition
      and t.epoch = epoch and t.position = from_position and to_position >= t.position;
  return found;
end
$$;

-- Sets an event aside: one that could not be handled, or one that waits behind such an event (`reason`). The failure names the
-- event; for one that waits, it says no more. With `blocks`, later events of its aggregate wait behind it. The caller has
-- locked the tracker and moves the position, or has passed the event already.
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
as $$
#variable_conflict use_variable
begin
  insert into dead_letters
    (processor, version, partition, event_id, event_uuid, event_type, aggregate_id, reason, blocks, failure, attempts,
     replaying)
  select processor, version, partition, e.event_id, e.event_uuid, e.event_type, e.aggregate_id, reason, blocks,
    case reason when 'failed' then failure || jsonb_build_object('at', clock_timestamp()) end, attempts,
    e.event_id <= t.silent_until
  from jsonb_populate_record(null::dead_letters, failure) as e, trackers as t
  where t.name = processor and t.version = version and t.partition = partition
  on conflict on constraint dead_letters_pkey do update
    set reason = excluded.reason, blocks = excluded.blocks, failure = excluded.failure, attempts = excluded.attempts;
end
$$;
