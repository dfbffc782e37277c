-- Oldest program: 10
--
-- What a daemon has found out about the tables of projectors while it verifies them slice by slice, with `[verify]`.
create table if not exists :"schema".verifications (
  processor        text        not null primary key,
  version          integer     not null check (version > 0),
  -- The next slice begins behind this aggregate; null: with the first one.
  after_aggregate  uuid,
  -- Of the last slice.
  verified_at      timestamptz not null default clock_timestamp(),
  aggregates       bigint      not null,
  compared_rows    bigint      not null,
  -- A round is over once all aggregates were verified.
  round_began_at   timestamptz not null default clock_timestamp(),
  round_aggregates bigint      not null,
  -- How many aggregates the last whole round had; null before it has ended.
  all_aggregates   bigint,
  -- The last slice in which rows differed, and some of their keys; gone once a whole round has found none.
  found_at         timestamptz,
  differing_rows   bigint      not null default 0,
  found            jsonb
);
