-- Rows that a row security policy hides look like rows that do not exist: no tracker, no dead letter that others wait
-- behind, no emission to cancel. So every function that looks into a table refuses to look through a policy: PostgreSQL
-- raises 42501 then, and whoever runs a processor waits until the policy is gone or the role may bypass it. Functions that
-- later files make carry the setting themselves.
-- Oldest program: 10
alter function :"schema".lock_tracker set row_security = off;
alter function :"schema".advance_tracker set row_security = off;
alter function :"schema".log_witness set row_security = off;
alter function :"schema".note_witness set row_security = off;
alter function :"schema".set_aside set row_security = off;
alter function :"schema".set_aside_behind set row_security = off;
alter function :"schema".remove_dead_letter set row_security = off;
alter function :"schema".keep_emission set row_security = off;
alter function :"schema".emit set row_security = off;
alter function :"schema".emit_at set row_security = off;
alter function :"schema".cancel set row_security = off;
alter function :"schema".follow_version set row_security = off;
alter function :"schema".forget_declaration set row_security = off;
