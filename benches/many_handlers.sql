-- References for benches/many_handlers.rs: the statements of all handlers in loops that are written by hand. The benchmark fills
-- in their number and their texts. Each procedure handles all events in batches, commits after each, and returns the seconds
-- between the first and the last commit.

create table if not exists by_hand (id bigint primary key, handler int not null, n int);

-- Conditions decide, as cheaply as PL/pgSQL can: by halving a number that the query has counted out.
create or replace procedure loop_by_hand(head bigint, batch integer, inout seconds float8)
language plpgsql
as $$
declare
  event   record;
  handler integer;
  reached bigint := 0;
  first   timestamptz;
begin
  while reached < head loop
    for event in
      select id, body, (id % {{count}})::integer as handler from espd.events where id > reached order by id limit batch
    loop
      handler := event.handler;
{{tree}}
      reached := event.id;
    end loop;
    commit;
    first := coalesce(first, clock_timestamp());
  end loop;
  seconds := extract(epoch from clock_timestamp() - first);
end
$$;

-- Nothing decides: the types of the events take turns, and so do the statements.
create or replace procedure in_sequence(head bigint, batch integer, inout seconds float8)
language plpgsql
as $$
declare
  ids     bigint[];
  bodies  jsonb[];
  at      integer;
  reached bigint := 0;
  first   timestamptz;
begin
  while reached < head loop
    select array_agg(e.id), array_agg(e.body) into ids, bodies
      from (select id, body from espd.events where id > reached order by id limit batch) as e;
    at := 0;
    while at < cardinality(ids) loop
{{sequence}}
      at := at + {{count}};
    end loop;
    reached := ids[cardinality(ids)];
    commit;
    first := coalesce(first, clock_timestamp());
  end loop;
  seconds := extract(epoch from clock_timestamp() - first);
end
$$;
