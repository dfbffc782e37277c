-- Oldest program: 10
--
-- A projector that began beyond the start of the store is reset to where it began: its tables never held what was before.
-- Null where the processor began with the first event, or before this was noted.
alter table :"schema".trackers add column if not exists began_at bigint;
