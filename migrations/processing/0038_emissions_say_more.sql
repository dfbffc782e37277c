-- What a reactor cannot mean when it emits or cancels, and was taken for something else, or was told of in other words.
-- Oldest program: 10

-- As before (0006), and says so where the type is null.
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
      hint = 'declare a [reactor] with emits = ["..."]; other programs call append';
  elsif begin_emission.type is null then
    raise exception using errcode = 'ES004', message = format('reactor %s emits an event whose type is null', reactor),
      hint = 'where nothing is to be emitted, call nothing: if ... then perform emit(...)';
  elsif not begin_emission.type = any (current_setting('espd.emits')::text[]) then
    raise exception using errcode = 'ES004',
      message = format('reactor %s emits %s, which it does not declare', reactor, begin_emission.type),
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

-- As before (0033), and refuses an empty key, under which each event had taken the place of the one before.
create or replace function :"schema".emit_at(
  type text, aggregate_id uuid, body jsonb, at timestamptz, key text default null, metadata jsonb default null
) returns void
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
declare
  emission record;
  cause    uuid;
begin
  if emit_at.at is null then
    raise exception using errcode = 'ES004', message = format('%s is emitted at no time: it is null', emit_at.type);
  elsif emit_at.key = '' then
    raise exception using errcode = 'ES004', message = format('%s is emitted under an empty key', emit_at.type),
      hint = 'each would take the place of the one before: give it a key of its own, or null';
  end if;
  emission := begin_emission(emit_at.type, emit_at.metadata);
  if emission.uuid is null then
    return;
  end if;
  if current_setting('espd.outbox', true) is distinct from 'on' then
    -- One that has been moved into the store is not emitted again. But what gave way to it before a reset gives way again.
    select e.causation_id into cause from events as e where e.uuid = emission.uuid;
    if found then
      delete from emissions as e
        where e.reactor = current_setting('espd.reactor') and e.key = emit_at.key and e.uuid <> emission.uuid
          and (select c.id from events as c where c.uuid = e.causation_id)
              <= (select c.id from events as c where c.uuid = cause);
      return;
    end if;
  end if;
  perform keep_emission(
    emission.uuid, emission.metadata, emit_at.type, emit_at.aggregate_id, emit_at.body, emit_at.at, emit_at.key);
end
$$;

-- As before (0006), and says so where no reactor is at work.
create or replace function :"schema".cancel(key text) returns boolean
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
begin
  if nullif(current_setting('espd.reactor', true), '') is null then
    raise exception using errcode = 'ES004', message = 'cancel is for the handlers of reactors',
      hint = 'what was scheduled by append_at is cancelled by cancel_scheduled';
  end if;
  if is_replaying() then
    return false;
  end if;
  delete from emissions as e where e.reactor = current_setting('espd.reactor') and e.key = cancel.key;
  return found;
end
$$;
