-- Emitting events from a reactor's handler: `perform espd.emit('ReminderSent', event.aggregate_id, '{…}')`.
--
-- The generated function of a reactor says by settings of its transaction which event is at hand. So causation
-- and correlation are not the author's to write, and the uuid of an emitted event follows from the reactor, the
-- event at hand and how many were emitted before: handling an event again never emits it twice.
--
--   espd.reactor      name of the reactor
--   espd.emits        the types that it declares, as an array
--   espd.source       uuid of the event at hand
--   espd.correlation  correlation of the event at hand, or its uuid where it has none
--   espd.depth        how many emitted events led to the event at hand
--   espd.emitted      how many events were emitted for it so far
--   espd.replaying    `on` where effects must not be repeated
--
-- SQLSTATEs:
--   ES004  not allowed: outside a reactor, a type that is not declared, or a chain of more than 100 events

-- Whether the event at hand was handled before a reset, so that what it led to is there already.
create or replace function :"schema".is_replaying() returns boolean
language sql stable
as $$ select coalesce(current_setting('espd.replaying', true) = 'on', false) $$;

-- Appends an event in the transaction of the batch and returns its id; null while replaying.
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
  depth_max constant int := 100;
  reactor   text := nullif(current_setting('espd.reactor', true), '');
  ordinal   int;
  depth     int;
  digest    text;
  emitted   uuid;
  stored    bigint;
begin
  if reactor is null then
    raise exception using errcode = 'ES004', message = 'emit is for the handlers of reactors',
      hint = 'declare a [reactor] with emits = ["…"]; other programs call append';
  elsif emit.type is null or not emit.type = any (current_setting('espd.emits')::text[]) then
    raise exception using errcode = 'ES004',
      message = format('reactor %s emits %s, which it does not declare', reactor, coalesce(emit.type, 'null')),
      hint = format('add it: emits = ["%s"]', emit.type);
  elsif is_replaying() then
    return null;
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
  emitted := overlay(overlay(left(digest, 32) placing '8' from 13) placing '9' from 17)::uuid;

  select e.id into stored from events as e where e.uuid = emitted;
  if not found then
    select a.id into stored from append_events(
      array[emit.aggregate_id], array[emit.type], array[emit.body],
      expected_versions => array[emit.expected_version],
      uuids             => array[emitted],
      metadata          => array[jsonb_build_object('espd', jsonb_build_object('reactor', reactor, 'depth', depth))],
      correlation_ids   => array[current_setting('espd.correlation')::uuid],
      causation_ids     => array[current_setting('espd.source')::uuid]) as a;
  end if;
  return stored;
end
$$;

comment on function :"schema".emit is 'For the handlers of reactors: appends an event in the transaction of the batch.';
