-- Deleting an aggregate for good, and keeping what somebody has changed or deleted by hand.
-- Oldest program: 4

-- Which aggregates were deleted, by whom and why. Nothing of the contents is kept, not even a digest: whoever can guess a content
-- could prove by it that it was there.
create table if not exists :"schema".deleted_aggregates (
  id           bigint      not null generated always as identity primary key,
  aggregate_id uuid        not null,
  deleted_at   timestamptz not null default clock_timestamp(),
  -- The name that the program gives, and the login that was connected.
  deleted_by   text        not null,
  login        text        not null default session_user,
  why          text        not null check (why <> ''),
  event_count  bigint      not null,
  -- How many there were of each type.
  types        jsonb       not null,
  first_id     bigint      not null,
  last_id      bigint      not null,
  last_version bigint      not null,
  -- What went with the events: rows of other tables of espd, by table.
  removed      jsonb       not null
);

comment on table :"schema".deleted_aggregates is 'Written by delete_aggregate only.';

-- What events were before somebody changed or deleted them. Empty unless archive_changes was called.
create table if not exists :"schema".changed_events (
  id          bigint      not null generated always as identity primary key,
  changed_at  timestamptz not null default clock_timestamp(),
  -- Who was connected, with what program, and from where.
  login       text        not null default session_user,
  application text        not null default current_setting('application_name'),
  client      inet        default inet_client_addr(),
  operation   text        not null check (operation in ('update', 'delete', 'truncate')),
  event_id    bigint      not null,
  -- The row before, and, of an update, the row after it.
  before      jsonb       not null,
  after       jsonb
);

create index if not exists changed_events_event_id_idx on :"schema".changed_events (event_id);

comment on table :"schema".changed_events is 'Written by the triggers that archive_changes makes.';

-- Keeps a row that is changed or deleted. It runs as its owner, so that nobody else needs a right on the archive.
create or replace function :"schema".archive_change() returns trigger
language plpgsql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
begin
  if tg_op = 'TRUNCATE' then
    insert into changed_events (operation, event_id, before)
      select 'truncate', e.id, to_jsonb(e) from events as e order by e.id;
  elsif tg_op = 'UPDATE' then
    insert into changed_events (operation, event_id, before, after)
      values ('update', old.id, to_jsonb(old), to_jsonb(new));
  else
    insert into changed_events (operation, event_id, before) values ('delete', old.id, to_jsonb(old));
  end if;
  return null;
end
$$;

-- Begins or ends keeping what is changed or deleted. For the owner of the table. Appends run no trigger.
create or replace function :"schema".archive_changes(enabled boolean default true) returns void
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
declare
  -- A trigger is made by a statement that names the table.
  target text := format('%I.events', current_schema());
begin
  execute format('drop trigger if exists archive_change on %s', target);
  execute format('drop trigger if exists archive_truncate on %s', target);
  if enabled then
    execute format('create trigger archive_change after update or delete on %s
      for each row execute function archive_change()', target);
    execute format('create trigger archive_truncate before truncate on %s
      for each statement execute function archive_change()', target);
  end if;
end
$$;

-- Deletes all events of an aggregate for good, records that, and returns the record. `id` is null if there was no event.
--
-- What espd itself keeps of the events goes with them: scheduled events of the aggregate, tags, keys, snapshots, archived changes,
-- and, where the processors are in the same database, dead letters and pending emissions. What projections and receivers have is not
-- known here. No processor stops because the last event that it has read is gone. An event that is appended to the aggregate
-- afterwards has version 1 again.
create or replace function :"schema".delete_aggregate(
  aggregate_id uuid, deleted_by text, why text, out deleted :"schema".deleted_aggregates
)
language plpgsql
security definer
set search_path = :"schema", pg_temp
set row_security = off
set lock_timeout = '30s'
as $$
#variable_conflict use_variable
declare
  at        bigint[];
  gone      bigint[];
  counts    jsonb := '{}';
  size      bigint;
  last      record;
  forgotten record;
begin
  if coalesce(why, '') = '' or coalesce(deleted_by, '') = '' then
    raise exception using errcode = 'ES003',
      message = 'a deletion has somebody who does it, and a reason', detail = '{"event": null}';
  end if;
  if to_regprocedure('hold_trackers()') is not null then
    at := hold_trackers();
  end if;

  with removed as (
    delete from events as e where e.aggregate_id = delete_aggregate.aggregate_id returning e.id, e.type, e.version
  ), types as (
    select r.type, count(*) as n from removed as r group by r.type
  )
  select array(select r.id from removed as r), count(*), min(r.id), max(r.id), max(r.version),
      (select jsonb_object_agg(t.type, t.n) from types as t)
    into gone, deleted.event_count, deleted.first_id, deleted.last_id, deleted.last_version, deleted.types
  from removed as r;
  if cardinality(gone) = 0 then
    deleted := null;
    return;
  end if;

  delete from scheduled_events as s where s.aggregate_id = delete_aggregate.aggregate_id;
  get diagnostics size = row_count;
  counts := counts || jsonb_build_object('scheduled_events', size);
  delete from changed_events as c where c.event_id = any (gone);
  get diagnostics size = row_count;
  counts := counts || jsonb_build_object('changed_events', size);
  delete from tag_events as t where t.event_id = any (gone);
  get diagnostics size = row_count;
  counts := counts || jsonb_build_object('tag_events', size);
  delete from unique_keys as k where k.aggregate_id = delete_aggregate.aggregate_id;
  get diagnostics size = row_count;
  counts := counts || jsonb_build_object('unique_keys', size);
  delete from snapshots as s where s.aggregate_id = delete_aggregate.aggregate_id;
  get diagnostics size = row_count;
  counts := counts || jsonb_build_object('snapshots', size);
  delete from commands as c where c.aggregate_id = delete_aggregate.aggregate_id::text;
  get diagnostics size = row_count;
  counts := counts || jsonb_build_object('commands', size);
  if at is not null then
    select array_agg(found.id) as ids, array_agg(found.uuid) as uuids into last
    from (
      select coalesce(e.id, 0) as id, coalesce(e.uuid, '00000000-0000-0000-0000-000000000000') as uuid
      from unnest(at) with ordinality as p (at, place)
        left join lateral (select e.id, e.uuid from events as e where e.id <= p.at order by e.id desc limit 1) as e on true
      order by p.place
    ) as found;
    forgotten := forget_events(gone, delete_aggregate.aggregate_id, at, last.ids, last.uuids);
    counts := counts || to_jsonb(forgotten);
  end if;

  insert into deleted_aggregates
    (aggregate_id, deleted_by, why, event_count, types, first_id, last_id, last_version, removed)
  values (delete_aggregate.aggregate_id, deleted_by, why, deleted.event_count, deleted.types, deleted.first_id, deleted.last_id,
    deleted.last_version, counts)
  returning * into deleted;
end
$$;

revoke all on function :"schema".delete_aggregate from public;
