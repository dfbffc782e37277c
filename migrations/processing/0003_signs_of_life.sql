-- Who else lives. A tracker's row names one owner, and a batch locks that row from its beginning to its end. So two
-- things are said here instead: an owner whose batch outlasts its lease is still at work; and a daemon that does not
-- own a processor stands by to take it over. Rows are few, short-lived and never waited for.
create table if not exists :"schema".signs_of_life (
  name        text        not null,
  partition   integer     not null,
  -- The daemon, as in trackers.owner.
  owner       uuid        not null,
  owner_label text        not null,
  -- The epoch of the claim that is at work; null for a daemon that stands by.
  epoch       bigint,
  -- By this server's clock. Later the row means nothing, and whoever claims next removes it.
  lives_until timestamptz not null,
  primary key (name, partition, owner)
);

-- What of the infrastructure keeps a processor from going on, as far as it could be written down: since when, what
-- the last error was, when the next try is. Null while batches commit. Never a failure of an event.
alter table :"schema".trackers add column if not exists outage jsonb;
