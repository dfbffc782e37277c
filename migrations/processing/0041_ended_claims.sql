-- An operator's act that ends a claim does not make anybody else the owner. The owner claims again, and what it has under way is still
-- what was last sent: the requests of a webhook go on, and their answers count. So the tracker says how many of its epochs are
-- of such acts; all others are of claims. The lease runs on, so that the owner is the one who claims, unless it is gone.
-- Oldest program: 10
alter table :"schema".trackers add column if not exists ended_claims bigint not null default 0;
-- When an operator last wanted everything that waits tried at once. No other act ends a wait that the receiver of a webhook has asked for.
alter table :"schema".trackers add column if not exists retried_at timestamptz;

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
        ended_claims = t.ended_claims + case when t.failed_at is null and t.outage is null then 0 else 1 end,
        retried_at = clock_timestamp()
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
        failed_at = null, outage = null, attempts = 0, epoch = t.epoch + 1, ended_claims = t.ended_claims + 1,
        retried_at = clock_timestamp()
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

-- Sets an event aside because an operator wants that: one that the processor fails at, with the attempts that it has had, or one that
-- it has not come to. The failure names the event. The position stays where it is: the claim ends, and the next owner passes the event
-- over, as it does with every dead letter. Returns false where the processor is beyond the event. It runs with the rights of its
-- owner: an operator may set an event aside, but write no other dead letter.
create or replace function :"schema".set_aside_by_operator(
  processor text,
  version   integer,
  partition integer,
  failure   jsonb,
  blocks    boolean,
  operator  text
) returns boolean
language plpgsql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  id constant bigint := (failure ->> 'event_id')::bigint;
  tracker trackers;
  failing boolean;
  tried integer;
begin
  -- A batch that is under way ends first.
  select t.* into tracker from trackers as t
    where t.name = processor and t.version = version and t.partition = partition for update;
  if not found or tracker.position >= id
     or exists (select from deliveries as d where d.processor = processor and d.version = version
                  and d.partition = partition and d.event_id = id and d.is_done) then
    return false;
  end if;
  failing := coalesce((tracker.last_error ->> 'event_id')::bigint = id, false);
  -- Of a webhook, several may fail, and the tracker counts the attempts of one.
  select max(d.attempts) into tried from deliveries as d
    where d.processor = processor and d.version = version and d.partition = partition and d.event_id = id;
  perform set_aside(processor, version, partition, failure,
    greatest(tried, case when failing then tracker.attempts end, 0), blocks);
  update trackers as t
    set epoch = t.epoch + 1, ended_claims = t.ended_claims + 1,
        attempts = case when failing then 0 else t.attempts end,
        last_error = case when failing then null else t.last_error end,
        next_retry_at = case when failing then null else t.next_retry_at end,
        failed_at = case when failing then null else t.failed_at end,
        updated_at = clock_timestamp()
    where t.name = processor and t.version = version and t.partition = partition;
  insert into operator_log (operator, action, processor, partition, from_position, to_position)
    values (operator, case when blocks then 'park_event' else 'skip_event' end, processor, partition, id, id);
  return true;
end
$$;

-- Forgets events that are deleted for good, and what was still to be emitted into their aggregate. The caller holds the trackers.
-- `at`, `ids` and `uuids` say which event is the last one at or below a position now (id 0: none); a witness that is gone is
-- replaced by it. Returns how many rows were removed, and how many effects are still open, which are left to their handlers.
--
-- Whoever owns a processor that has lost something begins again with what is in its tables.
create or replace function :"schema".forget_events(
  gone bigint[], aggregate_id uuid, at bigint[], ids bigint[], uuids uuid[],
  out dead_letters bigint, out emissions bigint, out witnesses bigint, out open_effects bigint
)
language plpgsql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  affected text[];
begin
  with letters as (
    delete from dead_letters as d where d.event_id = any (gone) returning d.processor
  ), sent as (
    delete from deliveries as d where d.event_id = any (gone) returning d.processor
  )
  select (select count(*) from letters), array(select l.processor from letters as l union select s.processor from sent as s)
    into forget_events.dead_letters, affected;

  with removed as (
    delete from emissions as e where e.aggregate_id::text = forget_events.aggregate_id::text returning e.id
  )
  select count(*) into forget_events.emissions from removed;

  delete from witnesses as w where w.id = any (gone);
  with replaced as (
    update trackers as t set witness_id = last.id, witness_uuid = last.uuid
    from unnest(at, ids, uuids) as last (at, id, uuid)
    where t.witness_at = last.at and t.witness_id = any (gone)
    returning t.name
  )
  select count(*), affected || coalesce(array_agg(r.name), '{}') into forget_events.witnesses, affected from replaced as r;
  update trackers as t set epoch = t.epoch + 1, ended_claims = t.ended_claims + 1 where t.name = any (affected);
  -- What is said of a failing event may quote it. There is nothing to fail at any more.
  update trackers as t
    set epoch = t.epoch + 1, ended_claims = t.ended_claims + 1, attempts = 0, last_error = null, next_retry_at = null, failed_at = null
    where (t.last_error->>'event_id')::bigint = any (gone);
  select count(*) into forget_events.open_effects from effects as e where e.event_id = any (gone);
end
$$;

-- As before (0038), and refuses a body that departs from what is declared of its type: the store would refuse it when it is due, long
-- after the event that has led to it counts as handled. Where the store is in another database, nobody is asked before.
create or replace function :"schema".emit_at(
  type text, aggregate_id uuid, body jsonb, at timestamptz, key text default null, metadata jsonb default null
) returns void
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
declare
  emission  record;
  cause     uuid;
  departure jsonb;
begin
  if emit_at.at is null then
    raise exception using errcode = 'ES004', message = format('%s is emitted at no time: it is null', emit_at.type);
  elsif emit_at.key = '' then
    raise exception using errcode = 'ES004', message = format('%s is emitted under an empty key', emit_at.type),
      hint = 'each would take the place of the one before: give it a key of its own, or null';
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
    departure := find_departing(array[emit_at.type], array[emit_at.body]);
    if departure is not null then
      perform refuse_departing(departure);
    end if;
  end if;
  perform keep_emission(
    emission.uuid, emission.metadata, emit_at.type, emit_at.aggregate_id, emit_at.body, emit_at.at, emit_at.key);
end
$$;
