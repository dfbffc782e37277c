-- The same for a caller that has JSON at hand:
--
--   select * from espd.append('{"aggregate_id": "…", "type": "TodoAdded", "body": {"title": "Milk"}}');
--
-- Takes one object or an array of them. Keys: aggregate_id, type, body and, if wanted, expected_version,
-- uuid, metadata, correlation_id, causation_id, created_at; a null is the same as leaving the key out,
-- except in body. Everything else is refused with ES003, which names the event by its number, from 1.
-- What is stored, returned and raised otherwise is as in append_events.

-- What is wrong with an event; null if nothing is.
create or replace function :"schema".find_fault(event jsonb) returns text
language plpgsql immutable
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
    -- Without one, the time meant would depend on a setting of the session.
    when event->>'created_at' !~* '\d:\d\d.*(z|[+-]\d\d(:?\d\d)?)$' then
      'created_at is not a time with a zone'
  end;
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
      fault := find_fault(event);
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
