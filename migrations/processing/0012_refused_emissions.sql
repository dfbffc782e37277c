-- Emissions that the event store refuses, each by itself, and what operators do about those that are pending.
-- Oldest program: 10

-- How often the event store has refused an emission, with which code, and when the last time was. While `attempts` is 0,
-- `last_error` says what keeps the relay from moving it.
alter table :"schema".emissions add column if not exists attempts integer not null default 0;
alter table :"schema".emissions add column if not exists sqlstate text;
alter table :"schema".emissions add column if not exists tried_at timestamptz;
-- When one that was refused is tried again. `due_at` stays what the reactor asked for.
alter table :"schema".emissions add column if not exists next_try_at timestamptz;

-- What is to be moved next, of each reactor: emissions that were put off do not stand in the way of the others.
drop index if exists :"schema".emissions_due_idx;
create index if not exists emissions_next_idx on :"schema".emissions (reactor, (coalesce(next_try_at, due_at)), id);

-- Emits an event at a later time, from the transaction of the batch on. With a key it can be cancelled, and takes the
-- place of an earlier one by that key.
--
-- The table of events may be in another database, and a statement is planned as a whole. So the one that names that table
-- stands alone, and is not reached there.
create or replace function :"schema".emit_at(
  type text, aggregate_id uuid, body jsonb, at timestamptz, key text default null
) returns void
language plpgsql
set search_path = :"schema", pg_temp
as $$
declare
  emission record;
begin
  if emit_at.at is null then
    raise exception using errcode = 'ES004', message = format('%s is emitted at no time: it is null', emit_at.type);
  end if;
  emission := begin_emission(emit_at.type);
  if emission.uuid is null then
    return;
  end if;
  if current_setting('espd.outbox', true) is distinct from 'on' then
    -- One that has been moved into the store is not emitted again.
    perform from events as e where e.uuid = emission.uuid;
    if found then
      return;
    end if;
  end if;
  perform keep_emission(
    emission.uuid, emission.metadata, emit_at.type, emit_at.aggregate_id, emit_at.body, emit_at.at, emit_at.key);
end
$$;

-- What operators do is recorded. Which actions there are is known where they are written; a list here would have to be
-- repeated by every migration that adds one. The positions of `cancel_emissions` and `retry_emissions` are ids of emissions.
alter table :"schema".operator_log drop constraint if exists operator_log_action_check;
alter table :"schema".operator_log add constraint operator_log_action_check check (action ~ '^[a-z_]+$');

-- Removes pending emissions of a reactor for good, and records who did it. What is null selects nothing. Returns how many
-- there were. It runs as its owner: no operator needs a right on the tables themselves.
create or replace function :"schema".cancel_emissions(
  operator text, reactor text, id bigint default null, key text default null, type text default null,
  only_refused boolean default false
) returns bigint
language plpgsql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  cancelled bigint;
begin
  with gone as (
    delete from emissions as e
    where e.reactor = reactor and (id is null or e.id = id) and (key is null or e.key = key)
      and (type is null or e.type = type) and (not only_refused or e.attempts > 0)
    returning e.partition, e.id
  ), logged as (
    insert into operator_log (operator, action, processor, partition, from_position, to_position)
    select operator, 'cancel_emissions', reactor, g.partition, min(g.id), max(g.id) from gone as g group by g.partition
  )
  select count(*) into cancelled from gone;
  return cancelled;
end
$$;

-- Has refused emissions of a reactor tried again at once, and records who asked. Returns how many there are.
create or replace function :"schema".retry_emissions(
  operator text, reactor text, id bigint default null, key text default null, type text default null
) returns bigint
language plpgsql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  requested bigint;
begin
  with again as (
    update emissions as e set next_try_at = clock_timestamp()
    where e.reactor = reactor and (id is null or e.id = id) and (key is null or e.key = key)
      and (type is null or e.type = type) and e.attempts > 0
    returning e.partition, e.id
  ), logged as (
    insert into operator_log (operator, action, processor, partition, from_position, to_position)
    select operator, 'retry_emissions', reactor, a.partition, min(a.id), max(a.id) from again as a group by a.partition
  )
  select count(*) into requested from again;
  return requested;
end
$$;

revoke all on function :"schema".cancel_emissions from public;
revoke all on function :"schema".retry_emissions from public;
