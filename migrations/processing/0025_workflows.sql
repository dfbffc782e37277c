-- What workflows remember: the state of each instance, and the results of steps whose event is not handled yet.
-- Oldest program: 10
create table if not exists :"schema".workflow_instances (
  -- The name of the reactor, in all its versions.
  workflow        text        not null,
  instance        text        not null,
  state           jsonb       not null,
  -- What it waits for: the type of each time-out, with the uuid that its event will have.
  timeouts        jsonb       not null default '{}',
  -- How many events it has handled, and the last one.
  events          bigint      not null,
  last_event_id   bigint      not null,
  last_event_type text        not null,
  began_at        timestamptz not null default clock_timestamp(),
  updated_at      timestamptz not null default clock_timestamp(),
  -- Later events of an instance that has ended are passed over.
  ended_at        timestamptz,
  primary key (workflow, instance)
);

-- A row is written, and committed by itself, as soon as a step is done. It is removed with the position of its event.
create table if not exists :"schema".workflow_steps (
  workflow    text        not null,
  event_uuid  uuid        not null,
  step        text        not null,
  instance    text        not null,
  result      jsonb       not null,
  recorded_at timestamptz not null default clock_timestamp(),
  primary key (workflow, event_uuid, step)
);

-- A workflow that gets another name keeps what it remembers. One that is dropped forgets it, and so does one that is set back
-- in order to repeat its effects, as far as its instances have handled events that come again.
create or replace function :"schema".follow_tracker_of_workflow() returns trigger
language plpgsql security definer set search_path = :"schema", pg_temp set row_security = off
as $$
begin
  if tg_op = 'DELETE' then
    if not exists (select from trackers as t where t.name = old.name) then
      delete from workflow_instances where workflow = old.name;
      delete from workflow_steps where workflow = old.name;
    end if;
  elsif new.name <> old.name then
    update workflow_instances set workflow = new.name where workflow = old.name;
    update workflow_steps set workflow = new.name where workflow = old.name;
  elsif new.epoch > old.epoch and new.silent_until < old.position then
    delete from workflow_instances where workflow = old.name and last_event_id > greatest(new.position, new.silent_until);
    delete from workflow_steps where workflow = old.name;
  end if;
  return null;
end
$$;

drop trigger if exists follow_tracker_of_workflow on :"schema".trackers;
create trigger follow_tracker_of_workflow after delete on :"schema".trackers for each row
when (old.kind = 'reactor') execute function :"schema".follow_tracker_of_workflow();

drop trigger if exists follow_renamed_workflow on :"schema".trackers;
create trigger follow_renamed_workflow after update on :"schema".trackers for each row
when (old.kind = 'reactor' and (new.name <> old.name or new.position < old.position))
execute function :"schema".follow_tracker_of_workflow();
