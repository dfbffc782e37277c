-- Roles with no more rights than their work needs. Not a migration: run it by hand, as a superuser, or as an owner of the schema
-- who may also make roles and schemas and grant pg_read_all_stats and pg_signal_backend, after `espctl migrate`, and again after
-- every later one. `espctl roles` prints it with the names of a configuration; under psql say them:
--
--   psql -v ON_ERROR_STOP=1 -v schema=espd -v projections=public -1 -f migrations/roles.sql
--
-- No one logs in as these roles. Give them to the roles that do (docs/roles.md):
--
--   create role shop_app login password '...'; grant espd_appender to shop_app;
--   create role espd login password '...' in role espd_daemon; alter role espd set role espd_daemon;
--
-- Roles belong to the whole server. What they may do is said here for one database.
do $$
declare
  name text;
begin
  foreach name in array array['espd_reader', 'espd_appender', 'espd_daemon', 'espd_operator'] loop
    if not exists (select from pg_roles where rolname = name) then
      execute format('create role %I nologin', name);
    end if;
  end loop;
end
$$;

-- Reads events and sees how far everybody is: `espctl events`, `espctl status`, `espctl wait`.
grant usage on schema :"schema" to espd_reader;
grant select on all tables in schema :"schema" to espd_reader;
grant select on all sequences in schema :"schema" to espd_reader;
-- Names the session that holds the horizon back.
grant pg_read_all_stats to espd_reader;

-- Appends, and reads what there is to decide by. No role may update, delete or truncate events by itself (an operator deletes
-- those of an aggregate by a function, below), nor choose their ids: an id that the insert has not drawn itself is one that
-- readers may have passed already.
grant espd_reader to espd_appender;
revoke insert on :"schema".events from espd_appender;
grant insert (uuid, aggregate_id, type, version, body, metadata, causation_id, correlation_id, created_at) on :"schema".events to espd_appender;

-- Keeps snapshots, which are copies of what events say.
grant insert, update, delete on :"schema".snapshots to espd_appender;

-- Tags and keys of what it appends. The head of a tag is locked where a condition relies on it.
grant insert, update on :"schema".tag_heads to espd_appender;
grant insert on :"schema".tag_events to espd_appender;
grant insert, update, delete on :"schema".unique_keys to espd_appender;

-- Records commands, and removes old records; nobody changes one.
grant insert, delete on :"schema".commands to espd_appender;

-- Schedules events for later, and cancels them. Appending what is due takes the same rights.
grant insert, update, delete on :"schema".scheduled_events to espd_appender;

-- Runs processors. It makes their functions in espd's schema and their tables in that of the projections, so it owns
-- these and needs `create` on both.
grant espd_reader to espd_daemon;
grant create on schema :"schema" to espd_daemon;
-- A daemon would make it as well, when it starts for the first time.
create schema if not exists :"projections";
grant usage, create on schema :"projections" to espd_daemon;
grant insert, update, delete on :"schema".trackers to espd_daemon;
grant insert, update, delete on :"schema".declarations, :"schema".projection_tables, :"schema".workers,
  :"schema".signs_of_life, :"schema".dead_letters, :"schema".emissions, :"schema".deliveries, :"schema".witnesses, :"schema".effects,
  :"schema".workflow_instances, :"schema".workflow_steps, :"schema".rebuilds, :"schema".build_progress, :"schema".verifications
  to espd_daemon;
-- Builds versions beside those that serve, each in a schema of its own. Where nobody shall, take it back.
do $$ begin execute format('grant create on database %I to espd_daemon', current_database()); end $$;
-- Answers operators who ask it to read its configuration again.
grant insert, update, delete on :"schema".reload_requests to espd_daemon;
-- What others have made on tables that are dropped, for those that take their place.
grant insert, delete on :"schema".carried_over to espd_daemon;
-- Where `espd check` tries declarations, in transactions that are rolled back, because the role may not make schemas.
create schema if not exists espd_check;
grant usage, create on schema espd_check to espd_daemon;
-- For reactors that emit. Where there are none, take it back.
revoke insert on :"schema".events from espd_daemon;
grant insert (uuid, aggregate_id, type, version, body, metadata, causation_id, correlation_id, created_at) on :"schema".events to espd_daemon;

-- Appends what applications have scheduled.
grant update, delete on :"schema".scheduled_events to espd_daemon;

-- Acts through functions alone, which record who did what; an operator writes no records himself, and nobody changes them. A member
-- of espd_daemon does the same through the admin endpoint.
grant espd_reader to espd_operator;
grant execute on function :"schema".pause_processor, :"schema".resume_processor, :"schema".retry_processor,
  :"schema".accept_history, :"schema".reset_processor, :"schema".set_aside_by_operator, :"schema".retry_dead_letters,
  :"schema".discard_dead_letters, :"schema".cancel_emissions, :"schema".retry_emissions, :"schema".request_reload
  to espd_operator, espd_daemon;
grant execute on function :"schema".cancel_scheduled_events, :"schema".retry_scheduled_events to espd_operator, espd_daemon;
-- Deletes aggregates for good, and records it. Where that is not an operator's to decide, take it back.
grant execute on function :"schema".hold_trackers, :"schema".forget_events to espd_operator;
grant execute on function :"schema".delete_aggregate to espd_operator;
-- What makes tables anew, or drops them, is the daemon's: they belong to it.
grant execute on function :"schema".rebuild_processor, :"schema".drop_processor, :"schema".rename_processor
  to espd_daemon;
-- What makes projectors synchronous acts on the table of events, which belongs to somebody else.
grant execute on function :"schema".hold_appends, :"schema".begin_synchronous to espd_daemon;
-- Rights that these roles had before there were functions.
revoke insert, update, delete on :"schema".trackers, :"schema".operator_log, :"schema".dead_letters,
  :"schema".reload_requests, :"schema".deliveries, :"schema".witnesses from espd_operator;
revoke insert on :"schema".operator_log from espd_daemon;
-- Records that a version was built and is live. Under which login that was, PostgreSQL says itself.
grant insert (operator, action, processor, partition, from_position, to_position, detail) on :"schema".operator_log to espd_daemon;
-- Ends sessions that hold the horizon or a table. That is PostgreSQL's own right, and the server's log has what it does.
grant pg_signal_backend to espd_operator;
