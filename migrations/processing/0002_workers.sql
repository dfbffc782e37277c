-- Which processes run where, for people and tools: written by each daemon about its own workers. Nothing depends on it;
-- who may move a position is decided by trackers alone.
create table :"schema".workers (
  -- The daemon, as in trackers.
  owner         uuid        not null,
  owner_label   text        not null,
  worker        text        not null,
  -- The processors that live in the worker.
  processors    text[]      not null,
  -- On the daemon's host; null while the worker is not alive.
  pid           integer,
  state         text        not null
    check (state in ('waiting', 'crash_looping', 'running', 'restarting', 'stopping', 'stopped')),
  starts        bigint      not null,
  -- How the worker ended last: its exit code or signal, in words.
  last_end      text,
  last_end_at   timestamptz,
  -- When a worker that has ended is started again.
  next_start_at timestamptz,
  -- Renewed every ten seconds while the daemon lives. Rows that are a minute old are removed by any other daemon.
  updated_at    timestamptz not null default clock_timestamp(),
  primary key (owner, worker)
);
