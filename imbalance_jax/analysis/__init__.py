"""Numbers of a study, made from its run directories: tables, laws, effects, verdicts."""
