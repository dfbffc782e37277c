-- read_table_columns
select a.attname::text as name, a.atttypid::bigint as kind, format_type(a.atttypid, null) as type_name,
  format_type(a.atttypid, a.atttypmod) as full_type, a.atttypmod as modifier, a.attnotnull as is_required,
  pg_get_expr(d.adbin, d.adrelid) as default_value,
  array_position(i.indkey::int2[], a.attnum) is not null as is_key,
  coalesce(l.collisdeterministic, true) as is_deterministic,
  coalesce((select max(among.number)
    from pg_index as x
    cross join lateral (
      select greatest(count(*), 1) as number
      from pg_attribute as w
      where w.attrelid = x.indrelid and w.attnum = any (x.indkey::int2[]) and w.attlen < 0
    ) as among
    where x.indrelid = a.attrelid and a.attnum = any (x.indkey::int2[])), 0) as indexed_among
from pg_attribute as a
left join pg_attrdef as d on d.adrelid = a.attrelid and d.adnum = a.attnum
left join pg_index as i on i.indrelid = a.attrelid and i.indisprimary
left join pg_collation as l on l.oid = a.attcollation
where a.attrelid = to_regclass($1) and a.attnum > 0 and not a.attisdropped
order by a.attnum
