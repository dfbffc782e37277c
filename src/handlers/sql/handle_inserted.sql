-- The function that is compiled from the handlers of a synchronous projector. A trigger calls it after each statement that has
-- inserted events, in the session and transaction of whoever appends, with the rights of whoever runs processors.
--
-- `template.rs` fills it in, as `project_batch.sql`; the function's own names begin with `espd_` here.
create or replace function {{function}}() returns trigger
language plpgsql
security definer
{{scope}}
set row_security = off
set jit = off
set enable_seqscan = off
-- An event fails or not whatever the session has appended before: see `project_batch.sql`.
set plan_cache_mode = force_generic_plan
as $espd_body$
#variable_conflict use_column
declare
  event record;
  -- Which of the handlers is for the event.
  espd_handler integer;
  -- The event at hand, whatever a handler does to its record.
  espd_id bigint;
  espd_type text;
  -- An event that is looked at alone, and what is read of it.
  espd_stored record;
  espd_read record;
  espd_state text;
  espd_message text;
  espd_detail text;
  espd_hint text;
  espd_context text;
  espd_schema text;
  espd_table text;
  espd_column text;
  espd_constraint text;
  --{{if deferrable}}
  -- The constraints of the projector's tables that can be deferred, and those that are so at the beginning of a transaction.
  espd_deferrable text;
  espd_deferred text;
  --{{end}}
begin
  -- A block that catches errors costs a subtransaction, which statements with other events only are spared.
  if not exists (select from {{inserted}} as e where true{{of_types}}) then
    return null;
  end if;
  --{{if deferrable}}
  select string_agg(distinct format('%I.%I', n.nspname, c.conname), ', '),
         string_agg(distinct format('%I.%I', n.nspname, c.conname), ', ') filter (where c.condeferred)
    into espd_deferrable, espd_deferred
    from pg_catalog.pg_constraint as c join pg_catalog.pg_namespace as n on n.oid = c.connamespace
    where c.condeferrable
      and c.conrelid in (select o.oid from {{schema}}.owned_relations as o where o.processor = {{processor}});
  --{{end}}
  begin
    for event in
      select {{columns}} from {{inserted}} as e where true{{of_types}} order by e.id
    loop
      espd_id := event.id;
      espd_type := event.type;
--{{handlers}}
      --{{if deferrable}}
      -- As in a batch: whether an event can be handled does not depend on those that are appended with it. Constraints of whoever
      -- appends are left alone.
      if espd_deferrable is not null then
        execute 'set constraints ' || espd_deferrable || ' immediate';
      end if;
      if espd_deferred is not null then
        execute 'set constraints ' || espd_deferred || ' deferred';
      end if;
      --{{end}}
      espd_id := null;
    end loop;
  exception when others or assert_failure then
    get stacked diagnostics
      espd_state = returned_sqlstate, espd_message = message_text, espd_detail = pg_exception_detail,
      espd_hint = pg_exception_hint, espd_context = pg_exception_context, espd_schema = schema_name,
      espd_table = table_name, espd_column = column_name, espd_constraint = constraint_name;
    if espd_id is null then
      -- No handler was at work, so an event could not be read, by an upcast: the first one that cannot be read alone.
      for espd_stored in select e.id, e.type from {{plain}} as e order by e.id loop
        begin
          select {{columns}} into espd_read from {{inserted}} as e where e.id = espd_stored.id{{of_types}};
        exception when others or assert_failure then
          espd_id := espd_stored.id;
          espd_type := espd_stored.type;
          exit;
        end;
      end loop;
    end if;
    -- It stays what it is, so that whoever appends can tell a deadlock, say, from a value that is too long.
    raise exception using errcode = espd_state,
      message = format('projector %s cannot handle event %s (%s), which is not stored therefore: %s', {{processor}},
        coalesce(espd_id::text, '?'), coalesce(espd_type, '?'), espd_message),
      detail = coalesce(nullif(espd_detail, ''), espd_context),
      hint = coalesce(nullif(espd_hint, ''), {{advice}}),
      schema = espd_schema, table = espd_table, column = espd_column, constraint = espd_constraint;
  end;
  return null;
end
$espd_body$
