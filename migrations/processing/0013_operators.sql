-- An operator's request that a daemon reads its configuration again. The daemon looks for requests about once a second and
-- writes down what came of each. Nothing else depends on these rows; a daemon removes them after a day.
-- Oldest program: 10
create table if not exists :"schema".reload_requests (
  id           bigint      not null generated always as identity primary key,
  -- The daemon, as in trackers.owner.
  owner        uuid        not null,
  operator     text        not null,
  requested_at timestamptz not null default clock_timestamp(),
  answered_at  timestamptz,
  -- changed: the daemon follows the new configuration. unchanged: it is the one that the daemon follows already.
  -- refused: it is wrong, and the daemon keeps the old one.
  outcome      text        check (outcome in ('changed', 'unchanged', 'refused')),
  -- What the daemon says about it, line by line.
  report       text[]
);

create index if not exists reload_requests_open_idx on :"schema".reload_requests (owner) where answered_at is null;

-- What operators do grows with each version. So any word may stand here; that it is one of those that are documented is up
-- to the programs.
alter table :"schema".operator_log drop constraint if exists operator_log_action_check;
alter table :"schema".operator_log add constraint operator_log_action_check check (action ~ '^[a-z_]+$');

-- Sets an event aside because an operator wants that: the one that the processor fails at, or one that it has not come to.
-- The failure names the event. The position stays where it is: the claim ends, and the next owner passes the event over, as
-- it does with every dead letter. Returns false where the processor is beyond the event. It runs with the rights of its
-- owner: an operator may set an event aside, but write no other dead letter.
create or replace function :"schema".set_aside_by_operator(
  processor text,
  version   integer,
  partition integer,
  failure   jsonb,
  blocks    boolean,
  operator  text
) returns boolean
language plpgsql
security definer
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  id constant bigint := (failure ->> 'event_id')::bigint;
  tracker trackers;
  failing boolean;
begin
  -- A batch that is under way ends first.
  select t.* into tracker from trackers as t
    where t.name = processor and t.version = version and t.partition = partition for update;
  if not found or tracker.position >= id
     or exists (select from deliveries as d where d.processor = processor and d.version = version
                  and d.partition = partition and d.event_id = id and d.is_done) then
    return false;
  end if;
  failing := coalesce((tracker.last_error ->> 'event_id')::bigint = id, false);
  perform set_aside(processor, version, partition, failure, case when failing then tracker.attempts else 0 end, blocks);
  update trackers as t
    set epoch = t.epoch + 1, lease_until = null,
        attempts = case when failing then 0 else t.attempts end,
        last_error = case when failing then null else t.last_error end,
        next_retry_at = case when failing then null else t.next_retry_at end,
        failed_at = case when failing then null else t.failed_at end,
        updated_at = clock_timestamp()
    where t.name = processor and t.version = version and t.partition = partition;
  insert into operator_log (operator, action, processor, partition, from_position, to_position)
    values (operator, case when blocks then 'park_event' else 'skip_event' end, processor, partition, id, id);
  return true;
end
$$;

revoke execute on function :"schema".set_aside_by_operator(text, integer, integer, jsonb, boolean, text) from public;
