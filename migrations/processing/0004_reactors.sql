-- Up to here a reactor has acted before a reset: it handles these events again without repeating effects.
alter table :"schema".trackers add column silent_until bigint not null default 0 check (silent_until >= 0);
