-- One event in as few steps as it takes.
-- Oldest program: 4

-- A part of append: any number of events, which may have tags and keys, or one that is not plain or cannot be stored as it is.
create or replace function :"schema".append_several(events jsonb)
returns table (id bigint, uuid uuid, version bigint)
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
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
  if jsonb_path_exists(events, '$[*] ? (exists(@.tags) || exists(@.claims) || exists(@.releases))') then
    return query select * from append(events, null);
    return;
  elsif jsonb_typeof(events) is distinct from 'array' then
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

-- Appends events from JSON: an event, or an array of events, in the form of their columns.
--
--   select * from espd.append('{"aggregate_id": "...", "type": "TodoAdded", "body": {}, "expected_version": 0}');
--
-- One event that needs nothing but its place is one statement; PL/pgSQL prepares each of its own expressions anew in each
-- transaction, and so do the functions that it calls. All else goes on to append_several.
create or replace function :"schema".append(events jsonb)
returns table (id bigint, uuid uuid, version bigint)
language plpgsql
set search_path = :"schema", pg_temp
set enable_seqscan = off
set row_security = off
as $$
#variable_conflict use_column
declare
  one     record;
  is_read boolean := false;
  has_rung boolean;
begin
  begin
    select (events->>'aggregate_id')::uuid as aggregate_id, events->>'type' as type, events->'body' as body,
      (events->>'expected_version')::bigint as expected_version, (events->>'uuid')::uuid as uuid,
      coalesce(nullif(events->'metadata', 'null'), '{}') as metadata,
      (events->>'correlation_id')::uuid as correlation_id, (events->>'causation_id')::uuid as causation_id
      into one
    where jsonb_typeof(events) = 'object' and events->>'created_at' is null
      and events - '{aggregate_id,type,body,expected_version,uuid,metadata,correlation_id,causation_id,created_at}'::text[] = '{}'
      and jsonb_typeof(events->'aggregate_id') = 'string' and jsonb_typeof(events->'type') = 'string' and events->>'type' <> ''
      and events ? 'body' and coalesce(jsonb_typeof(events->'expected_version') in ('number', 'null'), true)
      and coalesce(jsonb_typeof(events->'metadata') in ('object', 'null'), true);
    is_read := found;
  exception when data_exception then
    -- append_several says which value cannot be read.
  end;
  if is_read then
    insert into events as e (uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id)
      select coalesce(one.uuid, gen_random_uuid()), one.aggregate_id, one.type, head.version + 1, one.body, one.metadata,
        one.correlation_id, one.causation_id
      from (select coalesce(max(e.version), 0) as version from events as e where e.aggregate_id = one.aggregate_id) as head
      where (one.expected_version is null or one.expected_version = head.version)
        and not exists (select from event_schemas as s where s.type = one.type and s.check_at_append)
      on conflict do nothing
      returning e.id, e.uuid, e.version, case when must_ring('bell') then ring_bell() end
      into id, uuid, version, has_rung;
    if found then
      return next;
      return;
    end if;
  end if;
  return query select * from append_several(events);
end
$$;
