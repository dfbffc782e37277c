-- Oldest program: 10
--
-- The fingerprints of the declarations that the tables of a version were made or altered from before the present one. A daemon that
-- still has one of them, as in a deploy that rolls, goes on with the tables as they are, and undoes nothing.
alter table :"schema".declarations add column if not exists altered_from text[];
