-- Reading what belongs to one correlation.
-- Oldest program: 4

-- Building an index keeps writers out, so it is built here only where that is short. Otherwise the operator builds it first,
-- which keeps nobody out, and it is found here.
set local lock_timeout = '2s';
set local espd.migrated_schema = :"schema";

do $$
declare
  events constant regclass := format('%I.events', current_setting('espd.migrated_schema'))::regclass;
  size   bigint;
begin
  select sum(pg_relation_size(part.relid)) into size from pg_partition_tree(events) as part;
  if size > 4 * 1024.0 ^ 3 and not exists (
    select from pg_index as i join pg_class as c on c.oid = i.indexrelid
    where i.indrelid = events and c.relname = 'events_correlation_id_idx')
  then
    raise exception using
      message = format('%s has %s: building an index here would keep writers out for long', events, pg_size_pretty(size)),
      hint = format('run this first, outside of a transaction, and migrate again: create index concurrently '
        'events_correlation_id_idx on %s (correlation_id) where correlation_id is not null', events);
  end if;
end
$$;

-- Events without a correlation are not in it and cost nothing. One with a correlation costs its append one entry.
create index if not exists events_correlation_id_idx on :"schema".events (correlation_id)
  where correlation_id is not null;
