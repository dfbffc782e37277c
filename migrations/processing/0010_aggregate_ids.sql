-- An aggregate is named by a text: a uuid in espd's own event store, and in others also an id that is no uuid. So the tables
-- that note aggregates keep text. The rows that are there keep their meaning, because a uuid has one canonical spelling.
alter table :"schema".dead_letters alter column aggregate_id type text;
alter table :"schema".emissions alter column aggregate_id type text;

-- Sets an event aside that must not be handled now, because it is a dead letter already, or because an earlier event of
-- its aggregate is one that later events wait behind. Returns whether that is so. The caller has locked the tracker.
create or replace function :"schema".set_aside_behind(
  processor text, version int, partition int, event_id bigint, event_uuid uuid, event_type text, aggregate_id text
) returns boolean
language plpgsql
set search_path = :"schema", pg_temp
as $$
#variable_conflict use_variable
begin
  if exists (select from dead_letters as d
             where d.processor = processor and d.version = version and d.partition = partition
               and d.event_id = event_id) then
    return true;
  elsif exists (select from dead_letters as d
                where d.processor = processor and d.version = version and d.partition = partition
                  and d.aggregate_id = aggregate_id and d.event_id < event_id and d.blocks) then
    perform set_aside(processor, version, partition,
      jsonb_build_object('event_id', event_id, 'event_uuid', event_uuid, 'event_type', event_type,
        'aggregate_id', aggregate_id),
      attempts => 0, blocks => true, reason => 'waiting');
    return true;
  end if;
  return false;
end
$$;
