-- Oldest program: 10
--
-- The projectors that `[verify]` asks for and whose tables are not verified slice by slice: why, and since when. The daemons that would
-- verify them write it each time that they try, at least once in an hour, and remove it once they have verified a slice: a row that was
-- not written for longer says nothing any more.
create table if not exists :"schema".unverified (
  processor  text        not null primary key,
  because    text        not null,
  -- Whether it stays so until the declaration changes.
  lasting    boolean     not null,
  since      timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp()
);
