-- Emitting events from a reactor's handler: `perform espd.emit('ReminderSent', event.aggregate_id, '{…}')`.
--
-- Whoever runs a reactor says by settings of the transaction which event is at hand. So causation and correlation are
-- not the author's to write, and the uuid of an emitted event follows from the reactor, the event at hand and how many
-- were emitted before: handling an event again never emits it twice.
--
--   espd.reactor      name of the reactor
--   espd.emits        the types that it declares, as an array
--   espd.chain_max    how many emitted events may lead to one another
--   espd.outbox       `on` where the events are in another database
--   espd.source       uuid of the event at hand
--   espd.correlation  correlation of the event at hand, or its uuid where it has none
--   espd.depth        how many emitted events led to the event at hand
--   espd.emitted      how many events were emitted for it so far
--   espd.replaying    `on` where effects must not be repeated
--
-- SQLSTATEs:
--   ES004  not allowed: outside a reactor, a type that is not declared, or a chain that is too long

-- Events that were emitted and are not in the event store yet: because their time has not come, or because the store is
-- in another database. They commit with the reactor's position. The workers of reactors move them into the store, once
-- each, however many daemons there are.
create table if not exists :"schema".emissions (
  id             bigint      not null generated always as identity primary key,
  reactor        text        not null,
  -- The identity that the event will have.
  uuid           uuid        not null unique,
  aggregate_id   uuid        not null,
  type           text        not null check (type <> ''),
  body           jsonb       not null,
  metadata       jsonb       not null,
  correlation_id uuid,
  causation_id   uuid,
  -- Names it among those of its reactor, so that it can be cancelled or put off.
  key            text,
  due_at         timestamptz not null default clock_timestamp(),
  -- What the store said when it refused it; tried again all the same.
  last_error     text,
  unique (reactor, key)
);

create index if not exists emissions_due_idx on :"schema".emissions (reactor, due_at, id);

-- Whether the event at hand was handled before a reset, so that what it led to is there already.
create or replace function :"schema".is_replaying() returns boolean
language sql stable
as $$ select coalesce(current_setting('espd.replaying', true) = 'on', false) $$;

-- Counts one more emission for the event at hand and returns what the event store will know it by; null while
-- replaying. Raises ES004.
create or replace function :"schema".begin_emission(type text, out uuid uuid, out metadata jsonb)
language plpgsql
set search_path = :"schema", pg_temp
as $$
declare
  depth_max constant int := current_setting('espd.chain_max', true)::int;
  reactor   text := nullif(current_setting('espd.reactor', true), '');
  ordinal   int;
  depth     int;
  digest    text;
begin
  if reactor is null then
    raise exception using errcode = 'ES004', message = 'emit is for the handlers of reactors',
      hint = 'declare a [reactor] with emits = ["…"]; other programs call append';
  elsif begin_emission.type is null or not begin_emission.type = any (current_setting('espd.emits')::text[]) then
    raise exception using errcode = 'ES004',
      message = format('reactor %s emits %s, which it does not declare', reactor, coalesce(begin_emission.type, 'null')),
      hint = format('add it: emits = ["%s"]', begin_emission.type);
  elsif is_replaying() then
    return;
  end if;

  depth := current_setting('espd.depth')::int + 1;
  if depth > depth_max then
    raise exception using errcode = 'ES004',
      message = format('reactor %s emits the %sth event of a chain that each event led to the next', reactor, depth),
      hint = 'reactors that answer each other for ever are stopped here';
  end if;

  ordinal := current_setting('espd.emitted')::int + 1;
  perform set_config('espd.emitted', ordinal::text, true);
  -- A uuid of version 8, made from a digest (RFC 9562).
  digest := encode(sha256(convert_to(
    concat_ws('/', 'espd', reactor, current_setting('espd.source'), ordinal), 'UTF8')), 'hex');
  uuid := overlay(overlay(left(digest, 32) placing '8' from 13) placing '9' from 17)::uuid;
  metadata := jsonb_build_object('espd', jsonb_build_object('reactor', reactor, 'depth', depth));
end
$$;

-- Keeps an emission until it is due, and until it can be moved into the event store.
create or replace function :"schema".keep_emission(
  uuid uuid, metadata jsonb, type text, aggregate_id uuid, body jsonb, due_at timestamptz, key text
) returns void
language sql
set search_path = :"schema", pg_temp
as $$
  -- Another one by the same key gives way.
  delete from emissions as e
    where e.reactor = current_setting('espd.reactor') and e.key = keep_emission.key and e.uuid <> keep_emission.uuid;
  insert into emissions (reactor, uuid, aggregate_id, type, body, metadata, correlation_id, causation_id, key, due_at)
  values (current_setting('espd.reactor'), uuid, aggregate_id, type, body, metadata,
    current_setting('espd.correlation')::uuid, current_setting('espd.source')::uuid, key,
    coalesce(due_at, clock_timestamp()))
  on conflict (uuid) do nothing;
$$;

-- Appends an event in the transaction of the batch and returns its id; null while replaying, and where the event store
-- is in another database, into which it is moved after the commit.
--
-- An event that was emitted before is not appended again: its id is returned, whatever is in the body now.
create or replace function :"schema".emit(
  type             text,
  aggregate_id     uuid,
  body             jsonb,
  expected_version bigint default null
) returns bigint
language plpgsql
set search_path = :"schema", pg_temp
as $$
declare
  emission record;
  stored   bigint;
begin
  emission := begin_emission(emit.type);
  if emission.uuid is null then
    return null;
  end if;
  if current_setting('espd.outbox', true) = 'on' then
    if expected_version is not null then
      raise exception using errcode = 'ES004',
        message = 'an expected version cannot be checked: the event store is in another database',
        hint = 'leave it out, or keep projections and events in one database';
    end if;
    perform keep_emission(
      emission.uuid, emission.metadata, emit.type, emit.aggregate_id, emit.body, null, null);
    return null;
  end if;

  select e.id into stored from events as e where e.uuid = emission.uuid;
  if not found then
    select a.id into stored from append_events(
      array[emit.aggregate_id], array[emit.type], array[emit.body],
      expected_versions => array[emit.expected_version],
      uuids             => array[emission.uuid],
      metadata          => array[emission.metadata],
      correlation_ids   => array[current_setting('espd.correlation')::uuid],
      causation_ids     => array[current_setting('espd.source')::uuid]) as a;
  end if;
  return stored;
end
$$;

-- Emits an event at a later time, from the transaction of the batch on. With a key it can be cancelled, and takes the
-- place of an earlier one by that key.
create or replace function :"schema".emit_at(
  type text, aggregate_id uuid, body jsonb, at timestamptz, key text default null
) returns void
language plpgsql
set search_path = :"schema", pg_temp
as $$
declare
  emission record;
begin
  if emit_at.at is null then
    raise exception using errcode = 'ES004', message = format('%s is emitted at no time: it is null', emit_at.type);
  end if;
  emission := begin_emission(emit_at.type);
  -- One that has been moved into the store is not emitted again.
  if emission.uuid is null
    or current_setting('espd.outbox', true) is distinct from 'on'
      and exists (select from events as e where e.uuid = emission.uuid)
  then
    return;
  end if;
  perform keep_emission(
    emission.uuid, emission.metadata, emit_at.type, emit_at.aggregate_id, emit_at.body, emit_at.at, emit_at.key);
end
$$;

-- The same, some time from now.
create or replace function :"schema".emit_after(
  type text, aggregate_id uuid, body jsonb, after interval, key text default null
) returns void
language sql
set search_path = :"schema", pg_temp
as $$ select emit_at(type, aggregate_id, body, clock_timestamp() + after, key) $$;

-- Cancels what the reactor would have emitted later by this key. Returns whether there was anything.
create or replace function :"schema".cancel(key text) returns boolean
language plpgsql
set search_path = :"schema", pg_temp
as $$
begin
  if is_replaying() then
    return false;
  end if;
  delete from emissions as e where e.reactor = current_setting('espd.reactor') and e.key = cancel.key;
  return found;
end
$$;

comment on function :"schema".emit is 'For the handlers of reactors: appends an event in the transaction of the batch.';
comment on function :"schema".emit_at is 'For the handlers of reactors: appends an event at a later time.';
