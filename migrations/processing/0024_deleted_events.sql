-- What processors remember and keep of events that are deleted for good (delete_aggregate in migrations/event_store). Where the
-- events are in the same database, that calls these functions itself.
-- Oldest program: 10

-- Keeps every batch waiting until the end of the transaction, so that nobody reads an event while it is deleted. Returns the
-- positions that the witnesses of all trackers are about.
create or replace function :"schema".hold_trackers() returns bigint[]
language plpgsql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
begin
  perform from trackers as t order by t.name, t.version, t.partition for update;
  return array(select distinct t.witness_at from trackers as t where t.witness_at is not null);
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
  update trackers as t set epoch = t.epoch + 1, lease_until = null where t.name = any (affected);
  -- What is said of a failing event may quote it. There is nothing to fail at any more.
  update trackers as t
    set epoch = t.epoch + 1, lease_until = null, attempts = 0, last_error = null, next_retry_at = null, failed_at = null
    where (t.last_error->>'event_id')::bigint = any (gone);
  select count(*) into forget_events.open_effects from effects as e where e.event_id = any (gone);
end
$$;

revoke all on function :"schema".hold_trackers from public;
revoke all on function :"schema".forget_events from public;
