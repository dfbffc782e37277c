-- An append of one event prepares less before it runs.
-- Oldest program: 4
--
-- A statement of PL/pgSQL is prepared for each run: each node of its plan, and each function that it might call. So one event with an
-- expected version has a statement of its own, of one node besides its looks. And no look for the version of an aggregate may be a
-- bitmap that is sorted, as it was in stores that were not analyzed yet: `is not null` says that nearly all rows are left by the
-- condition, so one row by the index, backwards, costs less.

-- As before, but false where the bell was never set, and then it is looked at once.
create or replace function :"schema".must_ring(bell regclass) returns boolean
language sql
as $$
  select case
    when pg_catalog.has_sequence_privilege(bell, 'select')
      and pg_catalog.pg_sequence_last_value(bell) > 64000 * pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())
    then pg_catalog.pg_sequence_last_value(bell) & 63 < 8
    else false
  end
$$;

-- psql fills in no names within the body of a function, so that is done here, as the program does it.
set local espd.migrated_schema = :"schema";

do $do$
declare
  home   constant text := '"' || replace(current_setting('espd.migrated_schema'), '"', '""') || '"';
  events constant text := quote_literal(replace('%I.events', '%I', home));
  event_schemas constant text := quote_literal(home || '.event_schemas');
  bell   constant text := quote_literal(home || '.bell');
  one    text;
begin
  foreach one in array array[
-- Appends events, all or none, and returns where they are stored, in input order.
--
-- The arrays are parallel: element i of each describes event i. Those that default to null may be left
-- out, and so may their elements. An expected version is that of the aggregate just before the event
-- (0: it must not exist; null: no check), judged one event after the other.
--
-- Appending the same uuids with the same content again stores nothing and returns what is stored,
-- whatever version is expected. An event without expectation never fails because of another writer.
-- Deadlocks (40P01) and, above READ COMMITTED, serialization failures (40001) are for the caller to
-- retry.
$function$
create or replace function :"schema".append_events(
  aggregate_ids     uuid[],
  types             text[],
  bodies            jsonb[],
  expected_versions bigint[]      default null,
  uuids             uuid[]        default null,
  metadata          jsonb[]       default null,
  correlation_ids   uuid[]        default null,
  causation_ids     uuid[]        default null,
  created_ats       timestamptz[] default null
) returns table (id bigint, uuid uuid, version bigint)
language plpgsql
as $$
#variable_conflict use_column
declare
  has_rung boolean;
begin
  -- One event is stored, or nothing is, which is no error yet. The greatest expected version has no successor.
  if pg_catalog.num_nonnulls(uuids, metadata, correlation_ids, causation_ids, created_ats) = 0
    and expected_versions[1] < 9223372036854775807
  then
    insert into :"schema".events as e (aggregate_id, type, version, body)
    select aggregate_ids[1], types[1], expected_versions[1] + 1, bodies[1]
    where pg_catalog.cardinality(aggregate_ids) = 1 and pg_catalog.cardinality(types) = 1
      and pg_catalog.cardinality(bodies) = 1 and pg_catalog.cardinality(expected_versions) = 1
      and aggregate_ids[1] is not null and types[1] <> '' and bodies[1] is not null
      and not pg_catalog.row_security_active(:events::regclass)
      and not pg_catalog.row_security_active(:event_schemas::regclass)
      and expected_versions[1] = coalesce((
        select e.version from :"schema".events as e
        where e.aggregate_id = aggregate_ids[1] and :"schema".is_by_index(e.version) is not null
        order by e.version desc limit 1), 0)
      and not exists (select from :"schema".event_schemas as s where s.type = types[1] and s.check_at_append)
    on conflict do nothing
    returning e.id, e.uuid, e.version, case when :"schema".must_ring(:bell) then :"schema".ring_bell() end
    into id, uuid, version, has_rung;
  else
    insert into :"schema".events as e
      (uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id, created_at)
    select coalesce(uuids[1], pg_catalog.gen_random_uuid()), aggregate_ids[1], types[1], head.version + 1, bodies[1],
      coalesce(metadata[1], '{}'), correlation_ids[1], causation_ids[1], coalesce(created_ats[1], pg_catalog.clock_timestamp())
    from (
      select coalesce((
        select e.version from :"schema".events as e
        where e.aggregate_id = aggregate_ids[1] and :"schema".is_by_index(e.version) is not null
        order by e.version desc limit 1), 0) as version
      offset 0) as head
    where pg_catalog.cardinality(aggregate_ids) = 1
      and pg_catalog.cardinality(types) = 1 and pg_catalog.cardinality(bodies) = 1
      and coalesce(pg_catalog.cardinality(expected_versions), 1) = 1 and coalesce(pg_catalog.cardinality(uuids), 1) = 1
      and coalesce(pg_catalog.cardinality(metadata), 1) = 1 and coalesce(pg_catalog.cardinality(correlation_ids), 1) = 1
      and coalesce(pg_catalog.cardinality(causation_ids), 1) = 1 and coalesce(pg_catalog.cardinality(created_ats), 1) = 1
      and aggregate_ids[1] is not null and types[1] <> '' and bodies[1] is not null
      and (expected_versions[1] is null or expected_versions[1] = head.version)
      and not exists (select from :"schema".event_schemas as s where s.type = types[1] and s.check_at_append)
      and not pg_catalog.row_security_active(:events::regclass)
      and not pg_catalog.row_security_active(:event_schemas::regclass)
    on conflict do nothing
    returning e.id, e.uuid, e.version, case when :"schema".must_ring(:bell) then :"schema".ring_bell() end
    into id, uuid, version, has_rung;
  end if;
  if found then
    return next;
    return;
  end if;
  return query
    select * from :"schema".append_listed(
      aggregate_ids, types, bodies, expected_versions, uuids, metadata, correlation_ids, causation_ids, created_ats);
end
$$
$function$,
-- Appends events from JSON: an event, or an array of events, in the form of their columns.
--
--   select * from espd.append('{"aggregate_id": "...", "type": "TodoAdded", "body": {}, "expected_version": 0}');
--
-- One event that needs nothing but its place is read at once and stored by one statement. All else goes on to append_several, and
-- so does what cannot be read, for that says what is wrong with it.
$function$
create or replace function :"schema".append(events jsonb)
returns table (id bigint, uuid uuid, version bigint)
language plpgsql
as $$
#variable_conflict use_column
declare
  its_aggregate_id     uuid;
  its_type             text;
  its_body             jsonb;
  its_expected_version bigint;
  its_uuid             uuid;
  its_metadata         jsonb;
  its_correlation_id   uuid;
  its_causation_id     uuid;
  has_rung             boolean;
begin
  begin
    -- Conditions on the whole are met before anything is read. A JSON null is a null here; as a body it is left to append_several.
    -- Of what is no number, a text alone could be read as a version.
    select one.aggregate_id, one.type, one.body, one.expected_version, coalesce(one.uuid, pg_catalog.gen_random_uuid()),
      coalesce(one.metadata, '{}'), one.correlation_id, one.causation_id
      into its_aggregate_id, its_type, its_body, its_expected_version, its_uuid, its_metadata, its_correlation_id, its_causation_id
    from pg_catalog.jsonb_to_record(events) as one (aggregate_id uuid, type text, body jsonb, expected_version bigint, uuid uuid,
      metadata jsonb, correlation_id uuid, causation_id uuid)
    where pg_catalog.jsonb_typeof(events) = 'object'
      and events - '{aggregate_id,type,body,expected_version,uuid,metadata,correlation_id,causation_id}'::text[] = '{}'
      and pg_catalog.jsonb_typeof(events->'aggregate_id') = 'string' and pg_catalog.jsonb_typeof(events->'type') = 'string'
      and (pg_catalog.jsonb_typeof(events->'expected_version') = 'string') is not true;
  exception when data_exception then
    -- append_several says which value cannot be read.
  end;
  -- The greatest expected version has no successor.
  if its_expected_version < 9223372036854775807 then
    insert into :"schema".events as e (uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id)
    select its_uuid, its_aggregate_id, its_type, its_expected_version + 1, its_body, its_metadata, its_correlation_id, its_causation_id
    where its_aggregate_id is not null and its_type <> '' and its_body is not null and pg_catalog.jsonb_typeof(its_metadata) = 'object'
      and not pg_catalog.row_security_active(:events::regclass)
      and not pg_catalog.row_security_active(:event_schemas::regclass)
      and its_expected_version = coalesce((
        select e.version from :"schema".events as e
        where e.aggregate_id = its_aggregate_id and :"schema".is_by_index(e.version) is not null
        order by e.version desc limit 1), 0)
      and not exists (select from :"schema".event_schemas as s where s.type = its_type and s.check_at_append)
    on conflict do nothing
    returning e.id, e.uuid, e.version, case when :"schema".must_ring(:bell) then :"schema".ring_bell() end
    into id, uuid, version, has_rung;
  else
    insert into :"schema".events as e (uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id)
    select its_uuid, its_aggregate_id, its_type, coalesce((
        select e.version from :"schema".events as e
        where e.aggregate_id = its_aggregate_id and :"schema".is_by_index(e.version) is not null
        order by e.version desc limit 1), 0) + 1, its_body, its_metadata, its_correlation_id, its_causation_id
    where its_aggregate_id is not null and its_type <> '' and its_body is not null and pg_catalog.jsonb_typeof(its_metadata) = 'object'
      and its_expected_version is null
      and not exists (select from :"schema".event_schemas as s where s.type = its_type and s.check_at_append)
      and not pg_catalog.row_security_active(:events::regclass)
      and not pg_catalog.row_security_active(:event_schemas::regclass)
    on conflict do nothing
    returning e.id, e.uuid, e.version, case when :"schema".must_ring(:bell) then :"schema".ring_bell() end
    into id, uuid, version, has_rung;
  end if;
  if found then
    return next;
    return;
  end if;
  return query select * from :"schema".append_several(events);
end
$$
$function$]
  loop
    one := replace(one, $token$:"schema"$token$, home);
    execute replace(replace(replace(one, ':events', events), ':event_schemas', event_schemas), ':bell', bell);
  end loop;
end
$do$;
