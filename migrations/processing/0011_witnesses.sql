-- Oldest program: 10
--
-- A store that goes back, by a failover that loses a tail, a restore or a truncation, must not be taken for the store that
-- was followed. So each tracker remembers a witness: which event was the last one at or below a position (`witness_at`)
-- when that was passed, whatever its type. A batch commits only where the store still says the same.
alter table :"schema".trackers add column if not exists witness_at bigint;
alter table :"schema".trackers add column if not exists witness_id bigint;
alter table :"schema".trackers add column if not exists witness_uuid uuid;
-- The partitions of the table of events that were there when it was looked at last, by their object ids, each with the last
-- event that it had then. Null where the table has none, or nobody has looked.
alter table :"schema".trackers add column if not exists events_partitions jsonb;
-- How the store differs from what the tracker remembers. While it is not null, nothing is handled: only an operator, by a
-- reset or by accepting the store as it is, makes it null again.
alter table :"schema".trackers add column if not exists diverged jsonb;

-- Earlier witnesses of each tracker, the more of them the nearer they are: they tell how far a store that has gone back is
-- still the one that was followed.
create table if not exists :"schema".witnesses (
  processor text        not null,
  version   integer     not null,
  partition integer     not null,
  id        bigint      not null,
  uuid      uuid        not null,
  noted_at  timestamptz not null default clock_timestamp(),
  primary key (processor, version, partition, id)
);

alter table :"schema".operator_log drop constraint if exists operator_log_action_check;
alter table :"schema".operator_log add constraint operator_log_action_check
  check (action in ('reset', 'pause', 'resume', 'retry', 'retry_dead_letters', 'discard_dead_letters',
                    'accept_history'));

-- A reset that makes the tables of another version gives the tracker that version. What refers to the tracker follows.
create or replace function :"schema".follow_version() returns trigger
language plpgsql
set search_path = :"schema", pg_temp
as $$
begin
  update dead_letters as d set version = new.version
    where d.processor = old.name and d.version = old.version and d.partition = old.partition;
  update deliveries as d set version = new.version
    where d.processor = old.name and d.version = old.version and d.partition = old.partition;
  update witnesses as w set version = new.version
    where w.processor = old.name and w.version = old.version and w.partition = old.partition;
  delete from signs_of_life as s
    where s.name = old.name and s.version = old.version and s.partition = old.partition;
  return null;
end
$$;

-- Without a tracker, nothing is known about tables: a processor that is declared again makes its tables first.
create or replace function :"schema".forget_declaration() returns trigger
language plpgsql
set search_path = :"schema", pg_temp
as $$
begin
  delete from witnesses as w
    where w.processor = old.name and w.version = old.version and w.partition = old.partition;
  delete from declarations as d
    where d.processor = old.name and d.version = old.version
      and not exists (select from trackers as t where t.name = old.name and t.version = old.version);
  return null;
end
$$;

-- Locks a tracker to the end of the transaction. Returns no row where the tracker is not as the caller says: its claim is
-- no longer valid (`epoch`), its position is another one (`at_position`), or nothing is to be handled, because an operator
-- has paused the processor. What is null does not matter. Where the store has diverged, it raises 57ES1: programs of before
-- take that for an outage and try again ever more seldom; where they got no row, they would claim again at once, for ever.
--
-- `parking` says whether a later event may be a dead letter, or have to wait behind one. Events up to `silent_until` were
-- handled before a reset. With `dead_letter` this row is locked as well, and both say what is true of its event;
-- `silent_until` is null where an operator has discarded the dead letter. The witness is what the store has to say still.
drop function if exists :"schema".lock_tracker(text, integer, integer, bigint, bigint, bigint, boolean);
create function :"schema".lock_tracker(
  processor   text,
  version     integer,
  partition   integer,
  epoch       bigint  default null,
  at_position bigint  default null,
  dead_letter bigint  default null,
  even_paused boolean default false
) returns table (
  locked_position bigint, silent_until bigint, parking boolean, witness_at bigint, witness_id bigint, witness_uuid uuid,
  events_partitions bigint[]
)
language plpgsql
set search_path = :"schema", pg_temp
as $$
#variable_conflict use_variable
declare
  has_diverged boolean;
begin
  select t.position, t.silent_until, t.witness_at, t.witness_id, t.witness_uuid,
      case when t.events_partitions is not null then
        array(select p::bigint from jsonb_object_keys(t.events_partitions) as p order by p::bigint) end,
      t.diverged is not null
    into locked_position, silent_until, witness_at, witness_id, witness_uuid, events_partitions, has_diverged
    from trackers as t
    where t.name = processor and t.version = version and t.partition = partition
      and (epoch is null or t.epoch = epoch)
      and (at_position is null or t.position = at_position)
      and (even_paused or t.paused_at is null)
    for update;
  if not found then
    return;
  end if;
  if has_diverged and not even_paused then
    raise exception using errcode = '57ES1', message =
      'the event store is not the one that ' || processor || ' has followed: the present espctl status says what to do';
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

-- Notes an earlier witness, and thins those out that were noted before: of those at a distance of 1,000, about every
-- 200th is kept, of those at a million about every 200,000th. There are hardly ever more than 128.
create or replace function :"schema".log_witness(
  processor text, version integer, partition integer, id bigint, uuid uuid
) returns void
language plpgsql
set search_path = :"schema", pg_temp
as $$
#variable_conflict use_variable
begin
  insert into witnesses as w (processor, version, partition, id, uuid)
    values (processor, version, partition, id, uuid)
    on conflict on constraint witnesses_pkey do update set uuid = excluded.uuid, noted_at = excluded.noted_at;
  if (select count(*) from witnesses as w
      where w.processor = processor and w.version = version and w.partition = partition) >= 128 then
    delete from witnesses as w
      using (
        select n.id, row_number() over (
          partition by floor(3 * ln((id - n.id + 1)::float8) / ln(2::float8)) order by n.id desc) as place
        from witnesses as n
        where n.processor = processor and n.version = version and n.partition = partition and n.id < id
      ) as of_distance
      where w.processor = processor and w.version = version and w.partition = partition
        and w.id = of_distance.id and of_distance.place > 1;
  end if;
end
$$;

-- Moves the position of a tracker, lets its lease run on, and ends an outage, because whoever commits is alive and has
-- what it needs. Returns false where the claim is no longer valid or the position is another one.
--
-- `failing`: the event behind the new position has failed. It is the same event as before where none was handled, and its
-- attempts are counted on. With `last_error`, an event waits for another attempt while others go on: after `attempts`
-- attempts, in `retry_in`. A null `caught_up` or `rate` leaves what is there.
--
-- The witness: in the store that was read, `witness_id` and `witness_uuid` were the last event at or below `witness_at`; the
-- id is 0 where there was none.
-- Without one, the tracker keeps the one that it has.
drop function if exists :"schema".advance_tracker(
  text, integer, integer, bigint, bigint, bigint, integer, interval, boolean, real, boolean, integer, jsonb, interval);
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
  retry_in      interval default null,
  witness_at    bigint   default null,
  witness_id    bigint   default null,
  witness_uuid  uuid     default null
) returns boolean
language plpgsql
set search_path = :"schema", pg_temp
as $$
#variable_conflict use_variable
declare
  same_failure constant boolean := failing and handled = 0 and last_error is null;
begin
  if current_setting('synchronous_commit') = 'off' then
    -- What an owner has done elsewhere, and what it remembers, depends on this commit. A stricter setting stays.
    perform set_config('synchronous_commit', 'local', true);
  end if;
  update trackers as t
    set position = to_position, handled = t.handled + handled,
        caught_up = coalesce(caught_up, t.caught_up), rate = coalesce(rate, t.rate),
        lease_until = clock_timestamp() + lease, updated_at = clock_timestamp(), outage = null,
        attempts = case when same_failure then t.attempts else attempts end,
        last_error = case when same_failure then t.last_error
                          else last_error || jsonb_build_object('at', clock_timestamp()) end,
        next_retry_at = clock_timestamp() + retry_in,
        witness_at = case when witness_id is null then t.witness_at else witness_at end,
        witness_id = coalesce(witness_id, t.witness_id), witness_uuid = coalesce(witness_uuid, t.witness_uuid)
    where t.name = processor and t.version = version and t.partition = partition
      and t.epoch = epoch and t.position = from_position and to_position >= t.position;
  if not found then
    return false;
  end if;
  if witness_id > 0 then
    perform log_witness(processor, version, partition, witness_id, witness_uuid);
  end if;
  return true;
end
$$;

-- Gives a tracker its witness where the position has been moved already, or has not moved at all.
create or replace function :"schema".note_witness(
  processor text, version integer, partition integer, epoch bigint, witness_at bigint, witness_id bigint, witness_uuid uuid
) returns void
language plpgsql
set search_path = :"schema", pg_temp
as $$
#variable_conflict use_variable
begin
  update trackers as t
    set witness_at = witness_at, witness_id = witness_id, witness_uuid = witness_uuid
    where t.name = processor and t.version = version and t.partition = partition and t.epoch = epoch;
  if found and witness_id > 0 then
    perform log_witness(processor, version, partition, witness_id, witness_uuid);
  end if;
end
$$;
