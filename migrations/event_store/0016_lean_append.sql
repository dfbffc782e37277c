-- One event by one statement, in functions without settings of their own.
-- Oldest program: 4
--
-- Settings of a function cost each call about as much as the look for the version of the aggregate. So append_events and append
-- try one statement that needs none, and leave what it does not store to functions that have them: it names all functions and
-- tables by their schema, it stores nothing where a policy may hide a row, and its look for the version is never a scan of the table.

-- As before. Usually nobody sleeps, and the time says so by one look.
create or replace function :"schema".must_ring(bell regclass) returns boolean
language sql
as $$
  select pg_catalog.has_sequence_privilege(bell, 'select')
    and pg_catalog.pg_sequence_last_value(bell) > 64000 * pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())
    and pg_catalog.pg_sequence_last_value(bell) & 63 < 8
$$;

-- A part of the functions that append: true. A plan that was made while the table was small would scan it for every event of a bulk
-- load, until the table is analyzed again. With this condition a scan is never what costs least, because it calls this for every
-- row; by the index it is called once.
create or replace function :"schema".is_by_index(version bigint) returns boolean
language plpgsql immutable parallel safe
cost 10000
as $$
begin
  return true;
end
$$;

-- A part of append_events: any number of events, or one that was not stored by the one statement.
create or replace function :"schema".append_listed(
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
set search_path = :"schema", pg_temp
set enable_seqscan = off
set row_security = off
as $$
#variable_conflict use_column
declare
  size int := count_events(
    aggregate_ids, types, bodies, expected_versions, uuids, metadata, correlation_ids, causation_ids,
    created_ats);
  versions bigint[];
  conflict record;
  appended record;
  violated text;
  departure jsonb;
  has_rung boolean;
begin
  -- The one cost of this where nothing is declared: a look into an empty index.
  if exists (select from event_schemas as s where s.type = any (types) and s.check_at_append) then
    departure := find_departing(types, bodies);
    if departure is not null then
      -- What is stored already stays stored, also where it was declared otherwise since.
      return query
        select * from find_appended(
          aggregate_ids, types, bodies, uuids, metadata, correlation_ids, causation_ids, created_ats);
      if not found then
        perform refuse_departing(departure);
      end if;
      return;
    end if;
  end if;

  -- One event is one statement, which stores it or does nothing. It also spares a transaction that
  -- appends a thousand times the subtransactions below.
  if size = 1 then
    insert into events as e
      (uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id, created_at)
    select coalesce(uuids[1], gen_random_uuid()), aggregate_ids[1], types[1], head.version + 1, bodies[1],
      coalesce(metadata[1], '{}'), correlation_ids[1], causation_ids[1],
      coalesce(created_ats[1], clock_timestamp())
    from (select coalesce(max(version), 0) as version from events where aggregate_id = aggregate_ids[1])
      as head
    where expected_versions[1] is null or expected_versions[1] = head.version
    on conflict do nothing
    returning e.id, e.uuid, e.version, case when must_ring('bell') then ring_bell() end
    into id, uuid, version, has_rung;
    if found then
      return next;
      return;
    end if;
  end if;

  while size > 0 loop
    -- The versions that the events get if nobody comes between.
    with head as materialized (
      select given.aggregate_id, coalesce(
        (select e.version from events as e
         where e.aggregate_id = given.aggregate_id order by e.version desc limit 1), 0) as version
      from (select distinct unnest(aggregate_ids)) as given (aggregate_id)
    ), placed as (
      select given.place,
        head.version + row_number() over (partition by given.aggregate_id order by given.place) as version
      from unnest(aggregate_ids) with ordinality as given (aggregate_id, place)
        join head on head.aggregate_id = given.aggregate_id
    )
    select array_agg(placed.version order by placed.place) into versions from placed;

    select given.aggregate_id, given.expected, given.version - 1 as actual into conflict
    from unnest(aggregate_ids, expected_versions, versions)
      with ordinality as given (aggregate_id, expected, version, place)
    where given.expected <> given.version - 1
    order by given.place
    limit 1;

    if not found then
      begin
        with stored as (
          insert into events as e
            (uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id, created_at)
          select coalesce(given.uuid, gen_random_uuid()), given.aggregate_id, given.type, given.version,
            given.body, coalesce(given.metadata, '{}'), given.correlation_id, given.causation_id,
            coalesce(given.created_at, clock_timestamp())
          from unnest(aggregate_ids, types, bodies, versions, uuids, metadata, correlation_ids,
              causation_ids, created_ats)
            with ordinality as given (aggregate_id, type, body, version, uuid, metadata, correlation_id,
              causation_id, created_at, place)
          order by given.place
          returning e.id, e.uuid, e.version
        )
        select array_agg(stored.id order by stored.id) as ids,
          array_agg(stored.uuid order by stored.id) as uuids,
          array_agg(stored.version order by stored.id) as versions
        into appended
        from stored;
        if must_ring('bell') then
          perform ring_bell();
        end if;
        return query select * from unnest(appended.ids, appended.uuids, appended.versions);
        return;
      exception when unique_violation then
        -- Somebody came between. Any other unique index is not ours to explain.
        get stacked diagnostics violated = constraint_name;
        if violated not in ('events_aggregate_id_version_key', 'events_uuid_key') then
          raise;
        end if;
      end;
    end if;

    return query
      select * from find_appended(
        aggregate_ids, types, bodies, uuids, metadata, correlation_ids, causation_ids, created_ats);
    if found then
      return;
    elsif conflict.aggregate_id is not null then
      raise exception using errcode = 'ES001',
        message = format('aggregate %s is at version %s, not at the expected version %s',
                         conflict.aggregate_id, conflict.actual, conflict.expected),
        detail = to_jsonb(conflict);
    elsif current_setting('transaction_isolation') <> 'read committed' then
      -- This snapshot will never see who came between.
      raise exception using errcode = 'serialization_failure',
        message = 'could not append because of a concurrent append';
    end if;
  end loop;
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
  -- One event is stored, or nothing is, which is no error yet.
  insert into :"schema".events as e
    (uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id, created_at)
  select coalesce(uuids[1], pg_catalog.gen_random_uuid()), aggregate_ids[1], types[1], head.version + 1, bodies[1],
    coalesce(metadata[1], '{}'), correlation_ids[1], causation_ids[1], coalesce(created_ats[1], pg_catalog.clock_timestamp())
  from (
    select coalesce((
      select e.version from :"schema".events as e
      where e.aggregate_id = aggregate_ids[1] and :"schema".is_by_index(e.version)
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
    select one.aggregate_id, one.type, one.body, one.expected_version, one.uuid, one.metadata, one.correlation_id, one.causation_id
      into its_aggregate_id, its_type, its_body, its_expected_version, its_uuid, its_metadata, its_correlation_id, its_causation_id
    from pg_catalog.jsonb_to_record(events) as one (aggregate_id uuid, type text, body jsonb, expected_version bigint, uuid uuid,
      metadata jsonb, correlation_id uuid, causation_id uuid)
    where pg_catalog.jsonb_typeof(events) = 'object'
      and events - '{aggregate_id,type,body,expected_version,uuid,metadata,correlation_id,causation_id}'::text[] = '{}'
      and pg_catalog.jsonb_typeof(events->'aggregate_id') = 'string' and pg_catalog.jsonb_typeof(events->'type') = 'string'
      and coalesce(pg_catalog.jsonb_typeof(events->'expected_version') in ('number', 'null'), true)
      and coalesce(pg_catalog.jsonb_typeof(events->'metadata') in ('object', 'null'), true);
  exception when data_exception then
    -- append_several says which value cannot be read.
  end;
  insert into :"schema".events as e (uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id)
  select coalesce(its_uuid, pg_catalog.gen_random_uuid()), its_aggregate_id, its_type, head.version + 1, its_body,
    coalesce(its_metadata, '{}'), its_correlation_id, its_causation_id
  from (
    select coalesce((
      select e.version from :"schema".events as e
      where e.aggregate_id = its_aggregate_id and :"schema".is_by_index(e.version)
      order by e.version desc limit 1), 0) as version
    offset 0) as head
  where its_aggregate_id is not null and its_type <> '' and its_body is not null
    and (its_expected_version is null or its_expected_version = head.version)
    and not exists (select from :"schema".event_schemas as s where s.type = its_type and s.check_at_append)
    and not pg_catalog.row_security_active(:events::regclass)
    and not pg_catalog.row_security_active(:event_schemas::regclass)
  on conflict do nothing
  returning e.id, e.uuid, e.version, case when :"schema".must_ring(:bell) then :"schema".ring_bell() end
  into id, uuid, version, has_rung;
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
