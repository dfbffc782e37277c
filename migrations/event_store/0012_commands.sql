-- Commands: what came, what became of it, and who sent it, for applications that record them.
-- Oldest program: 4
--
-- A command that has led to events is recorded in their transaction. Rows may be deleted when nobody will repeat a command of that
-- age, and nobody asks any more who sent it: `espctl commands prune`.

create table if not exists :"schema".commands (
  command_id   uuid        not null,
  name         text        not null check (name <> ''),
  aggregate_id text        not null,
  -- The fields, without secrets.
  body         jsonb       not null,
  -- What the events got as metadata: who it was, for example.
  metadata     jsonb       not null,
  outcome      text        not null,
  -- What the sender was answered, and is answered again.
  answer       jsonb       not null,
  at           timestamptz not null,
  constraint commands_pkey primary key (command_id)
);

create index if not exists commands_at_idx on :"schema".commands (at);
create index if not exists commands_aggregate_idx on :"schema".commands (aggregate_id, at);

comment on table :"schema".commands is 'What applications have been asked to do, and what became of it.';
