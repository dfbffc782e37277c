-- Oldest program: 10
--
-- What a comparison has found is kept without values of rows and events: nobody reads them there, and what is kept of a person would
-- have to be forgotten. Programs of before have kept some of both.
update :"schema".rebuilds as r
set difference = r.difference
  || jsonb_build_object('tables', (
    select coalesce(jsonb_agg(t.found || '{"examples": []}' order by t.place), '[]')
    from jsonb_array_elements(r.difference -> 'tables') with ordinality as t (found, place)))
  || case jsonb_typeof(r.difference -> 'dead_letters')
    when 'object' then jsonb_build_object('dead_letters', (r.difference -> 'dead_letters') || '{"examples": []}')
    else '{}'
  end
where jsonb_typeof(r.difference -> 'tables') = 'array';
