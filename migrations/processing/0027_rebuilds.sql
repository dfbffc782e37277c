-- Oldest program: 10
--
-- A new version of a projector is built beside the one that serves: with tables in a schema of their own, and a tracker of its
-- own, under the name of the projector with `$next` behind it. No processor can be declared under such a name. So to everything
-- that keeps processors apart (positions, dead letters, writes to tables of others), the two are two processors. When the new one
-- has caught up, both exchange names and schemas in one transaction, and the former one stays under its version: `orders$1`.

-- What a version was declared as, for SQL projectors: so that it can go on where the configuration has another one.
alter table :"schema".declarations add column if not exists declared jsonb;

-- The last rebuild of each processor.
create table if not exists :"schema".rebuilds (
  processor      text        not null primary key,
  -- The version that is built, or that has gone live.
  version        integer     not null check (version > 0),
  -- The version that served when the rebuild began.
  from_version   integer     not null check (from_version > 0),
  state          text        not null check (state in
    ('building', 'caught_up', 'analyzed', 'verified', 'differs', 'live', 'merged', 'aborted')),
  -- Fingerprint of tables and handlers: a rebuild goes on only where they are still the same.
  fingerprint    text        not null,
  -- Where the new tables are until they go live.
  building_in    text        not null,
  -- Where those of the former version are since then; null where nothing was moved.
  archived_in    text,
  -- What the comparison with the former version has found.
  difference     jsonb,
  started_at     timestamptz not null default clock_timestamp(),
  started_by     text        not null,
  updated_at     timestamptz not null default clock_timestamp()
);

-- Gives a tracker, and everything that refers to it, another name, and ends every claim. The caller has locked it.
create or replace function :"schema".move_processor(
  processor text, version integer, new_name text
) returns void
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
begin
  update dead_letters as d set processor = new_name where d.processor = processor and d.version = version;
  update witnesses as w set processor = new_name where w.processor = processor and w.version = version;
  update declarations as d set processor = new_name where d.processor = processor and d.version = version;
  update projection_tables as p set processor = new_name where p.processor = processor;
  delete from signs_of_life as s where s.name = processor;
  update trackers as t
    set name = new_name, epoch = t.epoch + 1, owner = null, owner_label = null, lease_until = null,
        backend_pid = null, backend_start = null
    where t.name = processor and t.version = version and t.partition = 0;
end
$$;

-- Exchanges the version that serves and another one of the same processor, and records who did it. Returns false where one of them
-- is not there, or the other one is not as far as the one that serves: nobody who has read a row shall miss it afterwards.
create or replace function :"schema".exchange_versions(
  operator text, processor text, version integer, next_name text, next_version integer, archive_name text
) returns boolean
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  former trackers;
  coming trackers;
begin
  select t.* into former from trackers as t
    where t.name = processor and t.version = version and t.partition = 0 for update;
  select t.* into coming from trackers as t
    where t.name = next_name and t.version = next_version and t.partition = 0 for update;
  if former.name is null or coming.name is null or coming.position < former.position then
    return false;
  end if;
  perform move_processor(processor, version, archive_name);
  perform move_processor(next_name, next_version, processor);
  update trackers as t
    set epoch = greatest(former.epoch, coming.epoch) + 1, paused_at = former.paused_at, paused_by = former.paused_by,
        failed_at = null, last_error = null, attempts = 0, next_retry_at = null, outage = null
    where t.name = processor and t.version = next_version and t.partition = 0;
  perform log_act(operator, 'go_live', processor, 0, former.position, coming.position,
    jsonb_build_object('from_version', version, 'version', next_version));
  return true;
end
$$;

-- Lets a processor be the next version, whose rows its tables have been given in this transaction, and records who did it.
create or replace function :"schema".merge_versions(
  operator text, processor text, version integer, next_name text, next_version integer, changed bigint
) returns void
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  stands_at bigint;
  was_made text[] := (select d.made from declarations as d where d.processor = processor and d.version = version);
begin
  delete from declarations as d where d.processor = processor and d.version in (version, next_version);
  insert into declarations (processor, version, fingerprint, made, declared)
    select processor, next_version, d.fingerprint, was_made, d.declared from declarations as d
    where d.processor = next_name and d.version = next_version;
  -- The next version has tried every event.
  delete from dead_letters as d where d.processor = processor and d.version = version;
  update dead_letters as d set processor = processor, version = version
    where d.processor = next_name and d.version = next_version;
  update projection_tables as p set version = next_version where p.processor = processor;
  update trackers as t
    set version = next_version, epoch = t.epoch + 1, owner = null, owner_label = null, lease_until = null,
        handlers = (select n.handlers from trackers as n where n.name = next_name), handler_change = null,
        failed_at = null, last_error = null, attempts = 0, next_retry_at = null, outage = null
    where t.name = processor and t.version = version and t.partition = 0
    returning t.position into stands_at;
  update rebuilds as r set state = 'merged', updated_at = clock_timestamp() where r.processor = processor;
  perform log_act(operator, 'go_live', processor, 0, stands_at, stands_at,
    jsonb_build_object('from_version', version, 'version', next_version, 'changed_rows', changed));
end
$$;
