-- The function that is compiled from the handlers of one projector or reactor. One call is one batch: it locks the tracker,
-- runs the handlers for the events in order, and moves the position, all in the caller's transaction.
--
-- `template.rs` fills in what is in double braces, and leaves out a section whose condition does not hold. The function's
-- own names begin with `espd_` here; where a handler has such a name, they are given another beginning (`gate.rs`).
-- The parameters have no name that a handler could reach.
create or replace function {{function}}(
  out bigint, out integer, out jsonb, out boolean,
  integer, bigint, bigint, bigint, integer, bigint, interval, interval, real, bigint
  --{{if passed}}
  -- The batch, one element per event.
  , bigint[], uuid[], uuid[], text[], bigint[], jsonb[], jsonb[], uuid[], uuid[], timestamptz[]
  --{{end}}
)
language plpgsql
{{scope}}
-- Rows that a policy hides would seem not to exist: an error says so instead.
set row_security = off
set jit = off
-- A plan made while a projection was small must not scan it once it is large.
set enable_seqscan = off
-- A plan for the values of one event raises what PostgreSQL can compute while it plans, also of rows that no event reaches. The
-- first few calls of a session would have such plans and later ones would not, so that an event failed or not as it happened.
set plan_cache_mode = force_generic_plan
as $espd_body$
#variable_conflict use_column
declare
  espd_position  alias for $1;
  espd_handled   alias for $2;
  espd_failure   alias for $3;
  espd_finished  alias for $4;
  espd_partition alias for $5;
  espd_epoch     alias for $6;
  espd_from      alias for $7;
  espd_upto      alias for $8;
  espd_limit     alias for $9;
  espd_bytes_max alias for $10;
  espd_time_max  alias for $11;
  espd_lease     alias for $12;
  espd_rate      alias for $13;
  -- Whether the events have been handled when they were inserted, so that only the position is to be moved.
  espd_synchronous boolean := false;
  -- The events to handle come after this one.
  espd_after bigint;
  -- Instead of a batch: the event of this dead letter.
  espd_letter    alias for $14;
  event record;
  --{{if guarded}}
  -- The event, whatever a handler makes of its record.
  espd_event record;
  --{{end}}
  -- Which of the handlers is for the event.
  espd_handler integer;
  -- Whether the event is being handled, and not the next one read.
  espd_at_work boolean;
  -- The event that has failed.
  espd_id bigint;
  -- Events up to here were handled before a reset.
  espd_silent_until bigint;
  -- Whether an event that is set aside may be met, or one that has to wait behind it.
  espd_parking boolean;
  -- What the store has to say still, so that it is the one that was followed: which event is the last one at or below a position.
  espd_witness_at bigint;
  espd_witness_id bigint;
  espd_witness_uuid uuid;
  espd_partitions bigint[];
  espd_diverged boolean := false;
  -- The event that was handled last.
  espd_last_id bigint;
  espd_last_uuid uuid;
  espd_bytes bigint;
  --{{if folded}}
  -- Whether the batch has been handled by its net effect.
  espd_folded boolean := false;
  -- How many batches are not to be folded because others could not be, and how many there were to be the last time.
  espd_folding integer[];
  --{{end}}
  --{{if stored}}
  -- What the session had changed of espd's own before this batch.
  espd_changes bigint := {{own_changes}};
  --{{end}}
  --{{if unreadable}}
  -- Whether the event could not be read; up to where all can be, how many ids are read next, and up to which one.
  espd_unreadable boolean;
  espd_readable bigint;
  espd_step bigint;
  espd_probe bigint;
  --{{end}}
  espd_deadline timestamptz := clock_timestamp() + espd_time_max;
  espd_state text;
  espd_message text;
  espd_detail text;
  espd_hint text;
  espd_context text;
begin
  -- No batch waits for a lock without end and unseen: after this time it is an outage, which the status shows.
  if current_setting('lock_timeout') = '0' then
    perform set_config('lock_timeout', '30s', true);
  end if;
  select l.silent_until, l.parking, l.witness_at, l.witness_id, l.witness_uuid,
      l.events_partitions
    into espd_silent_until, espd_parking, espd_witness_at, espd_witness_id, espd_witness_uuid,
      espd_partitions
    from {{schema}}.lock_tracker({{processor}}, {{version}}, espd_partition, epoch => espd_epoch,
      at_position => case when espd_letter is null then espd_from end, dead_letter => espd_letter) as l;
  if not found then
    -- The caller is no longer the owner, or the processor is paused.
    espd_finished := true;
    return;
  elsif espd_silent_until is null then
    -- An operator has discarded the dead letter.
    espd_position := espd_letter;
    espd_handled := 0;
    espd_finished := true;
    return;
  end if;
  --{{if synchronous}}
  espd_synchronous := {{schema}}.is_synchronous({{processor}}, {{version}}, espd_partition);
  --{{end}}
  espd_after := case when espd_synchronous then espd_upto else espd_from end;
  --{{if reactor}}
  -- Says to `espd.emit` who emits.
  perform {{emits_as}}, set_config('espd.outbox', {{outbox}}, true),
    set_config('espd.partition', espd_partition::text, true);
  --{{end}}
  --{{if folded}}
  if espd_letter is null and not espd_parking and least(espd_limit, espd_upto - espd_after) >= {{least}}
    and espd_time_max >= interval '100 ms' and current_setting('transaction_isolation') = 'read committed'
  then
    espd_folding := coalesce(nullif(current_setting({{setting}}, true), ''), '{0,0}')::integer[];
    if espd_folding[1] > 0 then
      perform set_config({{setting}}, array[espd_folding[1] - 1, espd_folding[2]]::text, false);
    else
      begin
        select f.* into espd_position, espd_handled, espd_last_id, espd_last_uuid
          from {{fold}}(espd_after, espd_upto, espd_limit, espd_bytes_max) as f (a, b, c, d);
        espd_folded := espd_handled is not null;
        if espd_folded then
          -- Also says that the last batch was folded.
          perform set_config({{setting}}, '{0,0}', false);
        end if;
      exception when others then
        get stacked diagnostics espd_state = returned_sqlstate;
        -- What the server lacks for a fold, as room for a sort, the loop may not need.
        if espd_state like any (array[{{infrastructure}}]) and espd_state not like all (array['53%', '42501']) then
          raise;
        end if;
        -- The loop finds out whether there is a failure, and at which event. A batch that is handled twice costs more than
        -- folding gains, so the next ones are not even tried.
        espd_folded := false;
        espd_folding[2] := least(greatest(espd_folding[2] * 2, 1), 64);
        perform set_config({{setting}}, array[espd_folding[2], espd_folding[2]]::text, false);
      end;
    end if;
  end if;
  if not espd_folded then
  -- The time of a batch is that of the loop: what was tried in vain shall not leave it with one event.
  espd_deadline := clock_timestamp() + espd_time_max;
  --{{end}}
  -- When a handler fails: once to meet the failing event, once more for those before it.
  loop
    espd_position := espd_upto;
    espd_handled := 0;
    espd_bytes := 0;
    espd_at_work := false;
    espd_id := null;
    espd_last_id := null;
    --{{if layered}}
    -- A plan may compute bodies, and conditions of upcasts, before it sorts and cuts off. So where the batch ends is found
    -- in the events as they are stored: one that cannot be read must not be an error of the events before it.
    select case when count(*) >= espd_limit then max(e.id) else espd_upto end into espd_position
      from (select e.id from {{stored_source}} as e
        where e.id > espd_after and e.id <= espd_upto{{of_stored_types}}
        order by e.id limit espd_limit) as e;
    --{{end}}
    begin
      for event in
        --{{if passed}}
        -- `espd_upto` shrinks when a handler fails.
        select {{columns}} from unnest($15, $16, $17, $18, $19, $20, $21, $22, $23, $24) as e({{columns}})
        where e.id <= espd_upto order by e.id
        --{{end}}
        --{{if table}}
        select {{used}} from {{source}} as e
        where e.id > espd_after and e.id <= espd_upto{{of_types}}
        order by e.id limit espd_limit
        --{{end}}
        --{{if limited}}
        -- The rows are cut off before anything is computed of them: a body that cannot be read must not be an error of the
        -- events before it, and reading one takes longer than finding it.
        select {{used}} from {{before_table}}(
          select e.* from {{table}} as e
          where e.id > espd_after and e.id <= espd_upto{{of_stored_types}}
          order by e.id limit espd_limit) as stored{{behind_table}} as e
        order by e.id
        --{{end}}
        --{{if layered}}
        select {{used}} from {{source}} as e
        where e.id > espd_after and e.id <= espd_position{{of_types}}
        order by e.id
        --{{end}}
      loop
        espd_at_work := true;
        --{{if guarded}}
        espd_event := event;
        --{{end}}
        if espd_parking and {{schema}}.set_aside_behind({{processor}}, {{version}}, espd_partition, event.id, event.uuid,
             event.type, event.aggregate_id::text) then
          null;
        else
        --{{if reactor}}
        -- Says to `espd.emit` which event is at hand.
        perform set_config('espd.source', event.uuid::text, true),
          set_config('espd.correlation', coalesce(event.correlation_id, event.uuid)::text, true),
          set_config('espd.depth',
            coalesce(substring(event.metadata #>> '{espd,depth}' from '^[0-9]{1,6}$'), '0'), true),
          set_config('espd.emitted', '0', true),
          set_config('espd.replaying', case when event.id <= espd_silent_until then 'on' else 'off' end, true);
        --{{end}}
--{{handlers}}
        --{{if guarded}}
        event := espd_event;
        --{{end}}
        --{{if deferrable}}
        -- A deferred constraint would fail at the commit, where no event can be named any more.
        set constraints all immediate;
        set constraints all deferred;
        --{{end}}
        end if;
        espd_at_work := false;
        espd_handled := espd_handled + 1;
        espd_bytes := espd_bytes + pg_column_size(event.body);
        if espd_bytes >= espd_bytes_max or clock_timestamp() >= espd_deadline then
          espd_position := event.id;
          exit;
        end if;
      end loop;
      -- Once for the batch, because assignments for each event cost time: the record is still that of the last one.
      if espd_handled > 0 then
        espd_last_id := event.id;
        espd_last_uuid := event.uuid;
        if espd_handled >= espd_limit then
          espd_position := espd_last_id;
        end if;
      end if;
      exit;
    exception when others or assert_failure then
      get stacked diagnostics
        espd_state = returned_sqlstate, espd_message = message_text, espd_detail = pg_exception_detail,
        espd_hint = pg_exception_hint, espd_context = pg_exception_context;
      if espd_at_work then
        --{{if guarded}}
        event := espd_event;
        --{{end}}
        espd_id := event.id;
      end if;
      --{{if unreadable}}
      -- No handler has failed, so an event could not be read: its JSON is one that `jsonb` refuses, such as a zero
      -- character, or an upcast fails. This finds the first such event, whatever the plan has met first: ever more of the events
      -- are read, then ever fewer.
      espd_unreadable := espd_id is null and not espd_state like any (array[{{infrastructure}}]);
      if espd_unreadable then
        espd_readable := espd_after;
        espd_step := 1000;
        while espd_readable < espd_position and espd_id is distinct from espd_readable + 1 loop
          espd_probe := case when espd_id is null then least(espd_readable + espd_step, espd_position)
            else (espd_readable + espd_id) / 2 end;
          begin
            perform sum(pg_column_size(row({{used}}))) from {{source}} as e
              where e.id > espd_readable and e.id <= espd_probe{{of_types}};
            espd_readable := espd_probe;
            espd_step := espd_step * 2;
          exception when others then
            -- It is behind what can be read, and no farther than this.
            espd_id := espd_probe;
          end;
        end loop;
        select e.id, e.uuid, e.aggregate_id, e.type::text as type into event from {{stored_source}} as e where e.id = espd_id;
        begin
          event.type := coalesce((select e.type from {{source}} as e where e.id = espd_id), event.type);
        exception when others then
          -- An upcast fails at the type as well: it stays the stored one.
          null;
        end;
      end if;
      --{{end}}
      if espd_id is null or espd_state like any (array[{{infrastructure}}]) then
        raise;
      end if;
      espd_failure := jsonb_build_object(
        'event_id', espd_id, 'event_uuid', event.uuid, 'event_type', event.type,
        'aggregate_id', event.aggregate_id, 'sqlstate', espd_state,
        'message', left(espd_message, {{text_max}}), 'detail', nullif(left(espd_detail, {{text_max}}), ''),
        'hint', nullif(left(espd_hint, {{text_max}}), ''), 'context', right(espd_context, {{text_max}}));
      --{{if unreadable}}
      if espd_unreadable then
        espd_failure := espd_failure || '{"unreadable": true}';
      end if;
      --{{end}}
      espd_upto := espd_id - 1;
      -- They were handled in time once; all of them have to be before the failure is told.
      espd_deadline := 'infinity';
    end;
  end loop;
  --{{if folded}}
  end if;
  --{{end}}
  --{{if synchronous}}
  if espd_synchronous then
    -- Asked after the events were committed: as long as the triggers are those that espd has made, they have met all of them.
    if not {{schema}}.has_met_all({{processor}}, {{version}}, espd_partition) then
      raise exception using errcode = {{diverged}}, message = 'events may not have met the trigger that handles them';
    end if;
    select count(*) into espd_handled from {{source}} as e where e.id > espd_from and e.id <= espd_upto{{of_types}};
    -- Says to the tracker that this is known.
    perform set_config('espd.synchronous', 'on', true);
  end if;
  --{{end}}
  --{{if stored}}
  -- Asked after the events were read: whoever sets the store back later does so after them as well.
  -- That there was no event is a witness too: its id is 0. Each question is an expression of its own: of one for both, the
  -- server would make a new plan for each batch, because one that knows of no partitions promises to be that much cheaper.
  if espd_witness_at is not null then
    espd_diverged := not exists (
      select from (values (true)) as one left join lateral (
        select e.id, e.uuid from {{events_table}} as e where e.id <= espd_witness_at order by e.id desc limit 1
      ) as w on true
      where coalesce(w.id, 0) = espd_witness_id
        and coalesce(w.uuid, '00000000-0000-0000-0000-000000000000') = espd_witness_uuid
    );
  end if;
  if espd_partitions is not null and not espd_diverged then
    espd_diverged := espd_partitions is distinct from (
      {{attachments}}
    );
  end if;
  if espd_diverged then
    raise exception using errcode = {{diverged}}, message = 'the event store is not the one that was followed';
  end if;
  select espd_position, coalesce(w.id, 0), coalesce(w.uuid, '00000000-0000-0000-0000-000000000000')
    into espd_witness_at, espd_witness_id, espd_witness_uuid
    from (values (true)) as one left join lateral (
      select e.id, e.uuid from {{events_table}} as e where e.id <= espd_position order by e.id desc limit 1
    ) as w on true;
  -- If the last event that was handled has gone meanwhile, or is another one, the next batch finds that out.
  if espd_last_id > coalesce(espd_witness_id, 0) then
    espd_witness_at := espd_last_id;
    espd_witness_id := espd_last_id;
    espd_witness_uuid := espd_last_uuid;
  elsif espd_last_id = espd_witness_id then
    espd_witness_uuid := espd_last_uuid;
  end if;
  --{{end}}
  --{{if passed}}
  -- Whoever has read the events notes their witness.
  espd_witness_id := null;
  --{{end}}
  --{{if stored}}
  if espd_handled > 0 and espd_changes <> {{own_changes}} then
    raise exception using errcode = {{foreign_write}},
      message = 'the batch has changed stored events, trackers or projection_tables, which are espd''s own: nothing of it is committed',
      hint = 'A handler may change tables that its processor declares. What is wrong in an event, another event puts right.';
  end if;
  --{{end}}
  if espd_handled > 0 then
    perform {{schema}}.refuse_foreign_writes({{processor}}, espd_epoch);
  end if;
  if espd_letter is not null then
    if espd_failure is null then
      perform {{schema}}.remove_dead_letter({{processor}}, {{version}}, espd_partition, espd_letter);
    end if;
  elsif not {{schema}}.advance_tracker({{processor}}, {{version}}, espd_partition, epoch => espd_epoch,
      from_position => espd_from, to_position => espd_position, handled => espd_handled, lease => espd_lease,
      caught_up => espd_position >= espd_upto and espd_failure is null, rate => espd_rate,
      failing => espd_failure is not null,
      witness_at => espd_witness_at, witness_id => espd_witness_id, witness_uuid => espd_witness_uuid) then
    raise exception 'a handler of projector % changed the tracker', {{processor}};
  elsif espd_handled = 0 and espd_failure is null then
    -- Nothing depends on this commit: if it is lost in a crash, the same events are passed again.
    perform set_config('synchronous_commit', 'off', true);
  end if;
  espd_finished := true;
end
$espd_body$
