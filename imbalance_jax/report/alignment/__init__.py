"""The section of a run's page on what its languages have in common."""
