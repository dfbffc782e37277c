-- Oldest program: 10
--
-- Whether the triggers of a synchronous projector have met every event, the catalog knows: each `alter table` that disables or enables
-- a trigger writes its row in `pg_trigger` anew, and a trigger that was dropped and made again is another one. The tracker
-- remembers what these rows were when espd made the triggers. As long as they are the same, nobody has inserted an event that a
-- trigger has not met: changing a trigger locks the table against writers. `database` says of which database that is remembered,
-- because a dump that is restored elsewhere makes other triggers, with the rows of the same events.
alter table :"schema".trackers add column if not exists synchronous_triggers jsonb;

-- The rows of the triggers of a synchronous projector; null: there is none.
create or replace function :"schema".describe_triggers(processor text, version integer) returns text
language sql stable
set search_path = :"schema", pg_temp
set row_security = off
as $$
  select string_agg(format('%s %s %s', t.oid, t.xmin, t.tgenabled), ', ' order by t.tgname)
  from pg_trigger as t, synchronous_triggers(describe_triggers.processor, describe_triggers.version) as own
  where t.tgrelid = to_regclass(format('%I.events', current_schema())) and t.tgname in (own.handling, own.turns)
$$;

-- Tells this database from one that a dump of it was restored to. A server that does not tell who it is counts as the same.
create or replace function :"schema".identify_database() returns text
language plpgsql stable
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
declare
  own constant text := (select d.oid::text from pg_database as d where d.datname = current_database());
begin
  return own || ' ' || (select c.system_identifier from pg_control_system() as c);
exception when insufficient_privilege or undefined_function then
  return own;
end
$$;

-- What a tracker remembers of the triggers as they are now.
create or replace function :"schema".triggers_to_remember(processor text, version integer) returns jsonb
language sql stable
set search_path = :"schema", pg_temp
as $$
  select jsonb_build_object('rows', describe_triggers(processor, version), 'database', identify_database())
$$;

-- Whether the triggers of a processor have met every event since it became synchronous; also true where it is not.
create or replace function :"schema".has_met_all(processor text, version integer, partition integer) returns boolean
language sql stable
set search_path = :"schema", pg_temp
set row_security = off
as $$
  select t.synchronous is null
    or coalesce(t.synchronous_triggers ->> 'rows' = describe_triggers(t.name, t.version), false)
  from trackers as t
  where t.name = has_met_all.processor and t.version = has_met_all.version and t.partition = has_met_all.partition
$$;

-- Why the triggers of a synchronous projector may not have met every event: `missing`, `disabled` (at least in some sessions), or `changed`,
-- where all are there and were not all the time. `restored`: what the tracker remembers is of another database, and these
-- triggers came with its dump. Null: they have met every event, or it is not synchronous.
create or replace function :"schema".find_unmet_triggers(processor text, version integer, partition integer) returns text
language plpgsql stable
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  tracker trackers;
  present text[];
begin
  select t.* into tracker from trackers as t
    where t.name = processor and t.version = version and t.partition = partition;
  if tracker.synchronous is null or has_met_all(processor, version, partition) then
    return null;
  end if;
  present := string_to_array(describe_triggers(processor, version), ', ');
  if coalesce(cardinality(present), 0) < (case tracker.synchronous when 'total_order' then 2 else 1 end) then
    return 'missing';
  elsif exists (select from unnest(present) as p (one) where p.one not like '% A') then
    return 'disabled';
  elsif tracker.synchronous_triggers ->> 'database' <> identify_database() then
    return 'restored';
  end if;
  return 'changed';
end
$$;

-- Those of before have met every event, as far as can be told.
update :"schema".trackers as t
  set synchronous_triggers = :"schema".triggers_to_remember(t.name, t.version)
  where t.synchronous is not null and t.synchronous_triggers is null
    and :"schema".describe_triggers(t.name, t.version) ~ '^[0-9]+ [0-9]+ A(, [0-9]+ [0-9]+ A)*$'
    and cardinality(string_to_array(:"schema".describe_triggers(t.name, t.version), ', '))
      = case t.synchronous when 'total_order' then 2 else 1 end;

-- As before (0026), and the tracker remembers the triggers.
create or replace function :"schema".begin_synchronous(
  processor text, version integer, partition integer, epoch bigint, ordering text, handlers text
) returns void
language plpgsql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  events constant text := format('%I.events', current_schema());
  triggers record := synchronous_triggers(processor, version);
  left_over name;
begin
  for left_over in
    select t.tgname from pg_trigger as t
    where t.tgrelid = events::regclass and t.tgname in (triggers.handling, triggers.turns)
  loop
    execute format('drop trigger %I on %s', left_over, events);
  end loop;
  execute format('create trigger %I after insert on %s referencing new table as "Inserted events of espd"
                  for each statement execute function %I.%I()', triggers.handling, events, current_schema(), handlers);
  -- Also for sessions that take their events for those of a replica.
  execute format('alter table %s enable always trigger %I', events, triggers.handling);
  if ordering = 'total_order' then
    execute format('create trigger %I before insert on %s for each statement execute function %I.take_turn()',
                   triggers.turns, events, current_schema());
    execute format('alter table %s enable always trigger %I', events, triggers.turns);
  end if;
  update trackers as t set synchronous = ordering, synchronous_triggers = triggers_to_remember(processor, version)
    where t.name = processor and t.version = version and t.partition = partition and t.epoch = epoch;
  if not found then
    raise exception 'the claim of % is no longer valid', processor;
  end if;
end
$$;

-- As before (0026), and says in `unmet` why the triggers may not have met all events: `find_unmet_triggers`.
drop function if exists :"schema".drop_synchronous_triggers(text, integer);
create or replace function :"schema".drop_synchronous_triggers(
  processor text, version integer, partition integer, out last_id bigint, out last_uuid uuid, out unmet text
)
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  events constant text := format('%I.events', current_schema());
  triggers record := synchronous_triggers(processor, version);
  ids constant regclass := pg_get_serial_sequence(events, 'id');
  deadline constant timestamptz := clock_timestamp() + interval '1 second';
  one name;
begin
  begin
    if current_setting('lock_timeout') in ('0', '30s') then
      perform set_config('lock_timeout', '5s', true);
    end if;
    execute format('lock table %s in share row exclusive mode', events);
  exception when lock_not_available then
    raise exception using errcode = '55P03',
      message = format('%s is synchronous, and a transaction that appends has not ended in time: try again', processor);
  end;
  -- Whoever has drawn an id and not inserted its event yet would insert it behind the last one, where nobody looks for it.
  while exists (select from pg_locks as l
      where l.locktype = 'relation' and l.relation = ids and l.mode = 'RowExclusiveLock' and l.granted
        and l.database = (select d.oid from pg_database as d where d.datname = current_database())
        and l.pid is distinct from pg_backend_pid())
  loop
    if clock_timestamp() > deadline then
      raise exception using errcode = '55P03',
        message = format('%s is synchronous, and a transaction has drawn the id of an event that it has not inserted: try again', processor);
    end if;
    perform pg_sleep(0.01);
  end loop;
  unmet := find_unmet_triggers(processor, version, partition);
  foreach one in array array[triggers.handling, triggers.turns] loop
    if exists (select from pg_trigger as t where t.tgrelid = events::regclass and t.tgname = one) then
      begin
        execute format('lock table %s in access exclusive mode nowait', events);
        execute format('drop trigger %I on %s', one, events);
      exception when lock_not_available then
        execute format('alter table %s disable trigger %I', events, one);
      end;
    end if;
  end loop;
  select e.id, e.uuid into last_id, last_uuid from events as e order by e.id desc limit 1;
end
$$;

-- As before (0026), and:
-- A projector whose triggers may have missed something becomes an asynchronous one that has diverged: it goes on when an operator says so.
-- A reset is one also where it does not move the position, because the projector has stood at the beginning since it became
-- synchronous.
create or replace function :"schema".follow_synchronous() returns trigger
language plpgsql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
declare
  is_reset constant boolean := tg_op = 'UPDATE' and new.epoch <> old.epoch and (new.position <> old.position
    -- Nothing else that ends a claim gives up the owner and says that the row has changed.
    or new.name = old.name and new.owner is null and not new.caught_up and new.updated_at <> old.updated_at);
  last record;
begin
  if tg_op = 'DELETE' then
    perform drop_synchronous_triggers(old.name, old.version, old.partition);
    return old;
  end if;
  if new.synchronous is not null and not is_reset and not (old.paused_at is null and new.paused_at is not null)
    and (new.name, new.version, new.partition) = (old.name, old.version, old.partition)
  then
    if new.position <> old.position and current_setting('espd.synchronous', true) is distinct from 'on' then
      raise exception using errcode = '57ES1', message =
        old.name || ' is synchronous, and this program does not know that: only a newer one can run it';
    end if;
    return new;
  end if;
  last := drop_synchronous_triggers(old.name, old.version, old.partition);
  new.synchronous := null;
  new.synchronous_triggers := null;
  if not is_reset then
    if new.diverged is null and last.unmet <> 'restored' then
      new.diverged := jsonb_build_object('kind', 'trigger_' || last.unmet, 'position', new.position, 'last_common', new.position,
        'head', coalesce(last.last_id, new.position), 'at', clock_timestamp());
    end if;
    -- The owner claims the tracker again, and sees what it is now.
    new.epoch := greatest(new.epoch, old.epoch + 1);
    if last.last_id > new.position then
      new.position := last.last_id;
      new.witness_at := last.last_id;
      new.witness_id := last.last_id;
      new.witness_uuid := last.last_uuid;
    end if;
  end if;
  return new;
end
$$;

-- As before (0037), but a synchronous projector ends being so: it goes on behind the last event, and becomes synchronous again, with
-- triggers that are made anew.
create or replace function :"schema".accept_history(
  operator text, processor text, version integer, partition integer, divergence jsonb,
  witness_at bigint, witness_id bigint, witness_uuid uuid
) returns boolean
language plpgsql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  stands_at bigint;
  difference jsonb;
begin
  select t.position, coalesce(divergence, t.diverged) into stands_at, difference
    from trackers as t
    where t.name = processor and t.version = version and t.partition = partition for update;
  if difference is null then
    return false;
  end if;
  update trackers as t set synchronous = null
    where t.name = processor and t.version = version and t.partition = partition and t.synchronous is not null;
  delete from witnesses as w
    where w.processor = processor and w.version = version and w.partition = partition
      and w.id > (difference ->> 'last_common')::bigint;
  update trackers as t
    set diverged = null, witness_at = witness_at, witness_id = witness_id, witness_uuid = witness_uuid,
        events_partitions = null, epoch = t.epoch + 1, lease_until = null, updated_at = clock_timestamp()
    where t.name = processor and t.version = version and t.partition = partition;
  perform log_act(operator, 'accept_history', processor, partition, stands_at, stands_at, difference);
  return true;
end
$$;
