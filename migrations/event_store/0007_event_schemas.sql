-- What the bodies of events look like, as the configuration declares it ([[event]]), and the check of what is appended.
-- Oldest program: 4
--
--   ES007  the body of an event is not as it is declared. {"event", "type", "path", "expected", "found"}: which one, from 1; its
--          type; the place in the body, as a JSON pointer; the part of the schema that is not met; the JSON type that is there
--
-- The check is part of append_events, so it is the same for every client of any language, and atomic with the append. A plain
-- INSERT or COPY is not checked, and neither is what is stored already.

create table if not exists :"schema".event_schemas (
  type            text        not null primary key check (type <> ''),
  -- A JSON Schema, of the keywords that find_departure knows. `espctl schema apply` writes it, and verifies it before.
  schema          jsonb       not null check (jsonb_typeof(schema) in ('object', 'boolean')),
  -- Whether append_events refuses what departs from it; otherwise it only documents.
  check_at_append boolean     not null,
  declared_at     timestamptz not null default clock_timestamp(),
  declared_by     text        not null default session_user
);

-- Whoever appends is checked by it, whatever rights he has beyond inserting events.
grant select on :"schema".event_schemas to public;

comment on table :"schema".event_schemas is 'Written by espctl schema apply.';

-- A part of find_departure: what is not met in one place.
create or replace function :"schema".departure(path text, keyword text, wanted jsonb, found text) returns jsonb
language sql immutable parallel safe
set search_path = :"schema", pg_temp
as $$ select jsonb_build_object('path', path, 'expected', jsonb_build_object(keyword, wanted), 'found', found) $$;

-- A part of find_departure: whether a text has a format. A cast would raise an error, and catching that costs a subtransaction.
create or replace function :"schema".has_format(text text, format text) returns boolean
language plpgsql immutable parallel safe
set search_path = :"schema", pg_temp
as $$
declare
  year int;
begin
  case format
    when 'uuid' then
      return text ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$';
    when 'date' then
      if text !~ '^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$' then
        return false;
      end if;
      year := left(text, 4)::int;
      return right(text, 2)::int <= case
        when substr(text, 6, 2) in ('04', '06', '09', '11') then 30
        when substr(text, 6, 2) <> '02' then 31
        when year % 4 = 0 and (year % 100 <> 0 or year % 400 = 0) then 29
        else 28
      end;
    when 'date-time' then
      return has_format(left(text, 10), 'date')
        and substr(text, 11) ~* '^t([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)([.][0-9]+)?(z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$';
    else
      raise exception using errcode = 'ES003', message = format('the format %s of a schema cannot be checked', format),
        detail = '{"event": null}';
  end case;
end
$$;

-- A part of find_departure: whether a value is of one of the types that `wanted` names.
create or replace function :"schema".has_type(value jsonb, wanted jsonb) returns boolean
language plpgsql immutable parallel safe
set search_path = :"schema", pg_temp
as $$
declare
  kind text := jsonb_typeof(value);
begin
  if wanted ? kind then
    return true;
  end if;
  -- 1.0 is an integer. Both operators take a text for an array of one.
  return kind = 'number' and wanted ? 'integer' and value::numeric = trunc(value::numeric);
end
$$;

-- Where a value departs from a JSON Schema: the first place, with what is expected there; null where it does not.
--
-- The keywords are those of docs/event-schemas.md. `espctl check` refuses others, and so does this function, because a keyword
-- that is passed over would look like one that is met. Arguments from `path` on are for the function itself.
create or replace function :"schema".find_departure(
  schema jsonb, value jsonb, path text default '', root jsonb default null, depth int default 0
) returns jsonb
language plpgsql immutable parallel safe
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
  deeper      jsonb;
begin
  root := coalesce(root, schema);
  if schema = 'true' then
    return null;
  elsif schema is null or schema = 'false' or depth > 64 then
    return departure(path, case when depth > 64 then 'maxDepth' else 'not' end,
      case when depth > 64 then '64' else '{}' end::jsonb, kind);
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
        deeper := find_departure(
          case name when '#' then root else root #> string_to_array(substr(name, 3), '/') end, value, path, root, depth + 1);
      when '$defs', 'definitions', '$schema', '$id', '$comment', 'title', 'description', 'default', 'examples', 'deprecated',
        'readOnly', 'writeOnly' then null;
      else
        if left(keyword, 2) <> 'x-' then
          raise exception using errcode = 'ES003', message = format('the keyword %s of a schema cannot be checked', keyword),
            detail = '{"event": null}';
        end if;
    end case;
    if departs then
      return departure(path, keyword, wanted, kind);
    elsif deeper is not null then
      return deeper;
    end if;
  end loop;
  return null;
end
$$;

-- A part of find_departure: the keywords that are about arrays.
create or replace function :"schema".find_departing_item(
  keyword text, wanted jsonb, value jsonb, path text, root jsonb, depth int
) returns jsonb
language plpgsql immutable parallel safe
set search_path = :"schema", pg_temp
as $$
#variable_conflict use_variable
declare
  departs boolean := case keyword
    when 'minItems' then jsonb_array_length(value) < wanted::int
    when 'maxItems' then jsonb_array_length(value) > wanted::int
    when 'uniqueItems' then wanted = 'true'
      and (select count(*) > count(distinct one) from jsonb_array_elements(value) as one)
  end;
  item  jsonb;
  place int;
  deeper jsonb;
begin
  if departs then
    return departure(path, keyword, wanted, 'array');
  elsif keyword = 'items' then
    for item, place in select one, number - 1 from jsonb_array_elements(value) with ordinality as e (one, number) loop
      deeper := find_departure(wanted, item, path || '/' || place, root, depth + 1);
      exit when deeper is not null;
    end loop;
  end if;
  return deeper;
end
$$;

-- A part of find_departure: the keywords that are about objects. A path is a JSON pointer, so a key's own ~ and / are escaped.
create or replace function :"schema".find_departing_property(
  keyword text, wanted jsonb, schema jsonb, value jsonb, path text, root jsonb, depth int
) returns jsonb
language plpgsql immutable parallel safe
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
    select key from jsonb_object_keys(case keyword when 'properties' then wanted else '{}' end) as key where value ? key
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

-- A part of append_events and append_at: the first of the events whose body departs from what is declared for its type and
-- checked, as the DETAIL of ES007; null where none does. `excepted`: the events that are not looked at.
create or replace function :"schema".find_departing(types text[], bodies jsonb[], excepted boolean[] default null) returns jsonb
language sql stable
set search_path = :"schema", pg_temp
set row_security = off
as $$
  select jsonb_build_object('event', given.place, 'type', given.type) || checked.departure
  from unnest(types, bodies, excepted) with ordinality as given (type, body, is_excepted, place)
    join event_schemas as declared on declared.type = given.type and declared.check_at_append
    cross join lateral (select find_departure(declared.schema, given.body) as departure offset 0) as checked
  where is_excepted is not true and checked.departure is not null
  order by given.place
  limit 1
$$;

-- Raises ES007. A long part of a schema is shortened in the message, and whole in the DETAIL.
create or replace function :"schema".refuse_departing(departure jsonb) returns void
language plpgsql stable
set search_path = :"schema", pg_temp
as $$
begin
  raise exception using errcode = 'ES007', detail = departure,
    message = format('event %s: %s of %s is not as declared: expected %s, found %s', departure->'event',
      coalesce(nullif(departure->>'path', ''), 'the body'), departure->>'type',
      left(departure->>'expected', 300), departure->>'found');
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

-- As before, and scheduling is refused where appending would be.
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
    fault := sqlerrm;
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
    delete from scheduled_events as s
      where s.key = append_at.key and s.uuid not in (select g.uuid from unnest(given) as g);
  end if;
  foreach one in array given loop
    perform keep_scheduled(one, at, append_at.key);
    uuid := one.uuid;
    return next;
  end loop;
end
$$;
