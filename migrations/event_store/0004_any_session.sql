-- Appending means the same in any session. A role from which a policy hides events gets an error instead of taking them
-- for none; and no function depends on how a session reads strings: there is no backslash in them.
-- Oldest program: 3
alter function :"schema".append_events set row_security = off;
alter function :"schema".find_appended set row_security = off;

-- Whether a text is a time that means the same in any time zone: it names its own.
create or replace function :"schema".has_zone(text text) returns boolean
language plpgsql stable
set timezone = 'UTC'
as $$
declare
  here  timestamptz;
  there timestamptz;
begin
  here := text::timestamptz;
  perform set_config('timezone', 'Etc/GMT+12', true);
  there := text::timestamptz;
  return here = there;
exception when data_exception then
  return false;
end
$$;

-- What is wrong with an event; null if nothing is.
create or replace function :"schema".find_fault(event jsonb) returns text
language plpgsql stable
as $$
declare
  required constant text[] := array['aggregate_id', 'type', 'body'];
  optional constant text[] :=
    array['expected_version', 'uuid', 'metadata', 'correlation_id', 'causation_id', 'created_at'];
begin
  return case
    when jsonb_typeof(event) <> 'object' then 'it is not an object'
    when not event ?& required then
      'it lacks ' || (select string_agg(key, ', ') from unnest(required) as key where not event ? key)
    when event - required - optional <> '{}' then
      'it has unknown keys: '
        || (select string_agg(key, ', ') from jsonb_object_keys(event - required - optional) as key)
    when jsonb_typeof(event->'aggregate_id') <> 'string' then 'aggregate_id is not a string'
    when jsonb_typeof(event->'type') <> 'string' then 'type is not a string'
    when jsonb_typeof(event->'expected_version') not in ('number', 'null') then
      'expected_version is not a number'
    when jsonb_typeof(event->'metadata') not in ('object', 'null') then 'metadata is not an object'
  end;
end
$$;

-- What is wrong with the time of an event; null if nothing is. As JSON has it, or as PostgreSQL writes it in any
-- `DateStyle` of the session, but always with a zone: without one, the time meant would depend on a setting.
create or replace function :"schema".find_fault_of_time(created_at text) returns text
language plpgsql stable
set search_path = :"schema", pg_temp
as $$
begin
  if created_at is null
    or created_at ~* '[0-9]:[0-9][0-9].*(z|[+-][0-9][0-9](:?[0-9][0-9])?)$'
    or created_at ~ '[0-9]:[0-9][0-9]' and has_zone(created_at)
  then
    return null;
  end if;
  return 'created_at is not a time with a zone';
end
$$;

create or replace function :"schema".append(events jsonb)
returns table (id bigint, uuid uuid, version bigint)
language plpgsql
set search_path = :"schema", pg_temp
as $$
#variable_conflict use_column
declare
  event  jsonb;
  fault  text;
  number int := 0;
  aggregate_ids     uuid[]        := '{}';
  types             text[]        := '{}';
  bodies            jsonb[]       := '{}';
  expected_versions bigint[]      := '{}';
  uuids             uuid[]        := '{}';
  metadata          jsonb[]       := '{}';
  correlation_ids   uuid[]        := '{}';
  causation_ids     uuid[]        := '{}';
  created_ats       timestamptz[] := '{}';
begin
  if jsonb_typeof(events) is distinct from 'array' then
    events := jsonb_build_array(events);
  end if;

  begin
    for event in select value from jsonb_array_elements(events) loop
      number := number + 1;
      fault := coalesce(find_fault(event), find_fault_of_time(event->>'created_at'));
      exit when fault is not null;
      aggregate_ids     := aggregate_ids || (event->>'aggregate_id')::uuid;
      types             := types || (event->>'type');
      bodies            := bodies || (event->'body');
      expected_versions := expected_versions || (event->>'expected_version')::bigint;
      uuids             := uuids || (event->>'uuid')::uuid;
      metadata          := metadata || nullif(event->'metadata', 'null');
      correlation_ids   := correlation_ids || (event->>'correlation_id')::uuid;
      causation_ids     := causation_ids || (event->>'causation_id')::uuid;
      created_ats       := created_ats || (event->>'created_at')::timestamptz;
    end loop;
  exception when data_exception then
    -- A value cannot be read as what its key says.
    fault := sqlerrm;
  end;
  if fault is not null then
    raise exception using errcode = 'ES003',
      message = format('event %s: %s', number, fault), detail = jsonb_build_object('event', number);
  end if;

  return query
    select * from append_events(
      aggregate_ids, types, bodies, expected_versions, uuids, metadata, correlation_ids, causation_ids,
      created_ats);
end
$$;
