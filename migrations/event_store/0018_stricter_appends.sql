-- What callers in SQL can get wrong, or say again: refused where it is said, and harmless where it is repeated.
-- Oldest program: 4

-- A part of append and append_at: what cannot be read, with the key that it stands under. `fault` is what was said of the event as a
-- whole, for what is not read again here.
create or replace function :"schema".find_unreadable(event jsonb, fault text) returns text
language plpgsql stable
set search_path = :"schema", pg_temp
as $$
declare
  key text;
begin
  foreach key in array '{aggregate_id,uuid,correlation_id,causation_id}'::text[] loop
    perform (event->>key)::uuid;
  end loop;
  key := 'expected_version';
  perform (event->>key)::bigint;
  key := 'created_at';
  perform (event->>key)::timestamptz;
  return fault;
exception when data_exception then
  return format('%s: %s', key, sqlerrm);
end
$$;

-- What is wrong with the time of an event; null if nothing is. It begins with year, month and day, as JSON and ISO 8601 have them:
-- `01/02/2024` is another day in another session. And it has a zone: without one, the time meant would depend on a setting as well.
create or replace function :"schema".find_fault_of_time(created_at text) returns text
language plpgsql stable
set search_path = :"schema", pg_temp
as $$
begin
  if created_at is null then
    return null;
  elsif created_at !~ '^[0-9]{4,}-[0-9]{2}-[0-9]{2}' then
    return 'created_at does not begin with year, month and day, as 2024-01-31 does';
  elsif created_at ~* '[0-9]:[0-9][0-9].*(z|[+-][0-9][0-9](:?[0-9][0-9])?)$'
    or created_at ~ '[0-9]:[0-9][0-9]' and has_zone(created_at)
  then
    return null;
  end if;
  return 'created_at is not a time with a zone';
end
$$;

-- As before, and says which key cannot be read.
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
    fault := find_unreadable(event, sqlerrm);
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

-- As before, likewise.
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
end
$$;

-- As before, but a call whose events are appended already, or some of them, takes the place of nothing. It is a repetition, and had
-- removed what was scheduled under its key since.
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

-- A part of append_tagged: claims and releases keys, [{"event", "scope", "key", "claims"}]. The events count one after the other, and in
-- one event releases come before claims. What an aggregate has before the append, and releases in it, is free from the beginning, so
-- that two aggregates can change places. A claim is checked although a later event releases the key.
create or replace function :"schema".change_keys(keys jsonb, aggregate_ids uuid[]) returns void
language plpgsql
set search_path = :"schema", pg_temp
set enable_seqscan = off
set row_security = off
as $$
declare
  one   record;
  owner uuid;
begin
  for one in
    with given as (
      select k.event, k.scope collate "C" as scope, k.key collate "C" as key, k.claims, aggregate_ids[k.event] as aggregate_id
      from jsonb_to_recordset(keys) as k (event int, scope text, key text, claims boolean)
    ), steps as (
      select g.*, 1 as step from given as g where not g.claims
      union all
      -- What was claimed in the append is released in its turn.
      select g.*, 2 from given as g
      where g.claims or exists (
        select from given as earlier
        where earlier.claims and earlier.event < g.event
          and (earlier.scope, earlier.key, earlier.aggregate_id) = (g.scope, g.key, g.aggregate_id))
    )
    select * from steps as s order by s.scope, s.key, s.step, s.event, s.claims
  loop
    if not one.claims then
      delete from unique_keys as k where (k.scope, k.key, k.aggregate_id) = (one.scope, one.key, one.aggregate_id);
      continue;
    end if;
    insert into unique_keys as k (scope, key, aggregate_id) values (one.scope, one.key, one.aggregate_id)
      on conflict (scope, key) do update set aggregate_id = k.aggregate_id where k.aggregate_id = excluded.aggregate_id;
    if not found then
      select k.aggregate_id into owner from unique_keys as k where (k.scope, k.key) = (one.scope, one.key);
      raise exception using errcode = 'ES009',
        message = format('%s %s belongs to aggregate %s', one.scope, one.key, owner),
        detail = jsonb_build_object('event', one.event, 'scope', one.scope, 'key', one.key, 'owner', owner);
    end if;
  end loop;
end
$$;

-- Where a value departs from a JSON Schema: the first place, with what is expected there; null where it does not.
--
-- The keywords are those of docs/event-schemas.md. `espctl check` refuses others, and so does this function, because a keyword
-- that is passed over would look like one that is met. Arguments from `path` on are for the function itself.
--
-- Without a reference, each part of a schema is looked at once for each part of the body at most. With references that could be more
-- than anybody waits for, so they are counted. Where a schema cannot be followed to its end, `expected` is a text that says why.
create or replace function :"schema".find_departure(
  schema jsonb, value jsonb, path text default '', root jsonb default null, depth int default 0
) returns jsonb
language plpgsql
set search_path = :"schema", pg_temp
as $$
#variable_conflict use_variable
declare
  kind       text := jsonb_typeof(value);
  characters text := case when kind = 'string' then value #>> '{}' end;
  keyword    text;
  wanted     jsonb;
  departs    boolean;
  name       text;
  part       jsonb;
  deeper     jsonb;
  is_whole   boolean := root is null;
  -- How many references were followed for the whole body. A setting, because it outlives the calls and is looked at at references only.
  followed   text;
begin
  if is_whole then
    root := schema;
    followed := set_config('espd.references', '0', true);
  end if;
  if schema = 'true' then
    return null;
  elsif depth > 64 then
    return jsonb_build_object('path', path, 'found', kind, 'expected', 'the schema goes on for more than 64 levels, where each property '
      || 'or item is one, each $ref, and each of allOf, anyOf, oneOf and not: declare less of what is inside');
  elsif schema is null or schema = 'false' then
    return departure(path, 'not', '{}', kind);
  elsif schema ? 'type' and not has_type(value, schema->'type') then
    return departure(path, 'type', schema->'type', kind);
  end if;

  for keyword, wanted in select * from jsonb_each(schema) loop
    departs := false;
    deeper := null;
    case keyword
      when 'type' then null;
      when 'const' then departs := value <> wanted;
      when 'enum' then departs := not exists (select from jsonb_array_elements(wanted) as one where one = value);
      when 'minimum' then departs := kind = 'number' and value < wanted;
      when 'maximum' then departs := kind = 'number' and value > wanted;
      when 'exclusiveMinimum' then departs := kind = 'number' and value <= wanted;
      when 'exclusiveMaximum' then departs := kind = 'number' and value >= wanted;
      when 'multipleOf' then
        if kind = 'number' then
          departs := value::numeric % wanted::numeric <> 0;
        end if;
      when 'minLength' then departs := char_length(characters) < wanted::int;
      when 'maxLength' then departs := char_length(characters) > wanted::int;
      when 'pattern' then departs := characters !~ (wanted #>> '{}');
      when 'format' then
        if kind = 'string' then
          departs := not has_format(characters, wanted #>> '{}');
        end if;
      when 'minItems', 'maxItems', 'uniqueItems', 'items' then
        if kind = 'array' then
          deeper := find_departing_item(keyword, wanted, value, path, root, depth);
        end if;
      when 'required', 'properties', 'additionalProperties', 'minProperties', 'maxProperties' then
        if kind = 'object' then
          deeper := find_departing_property(keyword, wanted, schema, value, path, root, depth);
        end if;
      when 'allOf' then
        for part in select one from jsonb_array_elements(wanted) as one loop
          deeper := find_departure(part, value, path, root, depth + 1);
          exit when deeper is not null;
        end loop;
      when 'anyOf' then
        departs := not exists (select from jsonb_array_elements(wanted) as one
          where find_departure(one, value, path, root, depth + 1) is null);
      when 'oneOf' then
        departs := 1 <> (select count(*) from jsonb_array_elements(wanted) as one
          where find_departure(one, value, path, root, depth + 1) is null);
      when 'not' then departs := find_departure(wanted, value, path, root, depth + 1) is null;
      when '$ref' then
        name := wanted #>> '{}';
        followed := set_config('espd.references', (current_setting('espd.references')::int + 1)::text, true);
        deeper := case
          -- Whatever this is inside of, the whole is refused below.
          when followed::int > 100000 then departure(path, keyword, wanted, kind)
          else find_departure(
            case name when '#' then root else root #> string_to_array(substr(name, 3), '/') end, value, path, root, depth + 1)
        end;
      when '$defs', 'definitions', '$schema', '$id', '$comment', 'title', 'description', 'default', 'examples', 'deprecated',
        'readOnly', 'writeOnly' then null;
      else
        if left(keyword, 2) <> 'x-' then
          raise exception using errcode = 'ES003', message = format('the keyword %s of a schema cannot be checked', keyword),
            detail = '{"event": null}';
        end if;
    end case;
    if departs then
      deeper := departure(path, keyword, wanted, kind);
    end if;
    exit when deeper is not null;
  end loop;
  if is_whole and current_setting('espd.references')::int > 100000 then
    return jsonb_build_object('path', path, 'found', kind, 'expected', 'the schema takes more than 100000 references ($ref) for this '
      || 'body: tell alternatives apart by a property that refers to nothing, such as a const, or declare less of what is inside');
  end if;
  return deeper;
end
$$;

-- They are parts of one another.
alter function :"schema".find_departing_item volatile parallel unsafe;

-- A part of find_departure: the keywords that are about objects. A path is a JSON pointer, so a key's own ~ and / are escaped. Of the
-- properties, those come first that have nothing inside: where one of them says which alternative is meant, no other is gone into.
create or replace function :"schema".find_departing_property(
  keyword text, wanted jsonb, schema jsonb, value jsonb, path text, root jsonb, depth int
) returns jsonb
language plpgsql
set search_path = :"schema", pg_temp
as $$
#variable_conflict use_variable
declare
  size       int;
  name       text;
  inner_path text;
  deeper jsonb;
begin
  if keyword in ('minProperties', 'maxProperties') then
    size := (select count(*) from jsonb_object_keys(value));
    if keyword = 'minProperties' and size < wanted::int or keyword = 'maxProperties' and size > wanted::int then
      return departure(path, keyword, wanted, 'object');
    end if;
    return null;
  end if;
  for name in
    select key from jsonb_array_elements_text(case keyword when 'required' then wanted else '[]' end) as key where not value ? key
    union all
    (
      select key from jsonb_object_keys(case keyword when 'properties' then wanted else '{}' end) as key where value ? key
      order by wanted->key ?| '{$ref,allOf,anyOf,oneOf,not,properties,additionalProperties,items}'::text[]
    )
    union all
    select key from jsonb_object_keys(case keyword when 'additionalProperties' then value else '{}' end) as key
      where not coalesce(schema->'properties' ? key, false)
  loop
    inner_path := path || '/' || replace(replace(name, '~', '~0'), '/', '~1');
    deeper := case
      when keyword = 'required' then departure(inner_path, 'required', jsonb_build_array(name), 'nothing')
      when keyword = 'properties' then find_departure(wanted->name, value->name, inner_path, root, depth + 1)
      when wanted = 'false' then departure(inner_path, keyword, wanted, jsonb_typeof(value->name))
      else find_departure(wanted, value->name, inner_path, root, depth + 1)
    end;
    exit when deeper is not null;
  end loop;
  return deeper;
end
$$;

-- Raises ES007. A long part of a schema is shortened in the message, and whole in the DETAIL.
create or replace function :"schema".refuse_departing(departure jsonb) returns void
language plpgsql stable
set search_path = :"schema", pg_temp
as $$
begin
  raise exception using errcode = 'ES007', detail = departure,
    message = format(
      case jsonb_typeof(departure->'expected')
        when 'string' then 'event %s: %s of %s cannot be checked: %s'
        else 'event %s: %s of %s is not as declared: expected %s, found %s'
      end,
      departure->'event', coalesce(nullif(departure->>'path', ''), 'the body'), departure->>'type',
      left(departure->>'expected', 300), departure->>'found');
end
$$;
