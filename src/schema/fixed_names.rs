//! What the migrations make under names that nobody can choose. A test compares the lists with a database.

/// Tables, their indexes and sequences, and views.
#[rustfmt::skip]
pub(super) const RELATIONS: &[&str] = &[
    "_event_store_migrations", "_event_store_migrations_pkey", "_processing_migrations",
    "_processing_migrations_pkey", "bell", "build_progress", "build_progress_pkey", "carried_over", "carried_over_pkey", "changed_events",
    "changed_events_event_id_idx", "changed_events_id_seq", "changed_events_pkey", "commands",
    "commands_aggregate_idx", "commands_at_idx", "commands_pkey", "dead_letters",
    "dead_letters_age_idx", "dead_letters_aggregate_idx", "dead_letters_instance_idx", "dead_letters_pkey", "dead_letters_retry_idx",
    "declarations", "declarations_pkey", "deleted_aggregates", "deleted_aggregates_id_seq",
    "deleted_aggregates_pkey", "deliveries", "deliveries_pkey", "effects", "effects_id_seq", "effects_pkey",
    "effects_processor_idx", "emissions", "emissions_id_seq", "emissions_next_idx", "emissions_pkey",
    "emissions_reactor_key_key", "emissions_uuid_key", "event_schemas", "event_schemas_pkey",
    "operator_log", "operator_log_id_seq", "operator_log_pkey", "owned_relations", "projection_tables",
    "projection_tables_pkey", "rebuilds", "rebuilds_pkey", "reload_requests", "reload_requests_id_seq", "reload_requests_open_idx",
    "reload_requests_pkey", "scheduled_events", "scheduled_events_id_seq", "scheduled_events_key_idx",
    "scheduled_events_next_idx", "scheduled_events_pkey", "scheduled_events_uuid_key", "signs_of_life",
    "signs_of_life_pkey", "snapshots", "snapshots_pkey", "tag_events", "tag_events_event_id_tag_key",
    "tag_events_pkey", "tag_heads", "tag_heads_pkey", "unique_keys", "unique_keys_aggregate_id_idx",
    "unique_keys_pkey", "unverified", "unverified_pkey", "verifications", "verifications_pkey", "witnesses", "witnesses_pkey", "workers", "workers_pkey",
    "workflow_instances", "workflow_instances_pkey", "workflow_steps", "workflow_steps_pkey",
];

/// Functions.
#[rustfmt::skip]
pub(super) const FUNCTIONS: &[&str] = &[
    "begin_synchronous", "drop_synchronous_triggers", "follow_synchronous", "hold_appends", "is_synchronous",
    "synchronous_triggers", "take_turn", "describe_triggers", "find_unmet_triggers", "has_met_all", "identify_database",
    "triggers_to_remember",
    "approve_rebuild", "exchange_versions", "merge_versions", "move_processor",
    "must_ring", "ring_bell", "set_bell",
    "accept_history", "advance_tracker", "append_due", "append_due_events", "append_scheduled",
    "append_listed", "append_several", "is_by_index", "append_tagged", "append_with_tags", "archive_change", "archive_changes", "are_short_texts", "begin_emission", "cancel",
    "cancel_emissions", "cancel_scheduled_events", "change_emissions", "change_keys", "count_events",
    "delete_aggregate", "departure", "discard_dead_letters", "drop_processor", "emit", "emit_after",
    "emit_at", "find_appended", "find_appended_tagged", "find_departing", "find_departing_item",
    "find_departing_property", "find_departure", "find_fault", "find_fault_of_condition",
    "find_fault_of_item", "find_fault_of_items", "find_fault_of_tags", "find_fault_of_time", "find_tagged",
    "find_token", "find_unmet", "find_unreadable", "follow_tracker_of_workflow", "follow_version", "forget_declaration",
    "forget_events", "forget_steps_of_dead_letter", "has_format", "has_type", "has_zone", "hold_trackers", "is_replaying",
    "keep_emission", "keep_scheduled", "lock_tags", "lock_tracker", "lock_unowned", "log_act",
    "log_scheduled", "log_witness", "note_movement", "note_witness", "nothing_stored", "pause_processor", "read_tagged",
    "rebuild_processor", "refuse_beyond", "refuse_departing", "refuse_foreign_writes", "refuse_unmet", "remove_dead_letter",
    "rename_processor", "request_reload", "reset_processor", "reset_tracker", "resume_processor",
    "retry_dead_letters", "retry_emissions", "retry_processor", "retry_scheduled_events", "set_aside",
    "set_aside_behind", "set_aside_behind_instance", "set_aside_by_operator", "wait_for",
];
