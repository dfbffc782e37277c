-- What was taken for something else: a token of a store that has lost its end, an empty list of tags, an empty list under a key.
-- Oldest program: 4

-- As before, and raises ES008 where `since` knows more of a tag than this store has, as an append under it does.
create or replace function :"schema".read_tagged(items jsonb, since jsonb default null, out events jsonb, out token jsonb)
language plpgsql stable
set search_path = :"schema", pg_temp
set enable_seqscan = off
set row_security = off
as $$
declare
  fault  text := find_fault_of_condition(jsonb_build_object('items', items, 'token', since));
  beyond jsonb;
begin
  if fault is not null then
    raise exception using errcode = 'ES003', message = fault, detail = '{"event": null}';
  end if;
  select find_token(items), found.all_of_them into token, events
  from (
    select coalesce(jsonb_agg(to_jsonb(e) order by e.id), '[]') as all_of_them
    from events as e where e.id = any (array(select find_tagged(items, since)))
  ) as found;
  -- What the caller has read is not in this store, so what comes after it would seem to be nothing; and the token of this read would let
  -- a decision be stored that was made from what is gone.
  select jsonb_build_object('item', null, 'tag', known.tag, 'n', known.n::bigint, 'id', null, 'uuid', null, 'aggregate_id', null,
      'type', null)
    into beyond
    from jsonb_each_text(nullif(since, 'null')) as known (tag, n) join jsonb_each_text(token) as here (tag, n) on here.tag = known.tag
    where known.n::bigint > here.n::bigint order by known.tag limit 1;
  if beyond is not null then
    perform refuse_unmet(beyond);
  end if;
end
$$;

-- As before, and says which event has an expected version that is negative.
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
    select min(e.place) into without from unnest(expected_versions) with ordinality as e (version, place) where e.version < 0;
    raise exception using errcode = 'ES003',
      message = format('event %s: an expected version is negative', without), detail = jsonb_build_object('event', without);
  end if;
  return size;
end
$$;

-- As before, but an event that comes again with an empty list of tags is not one that was stored with some.
create or replace function :"schema".append(events jsonb, condition jsonb)
returns table (id bigint, uuid uuid, version bigint)
language plpgsql
set search_path = :"schema", pg_temp
as $$
#variable_conflict use_column
declare
  event  jsonb;
  bare   jsonb;
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
  tags              text[];
  tagged            int[];
  keys              jsonb;
  untagged          uuid;
begin
  if jsonb_typeof(events) is distinct from 'array' then
    events := jsonb_build_array(events);
  end if;

  begin
    for event in select value from jsonb_array_elements(events) loop
      number := number + 1;
      bare := case jsonb_typeof(event) when 'object' then event - '{tags,claims,releases}'::text[] else event end;
      fault := coalesce(find_fault(bare), find_fault_of_time(event->>'created_at'), find_fault_of_tags(event));
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
    fault := find_unreadable(event, sqlerrm);
  end;
  if fault is not null then
    raise exception using errcode = 'ES003',
      message = format('event %s: %s', number, fault), detail = jsonb_build_object('event', number);
  end if;

  condition := nullif(condition, 'null');
  fault := find_fault_of_condition(condition);
  if fault is not null then
    raise exception using errcode = 'ES003', message = fault, detail = '{"event": null}';
  end if;

  select array_agg(t.tag), array_agg(e.place::int) into tags, tagged
  from jsonb_array_elements(events) with ordinality as e (value, place),
    jsonb_array_elements_text(coalesce(nullif(e.value->'tags', 'null'), '[]')) as t (tag);
  select jsonb_agg(jsonb_build_object('event', e.place, 'scope', k.scope, 'key', one.key, 'claims', c.claims)) into keys
  from jsonb_array_elements(events) with ordinality as e (value, place),
    (values ('claims', true), ('releases', false)) as c (name, claims),
    jsonb_each(coalesce(nullif(e.value->c.name, 'null'), '{}')) as k (scope, keys),
    jsonb_path_query(k.keys, '$[*]') as named,
    lateral (select named #>> '{}' as key) as one;
  return query
    select * from append_tagged(
      aggregate_ids, types, bodies, expected_versions, uuids, metadata, correlation_ids, causation_ids, created_ats, tags, tagged,
      keys, condition);

  -- An event that is said to have no tags is not the one that is stored with some. To leave them out says nothing of them.
  if jsonb_path_exists(events, '$[*] ? (exists(@.uuid) && @.tags.size() == 0)') then
    select e.uuid into untagged
      from unnest(uuids) with ordinality as given (uuid, place) join events as e on e.uuid = given.uuid
      where jsonb_typeof(append.events->(given.place::int - 1)->'tags') = 'array'
        and jsonb_array_length(append.events->(given.place::int - 1)->'tags') = 0
        and exists (select from tag_events as t where t.event_id = e.id)
      order by given.place limit 1;
    if found then
      raise exception using errcode = 'ES002',
        message = format('uuid %s is stored already, with tags', untagged), detail = jsonb_build_object('uuid', untagged);
    end if;
  end if;
end
$$;

-- As before, but an empty list does not cancel what is scheduled under the key: who means that says so.
create or replace function :"schema".append_at(at timestamptz, events jsonb, key text default null)
returns table (uuid uuid)
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_column
declare
  event  jsonb;
  fault  text;
  number int := 0;
  given  scheduled_events[] := '{}';
  one    scheduled_events;
  departure jsonb;
begin
  if at is null or not isfinite(at) then
    raise exception using errcode = 'ES003', message = 'there is no time to append at', detail = '{"event": null}';
  elsif octet_length(append_at.key) not between 1 and 1000 then
    raise exception using errcode = 'ES003', message = 'a key has 1 to 1000 bytes', detail = '{"event": null}';
  end if;
  if jsonb_typeof(events) is distinct from 'array' then
    events := jsonb_build_array(events);
  end if;

  begin
    for event in select value from jsonb_array_elements(events) loop
      number := number + 1;
      fault := coalesce(
        find_fault(event), find_fault_of_time(event->>'created_at'),
        case when event->>'expected_version' is not null then 'an expected version cannot be checked later' end,
        case when event->>'type' = '' then 'the type is empty' end);
      exit when fault is not null;
      one := null;
      one.uuid           := coalesce((event->>'uuid')::uuid, gen_random_uuid());
      one.aggregate_id   := (event->>'aggregate_id')::uuid;
      one.type           := event->>'type';
      one.body           := event->'body';
      one.metadata       := coalesce(nullif(event->'metadata', 'null'), '{}');
      one.correlation_id := (event->>'correlation_id')::uuid;
      one.causation_id   := (event->>'causation_id')::uuid;
      one.created_at     := (event->>'created_at')::timestamptz;
      given := given || one;
    end loop;
  exception when data_exception then
    fault := find_unreadable(event, sqlerrm);
  end;
  if fault is not null then
    raise exception using errcode = 'ES003',
      message = format('event %s: %s', number, fault), detail = jsonb_build_object('event', number);
  end if;

  -- It would be refused when it is due, long after the caller has ended. What is appended already is no matter any more.
  select find_departing(array_agg(g.type order by g.place), array_agg(g.body order by g.place),
      array_agg(exists (select from events as e where e.uuid = g.uuid) order by g.place))
    into departure
  from unnest(given) with ordinality as g
    (id, uuid, aggregate_id, type, body, metadata, causation_id, correlation_id, created_at, key, due_at, scheduled_at,
     attempts, last_error, sqlstate, tried_at, next_try_at, place);
  if departure is not null then
    perform refuse_departing(departure);
  end if;

  if append_at.key is not null then
    if cardinality(given) = 0 then
      raise exception using errcode = 'ES003', message = 'nothing is scheduled, and what is under the key would be gone',
        hint = 'to cancel it, call cancel_scheduled (the key)', detail = '{"event": null}';
    end if;
    -- Whoever schedules under the same key at the same time comes after this one, and replaces it.
    perform pg_advisory_xact_lock(hashtextextended('espd: scheduled as ' || append_at.key, 0));
    -- Whoever appends one of the events right now has locked it, and this waits to know how that ends.
    perform from scheduled_events as s where s.uuid in (select g.uuid from unnest(given) as g) order by s.id for update;
    -- What has one of its events appended was said before, and what is under the key may have come after it.
    if not exists (select from events as e where e.uuid in (select g.uuid from unnest(given) as g)) then
      delete from scheduled_events as s
        where s.key = append_at.key and s.uuid not in (select g.uuid from unnest(given) as g);
    end if;
  end if;
  foreach one in array given loop
    perform keep_scheduled(one, at, append_at.key);
    uuid := one.uuid;
    return next;
  end loop;
end
$$;
