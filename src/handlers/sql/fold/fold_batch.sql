-- The function that handles a batch by its net effect on each row, for handlers that have been recognised. It is called by the one
-- that `project_batch.sql` makes, behind a savepoint and under its settings. Whatever is in doubt is an error, after which
-- the batch is handled event by event. Nothing is returned where the batch has too few events or one that is not for it.
create or replace function {{function}}(
  out bigint, out integer, out bigint, out uuid, bigint, bigint, integer, bigint
)
language plpgsql
set search_path = {{search_path}}
set row_security = off
set jit = off
-- Rows are found by their keys: whatever the planner thinks of a table that was small, it shall not read all of it, and not
-- compare each row with each of the batch.
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
-- The last value of a column is the last one of a sorted group.
set enable_hashagg = off
set plan_cache_mode = force_generic_plan
as $espd_body$
#variable_conflict use_column
declare
  espd_found record;
  espd_fewer integer;
begin
  --{{if foldable}}
  -- What a trigger or a default does outside of the transaction is not undone with the savepoint.
  if not ({{unchanged}}) then
    raise exception 'a table has changed';
  end if;
  if $7 > {{large}} then
    -- What a large batch sorts stays in memory.
    perform set_config('work_mem', greatest(pg_size_bytes(current_setting('work_mem')) / 1024, 32 * 1024) || 'kB', true);
  end if;
  --{{end}}
  --{{if measured}}
  -- Values are computed as events are summed up, and a body that is kept outside of its row may be of any size. So where there is
  -- one, it is known before how many events are not too many bytes; to know its size, it is not read.
  if exists (
    select from (select {{table}}::regclass union all select relid from pg_partition_tree({{table}})) as t (relid)
      join pg_class as c on c.oid = t.relid
    where c.reltoastrelid <> 0 and pg_relation_size(c.reltoastrelid) > 0
  ) then
    loop
      select count(*) as handled, coalesce(sum(pg_column_size(event.body)), 0) as bytes into espd_found
        from ({{events}}) as event;
      exit when espd_found.bytes < $8;
      $7 := espd_found.handled * 0.9 * $8 / espd_found.bytes;
      if $7 < {{least}} then
        return;
      end if;
    end loop;
  end if;
  --{{end}}
  --{{if foldable}}
  loop
    with {{ctes}}
    select g.*, (select last.uuid from {{source}} as last where last.id = g.last_id) as last_uuid,
      {{doubts}} as doubt
      into espd_found from gate as g;
    exit when espd_found.go;
    -- Nothing has been done yet. If it is too many bytes, fewer events are tried.
    espd_fewer := espd_found.handled * 0.9 * $8 / greatest(espd_found.bytes, 1);
    if espd_found.bytes < $8 or not espd_found.is_own or espd_fewer < {{least}} then
      return;
    end if;
    $7 := espd_fewer;
  end loop;
  if espd_found.doubt is distinct from false then
    raise exception 'the order of the events matters';
  end if;
  -- Now the statement holds locks on the tables, so this cannot change any more before the commit.
  if not ({{unchanged}}) then
    raise exception 'a table has changed';
  end if;
  $1 := case when espd_found.handled >= $7 then espd_found.last_id else $6 end;
  $2 := espd_found.handled;
  $3 := espd_found.last_id;
  $4 := espd_found.last_uuid;
  --{{end}}
end
$espd_body$
