-- Oldest program: 10
--
-- As before (0011), and keeps the time of a failure that is told with it: an event that waits for another attempt was said to have
-- failed again whenever another one had.
create or replace function :"schema".advance_tracker(
  processor     text,
  version       integer,
  partition     integer,
  epoch         bigint,
  from_position bigint,
  to_position   bigint,
  handled       integer,
  lease         interval,
  caught_up     boolean  default null,
  rate          real     default null,
  failing       boolean  default false,
  attempts      integer  default 0,
  last_error    jsonb    default null,
  retry_in      interval default null,
  witness_at    bigint   default null,
  witness_id    bigint   default null,
  witness_uuid  uuid     default null
) returns boolean
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  same_failure constant boolean := failing and handled = 0 and last_error is null;
begin
  if current_setting('synchronous_commit') = 'off' then
    -- What an owner has done elsewhere, and what it remembers, depends on this commit. A stricter setting stays.
    perform set_config('synchronous_commit', 'local', true);
  end if;
  update trackers as t
    set position = to_position, handled = t.handled + handled,
        caught_up = coalesce(caught_up, t.caught_up), rate = coalesce(rate, t.rate),
        lease_until = clock_timestamp() + lease, updated_at = clock_timestamp(), outage = null,
        attempts = case when same_failure then t.attempts else attempts end,
        last_error = case when same_failure then t.last_error
                          else jsonb_build_object('at', clock_timestamp()) || last_error end,
        next_retry_at = clock_timestamp() + retry_in,
        witness_at = case when witness_id is null then t.witness_at else witness_at end,
        witness_id = coalesce(witness_id, t.witness_id), witness_uuid = coalesce(witness_uuid, t.witness_uuid)
    where t.name = processor and t.version = version and t.partition = partition
      and t.epoch = epoch and t.position = from_position and to_position >= t.position;
  if not found then
    return false;
  end if;
  if witness_id > 0 then
    perform log_witness(processor, version, partition, witness_id, witness_uuid);
  end if;
  return true;
end
$$;
