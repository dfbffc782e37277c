-- A tracker is identified by the name of its processor, the version of the processor's tables, and the partition. Two
-- versions of a processor can then have a position each, and so can several partitions. Every table that refers to a
-- tracker refers to all three.
--
-- A daemon that was started before this migration cannot work with these tables. Raising the epochs ends the claims of
-- such a daemon, and its statement for a new claim fails because `trackers` has lost a column. So it commits nothing more
-- and reports an outage until it is replaced.
update :"schema".trackers
set epoch = epoch + 1, owner = null, owner_label = null, lease_until = null, backend_pid = null, backend_start = null;

-- From what the tables of a version were made: a fingerprint of the declaration. There is no row until the tables are
-- made, nor after they are dropped. The fingerprint belongs to the version of the processor, because its partitions share
-- the tables.
create table if not exists :"schema".declarations (
  processor   text    not null,
  version     integer not null,
  fingerprint text    not null,
  primary key (processor, version)
);

-- This file may run twice, and then the column is gone already.
alter table :"schema".trackers add column if not exists declaration text;
insert into :"schema".declarations (processor, version, fingerprint)
select name, version, declaration from :"schema".trackers where declaration is not null and partition = 0
on conflict do nothing;
alter table :"schema".trackers drop column declaration;

alter table :"schema".trackers drop constraint if exists trackers_pkey;
alter table :"schema".trackers add constraint trackers_pkey primary key (name, version, partition);

-- Rows in `signs_of_life` last for seconds, and those of a daemon that was started before mean nothing any more.
delete from :"schema".signs_of_life;
alter table :"schema".signs_of_life add column if not exists version integer not null;
alter table :"schema".signs_of_life drop constraint if exists signs_of_life_pkey;
alter table :"schema".signs_of_life add constraint signs_of_life_pkey primary key (name, version, partition, owner);

-- Dead letters outlive a tracker that an administrator has deleted. Without a tracker, 1 is as good as any version.
alter table :"schema".dead_letters add column if not exists version integer;
update :"schema".dead_letters as d
set version = coalesce(
  (select t.version from :"schema".trackers as t where t.name = d.processor and t.partition = d.partition), 1)
where d.version is null;
alter table :"schema".dead_letters alter column version set not null;
alter table :"schema".dead_letters drop constraint if exists dead_letters_pkey;
alter table :"schema".dead_letters add constraint dead_letters_pkey
  primary key (processor, version, partition, event_id);

drop index if exists :"schema".dead_letters_aggregate_idx;
create index if not exists dead_letters_aggregate_idx
  on :"schema".dead_letters (processor, version, partition, aggregate_id, event_id) where blocks;
drop index if exists :"schema".dead_letters_retry_idx;
create index if not exists dead_letters_retry_idx
  on :"schema".dead_letters (processor, version, partition, event_id) where retry_requested_at is not null;
drop index if exists :"schema".dead_letters_age_idx;
create index if not exists dead_letters_age_idx
  on :"schema".dead_letters (processor, version, partition, set_aside_at);

alter table :"schema".deliveries add column if not exists version integer;
update :"schema".deliveries as d
set version = coalesce(
  (select t.version from :"schema".trackers as t where t.name = d.processor and t.partition = d.partition), 1)
where d.version is null;
alter table :"schema".deliveries alter column version set not null;
alter table :"schema".deliveries drop constraint if exists deliveries_pkey;
alter table :"schema".deliveries add constraint deliveries_pkey
  primary key (processor, version, partition, event_id);

-- Which partition of a reactor has emitted an event, so that each partition is told of its own. An emission does not
-- depend on the version of the reactor's tables: the same event leads to the same uuid.
alter table :"schema".emissions add column if not exists partition integer not null
  default coalesce(nullif(current_setting('espd.partition', true), '')::integer, 0);

-- A reset that makes the tables of another version gives the tracker that version. What refers to the tracker follows.
create or replace function :"schema".follow_version() returns trigger
language plpgsql
set search_path = :"schema", pg_temp
as $$
begin
  update dead_letters as d set version = new.version
    where d.processor = old.name and d.version = old.version and d.partition = old.partition;
  update deliveries as d set version = new.version
    where d.processor = old.name and d.version = old.version and d.partition = old.partition;
  delete from signs_of_life as s
    where s.name = old.name and s.version = old.version and s.partition = old.partition;
  return null;
end
$$;

-- Without a tracker, nothing is known about tables: a processor that is declared again makes its tables first.
create or replace function :"schema".forget_declaration() returns trigger
language plpgsql
set search_path = :"schema", pg_temp
as $$
begin
  delete from declarations as d
    where d.processor = old.name and d.version = old.version
      and not exists (select from trackers as t where t.name = old.name and t.version = old.version);
  return null;
end
$$;

drop trigger if exists forget_declaration on :"schema".trackers;
create trigger forget_declaration after delete on :"schema".trackers
  for each row execute function :"schema".forget_declaration();

drop trigger if exists follow_version on :"schema".trackers;
create trigger follow_version after update of version on :"schema".trackers
  for each row when (old.version is distinct from new.version)
  execute function :"schema".follow_version();

-- The old function would set events aside without a version. 0010 creates it again, for all three parts of the key.
drop function if exists :"schema".set_aside_behind(text, int, bigint, uuid, text, uuid);

-- Removes a dead letter that was handled again. The next one that only waited behind it is retried as well, also where it
-- was set aside after the retry had been requested. The caller has locked the tracker.
drop function if exists :"schema".remove_dead_letter(text, int, bigint);
create or replace function :"schema".remove_dead_letter(
  processor text, version int, partition int, event_id bigint
) returns void
language plpgsql
set search_path = :"schema", pg_temp
as $$
#variable_conflict use_variable
declare
  removed dead_letters;
begin
  delete from dead_letters as d
    where d.processor = processor and d.version = version and d.partition = partition and d.event_id = event_id
    returning * into removed;
  if removed.blocks and removed.retry_requested_at is not null then
    update dead_letters as d set retry_requested_at = removed.retry_requested_at
      where d.processor = processor and d.version = version and d.partition = partition and d.reason = 'waiting'
        and d.retry_requested_at is null
        and d.event_id = (
          select min(n.event_id) from dead_letters as n
          where n.processor = processor and n.version = version and n.partition = partition
            and n.aggregate_id = removed.aggregate_id and n.event_id > event_id and n.blocks);
  end if;
end
$$;
