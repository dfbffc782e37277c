-- Conditions on tags that cost the same however much has come on a tag.
-- Oldest program: 4

-- The number of the last event of each type, {"SeatTaken": [12, 9]}. The second number is that of the last one before the statement
-- that has written the first, which only this statement may rely on. Where an aggregate was deleted, the last one may be gone.
alter table :"schema".tag_heads add column if not exists by_type jsonb not null default '{}';

update :"schema".tag_heads as h set by_type = last.by_type
from (
  select t.tag, jsonb_object_agg(t.type, jsonb_build_array(t.n, 0)) as by_type
  from (select tag, type, max(n) as n from :"schema".tag_events group by 1, 2) as t
  group by 1) as last
where h.tag = last.tag;

-- Its part is done in append_tagged.
drop function if exists :"schema".is_met(jsonb, text[], bigint[]);

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
  -- The number that each tag had before.
  heads    jsonb;
  -- The number of the last event of the type of the only event, by tag.
  previous jsonb;
  unmet    jsonb;
  has_rung boolean;
begin
  if cardinality(aggregate_ids) = 1 and keys is null
    and (condition is null or jsonb_path_query_array(condition, '$.items[*].tags[*]') <@ to_jsonb(tags))
  then
    -- The usual case, one event that has all tags of its condition: one statement locks and moves them, and stores the event, or
    -- does not. It may look at rows that are older than the locks, so what it relies on is what the locked rows say.
    with locked as (
      insert into tag_heads as h (tag, n, by_type)
      select given.tag collate "C", 1, jsonb_build_object(types[1], '[1, 0]'::jsonb)
      from unnest(tags) as given (tag)
      group by 1 order by 1
      on conflict (tag) do update set n = h.n + 1, by_type = h.by_type || jsonb_build_object(
        types[1], jsonb_build_array(h.n + 1, coalesce(h.by_type->(types[1])->0, '0')))
      returning h.tag, h.n, h.by_type
    ), moved as (
      select jsonb_object_agg(l.tag, l.n - 1) as heads, jsonb_object_agg(l.tag, l.by_type->(types[1])->1) as previous,
        condition is null or not exists (
          select from jsonb_array_elements(condition->'items') as item
          where not exists (
            select from locked as at
            where item->'tags' ? at.tag
              and coalesce((condition->'token'->>at.tag)::bigint, 0) >= case
                when item ? 'types' then (
                  select coalesce(max((at.by_type->type->>(case when type = types[1] then 1 else 0 end))::bigint), 0)
                  from jsonb_array_elements_text(item->'types') as type)
                else at.n - 1 end)
        ) and not exists (select from locked as at where (condition->'token'->>at.tag)::bigint >= at.n) as is_met
      from locked as l
    ), stored as (
      insert into events as e
        (uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id, created_at)
      select coalesce(uuids[1], gen_random_uuid()), aggregate_ids[1], types[1], head.version + 1, bodies[1],
        coalesce(metadata[1], '{}'), correlation_ids[1], causation_ids[1], coalesce(created_ats[1], clock_timestamp())
      from moved, (select coalesce(max(version), 0) as version from events where aggregate_id = aggregate_ids[1]) as head
      where moved.is_met and (expected_versions[1] is null or expected_versions[1] = head.version)
        and not exists (select from event_schemas as s where s.type = types[1] and s.check_at_append)
      on conflict do nothing
      returning e.id, e.uuid, e.version
    ), noted as (
      insert into tag_events (tag, n, event_id, type) select l.tag, l.n, s.id, types[1] from stored as s, locked as l
    )
    select s.id, s.uuid, s.version, m.heads, m.previous,
        case when s.id is not null and must_ring('bell') then ring_bell() end
      into id, uuid, version, heads, previous, has_rung
    from moved as m left join stored as s on true;
    if id is not null then
      return next;
      return;
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
    update tag_heads as h set n = (heads->>h.tag)::bigint, by_type = case
        when previous is null then h.by_type
        when (previous->>h.tag)::bigint = 0 then h.by_type - types[1]
        else h.by_type || jsonb_build_object(types[1], jsonb_build_array(previous->h.tag, 0)) end
      where h.tag = any (tags);
    return;
  end if;

  -- Where no tag has moved, nothing came.
  if condition is not null and condition->'token' is distinct from heads then
    unmet := find_unmet(condition, heads);
    if unmet is not null then
      perform refuse_unmet(unmet);
    end if;
  end if;
  if keys is not null then
    perform change_keys(keys, aggregate_ids);
  end if;
  return query
    select * from append_with_tags(aggregate_ids, types, bodies, expected_versions, uuids, metadata, correlation_ids, causation_ids,
      created_ats, tags, tagged, heads);
end
$$;

-- For espd's library, whose statement for one event stores it or nothing: has it leave nothing.
create or replace function :"schema".nothing_stored() returns bigint
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
begin
  raise exception using errcode = 'ES010', message = 'nothing was stored; append_tagged says why';
end
$$;

-- A part of append_tagged: the refusal that find_unmet has found.
create or replace function :"schema".refuse_unmet(unmet jsonb) returns void
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
begin
  raise exception using errcode = 'ES008', detail = unmet, message = case
    when unmet->>'id' is null then format(
      'the token of the condition knows tag %s up to %s, which this store does not have: read again', unmet->>'tag', unmet->>'n')
    else format('item %s of the condition: event %s (%s) came on tag %s', unmet->>'item', unmet->>'id', unmet->>'type', unmet->>'tag')
  end;
end
$$;

-- A part of append_tagged: appends events whose tags are locked, and notes their numbers. `heads`: those that the tags had before.
create or replace function :"schema".append_with_tags(
  aggregate_ids     uuid[],
  types             text[],
  bodies            jsonb[],
  expected_versions bigint[],
  uuids             uuid[],
  metadata          jsonb[],
  correlation_ids   uuid[],
  causation_ids     uuid[],
  created_ats       timestamptz[],
  tags              text[],
  tagged            int[],
  heads             jsonb
) returns table (id bigint, uuid uuid, version bigint)
language plpgsql
set search_path = :"schema", pg_temp
set enable_seqscan = off
set row_security = off
as $$
#variable_conflict use_column
declare
  appended record;
begin
  select array_agg(a.id) as ids, array_agg(a.uuid) as uuids, array_agg(a.version) as versions into appended
  from append_events(aggregate_ids, types, bodies, expected_versions, uuids, metadata, correlation_ids, causation_ids,
    created_ats) as a;
  with noted as (
    insert into tag_events as t (tag, n, event_id, type)
    select given.tag, (heads->>given.tag)::bigint + row_number() over (partition by given.tag order by given.event),
      appended.ids[given.event], types[given.event]
    from (select distinct t.tag, t.event from unnest(tags, tagged) as t (tag, event)) as given
    returning t.tag, t.n, t.type
  )
  update tag_heads as h set by_type = h.by_type || last.by_type
  from (
    select l.tag, jsonb_object_agg(l.type, jsonb_build_array(l.n, 0)) as by_type
    from (select n.tag, n.type, max(n.n) as n from noted as n group by 1, 2) as l
    group by 1) as last
  where h.tag = last.tag;
  return query select * from unnest(appended.ids, appended.uuids, appended.versions);
end
$$;

-- As before. Each tag is looked up by itself: PostgreSQL takes an array of JSON for a hundred tags, and would read them all.
create or replace function :"schema".find_token(items jsonb) returns jsonb
language plpgsql stable
set search_path = :"schema", pg_temp
set enable_seqscan = off
set row_security = off
as $$
begin
  return (
    select coalesce(jsonb_object_agg(
      named.tag, coalesce((select h.n from tag_heads as h where h.tag = named.tag), 0)), '{}')
    from (select distinct tag from jsonb_array_elements(items) as item, jsonb_array_elements_text(item->'tags') as tag) as named
  );
end
$$;

-- As before, likewise.
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
        select named.tag, named.n
        from (
          select tag, coalesce((since->>tag)::bigint, 0) as n, (select h.n from tag_heads as h where h.tag = given.tag) as head
          from jsonb_array_elements_text(item->'tags') as given (tag)
        ) as named
        order by coalesce(named.head, 0) - named.n
        limit 1) as fewest
      join tag_events as e on e.tag = fewest.tag and e.n > fewest.n
    where coalesce(item->'types' ? e.type, true)
      and not exists (
        select from jsonb_array_elements_text(item->'tags') as other (tag)
        where other.tag <> fewest.tag
          and not exists (select from tag_events as o where o.event_id = e.event_id and o.tag = other.tag));
end
$$;
