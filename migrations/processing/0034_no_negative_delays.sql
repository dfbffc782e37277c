-- Oldest program: 10
--
-- As before (0019), and refuses a negative delay: what was to come later came at once, where programs and receivers are told.
create or replace function :"schema".emit_after(
  type text, aggregate_id uuid, body jsonb, after interval, key text default null, metadata jsonb default null
) returns void
language plpgsql
set search_path = :"schema", pg_temp
as $$
begin
  if emit_after.after < interval '0' then
    raise exception using errcode = 'ES004',
      message = format('%s is emitted after %s, which is negative', emit_after.type, emit_after.after);
  end if;
  perform emit_at(
    emit_after.type, emit_after.aggregate_id, emit_after.body, clock_timestamp() + emit_after.after, emit_after.key,
    emit_after.metadata);
end
$$;
