-- Oldest program: 10
--
-- How far versions are that are built beside the serving one, for everybody who looks: written between batches, by whoever builds.
create table if not exists :"schema".build_progress (
  -- The tracker of the version that is built: `orders$next`, `orders$dry`, `orders$check`.
  tracker         text             not null primary key,
  processor       text             not null,
  version         integer          not null check (version > 0),
  -- What is being done: replaying, analyzing, comparing, checking, going_live, or waiting for an operator.
  phase           text             not null,
  position        bigint           not null,
  -- Where the serving version was.
  target          bigint           not null,
  -- Events that were handled since the first run.
  handled         bigint           not null,
  per_second      double precision not null,
  -- Null where nobody knows yet.
  seconds_left    double precision,
  -- Size of the tables that are built, with indexes.
  bytes           bigint           not null,
  -- Who builds: `alice@host`, or host and process id of a daemon.
  builder         text             not null,
  -- Why it rests for now; null while it does not.
  rests_because   text,
  -- Why it does not go on by itself, and what to do; null while it does.
  blocked_because text,
  remedy          text,
  started_at      timestamptz      not null default clock_timestamp(),
  updated_at      timestamptz      not null default clock_timestamp()
);

-- Whether a daemon has begun a rebuild by itself, and who has agreed that it goes live. What was agreed to before it began does
-- not count.
alter table :"schema".rebuilds
  add column if not exists automatic boolean not null default false,
  add column if not exists approved_at timestamptz,
  add column if not exists approved_by text;

-- Agrees that the version which is built goes live, whatever differs. Returns which version that is; null where none is built.
create or replace function :"schema".approve_rebuild(operator text, processor text) returns integer
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  approved integer;
begin
  update rebuilds as r set approved_at = clock_timestamp(), approved_by = operator
    where r.processor = processor and r.state not in ('live', 'merged', 'aborted')
    returning r.version into approved;
  if approved is not null then
    update build_progress as b set blocked_because = null, remedy = null where b.tracker = processor || '$next';
    perform log_act(operator, 'approve_rebuild', processor, 0, null, null, jsonb_build_object('version', approved));
  end if;
  return approved;
end
$$;
