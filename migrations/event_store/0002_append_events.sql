-- Appending with an expected version, for any language.
--
-- The table holds the rule (`events_aggregate_id_version_key`, `events_uuid_key`); the functions turn
-- what it refuses into an answer. They take no lock of their own and notify nobody: either would make
-- every writer in the database wait for every other one's commit.
--
-- append_events, and append in the next file, are for callers; the others are parts of them.
--
-- SQLSTATEs, each with a JSON object as its DETAIL:
--   ES001  conflict: an aggregate is not at the expected version. {"aggregate_id", "expected", "actual"}
--   ES002  a uuid is stored already, with other content or without the rest of the append. {"uuid"}
--   ES003  invalid input. {"event"}: its number, from 1; null where it is not about one event

-- How many events the arrays describe. Raises ES003 if they do not describe any list of events.
create or replace function :"schema".count_events(
  aggregate_ids     uuid[],
  types             text[],
  bodies            jsonb[],
  expected_versions bigint[],
  uuids             uuid[],
  metadata          jsonb[],
  correlation_ids   uuid[],
  causation_ids     uuid[],
  created_ats       timestamptz[]
) returns int
language plpgsql immutable
as $$
declare
  size    int := coalesce(cardinality(aggregate_ids), 0);
  without int := coalesce(
    array_position(aggregate_ids, null), array_position(types, null), array_position(bodies, null),
    array_position(types, ''));
begin
  if coalesce(cardinality(types), 0) <> size
    or coalesce(cardinality(bodies), 0) <> size
    or cardinality(expected_versions) <> size
    or cardinality(uuids) <> size
    or cardinality(metadata) <> size
    or cardinality(correlation_ids) <> size
    or cardinality(causation_ids) <> size
    or cardinality(created_ats) <> size
  then
    raise exception using errcode = 'ES003',
      message = 'the arrays differ in length', detail = '{"event": null}';
  elsif without is not null then
    raise exception using errcode = 'ES003',
      message = format('event %s has no aggregate id, no type or no body', without),
      detail = jsonb_build_object('event', without);
  elsif 0 > any (expected_versions) then
    raise exception using errcode = 'ES003',
      message = 'an expected version is negative', detail = '{"event": null}';
  end if;
  return size;
end
$$;

-- Where the given uuids are stored, in input order; nothing if none of them is.
-- Raises ES002 if one is stored with other content or if only some are stored, ES003 if one is given
-- twice.
create or replace function :"schema".find_appended(
  aggregate_ids   uuid[],
  types           text[],
  bodies          jsonb[],
  uuids           uuid[],
  metadata        jsonb[],
  correlation_ids uuid[],
  causation_ids   uuid[],
  created_ats     timestamptz[]
) returns table (id bigint, uuid uuid, version bigint)
language plpgsql stable
set search_path = :"schema", pg_temp
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  twice       uuid;
  found_uuids uuid[];
  changed     uuid;
begin
  select given.uuid into twice
  from unnest(uuids) as given (uuid) group by given.uuid having count(given.uuid) > 1 limit 1;

  select array_agg(stored.uuid order by given.place),
    (array_agg(stored.uuid order by given.place) filter (where
      (stored.aggregate_id, stored.type, stored.body, stored.metadata)
        <> (given.aggregate_id, given.type, given.body, coalesce(given.metadata, '{}'))
      or stored.correlation_id is distinct from given.correlation_id
      or stored.causation_id is distinct from given.causation_id
      or stored.created_at <> given.created_at))[1]
  into found_uuids, changed
  from unnest(aggregate_ids, types, bodies, uuids, metadata, correlation_ids, causation_ids, created_ats)
    with ordinality as given
      (aggregate_id, type, body, uuid, metadata, correlation_id, causation_id, created_at, place)
    join events as stored on stored.uuid = given.uuid;

  if twice is not null then
    raise exception using errcode = 'ES003',
      message = format('uuid %s is given twice', twice), detail = '{"event": null}';
  elsif changed is not null then
    raise exception using errcode = 'ES002',
      message = format('uuid %s is stored already, with other content', changed),
      detail = jsonb_build_object('uuid', changed);
  elsif cardinality(found_uuids) < cardinality(aggregate_ids) then
    raise exception using errcode = 'ES002',
      message = format('uuid %s is stored already, but not the whole append', found_uuids[1]),
      detail = jsonb_build_object('uuid', found_uuids[1]);
  end if;
  return query
    select stored.id, stored.uuid, stored.version
    from unnest(found_uuids) with ordinality as given (uuid, place)
      join events as stored on stored.uuid = given.uuid
    order by given.place;
end
$$;

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
--
-- A plan that was made while the table was small would scan it for every event of a bulk load, until
-- the table is analyzed again; so scanning it is made unattractive from the start.
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
set search_path = :"schema", pg_temp
set enable_seqscan = off
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
begin
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
    returning e.id, e.uuid, e.version into id, uuid, version;
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
