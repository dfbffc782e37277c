-- Who is where: one row per processor (and partition). It lives in the database of the
-- projections, because a projector's rows and its position change in one transaction.
create table :"schema".trackers (
  name          text        not null,
  -- Partition of the processor's aggregates; 0 while a processor is not partitioned.
  partition     integer     not null default 0,
  kind          text        not null check (kind in ('projector', 'reactor')),
  -- Version of the tables that the position belongs to (`version` in the declaration).
  version       integer     not null check (version > 0),
  -- Fingerprint of the declaration that the tables were made from; null until they are made.
  declaration   text,
  -- Every event at or below it has been handled. Moves forward only, unless an operator resets it.
  position      bigint      not null default 0 check (position >= 0),
  -- Raised by every claim and every reset. Who holds an older epoch can commit nothing.
  epoch         bigint      not null default 0,
  -- The daemon that owns the processor, for as long as the lease runs on this server's clock.
  owner         uuid,
  owner_label   text,
  lease_until   timestamptz,
  -- The backend that the owner's batches run in: what to end when a frozen owner holds this row.
  backend_pid   integer,
  backend_start timestamptz,
  -- Set by an operator, kept through restarts.
  paused_at     timestamptz,
  paused_by     text,
  -- Whether the last batch reached the settled horizon of its time.
  caught_up     boolean     not null default false,
  -- Events handled since the last reset, and ids passed per second lately.
  handled       bigint      not null default 0,
  rate          real        not null default 0,
  -- The failure that keeps the processor from going on; null once an event commits.
  attempts      integer     not null default 0,
  last_error    jsonb,
  next_retry_at timestamptz,
  -- Stopped for good: nothing is tried again until an operator acts.
  failed_at     timestamptz,
  updated_at    timestamptz not null default clock_timestamp(),
  primary key (name, partition)
)
-- Every batch updates its row: room on the page keeps those updates heap-only.
with (fillfactor = 50);

-- Which processor owns which table: espd creates and drops these, and never another one.
create table :"schema".projection_tables (
  table_schema text    not null,
  table_name   text    not null,
  processor    text    not null,
  version      integer not null,
  primary key (table_schema, table_name)
);

-- What operators did. The only record of a position that moved backward.
create table :"schema".operator_log (
  id            bigint      not null generated always as identity primary key,
  at            timestamptz not null default clock_timestamp(),
  operator      text        not null,
  action        text        not null check (action in ('reset', 'pause', 'resume', 'retry')),
  processor     text        not null,
  partition     integer     not null,
  from_position bigint      not null,
  to_position   bigint      not null
);
