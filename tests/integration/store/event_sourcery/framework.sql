-- What the migrations of event_sourcery-postgres make, in this schema: events, aggregates, trackers, writeEvents.
create extension if not exists "uuid-ossp" schema public;

create table SCHEMA.EVENTS (
  id             bigserial primary key,
  uuid           uuid not null default public.uuid_generate_v4(),
  aggregate_id   uuid not null,
  type           varchar(255) not null,
  body           json not null,
  version        bigint not null,
  correlation_id uuid,
  causation_id   uuid,
  created_at     timestamp without time zone not null default (now() at time zone 'utc')
);
create unique index on SCHEMA.EVENTS (aggregate_id, version);
create unique index on SCHEMA.EVENTS (uuid);
create index on SCHEMA.EVENTS (type);
create index on SCHEMA.EVENTS (correlation_id);
create index on SCHEMA.EVENTS (causation_id);
create index on SCHEMA.EVENTS (created_at);

create table SCHEMA.aggregates (
  aggregate_id uuid primary key,
  version      bigint default 1
);

create table SCHEMA.projector_tracker (
  id                      bigserial primary key,
  name                    varchar(255) not null,
  last_processed_event_id bigint not null default 0
);
create unique index on SCHEMA.projector_tracker (name);

create function SCHEMA.writeEvents(
  _aggregate_id uuid, _types varchar[], _expected_version int, _bodies json[], _created_ats timestamp[],
  _uuids uuid[], _correlation_ids uuid[], _causation_ids uuid[], _lock boolean
) returns void
language plpgsql
as $$
declare
  added   int := array_length(_bodies, 1);
  head    bigint;
  last_id text;
begin
  select version into head from SCHEMA.aggregates where aggregate_id = _aggregate_id;
  if not found then
    if coalesce(_expected_version, 0) <> 0 then
      raise 'Concurrency conflict. Current version: 0, expected version: %', _expected_version;
    end if;
    insert into SCHEMA.aggregates (aggregate_id, version) values (_aggregate_id, added);
    head := 0;
  else
    update SCHEMA.aggregates set version = version + added
    where aggregate_id = _aggregate_id and (_expected_version is null or version = _expected_version)
    returning version - added into head;
    if not found then
      raise 'Concurrency conflict. Last known version: %, expected version: %', head, _expected_version;
    end if;
  end if;
  if _lock then
    perform pg_advisory_xact_lock(-1);
  end if;
  for place in 1..added loop
    insert into SCHEMA.EVENTS
      (uuid, aggregate_id, type, body, version, correlation_id, causation_id, created_at)
    values (
      _uuids[place], _aggregate_id, _types[place], _bodies[place], head + place, _correlation_ids[place],
      _causation_ids[place], coalesce(_created_ats[place], now() at time zone 'utc'))
    returning id into last_id;
  end loop;
  perform pg_notify('CHANNEL', last_id);
end
$$;
