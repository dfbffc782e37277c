-- Tables of projectors are dropped and made again by a reset. What others have made on them (grants, policies, comments,
-- publications) is carried over; what cannot be is told before it is lost.

-- What espd has made with the tables, in the words of the statement that lists what depends on them: tables, declared DDL,
-- default privileges. Whatever else is there was made by others. Null where the tables were made before this was recorded.
alter table :"schema".declarations add column if not exists made text[];

-- What is to be made again when a program that alone knows its tables makes them at its next start.
create table if not exists :"schema".carried_over (
  processor   text    not null,
  -- In which order.
  place       integer not null,
  item        text    not null,
  statement   text    not null,
  -- Whether the processor has to wait for an operator where the statement fails.
  is_required boolean not null,
  primary key (processor, place)
);
