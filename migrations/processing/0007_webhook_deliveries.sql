-- What a reactor that sends its events elsewhere has done beyond its position. It keeps the events of one aggregate in
-- order and goes on with the others, so its position is a low-water mark: everything at or below it is done, and of what
-- is above it, the rows here are done or have been tried. They go when the position passes them.
create table if not exists :"schema".deliveries (
  processor text        not null,
  partition integer     not null default 0,
  event_id  bigint      not null,
  -- Whether it was received, or is a dead letter; otherwise it has failed and is tried again.
  is_done   boolean     not null,
  attempts  integer     not null default 0,
  failure   jsonb,
  retry_at  timestamptz,
  primary key (processor, partition, event_id)
);
