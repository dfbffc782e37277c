-- What handlers in Rust want done once their batch is committed. A row is written in the transaction of the batch and removed
-- when the work is done. So the work is done at least once, and never for a batch that was rolled back.
-- Oldest program: 10
create table if not exists :"schema".effects (
  -- In the order of the events, and within one event as the handler has asked for them.
  id         bigint      not null generated always as identity primary key,
  processor  text        not null,
  -- The version that has asked for it. Whichever version runs does the work.
  version    integer     not null,
  partition  integer     not null default 0,
  event_id   bigint      not null,
  event_uuid uuid        not null,
  event_type text        not null,
  payload    jsonb       not null,
  -- How often it was begun. More than once: it may have been done before.
  attempts   integer     not null default 0,
  created_at timestamptz not null default clock_timestamp(),
  -- What operators do to a tracker, to rename it or to remove it, is done to these rows as well.
  foreign key (processor, version, partition) references :"schema".trackers (name, version, partition)
    on update cascade on delete cascade
);

create index if not exists effects_processor_idx on :"schema".effects (processor, partition, id);
