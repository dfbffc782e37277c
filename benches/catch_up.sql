-- References for benches/catch_up.rs. The loops handle all events in batches, with a commit after
-- each batch, and return when the first and the last commit were over (ISO 8601); the one statement returns when it began
-- and when its commit was over.

-- The function that espd generated for the projector, called as a daemon would call it.
create procedure same_function(head bigint, batch integer, inout first text, inout last text)
language plpgsql
as $$
declare
  claim    record;
  returned record;
  reached  bigint := 0;
begin
  select * into claim from espd.trackers where name = 'outstanding_todos';
  while reached < head loop
    select * into returned
      from espd.handle_outstanding_todos_v1(
        0, claim.epoch, reached, head, batch, 16 * 1024 * 1024, interval '2 s', interval '5 s', 0::real, null)
        as handled (position, handled, failure, finished);
    reached := returned.position;
    commit;
    first := coalesce(first, now_iso());
  end loop;
  last := now_iso();
end
$$;

create function now_iso() returns text
language sql volatile
as $$ select to_char(clock_timestamp() at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') $$;

create table bare_todos (like outstanding_todos including all);
create table bare_position (position bigint not null);
insert into bare_position values (0);

-- What one would write by hand for this workload alone: no bounds but the count, nothing that could be
-- rolled back to, one chain of conditions, a position without an owner.
create procedure bare_loop(head bigint, batch integer, inout first text, inout last text)
language plpgsql
as $$
declare
  event   record;
  reached bigint := 0;
begin
  while reached < head loop
    for event in select id, aggregate_id, type, body from espd.events where id > reached order by id limit batch
    loop
      if event.type = 'TodoAdded' then
        insert into bare_todos (todo_id, title, description, due_date, stakeholder_email)
        values (
          event.aggregate_id,
          event.body->>'title',
          event.body->>'description',
          (event.body->>'due_date')::date,
          event.body->>'stakeholder_email'
        );
      elsif event.type = 'TodoAmended' then
        update bare_todos set
          title             = case when event.body ? 'title' then event.body->>'title' else title end,
          description       = case when event.body ? 'description' then event.body->>'description' else description end,
          due_date          = case when event.body ? 'due_date' then (event.body->>'due_date')::date else due_date end,
          stakeholder_email = case when event.body ? 'stakeholder_email' then event.body->>'stakeholder_email' else stakeholder_email end
        where todo_id = event.aggregate_id;
      else
        delete from bare_todos where todo_id = event.aggregate_id;
      end if;
      reached := event.id;
    end loop;
    update bare_position set position = reached;
    commit;
    first := coalesce(first, now_iso());
  end loop;
  last := now_iso();
end
$$;

create table stated_todos (like outstanding_todos including all);

-- What the whole log comes to: nothing for those that have ended, and for all others the newest value of each column.
create procedure one_statement(head bigint, batch integer, inout first text, inout last text)
language plpgsql
as $$
begin
  perform set_config('enable_seqscan', 'on', true);
  first := now_iso();
  insert into stated_todos (todo_id, title, description, due_date, stakeholder_email)
  select
    e.aggregate_id,
    (array_agg(e.body->>'title' order by e.id desc) filter (where e.body ? 'title'))[1],
    (array_agg(e.body->>'description' order by e.id desc) filter (where e.body ? 'description'))[1],
    (array_agg((e.body->>'due_date')::date order by e.id desc) filter (where e.body ? 'due_date'))[1],
    (array_agg(e.body->>'stakeholder_email' order by e.id desc) filter (where e.body ? 'stakeholder_email'))[1]
  from espd.events as e
  where e.id <= head
    and e.type in ('TodoAdded', 'TodoAmended')
    and not exists (
      select from espd.events as ended
      where ended.aggregate_id = e.aggregate_id and ended.type in ('TodoCompleted', 'TodoAbandoned') and ended.id <= head
    )
  group by e.aggregate_id;
  commit;
  last := now_iso();
end
$$;

create function see() returns trigger
language plpgsql
as $$ begin return null; end $$;
