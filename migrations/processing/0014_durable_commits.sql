-- Oldest program: 10
-- Removes a dead letter that was handled again. The next one that only waited behind it is retried as well, also where it
-- was set aside after the retry had been requested. The caller has locked the tracker. As with `advance_tracker`, the commit
-- is on disk before it is acknowledged, whatever the default of the database is.
create or replace function :"schema".remove_dead_letter(
  processor text, version int, partition int, event_id bigint
) returns void
language plpgsql
set search_path = :"schema", pg_temp
as $$
#variable_conflict use_variable
declare
  removed dead_letters;
begin
  if current_setting('synchronous_commit') = 'off' then
    perform set_config('synchronous_commit', 'local', true);
  end if;
  delete from dead_letters as d
    where d.processor = processor and d.version = version and d.partition = partition and d.event_id = event_id
    returning * into removed;
  if removed.blocks and removed.retry_requested_at is not null then
    update dead_letters as d set retry_requested_at = removed.retry_requested_at
      where d.processor = processor and d.version = version and d.partition = partition and d.reason = 'waiting'
        and d.retry_requested_at is null
        and d.event_id = (
          select min(n.event_id) from dead_letters as n
          where n.processor = processor and n.version = version and n.partition = partition
            and n.aggregate_id = removed.aggregate_id and n.event_id > event_id and n.blocks);
  end if;
end
$$;

-- Two daemons may declare other handlers under one name and version, and then rows are made by both. So a tracker says which
-- handlers the last owner had, and when an owner last came with others: `at`, `position`, `owner`, `before`, `after`.
alter table :"schema".trackers add column if not exists handlers text;
alter table :"schema".trackers add column if not exists handler_change jsonb;
