-- Oldest program: 10
--
-- Since when a processor stands where it is: it was not claimed anew, no operator has paused or resumed it, nothing fails, and
-- its position has not moved. While it has events to handle, that deserves a look. A trigger notes it, so that no statement
-- that moves a position can forget to.
alter table :"schema".trackers add column if not exists standing_since timestamptz not null default clock_timestamp();

create or replace function :"schema".note_movement() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  new.standing_since := clock_timestamp();
  return new;
end
$$;

drop trigger if exists note_movement on :"schema".trackers;
create trigger note_movement before update on :"schema".trackers for each row
when ((old.position, old.epoch, old.paused_at, old.attempts, old.outage)
      is distinct from (new.position, new.epoch, new.paused_at, new.attempts, new.outage))
execute function :"schema".note_movement();
