-- Oldest program: 10
--
-- A reactor may give the events that it emits metadata of its own, beside what espd writes there under the key `espd`. Handlers
-- call the functions by their names, so those that know no metadata call the new ones as they called the old ones.

-- Counts one more emission for the event at hand and returns what the event store will know it by; null while replaying.
-- `given`: the metadata that the handler wants. Raises ES004.
create or replace function :"schema".begin_emission(type text, given jsonb, out uuid uuid, out metadata jsonb)
language plpgsql
set search_path = :"schema", pg_temp
as $$
begin
  if jsonb_typeof(given) <> 'object' then
    raise exception using errcode = 'ES004',
      message = format('the metadata of %s is no JSON object', begin_emission.type);
  elsif given ? 'espd' then
    raise exception using errcode = 'ES004',
      message = format('the metadata of %s has the key "espd", which is espd''s own', begin_emission.type);
  end if;
  select b.uuid, coalesce(given, '{}') || b.metadata into uuid, metadata from begin_emission(begin_emission.type) as b;
end
$$;

-- With one more parameter, a call could be meant for either.
drop function if exists :"schema".emit(text, uuid, jsonb, bigint);
drop function if exists :"schema".emit_at(text, uuid, jsonb, timestamptz, text);
drop function if exists :"schema".emit_after(text, uuid, jsonb, interval, text);

-- Appends an event in the transaction of the batch and returns its id; null while replaying, and where the event store
-- is in another database, into which it is moved after the commit.
--
-- An event that was emitted before is not appended again: its id is returned, whatever is in the body now.
create or replace function :"schema".emit(
  type             text,
  aggregate_id     uuid,
  body             jsonb,
  expected_version bigint default null,
  metadata         jsonb  default null
) returns bigint
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
declare
  emission record;
  stored   bigint;
begin
  emission := begin_emission(emit.type, emit.metadata);
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
--
-- The table of events may be in another database, and a statement is planned as a whole. So the one that names that table
-- stands alone, and is not reached there.
create or replace function :"schema".emit_at(
  type text, aggregate_id uuid, body jsonb, at timestamptz, key text default null, metadata jsonb default null
) returns void
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
declare
  emission record;
begin
  if emit_at.at is null then
    raise exception using errcode = 'ES004', message = format('%s is emitted at no time: it is null', emit_at.type);
  end if;
  emission := begin_emission(emit_at.type, emit_at.metadata);
  if emission.uuid is null then
    return;
  end if;
  if current_setting('espd.outbox', true) is distinct from 'on' then
    -- One that has been moved into the store is not emitted again.
    perform from events as e where e.uuid = emission.uuid;
    if found then
      return;
    end if;
  end if;
  perform keep_emission(
    emission.uuid, emission.metadata, emit_at.type, emit_at.aggregate_id, emit_at.body, emit_at.at, emit_at.key);
end
$$;

-- The same, some time from now.
create or replace function :"schema".emit_after(
  type text, aggregate_id uuid, body jsonb, after interval, key text default null, metadata jsonb default null
) returns void
language sql
set search_path = :"schema", pg_temp
as $$ select emit_at(type, aggregate_id, body, clock_timestamp() + after, key, metadata) $$;

comment on function :"schema".emit is 'For the handlers of reactors: appends an event in the transaction of the batch.';
comment on function :"schema".emit_at is 'For the handlers of reactors: appends an event at a later time.';
