-- create_event_store
-- Version 1 of the file, which `user_version` says.
create table events (
  -- Never given twice: a position means the same for ever.
  id integer primary key autoincrement,
  uuid text not null unique,
  aggregate_id text not null,
  type text not null,
  version integer not null,
  body text not null,
  metadata text not null,
  correlation_id text,
  causation_id text,
  -- Microseconds since 1970.
  created_at integer not null,
  unique (aggregate_id, version)
) strict;
create index events_of_correlations on events (correlation_id, id) where correlation_id is not null;

-- What processors remember.
create table espd_positions (
  name text not null,
  version integer not null,
  position integer not null,
  primary key (name, version)
) strict;
create table espd_emissions (
  id integer primary key autoincrement,
  reactor text not null,
  uuid text not null unique,
  aggregate_id text not null,
  type text not null,
  body text not null,
  metadata text not null,
  correlation_id text,
  causation_id text,
  key text,
  due_at integer not null
) strict;
create unique index espd_emissions_by_key on espd_emissions (reactor, key) where key is not null;
create table espd_effects (
  id integer primary key autoincrement,
  processor text not null,
  event_id integer not null,
  event_uuid text not null,
  event_type text not null,
  payload text not null,
  attempts integer not null default 0
) strict;
create table espd_dead_letters (
  name text not null,
  version integer not null,
  event_id integer not null,
  event_uuid text not null,
  event_type text not null,
  aggregate_id text not null,
  reason text not null,
  blocks integer not null,
  primary key (name, version, event_id)
) strict;
pragma user_version = 1;
