-- Events that applications append for later. A caller schedules them in its own transaction; when they are due by the clock
-- of this server, `append_due` appends them. Every daemon calls that about once a second, and any other client may.
-- Oldest program: 4

create table if not exists :"schema".scheduled_events (
  id             bigint      not null generated always as identity primary key,
  -- The identity that the event will have: scheduling and appending it again is harmless.
  uuid           uuid        not null default gen_random_uuid(),
  aggregate_id   uuid        not null,
  type           text        not null check (type <> ''),
  body           jsonb       not null,
  metadata       jsonb       not null default '{}' check (jsonb_typeof(metadata) = 'object'),
  causation_id   uuid,
  correlation_id uuid,
  -- What the event will have; null: the time at which it is appended.
  created_at     timestamptz,
  -- Names what was scheduled together, so that it can be cancelled or put off.
  key            text        check (octet_length(key) between 1 and 1000),
  due_at         timestamptz not null check (isfinite(due_at)),
  scheduled_at   timestamptz not null default clock_timestamp(),
  -- How often the table of events has refused it, why, and when the last time was.
  attempts       integer     not null default 0,
  last_error     text,
  sqlstate       text,
  tried_at       timestamptz,
  -- When it is appended: at first when it is due, and later after each refusal.
  next_try_at    timestamptz not null,
  constraint scheduled_events_uuid_key unique (uuid)
);

create index if not exists scheduled_events_next_idx on :"schema".scheduled_events (next_try_at, id);
create index if not exists scheduled_events_key_idx on :"schema".scheduled_events (key) where key is not null;

comment on table :"schema".scheduled_events is 'Events to be appended later. Write through append_at and cancel_scheduled.';

-- Appends events at a later time, from the caller's transaction on:
--
--   select * from espd.append_at(now() + interval '1 day', '{"aggregate_id": "...", "type": "ReminderDue", "body": {}}', key => 'todo-7');
--
-- Takes one object or an array of them, with the keys that `append` takes; an expected version cannot be checked later and is
-- refused. With a key, the events take the place of those that were scheduled under it and are not appended yet. Returns the
-- uuids that the events will have, in input order.
--
-- Scheduling a uuid again moves it to the new time. Where the event is appended already, nothing happens. Raises ES002 if the
-- uuid belongs to other content, ES003 for what is invalid.
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

-- A part of append_at: keeps one event, unless it is appended already.
create or replace function :"schema".keep_scheduled(given :"schema".scheduled_events, at timestamptz, key text) returns void
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
begin
  perform from find_appended(array[given.aggregate_id], array[given.type], array[given.body], array[given.uuid],
    array[given.metadata], array[given.correlation_id], array[given.causation_id], array[given.created_at]);
  if found then
    return;
  end if;
  insert into scheduled_events as s
    (uuid, aggregate_id, type, body, metadata, causation_id, correlation_id, created_at, key, due_at, next_try_at)
  values (given.uuid, given.aggregate_id, given.type, given.body, given.metadata, given.causation_id, given.correlation_id,
    given.created_at, keep_scheduled.key, at, at)
  on conflict (uuid) do update
    set key = excluded.key, due_at = excluded.due_at, next_try_at = excluded.next_try_at, attempts = 0, last_error = null,
      sqlstate = null, tried_at = null
    where (s.aggregate_id, s.type, s.body, s.metadata) = (excluded.aggregate_id, excluded.type, excluded.body, excluded.metadata)
      and (s.correlation_id, s.causation_id, s.created_at)
        is not distinct from (excluded.correlation_id, excluded.causation_id, excluded.created_at);
  if not found then
    raise exception using errcode = 'ES002',
      message = format('uuid %s is scheduled already, with other content', given.uuid),
      detail = jsonb_build_object('uuid', given.uuid);
  end if;
end
$$;

-- The same, some time from now.
create or replace function :"schema".append_after(after interval, events jsonb, key text default null)
returns table (uuid uuid)
language sql
set search_path = :"schema", pg_temp
as $$ select uuid from append_at(clock_timestamp() + after, events, key) $$;

-- Cancels what was scheduled under a key and is not appended yet. Returns whether there was anything.
create or replace function :"schema".cancel_scheduled(key text) returns boolean
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
begin
  delete from scheduled_events as s where s.key = cancel_scheduled.key;
  return found;
end
$$;

-- Appends what is due, `size` events at most, in the order of their times, and says how many were appended and refused, and
-- when to look again. An event that the table of events refuses is put off by itself, after a second, doubling to about five
-- minutes. Nothing is put off for an error that says nothing about the event, such as a full disk.
--
-- Callers take turns, so that events are appended in order; one that finds another at work does nothing.
create or replace function :"schema".append_due(
  size int default 100, out appended int, out refused int, out seconds_left float8
)
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
declare
  due     scheduled_events[];
  one     scheduled_events;
  refusal text;
begin
  appended := 0;
  refused := 0;
  if not pg_try_advisory_xact_lock(hashtextextended('espd: scheduled events of ' || current_schema(), 0)) then
    seconds_left := 0.1;
    return;
  end if;
  select array_agg(row(s.*)::scheduled_events order by s.next_try_at, s.id) into due from (
    select * from scheduled_events where next_try_at <= clock_timestamp() order by next_try_at, id
    limit size for update skip locked) as s;

  if due is not null then
    begin
      perform append_scheduled(due);
      appended := cardinality(due);
    exception when others then
      foreach one in array due loop
        begin
          perform append_scheduled(array[one]);
          appended := appended + 1;
        exception when others then
          refusal := sqlstate;
          if left(refusal, 2) in ('08', '25', '53', '57', '58') or refusal in ('40001', '40P01') then
            raise;
          end if;
          update scheduled_events
            set attempts = attempts + 1, last_error = left(sqlerrm, 1000), sqlstate = refusal, tried_at = clock_timestamp(),
              next_try_at = clock_timestamp() + interval '1 second' * power(2, least(attempts, 8))
            where id = one.id;
          refused := refused + 1;
        end;
      end loop;
    end;
  end if;
  select extract(epoch from min(next_try_at) - clock_timestamp()) into seconds_left from scheduled_events;
end
$$;

-- A part of append_due.
create or replace function :"schema".append_scheduled(due :"schema".scheduled_events[]) returns void
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
begin
  perform from (
    select array_agg(d.aggregate_id order by d.place) as aggregate_ids, array_agg(d.type order by d.place) as types,
      array_agg(d.body order by d.place) as bodies, array_agg(d.uuid order by d.place) as uuids,
      array_agg(d.metadata order by d.place) as metadata, array_agg(d.correlation_id order by d.place) as correlation_ids,
      array_agg(d.causation_id order by d.place) as causation_ids, array_agg(d.created_at order by d.place) as created_ats
    from unnest(due) with ordinality as d
      (id, uuid, aggregate_id, type, body, metadata, causation_id, correlation_id, created_at, key, due_at, scheduled_at,
       attempts, last_error, sqlstate, tried_at, next_try_at, place)
  ) as a, append_events(a.aggregate_ids, a.types, a.bodies, null, a.uuids, a.metadata, a.correlation_ids, a.causation_ids,
      a.created_ats);
  -- A deferred constraint would fail at the commit, where no event can be named any more.
  set constraints all immediate;
  delete from scheduled_events as s where s.id in (select d.id from unnest(due) as d);
end
$$;

-- A part of the next two: records what an operator has done, in the operators' log where that is in this database, otherwise
-- in the log of the server. The act is not about a processor; the name that no processor can have stands for applications.
create or replace function :"schema".log_scheduled(operator text, action text, ids bigint[]) returns void
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
begin
  if cardinality(ids) = 0 then
    return;
  elsif to_regclass('operator_log') is null then
    raise log '% by % (%): % scheduled events', action, operator, session_user, cardinality(ids);
    return;
  end if;
  insert into operator_log (operator, action, processor, partition, from_position, to_position)
    select operator, action, '-', 0, min(id), max(id) from unnest(ids) as id;
end
$$;

-- Removes scheduled events for good. What is null selects nothing. Returns how many there were. It runs as its owner: no
-- operator needs a right on the table.
create or replace function :"schema".cancel_scheduled_events(
  operator text, id bigint default null, key text default null, type text default null, only_refused boolean default false
) returns bigint
language plpgsql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  gone bigint[];
begin
  with removed as (
    delete from scheduled_events as s
    where (id is null or s.id = id) and (key is null or s.key = key) and (type is null or s.type = type)
      and (not only_refused or s.attempts > 0)
    returning s.id
  )
  select coalesce(array_agg(r.id), '{}') into gone from removed as r;
  perform log_scheduled(operator, 'cancel_emissions', gone);
  return cardinality(gone);
end
$$;

-- Has refused scheduled events tried again at once. Returns how many there are.
create or replace function :"schema".retry_scheduled_events(
  operator text, id bigint default null, key text default null, type text default null
) returns bigint
language plpgsql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  again bigint[];
begin
  with requested as (
    update scheduled_events as s set next_try_at = clock_timestamp()
    where (id is null or s.id = id) and (key is null or s.key = key) and (type is null or s.type = type)
      and s.attempts > 0
    returning s.id
  )
  select coalesce(array_agg(r.id), '{}') into again from requested as r;
  perform log_scheduled(operator, 'retry_emissions', again);
  return cardinality(again);
end
$$;

revoke all on function :"schema".cancel_scheduled_events from public;
revoke all on function :"schema".retry_scheduled_events from public;

comment on function :"schema".append_at is 'Appends events at a later time, from the transaction of the caller on.';
