-- Appends events from psql.
--
--   psql -X "$DATABASE_URL" -f append.sql
\set QUIET on
\pset tuples_only on
\pset format unaligned
select gen_random_uuid() as todo, gen_random_uuid() as other \gset

-- The body of append is one object, or an array of them.
select 'added: version ' || version from espd.append(jsonb_build_object(
  'aggregate_id', :'todo', 'type', 'TodoAdded', 'body', jsonb_build_object('title', 'buy milk'), 'expected_version', 0));

-- Another event that expects the aggregate to be new. psql goes on after the error, which it prints with its details.
select * from espd.append(jsonb_build_object(
  'aggregate_id', :'todo', 'type', 'TodoAdded', 'body', jsonb_build_object('title', 'again'), 'expected_version', 0));
\echo :LAST_ERROR_SQLSTATE: :LAST_ERROR_MESSAGE

-- The version that a decision was based on, and the event that follows from it.
select max(version) as version from espd.events where aggregate_id = :'todo' \gset
select 'amended: version ' || version from espd.append(jsonb_build_object(
  'aggregate_id', :'todo', 'type', 'TodoAmended', 'body', jsonb_build_object('title', 'buy oat milk'),
  'expected_version', :version));

-- A batch of two aggregates, all or none, with uuids, so that it may be said again.
select jsonb_build_array(
  jsonb_build_object('uuid', gen_random_uuid(), 'aggregate_id', :'todo', 'type', 'TodoCompleted', 'body', '{}'::jsonb),
  jsonb_build_object('uuid', gen_random_uuid(), 'aggregate_id', :'other', 'type', 'TodoAdded',
    'body', jsonb_build_object('title', 'call mum'), 'metadata', jsonb_build_object('user', 'jo'))) as batch \gset
select max(id) as last, array_agg(id) as ids from espd.append(:'batch') \gset
select case when array_agg(id) = :'ids' then 'repeated: the same positions' else 'stored twice' end
from espd.append(:'batch');

-- The same uuid with other content.
select * from espd.append(jsonb_set((:'batch'::jsonb)->0, '{body}', '{"late": true}'));
\echo :LAST_ERROR_SQLSTATE: the uuid belongs to another event

-- The bell, after the commit: daemons look at once, and not only within a second.
notify espd_events;

-- The read model has what was just appended.
select 'read: ' || espd.wait_for('outstanding_todos', :last, '10 seconds');
select 'title: ' || title from outstanding_todos where todo_id = :'other';

-- Later: what is scheduled under a key takes the place of what was, and can be cancelled.
select jsonb_build_object('aggregate_id', :'other', 'type', 'ReminderDue', 'body', '{}'::jsonb) as reminder \gset
select uuid as scheduled from espd.append_at('2126-01-31T12:00:00Z', :'reminder', key => 'todo-' || :'other') \gset
select 'cancelled: ' || espd.cancel_scheduled('todo-' || :'other');
select uuid as scheduled from espd.append_after('0 seconds', :'reminder', key => 'todo-' || :'other') \gset
