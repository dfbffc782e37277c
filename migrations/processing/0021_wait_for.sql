-- Oldest program: 10
--
-- Waits until a processor has handled everything up to a position, and says whether it has: for a client of any language
-- that reads what it has just written, also through a transaction pooler. One statement, a bounded time, no lock that
-- anybody waits for. On a standby it waits for what has been replayed there.
--
--   select espd.wait_for('outstanding_todos', 4711, '2 seconds');
--
-- False: the time is over, or the processor does not go on by itself, because it is paused, has failed, or has met another
-- event store. A processor that has not run yet is waited for. Raises ES003 for a timeout below zero or above a minute,
-- and 25001 in a transaction that could never see the end: one that has written, which the processor itself waits for, or
-- one whose snapshot does not change.
create or replace function :"schema".wait_for(
  processor text, upto bigint, timeout interval default interval '5 seconds'
) returns boolean
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
#variable_conflict use_variable
declare
  deadline timestamptz := clock_timestamp() + timeout;
  pause double precision := 0.004;
  seconds_left double precision;
  reached bigint;
  stuck boolean;
  diverged boolean;
begin
  if processor is null or upto is null or timeout is null then
    raise exception using errcode = 'ES003', message = 'wait_for needs a processor, a position and a timeout';
  elsif timeout < interval '0' or timeout > interval '60 seconds' then
    raise exception using errcode = 'ES003', message = format('wait_for waits for 0 to 60 seconds, not for %s', timeout);
  elsif current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
    raise exception using errcode = '25001',
      message = 'wait_for sees no change in a transaction that is ' || current_setting('transaction_isolation'),
      hint = 'call it outside of a transaction, or in one that is read committed';
  elsif pg_current_xact_id_if_assigned() is not null then
    raise exception using errcode = '25001',
      message = 'wait_for in a transaction that has written: the processor itself waits for its end',
      hint = 'commit first';
  end if;
  loop
    -- Each look has a snapshot of its own, because the function is volatile and the transaction read committed.
    select min(t.position), bool_or(t.paused_at is not null or t.failed_at is not null), bool_or(t.diverged is not null)
      into reached, stuck, diverged from trackers as t where t.name = processor;
    -- A position that was reached in another store says nothing.
    if diverged then
      return false;
    elsif reached >= upto then
      return true;
    elsif stuck then
      return false;
    end if;
    seconds_left := extract(epoch from deadline - clock_timestamp());
    if seconds_left <= 0 then
      return false;
    end if;
    perform pg_sleep(least(pause, seconds_left));
    pause := least(pause * 2, 0.05);
  end loop;
end
$$;
