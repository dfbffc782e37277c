-- The event store: one append-only table. Everything else in espd can be rebuilt from it.
--
-- Three properties of this table carry the settled horizon (docs/ordering.md), and `espd check`
-- refuses a store that has lost one of them:
--   * ids come from a sequence with cache 1 and increment 1: a session with a private stock of ids
--     would draw an id long before its insert locks the table;
--   * the id is drawn by the insert itself (`generated always`), so whoever holds an id holds the
--     table's RowExclusiveLock;
--   * nothing updates an id.
create table if not exists :"schema".events (
  -- Position in the store: the one global order. Rolled-back ids leave permanent holes.
  id             bigint      not null generated always as identity (cache 1) primary key,
  -- Identity of the fact. Appending the same uuid again is how a writer retries safely.
  uuid           uuid        not null default gen_random_uuid(),
  aggregate_id   uuid        not null,
  type           text        not null check (type <> ''),
  -- Place in the aggregate: 1, 2, 3 … without holes when appended through append_events.
  version        bigint      not null check (version > 0),
  body           jsonb       not null,
  metadata       jsonb       not null default '{}' check (jsonb_typeof(metadata) = 'object'),
  -- The event (or command) that led to this one, and the conversation both belong to.
  causation_id   uuid,
  correlation_id uuid,
  -- For people and for `--at`; never used for order.
  created_at     timestamptz not null default clock_timestamp(),
  constraint events_uuid_key unique (uuid),
  constraint events_aggregate_id_version_key unique (aggregate_id, version)
);

comment on table :"schema".events is 'Append-only. Write through append_events or plain INSERT/COPY; never UPDATE or DELETE.';
