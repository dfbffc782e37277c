-- Consistency beyond one aggregate: tags of events, conditions on what has happened to a tag, and keys that one aggregate has at
-- a time.
-- Oldest program: 4
--
-- A tag is a stream of events across aggregates. Each has a counter of its own, which is drawn under the lock of the row that
-- holds it, so the order of the numbers is the order of the commits, and an event that commits late cannot be overlooked: "no
-- such event with n beyond 7" says what "no such event beyond position 7" cannot say. What is appended without a tag, a key and a
-- condition does not come here, and costs what it did.
--
--   ES008  an event came that the condition excludes. {"item", "tag", "n", "id", "uuid", "aggregate_id", "type"}: which item of the
--          condition, from 1, on which of its tags, and the first such event; null for the event where the token knows a later state
--          than the store is in
--   ES009  a key belongs to another aggregate. {"event", "scope", "key", "owner"}: which event claims it, from 1

-- How many events a tag has. Rows are never removed: whoever relies on "nothing has happened here" locks one.
create table if not exists :"schema".tag_heads (
  -- One order in every database, which is also the order of locking.
  tag text   collate "C" not null primary key check (octet_length(tag) between 1 and 1000),
  n   bigint not null
) with (fillfactor = 60);

-- Which events a tag has. Type and event are repeated here, so that a condition reads nothing else.
create table if not exists :"schema".tag_events (
  tag      text   collate "C" not null,
  -- Place in the tag: 1, 2, 3 ... ascending with event_id. A hole is left by an aggregate that was deleted.
  n        bigint not null,
  event_id bigint not null,
  type     text   not null,
  primary key (tag, n),
  constraint tag_events_event_id_tag_key unique (event_id, tag)
);

-- Which keys are taken, and by whom: an aggregate claims and releases them by its events.
create table if not exists :"schema".unique_keys (
  scope        text        collate "C" not null check (octet_length(scope) between 1 and 1000),
  key          text        collate "C" not null check (octet_length(key) between 1 and 1000),
  aggregate_id uuid        not null,
  claimed_at   timestamptz not null default clock_timestamp(),
  primary key (scope, key)
);

create index if not exists unique_keys_aggregate_id_idx on :"schema".unique_keys (aggregate_id);

comment on table :"schema".tag_heads is 'Never written by hand.';
comment on table :"schema".tag_events is 'Never written by hand.';
comment on table :"schema".unique_keys is 'Never written by hand.';

-- What is wrong with one item of a query or a condition; null if nothing is.
create or replace function :"schema".find_fault_of_item(item jsonb) returns text
language plpgsql immutable
set search_path = :"schema", pg_temp
as $$
begin
  return case
    when jsonb_typeof(item) <> 'object' then 'an item is not an object'
    when item - '{tags,types}'::text[] <> '{}' then 'an item has other keys than tags and types'
    when not item ? 'tags' or item->'tags' = '[]' then
      'an item has no tag, so it would be about everything in the store: name a tag'
    when jsonb_typeof(item->'tags') <> 'array' or jsonb_typeof(item->'types') <> 'array'
      or jsonb_path_exists(item, 'strict $.*[*] ? (@.type() <> "string")') then 'tags and types of an item are arrays of texts'
    when not are_short_texts(item->'tags') then 'a tag of an item is not a text of 1 to 1000 bytes'
    when item->'types' = '[]' then 'types of an item is empty: leave it out for all types'
  end;
end
$$;

-- What is wrong with all items; null if nothing is.
create or replace function :"schema".find_fault_of_items(items jsonb) returns text
language plpgsql immutable
set search_path = :"schema", pg_temp
set row_security = off
as $$
begin
  if jsonb_typeof(items) is distinct from 'array' or items = '[]' then
    return 'items is not an array of one item or more';
  end if;
  return (select f.fault from jsonb_array_elements(items) as item, find_fault_of_item(item) as f (fault)
    where f.fault is not null limit 1);
end
$$;

-- What is wrong with a condition; null if nothing is.
create or replace function :"schema".find_fault_of_condition(condition jsonb) returns text
language plpgsql immutable
set search_path = :"schema", pg_temp
as $$
begin
  return case
    when condition is null then null
    when jsonb_typeof(condition) <> 'object' then 'the condition is not an object'
    when condition - '{items,token}'::text[] <> '{}' then 'the condition has other keys than items and token'
    when jsonb_typeof(condition->'token') not in ('object', 'null') or jsonb_path_exists(condition->'token',
      'strict $.* ? (@.type() <> "number" || @ < 0 || @ > 9223372036854775807 || @ <> @.floor())', silent => true) then
      'the token is not one that read_tagged has returned'
    else find_fault_of_items(condition->'items')
  end;
end
$$;

-- The number of each tag that the items name, now.
create or replace function :"schema".find_token(items jsonb) returns jsonb
language plpgsql stable
set search_path = :"schema", pg_temp
set enable_seqscan = off
set row_security = off
as $$
begin
  return (
    select coalesce(jsonb_object_agg(named.tag, coalesce(h.n, 0)), '{}')
    from (select distinct tag from jsonb_array_elements(items) as item, jsonb_array_elements_text(item->'tags') as tag) as named
      left join tag_heads as h on h.tag = named.tag
  );
end
$$;

-- The ids of the events that match one of the items: of one of its types, with all of its tags. `since`: only what came after the
-- state that this token knows.
--
-- Of several tags, the one that has the fewest events is read, and the others are looked up. (These functions are in PL/pgSQL because
-- that keeps plans; a function in SQL is planned at each call.)
create or replace function :"schema".find_tagged(items jsonb, since jsonb default null) returns setof bigint
language plpgsql stable
set search_path = :"schema", pg_temp
set enable_seqscan = off
set row_security = off
as $$
begin
  return query
    select distinct e.event_id
    from jsonb_array_elements(items) as item
      cross join lateral (
        select named.tag, coalesce((since->>named.tag)::bigint, 0) as n
        from jsonb_array_elements_text(item->'tags') as named (tag) left join tag_heads as h on h.tag = named.tag
        order by coalesce(h.n, 0) - coalesce((since->>named.tag)::bigint, 0)
        limit 1) as fewest
      join tag_events as e on e.tag = fewest.tag and e.n > fewest.n
    where coalesce(item->'types' ? e.type, true)
      and not exists (
        select from jsonb_array_elements_text(item->'tags') as other (tag)
        where other.tag <> fewest.tag
          and not exists (select from tag_events as o where o.event_id = e.event_id and o.tag = other.tag));
end
$$;

-- Reads what a decision is made from: the events that match one of the items, in the order of ids, and the token that says up to
-- where that was. Both are of one snapshot.
--
--   select events, token from espd.read_tagged('[{"tags": ["course:1"], "types": ["StudentEnrolled"]}]');
--
-- Types inside an item are alternatives, and so are the items; an event has all tags of its item. `since`: a token; only what came
-- after it is read.
create or replace function :"schema".read_tagged(items jsonb, since jsonb default null, out events jsonb, out token jsonb)
language plpgsql stable
set search_path = :"schema", pg_temp
set enable_seqscan = off
set row_security = off
as $$
declare
  fault text := find_fault_of_condition(jsonb_build_object('items', items, 'token', since));
begin
  if fault is not null then
    raise exception using errcode = 'ES003', message = fault, detail = '{"event": null}';
  end if;
  select find_token(items), found.all_of_them into token, events
  from (
    select coalesce(jsonb_agg(to_jsonb(e) order by e.id), '[]') as all_of_them
    from events as e where e.id = any (array(select find_tagged(items, since)))
  ) as found;
end
$$;

-- A part of append_tagged: whether nothing came that a condition excludes, for one event whose tags are locked and have these
-- numbers from now on. False also where it takes find_unmet to say.
create or replace function :"schema".is_met(condition jsonb, written text[], numbers bigint[]) returns boolean
language plpgsql stable
set search_path = :"schema", pg_temp
set enable_seqscan = off
set row_security = off
as $$
declare
  items    jsonb := condition->'items';
  item     jsonb;
  the_tag  text;
  since    bigint;
  moved    bigint;
  is_still boolean;
begin
  for place in 0 .. jsonb_array_length(items) - 1 loop
    item := items->place;
    is_still := false;
    for tag_place in 0 .. jsonb_array_length(item->'tags') - 1 loop
      the_tag := item->'tags'->>tag_place;
      since := coalesce((condition#>>array['token', the_tag])::bigint, 0);
      moved := numbers[array_position(written, the_tag)] - 1 - since;
      if moved < 0 then
        return false;
      end if;
      is_still := is_still or moved = 0;
    end loop;
    -- Of an item with several tags, it is enough that nothing came on one of them.
    if not is_still and (jsonb_array_length(item->'tags') > 1 or exists (
      select from tag_events as t
      where t.tag = the_tag and t.n > since and coalesce(item->'types' ? t.type, true)))
    then
      return false;
    end if;
  end loop;
  return true;
end
$$;

-- A part of append_tagged: the first item that an event matches which came after the token, as the DETAIL of ES008; null where
-- there is none. `heads`: the numbers of all tags that the condition names. Their rows are locked.
create or replace function :"schema".find_unmet(condition jsonb, heads jsonb) returns jsonb
language plpgsql stable
set search_path = :"schema", pg_temp
set enable_seqscan = off
set row_security = off
as $$
begin
  return (
    select jsonb_build_object('item', item.number, 'tag', least_moved.tag, 'n', coalesce(came.n, least_moved.n),
      'id', came.event_id, 'uuid', e.uuid, 'aggregate_id', e.aggregate_id, 'type', came.type)
    from jsonb_array_elements(condition->'items') with ordinality as item (value, number)
      cross join lateral (
        select named.tag, named.n, (heads->>named.tag)::bigint - named.n as moved
        from (
          select tag, coalesce((condition->'token'->>tag)::bigint, 0) as n from jsonb_array_elements_text(item.value->'tags') as tag
        ) as named
        order by moved
        limit 1) as least_moved
      left join lateral (
        select t.n, t.event_id, t.type from tag_events as t
        where t.tag = least_moved.tag and t.n > least_moved.n and coalesce(item.value->'types' ? t.type, true)
          and not exists (
            select from jsonb_array_elements_text(item.value->'tags') as other (tag)
            where other.tag <> least_moved.tag
              and not exists (select from tag_events as o where o.event_id = t.event_id and o.tag = other.tag))
        order by t.n
        limit 1) as came on least_moved.moved > 0
      left join events as e on e.id = came.event_id
    where came.n is not null or least_moved.moved < 0
    order by item.number
    limit 1
  );
end
$$;

-- A part of append_tagged: locks the heads of tags in their order and returns the numbers that they had, by tag. Those that are
-- written move by so much; where that is 0, it is made sure that nobody writes them until this transaction has ended.
create or replace function :"schema".lock_tags(tags text[], counts bigint[]) returns jsonb
language plpgsql
set search_path = :"schema", pg_temp
set enable_seqscan = off
set row_security = off
as $$
declare
  one   record;
  found_n bigint;
  heads jsonb := '{}';
begin
  for one in
    select given.tag collate "C" as tag, sum(given.count) as count from unnest(tags, counts) as given (tag, count)
    group by 1 order by 1
  loop
    if one.count > 0 then
      insert into tag_heads as h (tag, n) values (one.tag, one.count)
        on conflict (tag) do update set n = h.n + excluded.n
        returning h.n - one.count into found_n;
    else
      select h.n into found_n from tag_heads as h where h.tag = one.tag for share;
      if not found then
        insert into tag_heads (tag, n) values (one.tag, 0) on conflict do nothing;
        select h.n into strict found_n from tag_heads as h where h.tag = one.tag for share;
      end if;
    end if;
    heads := heads || jsonb_build_object(one.tag, found_n);
  end loop;
  return heads;
end
$$;

-- A part of append_tagged: claims and releases keys, [{"event", "scope", "key", "claims"}], in their order. Within one append,
-- releases count before claims, so that two aggregates can change places. An aggregate that claims a key and releases it in a later
-- event does not have it.
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
    )
    select * from given as g
    where not g.claims or not exists (
      select from given as later
      where not later.claims and later.event > g.event
        and (later.scope, later.key, later.aggregate_id) = (g.scope, g.key, g.aggregate_id))
    order by g.scope, g.key, g.claims, g.event
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

-- A part of append_tagged: where the events are, if they are stored already; nothing if they are not. Raises ES002 if one comes with
-- other tags than it has. One that comes without tags is not looked at.
create or replace function :"schema".find_appended_tagged(
  aggregate_ids uuid[], types text[], bodies jsonb[], uuids uuid[], metadata jsonb[], correlation_ids uuid[], causation_ids uuid[],
  created_ats timestamptz[], tags text[], tagged int[]
) returns table (id bigint, uuid uuid, version bigint)
language plpgsql stable
set search_path = :"schema", pg_temp
set enable_seqscan = off
set row_security = off
as $$
#variable_conflict use_column
declare
  changed uuid;
begin
  return query
    select * from find_appended(
      aggregate_ids, types, bodies, uuids, metadata, correlation_ids, causation_ids, created_ats);
  if not found then
    return;
  end if;
  select given.uuid into changed
  from unnest(uuids) with ordinality as given (uuid, place)
    join events as e on e.uuid = given.uuid
  where given.place = any (tagged)
    and array(select t.tag from tag_events as t where t.event_id = e.id order by t.tag)
    <> array(select distinct t.tag collate "C" from unnest(tags, tagged) as t (tag, event) where t.event = given.place order by 1)
  limit 1;
  if found then
    raise exception using errcode = 'ES002',
      message = format('uuid %s is stored already, with other tags', changed), detail = jsonb_build_object('uuid', changed);
  end if;
end
$$;

-- Appends as append_events does, with tags, keys and a condition.
--
-- Callers are append, which verifies what it is given, and espd's library.
--
-- tags, tagged: event number `tagged[i]`, from 1, has the tag `tags[i]`.
-- keys:         [{"event": 1, "scope": "email", "key": "ann@example.org", "claims": true}]; not claims: releases.
-- condition:    {"items": [{"tags": [...], "types": [...]}], "token": {...}}. Items are alternatives, and so are the types inside
--               an item; an event has all tags of its item. The append is refused with ES008 if an event matches that came after
--               the token, which read_tagged has returned; without a token, if there is any.
--
-- Locks are taken in one order: first tags, then keys, each by its text, and before an id is drawn, so that the settled horizon
-- waits for none of them. What is stored already is recognised before the condition is looked at. Appending nothing under a
-- condition checks it, and has it hold until the transaction ends.
create or replace function :"schema".append_tagged(
  aggregate_ids     uuid[],
  types             text[],
  bodies            jsonb[],
  expected_versions bigint[]      default null,
  uuids             uuid[]        default null,
  metadata          jsonb[]       default null,
  correlation_ids   uuid[]        default null,
  causation_ids     uuid[]        default null,
  created_ats       timestamptz[] default null,
  tags              text[]        default null,
  tagged            int[]         default null,
  keys              jsonb         default null,
  condition         jsonb         default null
) returns table (id bigint, uuid uuid, version bigint)
language plpgsql
set search_path = :"schema", pg_temp
set enable_seqscan = off
set row_security = off
as $$
#variable_conflict use_column
declare
  size     int := coalesce(cardinality(aggregate_ids), 0);
  token    jsonb := condition->'token';
  -- The tags that are written, in the order of locking, and the number of the last event that each gets.
  written  text[];
  numbers  bigint[];
  -- The number that each tag had before.
  heads    jsonb;
  unmet    jsonb;
  appended record;
begin
  if condition is null or jsonb_path_query_array(condition, '$.items[*].tags[*]') <@ to_jsonb(tags) then
    -- The usual case, where every tag of the condition is written as well: one statement locks and moves them.
    with locked as (
      insert into tag_heads as h (tag, n)
      select given.tag collate "C", count(distinct given.event) from unnest(tags, tagged) as given (tag, event)
      group by 1 order by 1
      on conflict (tag) do update set n = h.n + excluded.n
      returning h.tag, h.n
    )
    select array_agg(l.tag), array_agg(l.n) into written, numbers from locked as l;

    -- Of one event, what remains is one statement, which stores it or does nothing.
    if size = 1 and keys is null and (condition is null or is_met(condition, written, numbers)) then
      with stored as (
        insert into events as e
          (uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id, created_at)
        select coalesce(uuids[1], gen_random_uuid()), aggregate_ids[1], types[1], head.version + 1, bodies[1],
          coalesce(metadata[1], '{}'), correlation_ids[1], causation_ids[1], coalesce(created_ats[1], clock_timestamp())
        from (select coalesce(max(version), 0) as version from events where aggregate_id = aggregate_ids[1]) as head
        where (expected_versions[1] is null or expected_versions[1] = head.version)
          and not exists (select from event_schemas as s where s.type = types[1] and s.check_at_append)
        on conflict do nothing
        returning e.id, e.uuid, e.version
      ), noted as (
        insert into tag_events (tag, n, event_id, type)
        select w.tag, w.n, s.id, types[1] from stored as s, unnest(written, numbers) as w (tag, n)
      )
      select s.id, s.uuid, s.version into id, uuid, version from stored as s;
      if found then
        return next;
        return;
      end if;
    end if;
    select jsonb_object_agg(l.tag, l.n - 1) into heads from unnest(written, numbers) as l (tag, n);
    if size > 1 then
      select jsonb_object_agg(given.tag, (heads->>given.tag)::bigint + 1 - given.count) into heads
      from (select t.tag, count(distinct t.event) from unnest(tags, tagged) as t (tag, event) group by 1) as given;
    end if;
  else
    select lock_tags(array_agg(given.tag), array_agg(given.count)) into heads
    from (
      select t.tag, count(distinct t.event) from unnest(tags, tagged) as t (tag, event) group by 1
      union all
      select t.tag, 0 from jsonb_path_query(condition, '$.items[*].tags[*]') as named,
        lateral (select named #>> '{}' as tag) as t
    ) as given;
  end if;

  if exists (select from events as e where e.uuid = any (uuids)) then
    return query
      select * from find_appended_tagged(aggregate_ids, types, bodies, uuids, metadata, correlation_ids, causation_ids,
        created_ats, tags, tagged);
    -- Nothing is written, so no tag has moved.
    update tag_heads as h set n = (heads->>h.tag)::bigint where h.tag = any (tags);
    return;
  end if;

  -- Where no tag has moved, nothing came.
  if condition is not null and token is distinct from heads then
    unmet := find_unmet(condition, heads);
    if unmet is not null then
      raise exception using errcode = 'ES008', detail = unmet, message = case
        when unmet->>'id' is null then format(
          'the token of the condition knows tag %s up to %s, which this store does not have: read again', unmet->>'tag', unmet->>'n')
        else format('item %s of the condition: event %s (%s) came on tag %s', unmet->>'item', unmet->>'id', unmet->>'type',
          unmet->>'tag')
      end;
    end if;
  end if;
  if keys is not null then
    perform change_keys(keys, aggregate_ids);
  end if;

  select array_agg(a.id) as ids, array_agg(a.uuid) as uuids, array_agg(a.version) as versions into appended
  from append_events(aggregate_ids, types, bodies, expected_versions, uuids, metadata, correlation_ids, causation_ids,
    created_ats) as a;
  insert into tag_events (tag, n, event_id, type)
    select given.tag, (heads->>given.tag)::bigint + row_number() over (partition by given.tag order by given.event),
      appended.ids[given.event], types[given.event]
    from (select distinct t.tag, t.event from unnest(tags, tagged) as t (tag, event)) as given;
  return query select * from unnest(appended.ids, appended.uuids, appended.versions);
end
$$;

-- A part of append: whether a value is an array of texts that can be tags, scopes or keys.
create or replace function :"schema".are_short_texts(value jsonb) returns boolean
language plpgsql immutable
set search_path = :"schema", pg_temp
set row_security = off
as $$
begin
  return jsonb_typeof(value) = 'array' and not exists (
    select from jsonb_array_elements(case jsonb_typeof(value) when 'array' then value end) as one
    where jsonb_typeof(one) <> 'string' or octet_length(one #>> '{}') not between 1 and 1000);
end
$$;

-- A part of append: what is wrong with the tags and keys of an event; null if nothing is.
create or replace function :"schema".find_fault_of_tags(event jsonb) returns text
language plpgsql immutable
set search_path = :"schema", pg_temp
set row_security = off
as $$
declare
  tags jsonb := nullif(event->'tags', 'null');
  name text;
  keys jsonb;
begin
  if not are_short_texts(tags) then
    return 'tags is not an array of texts of 1 to 1000 bytes';
  end if;
  foreach name in array '{claims,releases}'::text[] loop
    keys := nullif(event->name, 'null');
    if jsonb_typeof(keys) <> 'object' or exists (
      select from jsonb_each(case jsonb_typeof(keys) when 'object' then keys end) as k (scope, keys)
      where octet_length(k.scope) not between 1 and 1000
        or not are_short_texts(case jsonb_typeof(k.keys) when 'array' then k.keys else jsonb_build_array(k.keys) end))
    then
      return name || ' is not an object of scopes with a key each, or an array of keys, each a text of 1 to 1000 bytes';
    end if;
  end loop;
  return null;
end
$$;

-- As append, with tags, keys and a condition:
--
--   select * from espd.append(
--     '{"aggregate_id": "...", "type": "StudentEnrolled", "body": {}, "tags": ["course:1", "student:2"]}',
--     '{"items": [{"tags": ["course:1"], "types": ["StudentEnrolled"]}], "token": {"course:1": 7}}');
--
-- An event may have `tags`, an array of texts, and `claims` and `releases`, objects that name a key, or an array of keys, by its
-- scope: {"email": "ann@example.org"}. The condition is that of append_tagged; null: none.
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
    fault := sqlerrm;
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

-- As before; events may have tags and keys.
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

comment on function :"schema".append(jsonb, jsonb) is 'For what has tags and keys, and under a condition on tags.';
