-- Snapshots: the state of an aggregate at a version, so that loading it reads the tail of its stream only.
-- Oldest program: 4
--
-- A snapshot is a copy that can be made again from the events at any time. Deleting rows here loses nothing but time.

create table if not exists :"schema".snapshots (
  aggregate_id uuid        not null,
  -- What the state is called, and the version of its shape, both as the program declares them.
  name         text        not null check (name <> ''),
  format       bigint      not null,
  -- A hash of the event types that the state is folded from: another set is another fold. Programs of two versions, during a
  -- rolling deployment for example, have their snapshots side by side.
  event_types  bigint      not null,
  -- The event that was folded last. The snapshot is used only where that event is still there, under the same id.
  version      bigint      not null check (version > 0),
  event_id     bigint      not null,
  -- As it was written: jsonb would give the keys of a map another order.
  state        json        not null,
  taken_at     timestamptz not null default clock_timestamp(),
  constraint snapshots_pkey primary key (aggregate_id, name, format, event_types)
);

comment on table :"schema".snapshots is 'Copies of what events say. May be emptied at any time.';
