-- A bell for who sleeps: the first appends after a quiet time notify those who follow the store, and busy ones never do, because
-- commits that notify take turns, and wait for the disk one after the other.
-- Oldest program: 4
--
-- A sequence is read and written outside of transactions, for almost nothing. Who is about to sleep for long sets the bell, looks at
-- the store once more, and sleeps. Who appends draws an id, and looks at the bell. So either the one sees the id, or the other
-- sees the bell.
--
-- The value is the time until which somebody sleeps, in milliseconds since 1970, times 64, and in the remainder how many
-- transactions have rung since. After the eighth nobody rings: by then, everybody is awake, or dead. One alone would not be
-- enough, because its transaction may be rolled back, or go on for long. Nothing but latency depends on any of this.
create sequence if not exists :"schema".bell minvalue 0 cache 1;

comment on sequence :"schema".bell is 'Until when who follows the store sleeps. Nothing but latency depends on it.';

-- A writer needs no right of its own to ring, and one that may not look does not ring.
grant select on sequence :"schema".bell to public;

-- Says that somebody sleeps for so many seconds and wants to be woken by appends. False where none of them may do that: a transaction
-- that has notified cannot be prepared, so on a server that allows prepared transactions nobody rings.
create or replace function :"schema".set_bell(seconds float8) returns boolean
language plpgsql
security definer
set search_path = :"schema", pg_temp
as $$
begin
  if current_setting('max_prepared_transactions') <> '0' then
    return false;
  end if;
  -- The bell need not survive a crash.
  perform set_config('synchronous_commit', 'off', true);
  perform setval('bell', 64 * ceil(1000 * (date_part('epoch', clock_timestamp()) + seconds))::bigint);
  return true;
end
$$;

-- A part of the functions that append: whether somebody sleeps and few have rung since. It has no setting of its own, so that it
-- becomes a part of the expression that calls it. They call it after they have drawn an id.
create or replace function :"schema".must_ring(bell regclass) returns boolean
language sql
as $$
  select has_sequence_privilege(bell, 'select') and pg_sequence_last_value(bell) & 63 < 8
    and pg_sequence_last_value(bell) > 64000 * date_part('epoch', clock_timestamp())
$$;

-- A part of the functions that append: wakes those who sleep when this transaction commits. However often a transaction appends, it
-- counts once. Where it is rolled back, or a savepoint is, the notification is gone, and so is the mark.
create or replace function :"schema".ring_bell() returns boolean
language plpgsql
security definer
set search_path = :"schema", pg_temp
as $$
declare
  mark text := current_schema() || ' ' || pg_current_xact_id();
begin
  if coalesce(current_setting('espd.has_rung', true), '') <> mark then
    perform nextval('bell'), pg_notify(current_schema() || '_events', ''), set_config('espd.has_rung', mark, true);
  end if;
  return true;
end
$$;

-- As before, and rings.
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
