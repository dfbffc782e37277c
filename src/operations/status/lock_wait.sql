-- list_lock_waits
with recursive waiting as ({waiting}
), blocking (processor, pid) as ({blocking}
), chain (processor, pid, depth) as (
  select b.processor, b.pid, 1 from blocking as b
  union
  -- Who waits as well is not to blame, but who keeps it waiting.
  select c.processor, b.pid, c.depth + 1 from chain as c, unnest(pg_blocking_pids(c.pid)) as b (pid)
  where c.depth < 5
)
select distinct on (c.processor, c.pid)
       c.processor, w.seconds, w.relation,
       nullif(c.pid, 0) as pid, coalesce(a.usename, p.owner)::text as user_name, a.application_name, a.state,
       left(a.query, 200) as query, coalesce(a.xact_start, p.prepared) as begun_at, clock_timestamp() as now, p.gid
from chain as c
join waiting as w on w.processor = c.processor
left join pg_stat_activity as a on a.pid = c.pid
left join lateral (
  select x.gid, x.owner, x.prepared
  from pg_prepared_xacts as x
  join pg_locks as t on t.locktype = 'transactionid' and t.pid is null and t.transactionid = x.transaction
  where c.pid = 0 and x.database = current_database()
    and (x.transaction = w.transactionid
         or exists (select from pg_locks as h where h.virtualtransaction = t.virtualtransaction
                      and h.pid is null and h.relation = w.id))
  limit 1
) as p on true
where not exists (select from pg_locks as l where l.pid = c.pid and not l.granted)
-- A relation says more than a row.
order by c.processor, c.pid, w.relation is null, w.seconds desc
