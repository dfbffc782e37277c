-- Appending what is due, with the answer which events that were: for an application that does something about each event that
-- its own process appends.
-- Oldest program: 4

-- As append_due, and returns the uuids of the events that were appended.
create or replace function :"schema".append_due_events(
  size int default 100, out appended uuid[], out refused int, out seconds_left float8
)
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
declare
  due     scheduled_events[];
  one     scheduled_events;
  refusal text;
begin
  appended := '{}';
  refused := 0;
  if not pg_try_advisory_xact_lock(hashtextextended('espd: scheduled events of ' || current_schema(), 0)) then
    seconds_left := 0.1;
    return;
  end if;
  select array_agg(row(s.*)::scheduled_events order by s.next_try_at, s.id) into due from (
    select * from scheduled_events where next_try_at <= clock_timestamp() order by next_try_at, id
    limit size for update skip locked) as s;

  if due is not null then
    begin
      perform append_scheduled(due);
      appended := array(select d.uuid from unnest(due) as d);
    exception when others then
      foreach one in array due loop
        begin
          perform append_scheduled(array[one]);
          appended := appended || one.uuid;
        exception when others then
          refusal := sqlstate;
          if left(refusal, 2) in ('08', '25', '53', '57', '58') or refusal in ('40001', '40P01') then
            raise;
          end if;
          update scheduled_events
            set attempts = attempts + 1, last_error = left(sqlerrm, 1000), sqlstate = refusal, tried_at = clock_timestamp(),
              next_try_at = clock_timestamp() + interval '1 second' * power(2, least(attempts, 8))
            where id = one.id;
          refused := refused + 1;
        end;
      end loop;
    end;
  end if;
  select extract(epoch from min(next_try_at) - clock_timestamp()) into seconds_left from scheduled_events;
end
$$;

-- The same, counted: what daemons call.
create or replace function :"schema".append_due(
  size int default 100, out appended int, out refused int, out seconds_left float8
)
language plpgsql
set search_path = :"schema", pg_temp
set row_security = off
as $$
begin
  select cardinality(due.appended), due.refused, due.seconds_left into appended, refused, seconds_left
  from append_due_events(size) as due;
end
$$;
